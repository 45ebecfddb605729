"""A user's own nn.Module with example inputs: one forward of it as a step, and its Graph at their shape."""

from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from foretrace.ir import ForetraceError, Graph

from .build import merge
from .models import UserModel
from .phases import Step
from .recorder import record
from .symbolic import DimSolver


def user_step(model: UserModel, phase: str, device: str) -> tuple[torch.nn.Module, Step]:
    """*model* moved to *device* and the step that runs it on its example inputs (integers stay real on meta)."""
    if phase != "forward":
        raise ForetraceError(f"{model.name}: a module of your own runs in phase forward only, got {phase!r}")

    def move(value: object) -> object:
        if not isinstance(value, torch.Tensor):
            return value
        on_meta = device == "meta" and not (value.dtype.is_floating_point or value.dtype.is_complex)
        return value if on_meta else value.to(device)

    args, kwargs = tree_map(move, (model.args, dict(model.kwargs)))
    leaves = tree_leaves((args, kwargs))
    inputs = {f"input.{i}": t for i, t in enumerate(leaves) if isinstance(t, torch.Tensor)}
    root = _tied_to(model.module, device)

    def run() -> dict[str, torch.Tensor]:
        out = root(*args, **kwargs)
        leaves = tree_leaves(dict(out) if isinstance(out, dict) else out)
        return {f"output.{i}": t for i, t in enumerate(leaves) if isinstance(t, torch.Tensor)}

    return root, Step(inputs, run)


def _tied_to(root: torch.nn.Module, device: str) -> torch.nn.Module:
    """*root* moved to *device*; weights that were one stay one (`Module.to` splits them on the way to meta)."""
    moved: dict[int, torch.Tensor] = {}

    def twin(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in moved:
            there = tensor.detach().to(device)
            if isinstance(tensor, torch.nn.Parameter):
                there = torch.nn.Parameter(there, requires_grad=tensor.requires_grad)
            moved[id(tensor)] = there
        return moved[id(tensor)]

    for module in root.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for table in tables:
            table.update({name: twin(t) for name, t in table.items() if t is not None})
    return root


def capture_user_model(model: UserModel, phase: str) -> Graph:
    """The Graph of one forward of *model* on its example inputs; every size is fixed to theirs.

    Raises `ForetraceError` with the module's own error where its forward fails on meta.
    """
    root, step = user_step(model, phase, "meta")
    try:
        recording = record(root, step.run, step.inputs)
    except Exception as e:  # the user's code: any error is theirs to see
        raise ForetraceError(f"{model.name}: its forward failed on the meta device: {type(e).__name__}: {e}") from e
    metadata = {"source": model.name, "recorder": "dispatcher", "torch": torch.__version__.split("+")[0]}
    return merge(model.name, phase, {}, [(recording, {})], DimSolver([{}], []), metadata)
