"""The same model through torch.export and through the recorder: parameters and FLOPs, at full depth."""

from collections.abc import Callable
from typing import Any

import torch

from foretrace.capture import capture_graph, graph_from_fx, resolve_model
from foretrace.capture.inputs import Sampler

from .counting import left_out_of, our_flops
from .jobs import Job

SIZES = {"batch": 2, "seq": 64, "target": 48, "frames": 100}


def export_job(job: Job, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Record, then export at one of the sizes that the recorded graph answers, and compare."""
    model = resolve_model(job.name)
    recorded = capture_graph(model, phase="forward")
    at = recorded.bind({n: max(SIZES.get(n, 2), s.minimum) for n, s in recorded.symbols.items()})
    point = at | {n.removeprefix("fixed."): int(v) for n, v in recorded.metadata.items() if n.startswith("fixed.")}
    attention = recorded.metadata["attention"]
    root = model.build(None, attention if attention in ("sdpa", "eager") else "eager")
    sampler = Sampler(root, model.config, "meta")
    inputs: dict[str, Any] = dict(model.family.make(sampler, point))
    for config in {id(c): c for m in root.modules() if (c := getattr(m, "config", None)) is not None}.values():
        config.use_cache = False  # torch.export knows no caches among results
    if sampler.takes("use_cache"):
        inputs["use_cache"] = False
    left_out = left_out_of(recorded)
    found: dict[str, Any] = {
        "parameters": recorded.parameter_count, "flops": recorded.flops(at), "at": point,
        "seen": our_flops(recorded, at, left_out),
    }  # fmt: skip
    keep(found)
    try:
        with torch.no_grad():
            program = torch.export.export(root, (), inputs, strict=False)
    except Exception as e:  # whatever torch.export says of this model
        lines = [line.strip() for line in str(e).splitlines() if line.strip()]
        return found | {"refused": f"torch.export: {type(e).__name__}: {lines[0] if lines else ''}"[:300]}
    exported = graph_from_fx(program, name=job.name)
    return found | {
        "their_parameters": exported.parameter_count, "their_flops": exported.flops({}),
        "their_seen": our_flops(exported, {}, left_out),
    }  # fmt: skip
