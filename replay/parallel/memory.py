"""The memory of every pipeline rank over the replayed schedule.

What a forward leaves for its backward is held for each micro-batch in flight; the running pass adds what it needs for
a while. Both come from the life of each storage in program order, as a stream-ordered allocator sees it: from the
first op of a stage that touches it to the last. Allocations are rounded up as PyTorch does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from foretrace.ir import Role
from foretrace.replay.columns import Floats, Ints, Mask
from foretrace.replay.footprint import CATEGORIES, Allocation
from foretrace.transforms.schedules import Pass

from .pieces import Cutting
from .policy import BLOCK, LARGE, LARGE_BLOCK, MemoryPolicy
from .shares import Holdings
from .step import OPTIMIZER, Items

if TYPE_CHECKING:
    from foretrace.transforms.plan import Plan

_ACTIVATIONS, _GRADIENTS = CATEGORIES.index("activations"), CATEGORIES.index("gradients")
LARGEST: Final = 6
_STAY = (Role.PARAMETER, Role.BUFFER, Role.OPTIMIZER_STATE, Role.KV_CACHE, Role.INPUT)


@dataclass(frozen=True, eq=False)
class Life:
    """What one pass of a stage takes and leaves, bytes over the state before it."""

    left: int
    """Activations after it, less those before."""
    peak: int
    """The most of activations and gradients during it, over those before it."""
    peak_activations: int
    """Activations among it."""
    peak_op: int
    """The op at the peak; -1: none."""
    largest: tuple[tuple[int, int], ...]
    """(op that made it, bytes) of the largest storages that are there at the peak for this micro-batch."""


@dataclass(frozen=True, eq=False)
class RankMemory:
    """The peak of one pipeline rank."""

    peak_bytes: int
    by_category_bytes: Mapping[str, int]
    peak_time_s: float
    peak_op: str | None
    in_flight: int
    """The most micro-batches (of one stage each) whose activations are held at a time."""
    largest: tuple[Allocation, ...] = field(repr=False)


@dataclass(eq=False)
class Lives:
    """The life of storages in each pass of each stage; stages of equal ops share it."""

    cutting: Cutting
    row: Ints
    """[ops] the row of each op in its table: what is equal in size and kind."""
    _known: dict[tuple[int, int, bool], Life] = field(default_factory=dict)
    _equal: dict[tuple[bytes, bool], dict[int, Life]] = field(default_factory=dict)

    def of(self, stage: int, work: int, sums: bool) -> Life:
        """The pass *work* of *stage*; *sums*: its gradients are added to those that are there, and let go."""
        key = (stage, work, sums)
        if key not in self._known:
            halves = work in (Pass.BACKWARD_INPUT, Pass.BACKWARD_WEIGHT)
            backward = (Pass.BACKWARD_INPUT, Pass.BACKWARD_WEIGHT) if halves else (Pass.BACKWARD,)
            works = (Pass.FORWARD, *backward)
            order = np.concatenate([self.cutting.program(stage, w) for w in works])
            equal = (self.row[order].tobytes(), sums)
            if equal not in self._equal or work not in self._equal[equal]:
                self._equal[equal] = self._measure(stage, works, order, sums)
            life = self._equal[equal][work]
            largest = tuple((int(order[i]), size) for i, size in life.largest)
            self._known[key] = replace(life, peak_op=int(order[life.peak_op]) if order.size else -1, largest=largest)
        return self._known[key]

    def _measure(self, stage: int, works: Sequence[int], order: Ints, sums: bool) -> dict[int, Life]:
        """The passes *works* of *stage*, ops as places in *order* (their programs behind each other)."""
        s = self._spans(order, sums)
        taken, freed = np.zeros((2, 2, order.size), np.int64)
        for row, chosen in enumerate((~s.gradient, s.gradient)):
            np.add.at(taken[row], s.first[chosen], s.bytes[chosen])
            np.add.at(freed[row], s.last[chosen & ~s.stays], s.bytes[chosen & ~s.stays])
        during = np.cumsum(taken, axis=1) - np.cumsum(freed, axis=1) + freed
        after = np.concatenate([np.zeros((2, 1), np.int64), during - freed], axis=1)
        found, end = {}, 0
        for work in works:
            begin, end = end, end + self.cutting.program(stage, work).size
            if end == begin:
                found[int(work)] = Life(0, 0, 0, -1, ())
                continue
            inside = during[:, begin:end] - after[:, begin, None]
            top = int(inside.sum(axis=0).argmax())
            alive = np.flatnonzero((s.first <= begin + top) & ((s.last >= begin + top) | s.stays))
            ranked = alive[np.argsort(-s.bytes[alive], kind="stable")][:LARGEST]
            found[int(work)] = Life(
                int(after[0, end] - after[0, begin]),
                int(inside[:, top].sum()),
                int(inside[0, top]),
                begin + top,
                tuple((int(s.first[i]), int(s.bytes[i])) for i in ranked),
            )
        return found

    def _spans(self, order: Ints, sums: bool) -> "_Spans":
        flow, graph = self.cutting.flow, self.cutting.graph
        place = np.full(len(graph.ops), -1, np.int64)
        place[order] = np.arange(order.size)
        ops = np.concatenate([flow.read_op, flow.write_op])
        some = np.flatnonzero((place[ops] >= 0) & flow.launching[ops])
        storages = self._touched[some]
        kept = ~self._resident[storages]
        found, index = np.unique(storages[kept], return_inverse=True)
        at = place[ops[some[kept]]]
        first, last = np.full(found.size, order.size), np.full(found.size, -1)
        np.minimum.at(first, index, at)
        np.maximum.at(last, index, at)
        gradient = np.isin(found, self.cutting.gradients.storage)
        stays = flow.is_role(Role.OUTPUT)[found] | (gradient & (not sums))
        return _Spans(first, last, gradient, stays, allocated(self.cutting.size[found]))

    @cached_property
    def _touched(self) -> Ints:
        flow = self.cutting.flow
        touched: Ints = flow.storage[np.concatenate([flow.read, flow.written])]
        return touched

    @cached_property
    def _resident(self) -> Mask:
        return self.cutting.flow.is_role(*_STAY)


def allocated(size: Floats) -> Ints:
    """What PyTorch's CUDA allocator takes for tensors of *size* bytes."""
    block = np.where(size < LARGE, BLOCK, LARGE_BLOCK)
    return np.asarray(np.ceil(size / block) * block, np.int64)


