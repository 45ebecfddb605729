"""The memory of every pipeline rank over the replayed schedule.

What a forward leaves for its backward is held for each micro-batch in flight; the running pass adds what it needs for
a while. Both come from the life of each storage in program order, as a stream-ordered allocator sees it: from the
first op of a stage that touches it to the last. Allocations are rounded up as PyTorch does.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from foretrace.ir import Role
from foretrace.replay.columns import Floats, Ints, Mask
from foretrace.replay.footprint import CATEGORIES, Allocation
from foretrace.transforms.schedules import Pass

from .cutting import Cutting
from .policy import BLOCK, LARGE, LARGE_BLOCK, MemoryPolicy
from .shares import Holdings
from .step import OPTIMIZER, Items

if TYPE_CHECKING:
    from foretrace.transforms.plan import Plan

_ACTIVATIONS, _GRADIENTS = CATEGORIES.index("activations"), CATEGORIES.index("gradients")
LARGEST: Final = 6


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
    size: Floats
    """[tensors] bytes."""
    measured: dict[Hashable, dict[int, Life]] = field(default_factory=dict)
    """By the ops themselves, at the same sizes: what plans have in common."""
    _known: dict[tuple[int, int, bool], Life] = field(default_factory=dict)
    _equal: dict[tuple[bytes, bool], dict[int, Life]] = field(default_factory=dict)

    def of(self, stage: int, work: int, sums: bool) -> Life:
        """The pass *work* of *stage*; *sums*: its gradients are added to those that are there, and let go."""
        key = (stage, work, sums)
        if key not in self._known:
            halves = work in (Pass.BACKWARD_INPUT, Pass.BACKWARD_WEIGHT)
            backward = (Pass.BACKWARD_INPUT, Pass.BACKWARD_WEIGHT) if halves else (Pass.BACKWARD,)
            works = (Pass.FORWARD, *backward)
            programs = [self.cutting.program(stage, w) for w in works]
            order = np.concatenate(programs)
            equal = (self.row[order].tobytes(), sums)
            if equal not in self._equal or work not in self._equal[equal]:
                same = (tuple(p.size for p in programs), order.tobytes(), sums)
                if same not in self.measured:
                    self.measured[same] = self._measure(stage, works, order, sums)
                self._equal[equal] = self.measured[same]
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
        found, first, last, gradient = self.cutting.once(("spans", order.tobytes()), lambda: self._found(order))
        stays = self.cutting.flow.is_role(Role.OUTPUT)[found] | (gradient & (not sums))
        return _Spans(first, last, gradient, stays, allocated(self.size[found]))

    def _found(self, order: Ints) -> tuple[Ints, Ints, Ints, Mask]:
        """Storages that the ops *order* touch, places of the first and the last of them, and which are gradients."""
        cutting = self.cutting
        place = np.full(len(cutting.graph.ops), -1, np.int64)
        place[order] = np.arange(order.size)
        ops, storages = cutting.outline.touched
        some = np.flatnonzero(place[ops] >= 0)
        found, index = np.unique(storages[some], return_inverse=True)
        at = place[ops[some]]
        first, last = np.full(found.size, order.size), np.full(found.size, -1)
        np.minimum.at(first, index, at)
        np.maximum.at(last, index, at)
        return found, first, last, np.isin(found, cutting.gradients.storage)


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
    size: Floats,
    holdings: Holdings,
    plan: "Plan",
    policy: MemoryPolicy,
    micro_batches: int,
    stages_of: Sequence[Sequence[int]],
    units: Floats,
) -> list[State]:
    """[k] what each pipeline rank holds; *size* [tensors] bytes, *units* [k] bytes of its largest FSDP unit."""
    flow = cutting.flow
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
    temporary = _update_bytes(cutting, size)
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
            "kv_cache": _cache_bytes(cutting, size, stages_of[k]) * micro_batches,
            "communication": round(on_the_way * units[k]),
        }
        update = round(temporary * float(updated[k]) / whole)
        found.append(State(fixed, round(float(gradients[k])), update))
    return found


def _cache_bytes(cutting: Cutting, size: Floats, stages: Sequence[int]) -> int:
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
    return int(max(size[found[made]].sum(), size[found[~made]].sum()))


def _update_bytes(cutting: Cutting, size: Floats) -> int:
    """The most that the captured optimizer makes for a while, over all parameters."""
    found, first, last = cutting.outline.temporaries
    change = np.zeros(len(cutting.graph.ops) + 1)
    np.add.at(change, first, size[found])
    np.add.at(change, last + 1, -size[found])
    return int(np.cumsum(change).max(initial=0.0))


def measure_rank(
    rank: int, items: Items, lives: Lives, state: State, start_s: Floats, policy: MemoryPolicy, divided: bool
) -> RankMemory:
    """The peak of simulated *rank*, whose items start at *start_s* [i]; *divided*: gradients are (ZeRO 2 and 3)."""
    begin, end = np.searchsorted(items.rank, [rank, rank + 1])  # items stand by rank
    own = np.arange(begin, end)
    rows = own[np.append(True, items.row[own][1:] != items.row[own][:-1])] if own.size else own
    at, work = np.arange(rows.size), items.work[rows]
    (stages, stage), passes = np.unique(items.stage[rows], return_inverse=True), work != OPTIMIZER
    ends = np.flatnonzero((work == Pass.BACKWARD) | (work == Pass.BACKWARD_WEIGHT))
    summed = np.full(stages.size, rows.size)  # the row after which the gradients of each stage are there
    np.minimum.at(summed, stage[ends], ends)
    sums = divided | (at > summed[stage])
    code = (stage * 8 + work) * 2 + sums
    first = np.full(16 * stages.size, rows.size)
    first[code[::-1]] = at[::-1]  # the first to have each code is the last to be written
    of_code: list[Life | None] = [None] * first.size
    for i in np.sort(first[first < rows.size]).tolist():
        if passes[i]:
            of_code[int(code[i])] = lives.of(int(stages[stage[i]]), int(work[i]), bool(sums[i]))
    figures = [
        (x.left, x.peak - x.peak_activations, x.peak_activations) if x else (0, 0, state.update) for x in of_code
    ]
    left, more, peak = np.array(figures, np.int64).reshape(-1, 3)[code].T
    parts = max(int((stages >= 0).sum()), 1)
    grown = np.array([round(state.gradients * n / parts) for n in range(parts + 1)], np.int64)  # an equal share each
    activations = np.cumsum(left) - left + peak
    gradients = grown[(summed[:, None] < at).sum(axis=0)] + more
    change = np.where(work == Pass.FORWARD, 1, -1) * (passes & (work != Pass.BACKWARD_INPUT))
    top = int((activations + gradients).argmax()) if rows.size else -1
    life = of_code[int(code[top])] if rows.size else None
    largest = life.largest if life else ()
    sums_of = {name: state.fixed.get(name, 0) for name in CATEGORIES}
    if rows.size:
        sums_of["activations"] += int(activations[top])
        sums_of["gradients"] += int(gradients[top])
        sums_of["workspace"] += round(policy.fragmentation * int(activations[top]))
    return RankMemory(
        sum(sums_of.values()),
        sums_of,
        float(start_s[rows[top]]) if rows.size else 0.0,
        "optimizer" if life is None else _shown(lives.cutting, life.peak_op),
        int(np.cumsum(change).max(initial=0)),
        tuple(Allocation(_shown(lives.cutting, op) or "", size, "activations") for op, size in largest),
    )


def _shown(cutting: Cutting, op: int) -> str | None:
    """The name and module of *op*; None for -1."""
    if op < 0:
        return None
    found = cutting.graph.ops[op]
    return f"{found.name} in {found.module}" if found.module else found.name
