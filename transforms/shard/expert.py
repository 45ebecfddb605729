"""Expert parallel as a pass: each rank keeps some experts, and rows travel to the experts they were routed to.

In front of the grouped products an all-to-all takes every rank's rows to the ranks of their experts, another brings
the results back; the backward does the same with gradients (GShard, arXiv:2006.16668). No token is dropped. Where
routing is balanced a rank gets as many rows as it sends; with a `skew` the most loaded rank gets that many times more,
and it is the one that all others wait for. What belongs to an expert goes with it: biases, gradients, states.
"""

from dataclasses import dataclass, replace
from fractions import Fraction
from math import gcd
from typing import ClassVar, Final

from foretrace.ir import DimLike, Graph, Op, OpKind, Role, Shape, Tensor, op_work
from foretrace.transforms.plan import PlanError, nearest_divisor

from .writer import Axis, Writer, bare

_INSIDE: Final = frozenset({OpKind.VIEW, OpKind.ELEMENTWISE, OpKind.COPY})
_TRANSPOSES: Final = frozenset({"t", "transpose", "mT", "permute"})


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
        groups = {op.attributes.get("groups") for op in graph.ops if op.kind is OpKind.GROUPED_MATMUL}
        counts = {n for n in groups if isinstance(n, int)}
        if not counts:
            raise PlanError(f"plan: ep={self.ranks}: {graph.name} has no experts; use ep=1")
        for n in sorted(counts):
            if n % self.ranks:
                raise PlanError(
                    f"plan: ep={self.ranks} does not divide the {n} experts of {graph.name}: "
                    f"nearest is ep={nearest_divisor(gcd(*counts), self.ranks)}"
                )
        return _Division(graph, self, counts).run()