class _Spans(NamedTuple):
    """Storages by the places of the first and last op that touch them."""

    first: Ints
    last: Ints
    gradient: Mask
    stays: Mask
    bytes: Ints


@dataclass(frozen=True, eq=False)
class State:
    """What a rank holds all the time, bytes by category."""

    fixed: dict[str, int]
    gradients: int
    """Of all its parameters, once they are there."""
    update: int
    """What the optimizer makes for a while."""


def rank_states(
    cutting: Cutting,
    holdings: Holdings,
    plan: "Plan",
    policy: MemoryPolicy,
    micro_batches: int,
    stages_of: Sequence[Sequence[int]],
    units: Floats,
) -> list[State]:
    """[k] what each pipeline rank holds; *units* [k] bytes of its largest FSDP unit."""
    flow, size = cutting.flow, cutting.size
    own = flow.storage == np.arange(size.size)
    made = flow.producer >= 0

    def resident(*roles: Role) -> int:
        return int(size[own & ~made & flow.is_role(*roles)].sum())

    inputs, buffers = resident(Role.INPUT), resident(Role.BUFFER)
    shards = holdings.shards
    learning = np.where(holdings.gradient_bytes > 0, 1.0, 0.0)
    gradient = holdings.gradient_bytes
    if policy.gradient:
        gradient = holdings.elements * learning * policy.gradient_bits(0) / 8
    state = holdings.state_bytes if policy.state_bytes is None else holdings.elements * learning * policy.state_bytes
    temporary = _update_bytes(cutting)
    whole = max(float(holdings.bytes.sum()), 1.0)
    on_the_way = 0.0  # units of parameters, and of gradients as large
    if (
        plan.shards > 1 and plan.zero >= 2
    ):  # gradients of one unit being scattered; FSDP gathers one unit ahead of another
        on_the_way = float(gradient.sum() / max(float(holdings.bytes @ learning), 1.0)) + 2.0 * (plan.zero == 3)
    parameters, optimizer, gradients, updated = (
        holdings.sums(column / (shards if plan.zero >= least else 1.0))
        for column, least in ((holdings.bytes, 3), (state, 1), (gradient, 2), (holdings.bytes, 1))
    )
    found = []
    for k in range(len(stages_of)):
        fixed = {
            "parameters": round(float(parameters[k])) + buffers,
            "optimizer": round(float(optimizer[k])),
            "activations": inputs * micro_batches if 0 in stages_of[k] else 0,
            "kv_cache": _cache_bytes(cutting, stages_of[k]) * micro_batches,
            "communication": round(on_the_way * units[k]),
        }
        update = round(temporary * float(updated[k]) / whole)
        found.append(State(fixed, round(float(gradients[k])), update))
    return found


