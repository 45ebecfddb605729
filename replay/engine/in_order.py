"""The engine where every resource is in order: no clock is needed, a start is the longest path to it.

A node runs when its predecessors, its release and the node before it in its queue are done. On such schedules this
gives the starts of the other engines at a quarter of the reference's cost, and compiled at a hundredth.
"""

import numpy as np
from numpy.typing import NDArray

from .schedule import Schedule

Starts = NDArray[np.int64]


def replay(schedule: Schedule, compiled: bool = False) -> tuple[Starts, Starts]:
    """Start ticks [n] (-1: never ran) and the node before on the same resource [n] (-1: none)."""
    n = schedule.nodes
    queue = np.lexsort((schedule.priority, schedule.resource))  # stable: node ids break ties
    same = schedule.resource[queue[1:]] == schedule.resource[queue[:-1]]
    before, behind = np.full((2, n), -1)
    before[queue[1:][same]], behind[queue[:-1][same]] = queue[:-1][same], queue[1:][same]
    waiting = np.bincount(schedule.successors, minlength=n) + (before >= 0)
    columns = (schedule.duration, schedule.not_before, behind, waiting, schedule.successor_offsets, schedule.successors)
    if compiled:
        from .longest_path import starts_of

        starts = starts_of(*columns)
    else:
        starts = _starts_of(*columns)
    return starts, np.where(starts < 0, -1, before)


def _starts_of(
    durations: Starts,
    not_before: Starts,
    behind: Starts,
    waits: Starts,
    successor_offsets: Starts,
    successor_ids: NDArray[np.int32],
) -> Starts:
    """[n] the starts; *waits* [n] counts what each node waits for, *behind* [n] is the next in its queue."""
    waiting, duration = waits.tolist(), durations.tolist()
    follower, ready = behind.tolist(), not_before.tolist()
    offsets, successors = successor_offsets.tolist(), successor_ids.tolist()
    start = [-1] * len(duration)
    free = [node for node, count in enumerate(waiting) if not count]
    while free:
        node = free.pop()
        start[node] = ready[node]
        end = ready[node] + duration[node]
        after = successors[offsets[node] : offsets[node + 1]]
        if follower[node] >= 0:
            after.append(follower[node])
        for other in after:
            if ready[other] < end:
                ready[other] = end
            waiting[other] -= 1
            if not waiting[other]:
                free.append(other)
    return np.array(start, np.int64)
