"""Expert parallel as a pass: each rank keeps some experts, and rows travel to the experts they were routed to.

In front of the grouped products an all-to-all takes every rank's rows to the ranks of their experts, another brings
the results back; the backward does the same with gradients (GShard, arXiv:2006.16668). No token is dropped. Where
routing is balanced a rank gets as many rows as it sends; with a `skew` the most loaded rank gets that many times more,
and it is the one that all others wait for.
"""

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, ClassVar, Final

from foretrace.ir import DimLike, Graph, Op, OpKind, Role, Tensor, op_work
from foretrace.transforms.plan import PlanError, nearest_divisor

from .writer import Axis, Writer, bare

_INSIDE: Final = frozenset({OpKind.VIEW, OpKind.ELEMENTWISE, OpKind.COPY})


@dataclass(frozen=True)
class ExpertParallel:
    """Divide the experts among `ranks`."""

    name: ClassVar[str] = "expert_parallel"
    ranks: int
    stride: int = 1
    skew: float = 1.0
    """Rows of the most loaded rank over the mean."""

    def run(self, graph: Graph) -> Graph:
        """The local graph. Raises `PlanError` where there are no experts or they do not divide."""
        if self.ranks == 1:
            return graph
        experts = {op.attributes.get("groups") for op in graph.ops if op.kind is OpKind.GROUPED_MATMUL}
        counts = [n for n in experts if isinstance(n, int)]
        if not counts:
            raise PlanError(f"plan: ep={self.ranks}: {graph.name} has no experts; use ep=1")
        for n in counts:
            if n % self.ranks:
                raise PlanError(
                    f"plan: ep={self.ranks} does not divide the {n} experts of {graph.name}: "
                    f"nearest is ep={nearest_divisor(n, self.ranks)}"
                )
        return _Division(graph, self, max(counts)).run()