def _cache_bytes(cutting: Cutting, stages: Sequence[int]) -> int:
    """The KV cache that *stages* keep of one micro-batch: what they are given, or what they make where that is more."""
    flow = cutting.flow
    cached = flow.is_role(Role.KV_CACHE)
    if not cached.any():
        return 0
    ops = np.concatenate([flow.read_op, flow.write_op])
    storages = flow.storage[np.concatenate([flow.read, flow.written])]
    found = np.unique(storages[np.isin(cutting.stage[ops], stages)])
    found = found[cached[found]]
    made = flow.producer[found] >= 0
    return int(max(cutting.size[found[made]].sum(), cutting.size[found[~made]].sum()))


def _update_bytes(cutting: Cutting) -> int:
    """The most that the captured optimizer makes for a while, over all parameters."""
    flow, graph = cutting.flow, cutting.graph
    ops = np.flatnonzero(np.array([op.phase == "optimizer" for op in graph.ops], np.bool_))
    if not ops.size:
        return 0
    at = np.concatenate([flow.read_op, flow.write_op])
    storages = flow.storage[np.concatenate([flow.read, flow.written])]
    some = at >= ops[0]
    made = flow.producer[storages[some]] >= ops[0]
    at, storages = at[some][made], storages[some][made]
    found, index = np.unique(storages, return_inverse=True)
    first, last = np.full(found.size, len(graph.ops)), np.zeros(found.size, np.int64)
    np.minimum.at(first, index, at)
    np.maximum.at(last, index, at)
    change = np.zeros(len(graph.ops) + 1)
    np.add.at(change, first, cutting.size[found])
    np.add.at(change, last + 1, -cutting.size[found])
    return int(np.cumsum(change).max(initial=0.0))


class _Moment(NamedTuple):
    """The state of a rank at its fullest."""

    total: int
    activations: int
    gradients: int
    item: int
    life: Life | None


def measure_rank(
    rank: int, items: Items, lives: Lives, state: State, start_s: Floats, policy: MemoryPolicy, divided: bool
) -> RankMemory:
    """The peak of simulated *rank*, whose items start at *start_s* [i]; *divided*: gradients are (ZeRO 2 and 3)."""
    own = np.flatnonzero(items.rank == rank)
    rows = own[np.append(True, items.row[own][1:] != items.row[own][:-1])] if own.size else own
    stages = np.unique(items.stage[own][items.stage[own] >= 0]).size
    held = gradients = flying = most_flying = 0
    best = _Moment(-1, 0, 0, -1, None)
    summed: set[int] = set()
    for i, work, stage in zip(rows.tolist(), items.work[rows].tolist(), items.stage[rows].tolist(), strict=True):
        life = None if work == OPTIMIZER else lives.of(stage, work, divided or stage in summed)
        if life is None:
            now = _Moment(gradients + held + state.update, held + state.update, gradients, i, None)
        else:
            part = held + life.peak_activations
            grown = gradients + life.peak - life.peak_activations
            now = _Moment(part + grown, part, grown, i, life)
            flying += 1 if work == Pass.FORWARD else -1 if work != Pass.BACKWARD_INPUT else 0
            most_flying = max(most_flying, flying)
            held += life.left
            if work in (Pass.BACKWARD, Pass.BACKWARD_WEIGHT) and stage not in summed:
                summed.add(stage)
                gradients = round(state.gradients * len(summed) / stages)  # of each stage an equal share
        best = max(best, now, key=lambda moment: moment.total)
    sums = {name: state.fixed.get(name, 0) for name in CATEGORIES}
    sums["activations"] += best.activations
    sums["gradients"] += best.gradients
    sums["workspace"] += round(policy.fragmentation * best.activations)
    return RankMemory(
        sum(sums.values()),
        sums,
        float(start_s[best.item]) if best.item >= 0 else 0.0,
        "optimizer" if best.life is None else _shown(lives.cutting, best.life.peak_op),
        most_flying,
        tuple(
            Allocation(_shown(lives.cutting, op) or "", size, "activations")
            for op, size in (best.life.largest if best.life else ())
        ),
    )


def _shown(cutting: Cutting, op: int) -> str | None:
    """The name and module of *op*; None for -1."""
    if op < 0:
        return None
    found = cutting.graph.ops[op]
    return f"{found.name} in {found.module}" if found.module else found.name
