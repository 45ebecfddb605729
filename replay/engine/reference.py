"""The engine in plain Python: the oracle of the compiled one, and the faster of the two on small graphs."""

from heapq import heapify, heappop, heappush

import numpy as np
from numpy.typing import NDArray

from .schedule import Schedule


def replay(schedule: Schedule) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Start ticks [n] (-1: never ran) and the node before on the same resource [n] (-1: none)."""
    duration, resource, priority = (x.tolist() for x in (schedule.duration, schedule.resource, schedule.priority))
    offsets, successors = schedule.successor_offsets.tolist(), schedule.successors.tolist()
    in_order, not_before = schedule.in_order.tolist(), schedule.not_before.tolist()
    waiting = np.bincount(schedule.successors, minlength=schedule.nodes).tolist()  # predecessors still to end
    start, previous = [-1] * schedule.nodes, [-1] * schedule.nodes

    ready: list[list[tuple[int, int]]] = [[] for _ in in_order]  # heaps of (priority, node)
    queue: list[list[int]] = [[] for _ in in_order]  # what in-order resources have yet to run, the head last
    for node in np.argsort(schedule.priority, kind="stable")[::-1].tolist():
        queue[resource[node]].append(node)
    running, last = [False] * len(in_order), [-1] * len(in_order)

    # (tick, node): the release of a node that has not started, the completion of one that has.
    events = [(not_before[node], node) for node, count in enumerate(waiting) if not count]
    heapify(events)
    while events:
        now = events[0][0]
        touched = set()
        while events and events[0][0] == now:
            _, node = heappop(events)
            touched.add(resource[node])
            if start[node] < 0:
                heappush(ready[resource[node]], (priority[node], node))
                continue
            running[resource[node]] = False
            for successor in successors[offsets[node] : offsets[node + 1]]:
                waiting[successor] -= 1
                if not waiting[successor]:
                    heappush(events, (max(now, not_before[successor]), successor))
        for r in touched:
            if running[r] or not ready[r] or (in_order[r] and ready[r][0][1] != queue[r][-1]):
                continue
            _, node = heappop(ready[r])
            if in_order[r]:
                queue[r].pop()
            start[node], previous[node] = now, last[r]
            running[r], last[r] = True, node
            heappush(events, (now + duration[node], node))
    return np.array(start, np.int64), np.array(previous, np.int64)