class _Division:
    """One graph being divided."""

    def __init__(self, graph: Graph, how: ExpertParallel, experts: int) -> None:
        self.graph, self.how, self.experts = graph, how, experts
        self.writer = Writer(graph)
        self.axis = Axis("ep", how.ranks, how.stride)
        self.held: set[int] = set()
        """Tensors of a rank's own experts: weights, their gradients and states."""
        self.rows: set[int] = set()
        """Tensors whose rows lie with their experts."""
        self.sent: dict[int, int] = {}
        """Storage → its rows with their experts; kept for the backward."""
        self.back: dict[int, int] = {}

    def run(self) -> Graph:
        """The graph of one rank."""
        self._weights()
        for op in self.graph.ops:
            if op.kind is OpKind.GROUPED_MATMUL:
                self._grouped(op)
            elif bare(op.name).startswith("new_"):  # a constant: nothing is read
                self.writer.ops.append(op)
            elif any(t in self.rows for t in op.inputs) and self._stays(op):
                self._inside(op)
            elif any(t in self.held for t in op.inputs):
                self._of_weights(op)
            else:
                ins = tuple(self._returned(t, op) if t in self.rows else t for t in op.inputs)
                self.writer.ops.append(op if ins == op.inputs else replace(op, inputs=ins))
        return replace(self.graph, tensors=tuple(self.writer.tensors), ops=tuple(self.writer.ops))

    def _weights(self) -> None:
        """Parameters that grouped products read, through views, and the optimizer's states of them."""
        of: dict[int, int] = {}
        names = set()
        for op in self.graph.ops:
            if op.kind is OpKind.VIEW:
                of[op.outputs[0]] = of.get(op.inputs[0], op.inputs[0])
            for t in op.inputs if op.kind is OpKind.GROUPED_MATMUL else ():
                root = of.get(t, t)
                if self.graph.tensors[root].role is Role.PARAMETER:
                    names.add(self.graph.tensors[root].name)
                    self._hold(root)
        for i, state in enumerate(self.graph.tensors):
            if state.role is Role.OPTIMIZER_STATE and state.name.split(".", 2)[-1] in names and len(state.shape) == 3:
                self._hold(i)

    def _hold(self, i: int) -> None:
        tensor = self.writer.tensors[i]
        if i not in self.held and tensor.shape and tensor.shape[0] == self.experts:
            self.held.add(i)
            self.writer.tensors[i] = replace(tensor, shape=(self.experts // self.how.ranks, *tensor.shape[1:]))

    def _stays(self, op: Op) -> bool:
        """Whether an op is done where the rows are: all it reads of them is there already."""
        if op.kind not in _INSIDE:
            return False
        rows = {self.graph.tensors[t].shape[0] for t in op.inputs if t in self.rows and self.graph.tensors[t].shape}
        others = [t for t in op.inputs if t not in self.rows]
        return all(not self.graph.tensors[t].shape or self.graph.tensors[t].shape[0] not in rows for t in others)

    def _grouped(self, op: Op) -> None:
        ins = []
        for t in op.inputs:
            tensor = self.graph.tensors[t]
            activation = tensor.dtype.is_float and len(tensor.shape) == 2
            ins.append(self._dispatched(t, op) if activation and t not in self.rows else t)
        attributes = {**op.attributes, "groups": self.experts // self.how.ranks}
        for name in ("m", "k"):
            if not isinstance(op.attributes[name], int):  # what depends on the tokens
                attributes[name] = self._skewed(op.attributes[name])
        weights = len(self.graph.tensors[op.outputs[0]].shape) == 3
        for t in op.outputs:
            (self.held if weights else self.rows).add(t)
            self._resize(t, weights)
        self._append(replace(op, inputs=tuple(ins), attributes=attributes))

    def _skewed(self, rows: DimLike) -> DimLike:
        if self.how.skew == 1:
            return rows
        share = Fraction(self.how.skew).limit_denominator(100)
        return rows * share.numerator // share.denominator

    def _resize(self, t: int, weights: bool) -> None:
        tensor = self.writer.tensors[t]
        if weights:
            self.writer.tensors[t] = replace(tensor, shape=(self.experts // self.how.ranks, *tensor.shape[1:]))
        elif self.how.skew != 1:
            shape = tuple(s if isinstance(s, int) else self._skewed(s) for s in tensor.shape)
            self.writer.tensors[t] = replace(tensor, shape=shape)

    def _append(self, op: Op) -> None:
        ins, outs = ([self.writer.tensors[t] for t in ts] for ts in (op.inputs, op.outputs))
        self.writer.ops.append(replace(op, work=op_work(op.kind, bare(op.name), op.attributes, ins, outs)))

    def _inside(self, op: Op) -> None:
        for t in op.outputs:
            self.rows.add(t)
            self._resize(t, False)
        self._append(op)

    def _of_weights(self, op: Op) -> None:
        """Views of weights, their gradients, and what an optimizer does with them."""
        lists = bare(op.name).startswith("_foreach_")
        for i, t in enumerate(op.outputs):
            tensor = self.graph.tensors[t]
            mine = op.inputs[i] in self.held if lists else True
            if mine and len(tensor.shape) == 3 and tensor.shape[0] == self.experts:
                self.held.add(t)
                self._resize(t, True)
        self._append(op)

    def _dispatched(self, t: int, op: Op) -> int:
        """*t* [rows, width] (or transposed) after its rows went to their experts."""
        tensor = self.writer.tensors[t]
        shape = tuple(s if isinstance(s, int) else self._skewed(s) for s in tensor.shape)
        if tensor.storage not in self.sent:
            self.sent[tensor.storage] = self._travel(t, op, shape)
            return self.sent[tensor.storage]
        there = self.sent[tensor.storage]
        if self.writer.tensors[there].shape == shape:
            return there
        return self.writer.view(there, Tensor("", shape, tensor.dtype, Role.ACTIVATION, -1), "aten.t.default", op)

    def _returned(self, t: int, op: Op) -> int:
        """*t* after its rows came home."""
        if t not in self.back:
            self.back[t] = self._travel(t, op, self.graph.tensors[t].shape)
        return self.back[t]

    def _travel(self, t: int, op: Op, shape: Any) -> int:
        tensor = self.writer.tensors[t]
        out = Tensor("", shape, tensor.dtype, Role.ACTIVATION, -1)
        most = tensor.bytes if self.how.skew == 1 else max((tensor.bytes, out.bytes), key=lambda b: len(str(b)))
        return self.writer.collective("all_to_all", self.axis, t, out, most, op)
