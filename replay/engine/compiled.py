"""The engine in numba: the same rounds as `reference`, over flat arrays."""

import numpy as np
from numpy.typing import NDArray

from foretrace.ir import compiled

from .schedule import Schedule

_I32 = NDArray[np.int32]
_I64 = NDArray[np.int64]


@compiled
def _push(keys: _I64, nodes: _I32, base: int, size: int, key: int, node: int) -> None:
    """Add to the binary heap of *size* entries that lies at *base*."""
    at = size
    while at > 0:
        parent = (at - 1) >> 1
        if keys[base + parent] <= key:
            break
        keys[base + at], nodes[base + at] = keys[base + parent], nodes[base + parent]
        at = parent
    keys[base + at], nodes[base + at] = key, node


@compiled
def _pop(keys: _I64, nodes: _I32, base: int, size: int) -> int:
    """Take the node of the least key out of the heap of *size* entries that lies at *base*."""
    least = int(nodes[base])
    size -= 1
    key, node = keys[base + size], nodes[base + size]
    at, child = 0, 1
    while child < size:
        if child + 1 < size and keys[base + child + 1] < keys[base + child]:
            child += 1
        if key <= keys[base + child]:
            break
        keys[base + at], nodes[base + at] = keys[base + child], nodes[base + child]
        at, child = child, 2 * child + 1
    keys[base + at], nodes[base + at] = key, node
    return least


@compiled
def _queues(resource: _I32, by_priority: _I64, resources: int) -> tuple[_I64, _I32, _I64]:
    """Nodes by (resource, priority, id): where each resource's queue begins, the queues, nodes' places."""
    first = np.zeros(resources + 1, np.int64)
    for r in resource:
        first[r + 1] += 1
    first = np.cumsum(first)
    fill = first.copy()
    queue, place = np.empty(resource.size, np.int32), np.empty(resource.size, np.int64)
    for node in by_priority:
        at = fill[resource[node]]
        fill[resource[node]] += 1
        queue[at], place[node] = node, at
    return first, queue, place


@compiled
def _replay(
    duration: _I64,
    resource: _I32,
    by_priority: _I64,
    offsets: _I64,
    successors: _I32,
    in_order: NDArray[np.bool_],
    not_before: _I64,
) -> tuple[_I64, _I64]:
    n, resources = duration.size, in_order.size
    first, queue, place = _queues(resource, by_priority, resources)
    start, previous = np.full(n, -1, np.int64), np.full(n, -1, np.int64)
    running, last = np.zeros(resources, np.bool_), np.full(resources, -1, np.int64)
    head = first.copy()  # of each in-order queue
    ready, ready_nodes = (
        np.empty(n, np.int64),
        np.empty(n, np.int32),
    )  # a heap per resource, where its queue is
    ready_size = np.zeros(resources, np.int64)
    events, event_nodes = (
        np.empty(n, np.int64),
        np.empty(n, np.int32),
    )  # one heap; a node has one event at most
    event_size = 0
    touched = np.empty(n + resources, np.int32)  # the resources to look at in this round, some of them twice
    waiting = np.zeros(n, np.int32)  # predecessors still to end; -1 once ready
    for successor in successors:
        waiting[successor] += 1
    arrived, arrivals = np.empty(n, np.int32), 0  # the nodes that wait for no predecessor since this round
    for node in range(n):
        if waiting[node] == 0:
            arrived[arrivals] = node
            arrivals += 1
    now, touches = 0, 0
    while True:
        for i in range(arrivals):
            node = arrived[i]
            r = resource[node]
            if not_before[node] > now:
                _push(events, event_nodes, 0, event_size, not_before[node], node)
                event_size += 1
                continue
            waiting[node] = -1
            touched[touches] = r
            touches += 1
            if not in_order[r]:
                _push(ready, ready_nodes, first[r], ready_size[r], place[node], node)
                ready_size[r] += 1
        for i in range(touches):
            r = touched[i]
            if running[r]:
                continue
            if in_order[r]:
                if head[r] == first[r + 1] or waiting[queue[head[r]]] >= 0:
                    continue
                node = queue[head[r]]
                head[r] += 1
            else:
                if ready_size[r] == 0:
                    continue
                node = _pop(ready, ready_nodes, first[r], ready_size[r])
                ready_size[r] -= 1
            start[node], previous[node] = now, last[r]
            running[r], last[r] = True, node
            _push(events, event_nodes, 0, event_size, now + duration[node], node)
            event_size += 1
        if event_size == 0:
            return start, previous
        now, arrivals, touches = events[0], 0, 0
        while event_size > 0 and events[0] == now:
            node = _pop(events, event_nodes, 0, event_size)
            event_size -= 1
            if start[node] < 0:
                arrived[arrivals] = node
                arrivals += 1
                continue
            running[resource[node]] = False
            touched[touches] = resource[node]
            touches += 1
            for edge in range(offsets[node], offsets[node + 1]):
                successor = successors[edge]
                waiting[successor] -= 1
                if waiting[successor] == 0:
                    arrived[arrivals] = successor
                    arrivals += 1


def replay(schedule: Schedule) -> tuple[_I64, _I64]:
    """Start ticks [n] (-1: never ran) and the node before on the same resource [n] (-1: none)."""
    return _replay(
        schedule.duration,
        schedule.resource,
        np.argsort(schedule.priority, kind="stable"),
        schedule.successor_offsets,
        schedule.successors,
        schedule.in_order,
        schedule.not_before,
    )
