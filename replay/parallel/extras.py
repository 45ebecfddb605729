"""The ops that a plan adds around the captured ones, priced by the same cost models: collectives among replicas, sends
between stages, sums of gradients over micro-batches.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from foretrace.ir import DType, Graph, Op, OpKind, Role, Tensor, Work, op_work
from foretrace.replay.columns import Floats, Ints, Mask
from foretrace.replay.costs import CostModel, Costs
from foretrace.replay.costs.interval import narrowed, step_power
from foretrace.replay.table import OpTable, tabulate
from foretrace.transforms.shard.writer import COLLECTIVE_NAMES

if TYPE_CHECKING:
    from foretrace.hardware import System

ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, SEND = (
    COLLECTIVE_NAMES[sort] for sort in ("all_reduce", "all_gather", "reduce_scatter", "send_recv")
)


@dataclass(eq=False)
class Extras:
    """Collects ops that follow those of *graph*; equal ones are one. Ids go on where the graph's end."""

    graph: Graph
    tensors: list[Tensor] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    _known: dict[tuple[object, ...], int] = field(default_factory=dict)
    _work: dict[tuple[object, ...], Work] = field(default_factory=dict)

    def collective(self, name: str, size: float, ranks: int, stride: int, dtype: DType, phase: str) -> int:
        """The op id of a collective of *size* bytes (the whole buffer); -1 where there is nothing to do."""
        size = round(size)
        if ranks <= 1 or size <= 0:
            return -1
        key = (name, size, ranks, stride, phase)
        if key not in self._known:
            elements = max(size * 8 // dtype.bits, 1)
            buffer = self._tensor(Tensor("", (elements,), dtype, Role.ACTIVATION, len(self.tensors)))
            attributes = {"bytes": size, "ranks": ranks, "stride": stride}
            work = Work(bytes_read=size, bytes_written=size)
            self._known[key] = self._op(
                Op(OpKind.COLLECTIVE, name, (buffer,), (buffer,), attributes, "", phase, work),
            )
        return self._known[key]

    def accumulate(self, gradient: int, dtype: DType, module: str) -> int:
        """The op id of adding *gradient* (a tensor of the graph) to the sum of the micro-batches before."""
        made = self.graph.tensors[gradient]
        at = len(self.tensors)
        part = self._tensor(Tensor(made.name, made.shape, made.dtype, Role.ACTIVATION, at))
        total = self._tensor(Tensor(made.name, made.shape, dtype, Role.GRADIENT, at + 1))
        after = self._tensor(Tensor(made.name, made.shape, dtype, Role.GRADIENT, at + 1))
        key = ("add_", made.shape, made.dtype, dtype)
        if key not in self._work:
            tensors = self.tensors
            self._work[key] = op_work(OpKind.ELEMENTWISE, "add_", {}, [tensors[total], tensors[part]], [tensors[after]])
        work = self._work[key]
        return self._op(
            Op(OpKind.ELEMENTWISE, "aten.add_.Tensor", (total, part), (after,), {}, module, "backward", work),
        )

    def _tensor(self, tensor: Tensor) -> int:
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def _op(self, op: Op) -> int:
        self.ops.append(op)
        return len(self.graph.ops) + len(self.ops) - 1

    def copied(self) -> "Extras":
        """The same, to go on with."""
        return Extras(self.graph, list(self.tensors), list(self.ops), dict(self._known), dict(self._work))

    def joined(self) -> Graph:
        """The graph with the added ops behind its own."""
        shift = len(self.graph.tensors)
        tensors = [Tensor(t.name, t.shape, t.dtype, t.role, t.storage + shift) for t in self.tensors]
        ops = [
            Op(
                op.kind,
                op.name,
                tuple([t + shift for t in op.inputs]),
                tuple([t + shift for t in op.outputs]),
                op.attributes,
                op.module,
                op.phase,
                op.work,
            )
            for op in self.ops
        ]
        return replace(self.graph, tensors=(*self.graph.tensors, *tensors), ops=(*self.graph.ops, *ops))


@dataclass(frozen=True, eq=False)
class Priced:
    """The ops of a graph and what its plan adds, with their prices: rows of both tables behind each other."""

    extras: Extras
    row: Ints
    """[ops]"""
    seconds: Floats
    """[rows], as the two below."""
    low_s: Floats
    high_s: Floats
    main: Costs
    added: Costs
    added_table: OpTable
    collective: Mask
    """[ops]"""

    @cached_property
    def graph(self) -> Graph:
        """The ops that have a row."""
        return self.extras.joined()

    def exposing(self, share: float) -> "Priced":
        """Tensor-parallel collectives for *share* of their seconds: the rest is hidden behind products."""
        if share == 1.0:
            return self
        ops = [i for i, op in enumerate(self.graph.ops) if op.attributes.get("group") == "tp"]
        factor = np.ones(self.seconds.size)
        factor[self.row[ops]] = share
        return replace(self, seconds=self.seconds * factor, low_s=self.low_s * factor, high_s=self.high_s * factor)

    def narrowed(self, runs: Floats) -> tuple[Floats, Floats]:
        """[ops] and [ops] the ends of every op's seconds in the step's interval; *runs* [ops] how often each runs."""
        times = np.bincount(self.row, runs, minlength=self.seconds.size)
        power = step_power(self.seconds * times, self.main.correlation)
        ends = (narrowed(self.seconds, end, power)[self.row] for end in (self.low_s, self.high_s))
        return next(ends), next(ends)


def price_all(
    table: OpTable, collective: Mask, main: Costs, extras: Extras, model: CostModel, system: "System", software: str
) -> Priced:
    """*table* (priced as *main*, its *collective* ops marked) and the ops of *extras*, which are priced here."""
    graph = replace(extras.graph, tensors=tuple(extras.tensors), ops=tuple(extras.ops))
    added_table = tabulate(graph, table.bindings)
    added = model.price(added_table, system, software)
    seconds, low_s, high_s = (
        np.concatenate([getattr(main, c), getattr(added, c)]) for c in ("seconds", "low_s", "high_s")
    )
    of_added = np.array([op.kind is OpKind.COLLECTIVE for op in extras.ops], np.bool_)
    row = np.concatenate([table.row, added_table.row + table.rows])
    return Priced(extras, row, seconds, low_s, high_s, main, added, added_table, np.concatenate([collective, of_added]))