class _Division:
    """One graph being divided."""

    def __init__(self, graph: Graph, how: ExpertParallel, counts: set[int]) -> None:
        self.graph, self.how, self.counts = graph, how, counts
        self.writer = Writer(graph)
        self.axis = Axis("ep", how.ranks, how.stride)
        self.held: set[int] = set()
        """Tensors of a rank's own experts: weights and biases, their gradients and states."""
        self.modules = {op.module for op in graph.ops if op.kind is OpKind.GROUPED_MATMUL}
        self.shapes: set[Shape] = set()
        """Of whole parameters of experts."""
        self.rows: dict[int, int] = {}
        """Tensors whose rows lie with their experts, and which dim the rows are."""
        self.same: dict[int, int] = {}
        """A view of all of a tensor → that tensor."""
        self.written: dict[int, int] = {}
        """How often each storage was written in place: what was sent of it before is stale."""
        self.sent: dict[tuple[int, int], int] = {}
        """What was sent to the experts; kept for the backward."""
        self.back: dict[int, int] = {}

    def run(self) -> Graph:
        """The graph of one rank."""
        self._parameters()
        for op in self.graph.ops:
            self._note(op)
            if op.kind is OpKind.GROUPED_MATMUL:
                self._grouped(op)
            elif bare(op.name).startswith("new_"):  # a constant: only a size is read
                self._constant(op)
            elif any(t in self.rows for t in op.inputs) and self._stays(op):
                self._inside(op)
            elif any(t in self.held for t in op.inputs):
                self._of_weights(op)
            else:
                self._write(op, tuple(self._returned(t, op) if t in self.rows else t for t in op.inputs))
        return replace(self.graph, tensors=tuple(self.writer.tensors), ops=tuple(self.writer.ops))

    # --- what belongs to experts ----------------------------------------------------------------------------------

    def _parameters(self) -> None:
        """Parameters that grouped products read, through views, biases of rows, and the optimizer's states of both."""
        of: dict[int, set[int]] = {}
        names: dict[str, Shape] = {}
        for op in self.graph.ops:
            if op.kind is OpKind.VIEW:
                roots = {root for t in op.inputs for root in of.get(t, {t})}
                of.update(dict.fromkeys(op.outputs, roots))
            bias = bare(op.name) == "index" and op.module in self.modules
            reads = op.inputs if op.kind is OpKind.GROUPED_MATMUL else op.inputs[:1] if bias else ()
            for root in {root for t in reads for root in of.get(t, {t})}:
                tensor = self.graph.tensors[root]
                if tensor.role is Role.PARAMETER and self._divides(tensor.shape):
                    names[tensor.name] = tensor.shape
                    self.shapes.add(tensor.shape)
                    self._hold(root)
        for i, state in enumerate(self.graph.tensors):
            if state.role is Role.OPTIMIZER_STATE and state.shape:
                shape = names.get(state.name.split(".", 2)[-1])
                if shape is not None and state.shape[0] == shape[0]:
                    self._hold(i)

    def _divides(self, shape: Shape) -> bool:
        """Whether the first dim counts experts, or experts times what each has there (DBRX)."""
        first = shape[0] if len(shape) > 1 else None
        return isinstance(first, int) and any(first % n == 0 for n in self.counts)

    def _hold(self, i: int) -> None:
        if i not in self.held:
            self.held.add(i)
            first, *rest = self.writer.tensors[i].shape
            self._shape(i, (first // self.how.ranks, *rest))

    def _shape(self, i: int, shape: Shape) -> None:
        tensor = self.writer.tensors[i]
        self.writer.tensors[i] = Tensor(tensor.name, shape, tensor.dtype, tensor.role, tensor.storage)

    def _constant(self, op: Op) -> None:
        """A gradient of experts that is filled later begins as a constant of its whole size."""
        for t in op.outputs:
            shape = self.graph.tensors[t].shape
            copied = any(i in self.held for i in op.inputs) and self._divides(shape)
            if copied or (op.module in self.modules and shape in self.shapes):
                self._hold(t)
        self._write(op, op.inputs)

    def _of_weights(self, op: Op) -> None:
        """Views of weights, their gradients, what an optimizer does with them, and a row's bias."""
        function = bare(op.name)
        lists = function.startswith("_foreach_")
        for i, t in enumerate(op.outputs):
            if function == "index":  # every rank knows which expert each of its rows is for
                self.rows[t] = 0
                self._shape(t, self._long(self.graph.tensors[t].shape, 0))
            elif (not lists or op.inputs[i] in self.held) and self._divides(self.graph.tensors[t].shape):
                self._hold(t)
        ins = op.inputs
        if function.startswith("index_put"):  # the gradient of a bias: of the rows that are there
            ins = (ins[0], *(self._there(t, op) for t in ins[1:]))
        self._write(op, ins, again=True)

    def _there(self, t: int, op: Op) -> int:
        tensor = self.graph.tensors[t]
        return t if t in self.rows or not tensor.dtype.is_float else self._dispatched(t, 0, op)

    # --- rows -----------------------------------------------------------------------------------------------------

    def _stays(self, op: Op) -> bool:
        """Whether an op is done where the rows are: all it reads of them is there already."""
        if op.kind not in _INSIDE:
            return False
        tensors = self.graph.tensors
        rows = {tensors[t].shape[self.rows[t]] for t in op.inputs if t in self.rows}
        return all(t in self.rows or rows.isdisjoint(tensors[t].shape[:1]) for t in op.inputs)

    def _inside(self, op: Op) -> None:
        first = next(t for t in op.inputs if t in self.rows)
        dim, count = self.rows[first], self.graph.tensors[first].shape[self.rows[first]]
        for t in op.outputs:
            shape = self.graph.tensors[t].shape
            if len(shape) == 2 and bare(op.name) in _TRANSPOSES:
                self.rows[t] = 1 - dim
            else:
                self.rows[t] = dim if shape[dim : dim + 1] == (count,) else shape.index(count) if count in shape else 0
            self._shape(t, self._long(shape, self.rows[t]))
        self._write(op, op.inputs, again=True)

    def _grouped(self, op: Op) -> None:
        """Rows [m, k] by weights [experts, k, n], or, for a weight's gradient, rows [m, rows] by rows [rows, n]."""
        weights = len(self.graph.tensors[op.outputs[0]].shape) == 3
        ins = []
        for i, t in enumerate(op.inputs):
            tensor = self.graph.tensors[t]
            activation = tensor.dtype.is_float and len(tensor.shape) == 2 and t not in self.held
            ins.append(self._dispatched(t, int(weights and i == 0), op) if activation and t not in self.rows else t)
        for t in op.outputs:
            if weights:
                self._hold(t)
            else:
                self.rows[t] = 0
                self._shape(t, self._long(self.graph.tensors[t].shape, 0))
        counted = "k" if weights else "m"
        attributes = {
            **op.attributes,
            "groups": op.attributes["groups"] // self.how.ranks,
            counted: self._skewed(op.attributes[counted]),
        }
        self._write(replace(op, attributes=attributes), tuple(ins), again=True)

    def _skewed(self, rows: DimLike) -> DimLike:
        if self.how.skew == 1:
            return rows
        share = Fraction(self.how.skew).limit_denominator(100)
        return rows * share.numerator // share.denominator

    def _long(self, shape: Shape, dim: int) -> Shape:
        """*shape* with as many rows along *dim* as the most loaded rank has."""
        return tuple(self._skewed(size) if i == dim else size for i, size in enumerate(shape))

    # --- writing --------------------------------------------------------------------------------------------------

    def _note(self, op: Op) -> None:
        """Which results are whole views, and which storages are written."""
        tensors = self.graph.tensors
        for t in op.outputs:
            if tensors[t].storage == t:
                continue
            if op.kind is not OpKind.VIEW:
                self.written[tensors[t].storage] = self.written.get(tensors[t].storage, 0) + 1
            elif tensors[op.inputs[0]].elements == tensors[t].elements:
                self.same[t] = self.same.get(op.inputs[0], op.inputs[0])

    def _write(self, op: Op, ins: tuple[int, ...], again: bool = False) -> None:
        """Append *op* on *ins*, its work found *again* where sizes changed."""
        tensors = self.writer.tensors
        work = op.work
        if again:
            read, made = ([tensors[t] for t in ts] for ts in (ins, op.outputs))
            work = op_work(op.kind, bare(op.name), op.attributes, read, made)
        self.writer.ops.append(op if ins == op.inputs and work is op.work else replace(op, inputs=ins, work=work))
        self.writer.settle_storages(op.inputs, ins, op.outputs, self.graph.tensors)

    def _dispatched(self, t: int, dim: int, op: Op) -> int:
        """*t* [rows, width] (or transposed: rows are *dim*) after its rows went to their experts."""
        tensor = self.graph.tensors[t]
        shape = self._long(tensor.shape, dim)
        key = self.same.get(t, t), self.written.get(tensor.storage, 0)
        if key not in self.sent:
            self.sent[key] = self._travel(t, op, shape, there=True)
            return self.sent[key]
        there = self.sent[key]
        if self.writer.tensors[there].shape == shape:
            return there
        return self.writer.view(there, Tensor("", shape, tensor.dtype, Role.ACTIVATION, -1), "aten.t.default", op)

    def _returned(self, t: int, op: Op) -> int:
        """*t* after its rows came home."""
        if t not in self.back:
            self.back[t] = self._travel(t, op, self.graph.tensors[t].shape, there=False)
        return self.back[t]

    def _travel(self, t: int, op: Op, shape: Shape, there: bool) -> int:
        """An all-to-all; the side with the experts is the one that may have more rows than the other."""
        tensor = self.writer.tensors[t]
        out = Tensor("", shape, tensor.dtype, Role.ACTIVATION, -1)
        most = out.bytes if there else tensor.bytes
        return self.writer.collective("all_to_all", self.axis, t, out, most, op, dispatches=there)
