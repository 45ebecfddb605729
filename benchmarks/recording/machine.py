"""The system that is recorded, as a YAML file beside what it measured: then another machine can score it."""

from pathlib import Path
from typing import Any, Final

from foretrace.ir import FREE_KINDS, OpKind
from foretrace.replay.lower import VIEW_DISPATCH_SHARE

from .items import Item

SYSTEM: Final = "system.yaml"
HEAD: Final = "# What was recorded in this folder was measured on this system (benchmarks/record.py).\n"
DISPATCHED: Final = Item("dispatch", "forward", 1, 2)
"""A step whose operators do nothing: what is left is the host."""


def dispatch_s(step_s: float, kernels: int, views: int, floor_s: float) -> float:
    """s that the host takes to issue one operator, of a step of *kernels* and *views* that do nothing."""
    return max(step_s - kernels * floor_s, 0.0) / (kernels + VIEW_DISPATCH_SHARE * views)


def measure_dispatch(device: str, folder: Path, floor_s: float) -> float:
    """The same, measured here: a Llama of 16 layers of width 32, two tokens."""
    import foretrace

    from .items import reference

    trace = foretrace.measure_model(
        reference(DISPATCHED.model, folder), device=device, phase="forward", batch=1, seq=2, dtype="float32",
        warmup=5, repeats=9,
    )  # fmt: skip
    graph = DISPATCHED.capture(folder)
    kernels = sum(op.kind not in FREE_KINDS for op in graph.ops)
    views = sum(op.kind in (OpKind.VIEW, OpKind.HOST) for op in graph.ops)
    return dispatch_s(trace.step_s or 0.0, kernels, views, floor_s)


def describe(device: str, name: str, folder: Path) -> str:
    """The YAML of this machine. Raises `UnknownNameError` for a GPU that the library does not know."""
    import yaml

    chip: Any
    if device == "cpu":
        from foretrace.hardware.this_machine import measure

        chip = measure() | {"name": name}
        floor_s = 0.5e-6
    else:
        import torch

        from foretrace.hardware import load_system

        chip = load_system(torch.cuda.get_device_name()).accelerator.name
        floor_s = 0.0  # the host does not wait for the kernels
    seconds = measure_dispatch(device, folder, floor_s)
    host = {"dispatch": f"{seconds * 1e6:.3g} us"}
    said = f"measured here: {DISPATCHED.name}, its step over its operators (benchmarks/recording/machine.py)"
    system = {"name": name, "accelerator": chip, "host": host | {"sources": {"dispatch": said}}}
    return HEAD + yaml.safe_dump(system, sort_keys=False, allow_unicode=True, width=110)
