"""What a rank runs for one row of a pipeline schedule: its ops, cut where communication begins beside them."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from foretrace.ir import DType, parse_dtype
from foretrace.replay.columns import Floats, Ints, Mask
from foretrace.transforms.schedules import Pass

from .cutting import Cutting
from .extras import ALL_GATHER, ALL_REDUCE, REDUCE_SCATTER, Extras
from .policy import MemoryPolicy, Overlap

if TYPE_CHECKING:
    from foretrace.transforms.plan import Plan


def replica_group(plan: "Plan", expert: bool) -> tuple[int, int, int]:
    """Ranks that have a parameter in common, the stride between them, and how many of them ZeRO divides it among.

    Expert parallel ranks have no experts in common.
    """
    apart = plan.ep if expert else 1
    return plan.replicas // apart, plan.stride("replicas") * apart, max(plan.shards // apart, 1)


@dataclass(frozen=True)
class Piece:
    """A stretch of ops of one stage, with the collectives around it."""

    ops: Ints
    gathers: tuple[int, ...] = ()
    """Op ids of the all-gathers of the parameters it needs; none: they are there."""
    reduces: tuple[int, ...] = ()
    """Op ids of what reduces gradients after it."""


@dataclass(eq=False)
class Pieces:
    """Cuts the rows of a schedule into pieces under a plan."""

    cutting: Cutting
    plan: "Plan"
    extras: Extras
    policy: MemoryPolicy
    overlap: Overlap
    accumulates: bool
    """Whether there is more than one micro-batch."""
    _sum_of: dict[int, int] = field(default_factory=dict)

    def of(self, stage: int, work: int, first: bool, last: bool) -> list[Piece]:
        """The pieces of *stage* in pass *work*; *first* and *last*: of the micro-batches whose gradients are summed."""
        cutting, plan = self.cutting, self.plan
        ops = cutting.program(stage, work)
        marks = self._marks(ops) if work != Pass.FORWARD else np.zeros(0, np.int64)
        whole = not plan.zero or plan.zero == 1
        if whole and not (last and marks.size and plan.replicas > 1):
            return [Piece(self._summed(ops, marks, first))]
        ends = self._bucket_ends(marks) if whole else self._unit_ends(ops)
        groups = np.split(ops, np.searchsorted(ops, ends[:-1], "right")) if ops.size else [ops]
        return [self._piece(stage, work, group, marks, first) for group in groups if group.size]

    def _marks(self, ops: Ints) -> Ints:
        """The gradients that *ops* finish."""
        made = self.cutting.gradients.op
        at = np.minimum(np.searchsorted(ops, made), max(ops.size - 1, 0))
        return np.flatnonzero(ops[at] == made) if ops.size else np.zeros(0, np.int64)

    def _piece(self, stage: int, work: int, ops: Ints, marks: Ints, first: bool) -> Piece:
        gradients = self.cutting.gradients
        begin, end = np.searchsorted(gradients.op[marks], [ops[0], ops[-1] + 1])
        inside = marks[begin:end]
        gathers: tuple[int, ...] = ()
        root = not 0 <= self.cutting.place[ops[-1]] < self.cutting.layers  # FSDP2 keeps its parameters gathered
        if self.plan.zero == 3 and (work == Pass.FORWARD or (work != Pass.BACKWARD_WEIGHT and not root)):
            at, parameters = self.cutting.parameters
            begin, end = np.searchsorted(at, [ops[0], ops[-1] + 1])
            mine = ops[np.searchsorted(ops, at[begin:end])] == at[begin:end]
            used = np.unique(parameters[begin:end][mine])
            phase = "backward" if work else "forward"
            expert = gradients.experts[used] & (self.plan.ep > 1)
            gathers = self._gathered(self.cutting.size[used] * self._padding(used, expert), expert, phase)
        return Piece(self._summed(ops, inside, first), gathers, self.reduces(inside))

    def reduces(self, gradients: Ints) -> tuple[int, ...]:
        """Op ids of the collectives that sum *gradients* among replicas: of experts among fewer."""
        plan, found, g = self.plan, [], self.cutting.gradients
        for expert in (False, True):
            some = gradients[(g.expert[gradients] & (plan.ep > 1)) == expert]
            if not some.size:
                continue
            elements = g.elements[some]
            if plan.zero == 3:
                elements = elements * self._padding(g.parameter[some], np.full(some.size, expert))
            size = float(elements.sum()) * self.gradient_dtype.bits / 8
            ranks, stride, shards = self._groups[expert]
            if plan.zero:
                found.append(self._collective(REDUCE_SCATTER, size, shards, stride))
                found.append(self._collective(ALL_REDUCE, size / shards, ranks // shards, stride * shards))
            else:
                found.append(self._collective(ALL_REDUCE, size, ranks, stride))
        return tuple(op for op in found if op >= 0)

    def gathers(self, stages: list[int]) -> list[int]:
        """Op ids of the all-gathers of updated parameters, a bucket each (ZeRO 1 and 2)."""
        if self.plan.zero not in (1, 2):
            return []
        g = self.cutting.gradients
        marks = np.flatnonzero(np.isin(g.stage, stages))
        ends = self._bucket_ends(marks)
        groups = np.split(marks, np.searchsorted(g.op[marks], ends[:-1], "right")) if marks.size else []
        return [op for m in groups for op in self._gathered(g.parameter_bytes[m], g.expert[m], "optimizer")]

    @cached_property
    def gradient_dtype(self) -> DType:
        """What gradients are summed in."""
        storages = self.cutting.gradients.storage
        if self.policy.gradient or not storages.size:
            return parse_dtype(self.policy.gradient or "float32")
        return self.cutting.graph.tensors[int(storages[0])].dtype

    @cached_property
    def parameter_dtype(self) -> DType:
        """That of most parameters."""
        _, parameters = self.cutting.parameters
        return self.cutting.graph.tensors[int(parameters[0])].dtype if parameters.size else parse_dtype("float32")

    @cached_property
    def _groups(self) -> dict[bool, tuple[int, int, int]]:
        """`replica_group` of parameters, and of those of experts."""
        return {expert: replica_group(self.plan, expert) for expert in (False, True)}

    def _collective(self, name: str, size: float, ranks: int, stride: int) -> int:
        return self.extras.collective(name, size, ranks, stride, self.gradient_dtype, "backward")

    def _gathered(self, size: "Ints | Floats", expert: Mask, phase: str) -> tuple[int, ...]:
        """Op ids of the all-gathers of parameters of *size* bytes, those of experts among fewer ranks."""
        found = []
        for own in (False, True):
            some = expert == own
            if not some.any():
                continue
            _, stride, shards = self._groups[own]
            whole = float(size[some].sum())
            found.append(self.extras.collective(ALL_GATHER, whole, shards, stride, self.parameter_dtype, phase))
        return tuple(op for op in found if op >= 0)

    def _padding(self, tensors: Ints, expert: Mask) -> Floats:
        """[tensors] what FSDP2 moves of each over its own bytes: its rows are filled up to a multiple of the ranks."""
        rows = np.where(tensors >= 0, self.cutting.outline.first_dims[tensors], 1.0)
        ranks = np.where(expert, self._groups[True][2], self._groups[False][2])
        return np.where(tensors >= 0, np.ceil(rows / ranks) * ranks / rows, 1.0)

    def _bucket_ends(self, marks: Ints) -> Ints:
        """The last op of each bucket of gradients: one is full when the next gradient begins beyond its size."""
        g = self.cutting.gradients
        whole = np.cumsum(g.elements[marks])
        bucket = (whole - 1) // self.overlap.bucket_elements(self.plan.replicas)
        last = np.flatnonzero(np.diff(bucket, append=bucket[-1:] + 1)) if marks.size else marks
        return np.unique(g.op[marks[last]])

    def _unit_ends(self, ops: Ints) -> Ints:
        """The last op of each FSDP unit: a layer, what is before them, what is after."""
        place = self.cutting.place[ops]
        last = np.flatnonzero(np.diff(place, append=-9))
        return ops[last]

    def _summed(self, ops: Ints, marks: Ints, first: bool) -> Ints:
        """*ops* with the sum over micro-batches after each of the gradients *marks*; the *first* is its own sum.

        Gradients that are divided (ZeRO 2 and 3) are summed a share a rank: that is left out.
        """
        g = self.cutting.gradients
        casts = self.policy.gradient is not None
        if not marks.size or self.plan.zero >= 2 or not (self.accumulates or casts) or (first and not casts):
            return ops
        sums = np.array([self._sum(int(m)) for m in marks], np.int64)
        at = np.searchsorted(ops, g.op[marks], "right")
        return np.insert(ops, at, sums)

    def _sum(self, mark: int) -> int:
        if mark not in self._sum_of:
            g = self.cutting.gradients
            module = self.cutting.graph.ops[int(g.op[mark])].module
            self._sum_of[mark] = self.extras.accumulate(int(g.storage[mark]), self.gradient_dtype, module)
        return self._sum_of[mark]
