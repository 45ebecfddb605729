"""Where each rank's time goes: every instant of the step to one cause and one phase, the critical path by class."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from foretrace.replay.attribution import BREAKDOWN, PHASES
from foretrace.replay.columns import Ints
from foretrace.replay.engine import Timeline

from .segment import Timings
from .step import Lane, Node, StepGraph

CLASSES: Final = ("forward", "backward", "optimizer", "host", "send", "parameter_gather", "gradient_reduce")
"""What a stretch of the critical path is."""
_PHASE_OF: Final = np.array([0, 1, 1, 1, 2])
"""By the work of an item: index into `PHASES`, and into `CLASSES`."""


@dataclass(frozen=True, eq=False)
class Accounts:
    """Ticks of k simulated ranks; each row sums to the makespan."""

    breakdown: Ints
    """[k, 5] by cause (`BREAKDOWN`)."""
    phases: Ints
    """[k, 3] by phase (`PHASES`)."""
    free: Ints
    """[i] when each item's device was free and what it waited for had come: from then on it waits for the host."""


def account(
    step: StepGraph, timeline: Timeline, timings: Timings, added: Ints, ranks: int, pipelined: bool
) -> Accounts:
    """Where the time of each of *ranks* went. *added* [i] ticks by which overlap slowed each item.

    While the device stands still: what comes after its inputs have come is the host's; what a collective of the rank
    or a send to it takes is exposed communication; the rest is a bubble where there is a pipeline, else idle.
    """
    items, makespan = step.items, timeline.makespan
    start, end = timeline.start[step.run_of], timeline.end[step.run_of]
    first = np.append(True, items.rank[1:] != items.rank[:-1]) if items.rank.size else np.zeros(0, np.bool_)
    before = np.where(first, 0, np.concatenate([[0], end[:-1]]))
    free = before.copy()
    into = (step.kind[step.target] == Node.RUN) & (step.kind[step.source] >= Node.SEND)
    np.maximum.at(free, step.item[step.target[into]], timeline.end[step.source[into]])
    segment = items.segment
    compute = timings.compute[segment] + added
    inside = timings.communication[segment]
    hosted = timings.device[segment] + added - compute - inside
    bounds = np.searchsorted(items.rank, np.arange(ranks + 1))  # items stand by rank
    host_end = np.zeros(ranks, np.int64)
    on_host = np.flatnonzero(step.lane == Lane.HOST)
    np.maximum.at(host_end, step.rank[on_host], timeline.end[on_host])
    sending = np.flatnonzero((step.lane == Lane.COLLECTIVE) | (step.to_rank >= 0))
    breakdown = np.zeros((ranks, len(BREAKDOWN)), np.int64)
    phases = np.zeros((ranks, len(PHASES)), np.int64)
    for r in range(ranks):
        own = np.arange(bounds[r], bounds[r + 1])
        covered = _coverage(step, timeline, r, sending)
        waited = covered(free[own]) - covered(before[own])
        late = start[own] - free[own]
        stood = free[own] - before[own] - waited
        last = int(end[own[-1]]) if own.size else 0
        tail = int(covered(np.array([makespan]))[0] - covered(np.array([last]))[0])
        host_tail = min(max(int(host_end[r]) - last, 0), makespan - last - tail)
        rest = int(stood.sum()) + makespan - last - tail - host_tail
        breakdown[r] = (
            compute[own].sum(),
            inside[own].sum() + waited.sum() + tail,
            hosted[own].sum() + late.sum() + host_tail,
            rest if pipelined else 0,
            0 if pipelined else rest,
        )
        spans = end[own] - before[own]
        if own.size:
            spans[-1] += makespan - last
        for phase in range(len(PHASES)):
            phases[r, phase] = spans[_PHASE_OF[items.work[own]] == phase].sum()
        if not own.size:
            phases[r, 0] = makespan
    return Accounts(breakdown, phases, free)


def _coverage(step: StepGraph, timeline: Timeline, rank: int, sending: Ints) -> Callable[[Ints], Ints]:
    """A function of ticks: how long, up to then, a collective of *rank* or a send to it ran; *sending* are all such."""
    lane, own = step.lane[sending], step.rank[sending] == rank
    chosen = sending[((lane == Lane.COLLECTIVE) & own) | (step.to_rank[sending] == rank)]
    start, end = timeline.start[chosen], timeline.end[chosen]
    order = np.argsort(start, kind="stable")
    start, reach = start[order], np.maximum.accumulate(end[order]) if order.size else end
    begin = start.copy()
    begin[1:] = np.maximum(start[1:], reach[:-1])
    length = np.maximum(reach - begin, 0)
    total = np.concatenate([[0], np.cumsum(length)])

    def covered(at: Ints) -> Ints:
        if not begin.size:
            return np.zeros_like(at)
        begun = np.searchsorted(begin, at, "right")
        last = np.maximum(begun - 1, 0)
        return np.asarray(total[last] + np.where(begun > 0, np.minimum(at - begin[last], length[last]), 0), np.int64)

    return covered


def critical_classes(step: StepGraph, timeline: Timeline) -> dict[str, int]:
    """Ticks of the critical path by class (`CLASSES`)."""
    path = timeline.critical_path()
    kind = step.kind[path]
    code = np.full(path.size, CLASSES.index("host"))
    runs = kind == Node.RUN
    code[runs] = _PHASE_OF[step.items.work[step.item[path[runs]]]]
    for node, name in ((Node.SEND, "send"), (Node.GATHER, "parameter_gather"), (Node.REDUCE, "gradient_reduce")):
        code[kind == node] = CLASSES.index(name)
    ticks = np.bincount(code, timeline.schedule.duration[path], minlength=len(CLASSES))
    return dict(zip(CLASSES, ticks.astype(np.int64).tolist(), strict=True))
