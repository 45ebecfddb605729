"""What the engines take (`Schedule`) and give (`Timeline`), and the errors for what cannot run."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...ir.errors import GraphError

TICKS_PER_SECOND = 10**12
"""A tick is a picosecond: an int64 holds 106 days of them."""

_LAST_TICK = 2**63 - 1
_NAMED_NODES = 20  # of a cycle, in its error


def ticks_from_seconds(seconds: ArrayLike) -> NDArray[np.int64]:
    """*seconds* as ticks, to the nearest one (half to even); raises `GraphError` where int64 cannot hold them."""
    ticks = np.rint(np.asarray(seconds, dtype=np.float64) * TICKS_PER_SECOND)
    if not (np.abs(ticks) < 2.0**63).all():  # a NaN compares false too
        raise GraphError(
            f"seconds: expected numbers within ±{_LAST_TICK / TICKS_PER_SECOND:.4g}, got {seconds}"
        )
    return ticks.astype(np.int64)


def seconds_from_ticks(ticks: ArrayLike) -> NDArray[np.float64]:
    """*ticks* as seconds."""
    return np.asarray(ticks, dtype=np.int64) / np.float64(TICKS_PER_SECOND)


def _integers(name: str, values: ArrayLike) -> NDArray[np.int64]:
    column = np.asarray(values)
    if column.size and column.dtype.kind not in "iu":
        raise GraphError(f"{name}: expected integers, got {column.dtype}")
    if column.dtype.kind == "u" and int(column.max(initial=0)) > _LAST_TICK:
        raise GraphError(f"{name}: expected integers that fit int64, got {column.max()}")
    return column.astype(np.int64, copy=False)


def _check_range(name: str, values: NDArray[Any], stop: int, what: str) -> None:
    """Refuse *values* that are not in ``range(stop)``."""
    if values.size and (values.min() < 0 or values.max() >= stop):
        at = int(((values < 0) | (values >= stop)).argmax())
        span = f" from 0 to {stop - 1}" if stop else ", but there are none"
        raise GraphError(f"{name}[{at}]: expected a {what}{span}, got {values[at]}")


@dataclass(frozen=True, eq=False)
class Schedule:
    """A graph of n nodes on r serial resources; read-only arrays, checked (`GraphError`) when built.

    `in_order` marks the resources (a CUDA stream, a host thread) whose nodes run strictly by (priority, id).
    The successors of node i are ``successors[successor_offsets[i]:successor_offsets[i + 1]]``.
    """

    duration: NDArray[np.int64]
    """[n] ticks, ≥ 0; together with the last release they must fit an int64."""
    resource: NDArray[np.int32]
    """[n] the resource a node occupies while it runs."""
    priority: NDArray[np.int64]
    """[n] the lowest goes first; node ids break ties."""
    successor_offsets: NDArray[np.int64]
    """[n + 1]"""
    successors: NDArray[np.int32]
    """[m]"""
    in_order: NDArray[np.bool_]
    """[r]"""
    not_before: NDArray[np.int64] = field(default_factory=lambda: np.zeros((), np.int64))
    """[n] release times in ticks, ≥ 0; a scalar holds for every node."""

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
        """Build from m edges *source* → *target*, in any order; scalars hold for every node."""
        nodes = np.size(duration)
        source, target = _integers("source", source), _integers("target", target)
        if source.shape != target.shape:
            raise GraphError(
                f"edges: expected as many sources as targets, got {source.size} and {target.size}"
            )
        _check_range("source", source, nodes, "node")
        offsets = np.zeros(nodes + 1, np.int64)
        np.cumsum(np.bincount(source, minlength=nodes), out=offsets[1:])
        successors = target[np.argsort(source, kind="stable")]
        priority, not_before = np.broadcast_to(priority, nodes), np.broadcast_to(not_before, nodes)
        columns: tuple[Any, ...] = (duration, resource, priority, offsets, successors, in_order, not_before)
        return cls(*columns)

    def __post_init__(self) -> None:
        nodes, edges, resources = np.size(self.duration), np.size(self.successors), np.size(self.in_order)
        if max(nodes, resources) > np.iinfo(np.int32).max:
            raise GraphError(f"expected at most 2**31 - 1 nodes and resources, got {nodes} and {resources}")
        object.__setattr__(self, "not_before", np.broadcast_to(self.not_before, nodes))
        lengths = dict.fromkeys(("duration", "resource", "priority", "not_before"), nodes)
        lengths |= {"successor_offsets": nodes + 1, "successors": edges}
        for name, length in lengths.items():
            column = _integers(name, getattr(self, name))
            if column.shape != (length,):
                raise GraphError(f"{name}: expected {length} values, got shape {column.shape}")
            object.__setattr__(self, name, column)
        in_order = np.asarray(self.in_order)
        if in_order.ndim != 1 or (in_order.size and in_order.dtype != np.bool_):
            raise GraphError(
                f"in_order: expected one bool per resource, got {in_order.dtype}{in_order.shape}"
            )
        object.__setattr__(self, "in_order", in_order.astype(np.bool_, copy=False))
        self._check_values()
        for name in ("resource", "successors"):
            object.__setattr__(self, name, getattr(self, name).astype(np.int32, copy=False))
        for each in fields(self):
            column = np.ascontiguousarray(getattr(self, each.name)).view()
            column.flags.writeable = False
            object.__setattr__(self, each.name, column)

    def _check_values(self) -> None:
        _check_range("resource", self.resource, self.in_order.size, "resource")
        _check_range("successors", self.successors, self.nodes, "node")
        _check_range("duration", self.duration, _LAST_TICK + 1, "number of ticks")
        _check_range("not_before", self.not_before, _LAST_TICK + 1, "number of ticks")
        # Summed in two halves: a plain int64 sum would wrap round in silence.
        total = (int((self.duration >> 32).sum()) << 32) + int((self.duration & 0xFFFFFFFF).sum())
        total += int(self.not_before.max(initial=0))
        if total > _LAST_TICK:
            raise GraphError(
                f"duration: the sum with the last release is {total} ticks, more than an int64 holds "
                f"({_LAST_TICK / TICKS_PER_SECOND:.4g} s); replay a shorter run"
            )
        offsets = self.successor_offsets
        if offsets[0] != 0 or offsets[-1] != self.successors.size or (np.diff(offsets) < 0).any():
            raise GraphError(f"successor_offsets: expected to rise from 0 to {self.successors.size}")

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


def blocked(schedule: Schedule, start: NDArray[np.int64], label: Callable[[int], str]) -> GraphError:
    """The error for nodes that never start (``start < 0``): names a cycle of nodes that wait on each other."""
    stuck = start < 0
    waits_for = np.full(schedule.nodes, -1, np.int64)
    queue = np.lexsort((schedule.priority, schedule.resource))  # stable, so ids break ties
    queue = queue[(stuck & schedule.in_order[schedule.resource])[queue]]
    together = schedule.resource[queue[1:]] == schedule.resource[queue[:-1]]
    waits_for[queue[1:][together]] = queue[:-1][together]
    source, target = schedule.sources, schedule.successors
    stuck_edge = stuck[source]
    waits_for[target[stuck_edge]] = source[stuck_edge]
    by_edge = np.zeros(schedule.nodes, np.bool_)
    by_edge[target[stuck_edge]] = True

    seen: dict[int, int] = {}  # node to its place in the walk
    node = int(stuck.argmax())
    while node not in seen:
        seen[node] = len(seen)
        node = int(waits_for[node])
    cycle = [*list(seen)[seen[node] :], node][::-1]  # first to last, the first repeated
    steps = [("-> " if by_edge[after] else "=> ") + label(after) for after in cycle[1:]]
    if len(steps) > _NAMED_NODES:
        steps[_NAMED_NODES - 1 : -1] = [f"... ({len(steps) - _NAMED_NODES} more)"]
    text = " ".join([label(cycle[0]), *steps])
    never = f"{int(stuck.sum())} of {schedule.nodes} nodes can never run"
    if by_edge[cycle].all():
        return GraphError(f"cycle of dependencies: {text}; {never}: remove one of these edges")
    return GraphError(
        f"in-order deadlock: {text} (=> waits in the same in-order queue); {never}: "
        "swap the priorities across one =>, or remove an edge"
    )
