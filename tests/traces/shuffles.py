"""A measured step made from a predicted one with a known answer: which operator became which event."""

import random
from dataclasses import dataclass, field
from typing import Any

from foretrace.ir import Graph, OpKind
from foretrace.traces import Trace
from foretrace.traces.compare.operators import VIEWS, canonical_name

BACKWARD = "autograd::engine::evaluate_function: "
FUSABLE = frozenset(["elementwise", "reduction", "softmax", "norm"])


@dataclass(frozen=True)
class Edits:
    """What happens to the operators on their way into the profile: shares of them, and what the profile tells."""

    dropped: float = 0.0
    doubled: float = 0.0
    swapped: float = 0.0
    fused: float = 0.0
    device: bool = True  #: kernels on a stream; else host time alone
    modules: bool = True
    shapes: bool = True
    phases: bool = True
    calls: bool = True  #: False: nothing but kernels, as a replayed CUDA graph leaves


@dataclass
class Shuffled:
    """The measured trace, per predicted op id the measured rows that may be its partner, and seconds per op id."""

    trace: Trace
    answer: dict[int, set[int]] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)


@dataclass
class _Writer:
    rng: random.Random
    edits: Edits
    rows: list[dict[str, Any]] = field(default_factory=list)
    host_s: float = 0.0
    device_s: float = 0.0
    calls: int = 0

    def event(self, name: str, kind: str, start: float, end: float, **more: Any) -> int:
        known = {c for c in ("module", "shapes", "phase") if not getattr(self.edits, c.removesuffix("s") + "s")}
        row = {"name": name, "kind": kind, "start_s": start, "duration_s": end - start, "stream": "host 1", **more}
        self.rows.append({k: v for k, v in row.items() if k not in known})
        return len(self.rows) - 1

    def operator(self, name: str, seconds: float, kernels: int, around: str, **more: Any) -> int:
        """One call with calls inside, inside *around*, and its kernels; returns the row that stands for it."""
        self.calls += 1
        begin = self.host_s
        width = seconds if not self.edits.device else 6e-6
        end = begin + 3e-7 + width
        if around and self.edits.calls:
            self.event(around, "cpu_op", begin, end + 3e-7, **more)
        row = -1
        if self.edits.calls:
            row = self.event(name, "cpu_op", begin + 1e-7, end, external_id=self.calls, **more)
            if not self.edits.device or kernels:
                self.event("aten::empty_strided", "cpu_op", begin + 2e-7, begin + 2.5e-7, **more)
        if self.edits.device:
            for k in range(kernels):
                ids = {"correlation": 10 * self.calls + k, "external_id": self.calls if self.edits.calls else -1}
                if self.edits.calls:
                    at = begin + 1e-6 + k * 1e-6
                    self.event("cudaLaunchKernel", "launch", at, at + 5e-7, correlation=ids["correlation"])
                start = max(self.device_s, begin + 4e-6)
                self.device_s = start + seconds / kernels
                text = more.get("kernel", f"{name.rpartition(':')[2]}_kernel_{k}")
                at_row = self.event(text, "kernel", start, self.device_s, **{**more, **ids, "stream": "gpu 0 stream 7"})
                row = at_row if row < 0 else row
        self.host_s = end + 1e-6
        return row


def shuffle(predicted: Trace, graph: Graph, edits: Edits, seed: int) -> Shuffled:
    """*predicted* of *graph* as a profiler would have recorded it after *edits*, every duration jittered."""
    rng = random.Random(seed)
    rows = {int(o): i for i, o in enumerate(predicted.op_id.tolist()) if o >= 0 and predicted.kind[i] != "launch"}
    order = _swapped(sorted(rows), graph, rng, edits.swapped)
    order = [o for o in order if rng.random() >= edits.dropped]
    writer, out = _Writer(rng, edits), Shuffled(predicted)
    at = 0
    while at < len(order):
        run = _fusable_run(order[at:], graph, rng) if rng.random() < edits.fused else []
        members = run if len(run) > 1 else [order[at]]
        seconds = sum(float(predicted.duration_s[rows[o]]) for o in members) * rng.uniform(0.7, 1.4)
        first = rows[members[0]]
        more = {c: getattr(predicted, c)[first] for c in ("module", "shapes", "phase")}
        if len(members) > 1:
            words = sorted({canonical_name(graph.ops[o].name).removeprefix("aten::") for o in members})
            name = f"triton_poi_fused_{'_'.join(words)}_{at}"
            more |= {"module": "", "shapes": ""}
            partner = {writer.operator(name, seconds, 1, "Torch-Compiled Region: 0/0", **more)}
        else:
            partner = _one(writer, graph, members[0], seconds, more)
        for o in members:
            out.answer[o], out.seconds[o] = partner, seconds
        at += len(members)
    trace = Trace.from_rows(writer.rows, source="measured")
    out.trace = trace.with_parents()
    return out


def _one(writer: _Writer, graph: Graph, op: int, seconds: float, more: dict[str, Any]) -> set[int]:
    name = canonical_name(graph.ops[op].name)
    view = name in VIEWS or graph.ops[op].kind is OpKind.VIEW
    kernels = 0 if view else writer.rng.choice([1, 1, 1, 2, 3])
    if more["phase"] == "backward":
        around = f"{BACKWARD}{name.removeprefix('aten::').title()}Backward0"
    else:
        around = writer.rng.choice(["", "", "aten::linear", "aten::wrapper"]) if not view else ""
    rows = {writer.operator(name, seconds, kernels, around, **more)}
    if not view and writer.rng.random() < writer.edits.doubled:
        rows.add(writer.operator(name, seconds, kernels, around, **more))
    return rows


def _swapped(order: list[int], graph: Graph, rng: random.Random, share: float) -> list[int]:
    """*order* with neighbours exchanged where the second does not read or overwrite what the first writes."""
    order = list(order)
    at = 0
    while at + 1 < len(order):
        a, b = order[at], order[at + 1]
        touched = [{graph.tensors[t].storage for t in (*graph.ops[o].inputs, *graph.ops[o].outputs)} for o in (a, b)]
        free = not touched[0] & touched[1]
        if free and rng.random() < share:
            order[at : at + 2] = [b, a]
            at += 1
        at += 1
    return order


def _fusable_run(order: list[int], graph: Graph, rng: random.Random) -> list[int]:
    run: list[int] = []
    for o in order[: rng.randint(2, 5)]:
        op = graph.ops[o]
        if op.kind.value not in FUSABLE or op.phase != graph.ops[order[0]].phase:
            break
        run.append(o)
    return run
