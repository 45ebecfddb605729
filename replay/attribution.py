"""Where the time goes: every instant of a step to one cause and one phase, every kernel to its module."""

from collections.abc import Iterable
from typing import Final, NamedTuple

import numpy as np

from foretrace.ir import Graph

from .columns import KINDS, Floats, Ints, Mask
from .costs import BOUNDS
from .engine import Timeline
from .lower import Program, Stream

BREAKDOWN: Final = ("compute", "exposed_communication", "host", "bubble", "idle")
PHASES: Final = ("forward", "backward", "optimizer")


class Share(NamedTuple):
    """One line of a ranking of device time."""

    name: str
    seconds: float
    share: float
    """Of all device seconds."""
    bound: str
    """What limits most of these seconds (one of `BOUNDS`)."""
    kernels: int
    kind: str
    """The operator kind that takes most of these seconds."""


def break_down(program: Program, timeline: Timeline) -> dict[str, int]:
    """Ticks of the step by cause; they sum to the makespan.

    An instant belongs to compute if a compute stream is busy, else to communication, else to the host, else it is
    idle. Bubbles are a pipeline's.
    """
    streams = (Stream.COMPUTE, Stream.COMMUNICATION, Stream.HOST)
    at = np.unique(np.concatenate([timeline.start, timeline.end, [0]]))
    length = np.diff(at)
    left = np.ones(length.size, np.bool_)
    ticks = []
    for stream in streams:
        busy = left & _busy(at, timeline, program.stream == stream)
        ticks.append(int(length[busy].sum()))
        left &= ~busy
    compute, communication, host = ticks
    return dict(zip(BREAKDOWN, (compute, communication, host, 0, int(length[left].sum())), strict=True))


def _busy(at: Ints, timeline: Timeline, nodes: Mask) -> Mask:
    """For each stretch between the moments *at*, whether one of *nodes* runs."""
    change = np.zeros(at.size, np.int64)
    np.add.at(change, np.searchsorted(at, timeline.start[nodes]), 1)
    np.add.at(change, np.searchsorted(at, timeline.end[nodes]), -1)
    return np.asarray(np.cumsum(change)[:-1] > 0)


def split_phases(graph: Graph, program: Program, timeline: Timeline) -> dict[str, int]:
    """Ticks of each phase; they sum to the makespan.

    The time since the kernel before ended belongs to the phase of the kernel that ends next, so phases may alternate
    (gradient accumulation does); what is left after the last kernel is its phase's.
    """
    codes = {name: code for code, name in enumerate(PHASES)}
    of_op = np.array([codes.get(op.phase, 0) for op in graph.ops], np.int64)
    nodes = np.flatnonzero(program.on_device if program.on_device.any() else program.op >= 0)
    nodes = nodes[np.lexsort((nodes, timeline.end[nodes]))]
    if not nodes.size:
        return dict(zip(PHASES, (timeline.makespan, 0, 0), strict=True))
    ends = timeline.end[nodes]
    ends[-1] = timeline.makespan
    ticks = np.zeros(len(PHASES), np.int64)
    np.add.at(ticks, of_op[program.op[nodes]], np.diff(ends, prepend=0))
    return dict(zip(PHASES, ticks.tolist(), strict=True))


def rank_shares(
    names: Iterable[str], kind: Ints, bound: Ints, seconds: Floats, counted: "Mask | Floats"
) -> list[Share]:
    """One `Share` for each distinct name of the ops [n], the most seconds first, then by name.

    *kind* [n] indexes `KINDS`, *bound* [n] `BOUNDS`, *seconds* [n] are device seconds, *counted* [n] marks the ops
    that run on the device (or says how often).
    """
    index: dict[str, int] = {}
    group = np.array([index.setdefault(name, len(index)) for name in names], np.int64)
    if not group.size:
        return []
    total = np.bincount(group, seconds)
    kernels = np.bincount(group, counted)
    main_bound = _heaviest(group, bound, len(BOUNDS), seconds)
    main_kind = _heaviest(group, kind, len(KINDS), seconds)
    whole = float(total.sum()) or 1.0
    ranked = [
        Share(name, float(s), float(s) / whole, BOUNDS[b], int(n), str(KINDS[k]))
        for name, s, b, n, k in zip(index, total, main_bound, kernels, main_kind, strict=True)
        if n
    ]
    return sorted(ranked, key=lambda r: (-r.seconds, r.name))


def _heaviest(group: Ints, code: Ints, codes: int, seconds: Floats) -> list[int]:
    """For each group the code with the most seconds."""
    groups = int(group.max()) + 1
    sums = np.bincount(group * codes + code, seconds, minlength=groups * codes)
    return [int(c) for c in sums.reshape(groups, codes).argmax(axis=1)]
