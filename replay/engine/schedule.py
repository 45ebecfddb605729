"""What the engines take (`Schedule`) and give (`Timeline`), and the errors for what cannot run."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foretrace.ir import GraphError

TICKS_PER_SECOND = 10**12
"""A tick is a picosecond: an int64 holds 106 days of them."""

_LAST_TICK = 2**63 - 1
_NAMED_NODES = 20  # of a cycle, in its error


def ticks_from_seconds(seconds: ArrayLike) -> NDArray[np.int64]:
    """*seconds* as the nearest ticks (half to even); raises `GraphError` where an int64 cannot hold them."""
    ticks = np.rint(np.asarray(seconds, dtype=np.float64) * TICKS_PER_SECOND)
    held = np.abs(ticks) < 2.0**63  # false for a NaN
    if not held.all():
        came = np.ravel(seconds)[held.argmin()]
        raise GraphError(f"seconds: expected numbers within ±{_LAST_TICK / TICKS_PER_SECOND:.4g}, got {came}")
    return ticks.astype(np.int64)


def seconds_from_ticks(ticks: ArrayLike) -> NDArray[np.float64]:
    """*ticks* as seconds."""
    return np.asarray(ticks, dtype=np.int64) / np.float64(TICKS_PER_SECOND)


@dataclass(frozen=True, eq=False)
class Schedule:
    """A graph of n nodes on r serial resources: read-only arrays, checked (`GraphError`) when built.

    The successors of node i are ``successors[successor_offsets[i]:successor_offsets[i + 1]]``.
    """

    duration: NDArray[np.int64]
    """[n] ticks, ≥ 0; together with the last release they must fit an int64."""
    resource: NDArray[np.int32]
    """[n] the resource a node occupies while it runs."""
    priority: NDArray[np.int64]
    """[n] the lowest goes first; node ids break ties. A scalar holds for every node."""
    successor_offsets: NDArray[np.int64]
    """[n + 1]"""
    successors: NDArray[np.int32]
    """[m]"""
    in_order: NDArray[np.bool_]
    """[r] whether a resource (a CUDA stream, a host thread) runs its nodes strictly by (priority, id)."""
    not_before: NDArray[np.int64] = field(default_factory=lambda: np.zeros((), np.int64))
    """[n] release times in ticks, ≥ 0. A scalar holds for every node."""

    @classmethod
    def from_edges(
        cls,
        duration: ArrayLike,
        resource: ArrayLike,
        source: ArrayLike,
        target: ArrayLike,
        in_order: ArrayLike,
        *,
        priority: ArrayLike = 0,
        not_before: ArrayLike = 0,
    ) -> "Schedule":
        """Build from m edges *source* → *target*, which come in any order."""
        nodes = np.size(duration)
        source = _integers("source", source, np.size(target), nodes)
        target = _integers("target", target, source.size, nodes)
        offsets = np.zeros(nodes + 1, np.int64)
        np.cumsum(np.bincount(source, minlength=nodes), out=offsets[1:])
        successors = target[np.argsort(source, kind="stable")]
        columns: tuple[Any, ...] = (duration, resource, priority, offsets, successors, in_order, not_before)
        return cls(*columns)

    def __post_init__(self) -> None:
        nodes, edges, resources = np.size(self.duration), np.size(self.successors), np.size(self.in_order)
        if max(nodes, resources) >= 2**31:
            raise GraphError(f"expected fewer than 2**31 nodes and resources, got {nodes} and {resources}")
        in_order = np.asarray(self.in_order)
        if in_order.ndim != 1 or (in_order.size and in_order.dtype != np.bool_):
            raise GraphError(f"in_order: expected one bool per resource, got {in_order.dtype}{in_order.shape}")
        columns = {
            "duration": _integers("duration", self.duration, nodes, _LAST_TICK),
            "resource": _integers("resource", self.resource, nodes, resources).astype(np.int32),
            "priority": _integers("priority", self.priority, nodes),
            "successor_offsets": _integers("successor_offsets", self.successor_offsets, nodes + 1, edges + 1),
            "successors": _integers("successors", self.successors, edges, nodes).astype(np.int32),
            "in_order": in_order.astype(np.bool_),
            "not_before": _integers("not_before", self.not_before, nodes, _LAST_TICK),
        }
        for name, column in columns.items():
            view = np.ascontiguousarray(column).view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)
        offsets = self.successor_offsets
        if offsets[0] != 0 or offsets[-1] != edges or (offsets[1:] < offsets[:-1]).any():
            raise GraphError(f"successor_offsets: expected to rise from 0 to {edges}")
        # Summed in two halves: a plain int64 sum would wrap round in silence.
        total = (int((self.duration >> 32).sum()) << 32) + int((self.duration & 0xFFFFFFFF).sum())
        total += int(self.not_before.max(initial=0))
        if total > _LAST_TICK:
            raise GraphError(
                f"duration: the sum with the last release is {total} ticks, more than an int64 holds "
                f"({_LAST_TICK / TICKS_PER_SECOND:.4g} s); replay a shorter run"
            )

    @property
    def nodes(self) -> int:
        """The number of nodes."""
        return self.duration.size

    @property
    def sources(self) -> NDArray[np.int64]:
        """[m] the node that each of `successors` succeeds."""
        return np.repeat(np.arange(self.nodes), np.diff(self.successor_offsets))


@dataclass(frozen=True, eq=False)
class Timeline:
    """When each node of a schedule ran, in ticks."""

    schedule: Schedule
    start: NDArray[np.int64]
    """[n] ticks."""
    previous: NDArray[np.int64]
    """[n] the node that ran just before on the same resource; -1 for its first."""

    @cached_property
    def end(self) -> NDArray[np.int64]:
        """[n] ticks."""
        return self.start + self.schedule.duration

    @property
    def makespan(self) -> int:
        """The tick at which the last node ends; 0 without nodes."""
        return int(self.end.max(initial=0))

    @cached_property
    def busy(self) -> NDArray[np.int64]:
        """[r] ticks in which each resource ran a node."""
        busy = np.zeros(self.schedule.in_order.size, np.int64)
        np.add.at(busy, self.schedule.resource, self.schedule.duration)
        return busy

    def critical_path(self) -> NDArray[np.int64]:
        """Node ids, first to last, of a chain that sets the makespan.

        Each node starts the moment the one before it ends, held by an edge (preferred, from the least id) or
        by the resource both use. Without release times its durations sum to the makespan: no path over edges
        and resource order is longer. With them it may begin at a release instead of at 0.
        """
        if not self.schedule.nodes:
            return np.zeros(0, np.int64)
        held_by = np.where(self.end[self.previous] == self.start, self.previous, -1)
        source, target = self.schedule.sources, self.schedule.successors
        tight = self.end[source] == self.start[target]
        held_by[target[tight][::-1]] = source[tight][::-1]  # the last to be written, the least id, stays
        path = [int(self.end.argmax())]
        while (before := int(held_by[path[-1]])) >= 0:
            path.append(before)
        return np.array(path[::-1], np.int64)


def _integers(name: str, values: ArrayLike, length: int, stop: int | None = None) -> NDArray[np.int64]:
    """*values* as *length* integers, each in ``range(stop)`` where there is a *stop*."""
    column = np.asarray(values)
    if column.ndim == 0:
        column = np.full(length, column)
    if column.shape != (length,):
        raise GraphError(f"{name}: expected shape ({length},), got {column.shape}")
    if length == 0:
        return np.zeros(0, np.int64)
    if column.dtype.kind not in "iu" or column.max() > _LAST_TICK:
        raise GraphError(f"{name}: expected integers that fit an int64, got {column.dtype}")
    if stop is not None and (column.min() < 0 or column.max() >= stop):
        at = int(((column < 0) | (column >= stop)).argmax())
        raise GraphError(f"{name}[{at}]: expected 0 or more and less than {stop}, got {column[at]}")
    return column.astype(np.int64, copy=False)


def blocked(schedule: Schedule, start: NDArray[np.int64], label: Callable[[int], str]) -> GraphError:
    """The error for nodes that never start (``start < 0``): names a ring of nodes that wait on each other."""
    stuck = start < 0
    queue = np.lexsort((schedule.priority, schedule.resource))  # stable: ids break ties
    queue = queue[(stuck & schedule.in_order[schedule.resource])[queue]]
    neighbours = schedule.resource[queue[1:]] == schedule.resource[queue[:-1]]
    source, target = schedule.sources, schedule.successors
    stuck_edge = stuck[source]
    behind, needs = np.full((2, schedule.nodes), -1, np.int64)
    behind[queue[1:][neighbours]] = queue[:-1][neighbours]
    needs[target[stuck_edge]] = source[stuck_edge]

    walk: dict[int, int] = {}  # node to its place in the walk; every stuck node waits for another
    node = int(stuck.argmax())
    while node not in walk:
        walk[node] = len(walk)
        node = int(needs[node] if needs[node] >= 0 else behind[node])
    ring = list(walk)[walk[node] :][::-1]
    least = ring.index(min(ring))
    ring = ring[least:] + ring[:least]
    steps = [("-> " if needs[after] >= 0 else "=> ") + label(after) for after in [*ring[1:], ring[0]]]
    if len(steps) > _NAMED_NODES:
        steps[_NAMED_NODES - 1 : -1] = [f"... ({len(steps) - _NAMED_NODES} more)"]
    text = " ".join([label(ring[0]), *steps])
    never = f"{int(stuck.sum())} of {schedule.nodes} nodes can never run"
    if (needs[ring] >= 0).all():
        return GraphError(f"cycle of dependencies: {text}; {never}: remove one of these edges")
    return GraphError(
        f"in-order deadlock: {text} (=> is behind in an in-order queue); {never}: "
        "swap the priorities across one =>, or remove an edge"
    )
