"""One capture and its checks: FLOPs as torch counts them, every size at a point where it was never captured."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from foretrace.capture import capture_graph, catalogue, resolve_model
from foretrace.capture.aten import kind_of
from foretrace.capture.families import FAMILIES, Recipe
from foretrace.capture.loops import roll
from foretrace.capture.models import PretrainedModel
from foretrace.capture.phases import Step, make_step
from foretrace.capture.recorder import record_settled
from foretrace.capture.rejoin import rejoin
from foretrace.capture.training import record_training, set_to_train, train_step
from foretrace.ir import Graph, OpKind, evaluate_dim
from foretrace.ir.blocks import folded_size

from .counting import counted_flops, left_out_of, our_flops
from .jobs import Job

Result = dict[str, Any]


def capture_job(job: Job, keep: Callable[[Result], None]) -> Result:
    """Capture, *keep* what is known by then, then check."""
    model = default_model(job.name) if job.group == "types" else resolve_model(job.name)
    start = time.process_time()
    graph = capture_graph(model, phase=job.phase)
    seconds = time.process_time() - start
    at = held_out(graph)
    fixed = {n.removeprefix("fixed."): int(v) for n, v in graph.metadata.items() if n.startswith("fixed.")}
    point = at | fixed
    found: Result = {
        "rung": graph.metadata.get("rung", ""), "family": model.family.name, "ops": len(graph.ops),
        "folded": folded_size(graph), "parameters": graph.parameter_count,
        "published": catalogue().get(model.name, {}).get("parameters"), "flops": graph.flops(at), "seconds": seconds,
        "open": list(graph.symbols), "fixed": sorted(set(fixed) - set(model.family.pinned)), "at": point,
    }  # fmt: skip
    keep(found)
    attention = graph.metadata["attention"]
    root, step = step_of(model, job.phase, attention, point)
    found["exact"], found["differs"] = exact(graph, point, root, step, job.phase)
    keep(found)
    if attention not in ("sdpa", "eager"):  # ours: the counter sees the model's own
        root, step = step_of(model, job.phase, "eager", point)
    left_out = left_out_of(graph)
    found["seen"] = our_flops(graph, at, left_out)
    try:
        found["counted_in_all"], found["counted"] = counted_flops(root, step, job.phase == "train", left_out)
    except Exception as e:  # without our plug-ins a model may not run on meta: nothing to compare with
        found["uncounted"] = f"{type(e).__name__}: {e}"[:200]
    return found


def default_model(kind: str) -> PretrainedModel:
    """The causal language model of type *kind* by its default configuration; in bfloat16 if that names no dtype."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = CONFIG_MAPPING[kind]()
    decoder = next(f for f in FAMILIES if f.name == "decoder")
    dtype = str(getattr(config, "dtype", None) or "bfloat16").removeprefix("torch.")
    return PretrainedModel(kind, config, dtype, Recipe(decoder, "AutoModelForCausalLM"))


def step_of(
    model: PretrainedModel, phase: str, attention: str, point: Mapping[str, int]
) -> tuple[torch.nn.Module, Step]:
    """The model built anew with *attention*, and its step at *point*."""
    root = model.build(None, attention)
    if phase == "train":
        set_to_train(root.requires_grad_(True))
    with torch.no_grad():
        step = make_step(root, model.config, phase, point, "meta", model.family)
    return root, train_step(root, step) if phase == "train" else step


def held_out(graph: Graph) -> dict[str, int]:
    """Sizes at which *graph* was never captured, inside what it says it holds for."""
    sizes = {"batch": 4, "seq": 77, "context": 203, "target": 71, "frames": 91}
    if graph.phase == "train":  # where a batch of 4 is what is captured
        sizes["batch"] = 5
    at = {}
    for n, s in graph.symbols.items():
        at[n] = max(s.minimum + 3 if s.minimum > 2 else s.minimum, sizes.get(n, 4))
        if s.maximum is not None:
            at[n] = min(at[n], s.maximum - 1)
    return graph.bind(at)


def exact(graph: Graph, at: Mapping[str, int], root: torch.nn.Module, step: Step, phase: str) -> tuple[bool, str]:
    """Whether every size of every result is what a recording at the held-out point has, and where first it is not."""
    recording = record_training(root, step) if phase == "train" else record_settled(root, step.run, step.inputs)
    recording = roll(rejoin(recording), at.get("batch", 1))
    seen = [
        (op.function._schema.name, recording.tensors[t].shape)
        for op in recording.ops
        if kind_of(op.function) is not OpKind.VIEW
        for t in op.outputs
    ]
    made = [
        (op.name, tuple(evaluate_dim(d, at) for d in graph.tensors[t].shape))
        for op in graph.ops
        if op.kind is not OpKind.VIEW
        for t in op.outputs
    ]
    for i, (a, b) in enumerate(zip(made, seen, strict=False)):
        if a[1] != b[1]:
            return False, f"{a[0]}, result {i} of {len(seen)}: {list(a[1])} of the graph, {list(b[1])} recorded"
    return len(made) == len(seen), "" if len(made) == len(seen) else f"{len(made)} results, {len(seen)} recorded"
