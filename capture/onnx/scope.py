"""Running a graph on sizes alone: nodes in order, each value's shape worked out, ops handed to the recorder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto, TensorProto, ValueInfoProto

from foretrace.ir import Dim, DimLike, ForetraceError, GraphError, evaluate_dim, symbol

from . import control
from .bounds import limit_of, symbols_of
from .call import Call, Sized
from .fold import fold
from .record import Recorder
from .values import (
    EqualSizesError,
    OpenSizeError,
    Value,
    check_elements,
    declared_shape,
    dtype_of,
    from_tensor,
    symbol_name,
)

MAX_NODES: Final = 300_000
MAX_DEPTH: Final = 24


class Scope:
    """The values of one graph, subgraph or function body while it runs."""

    def __init__(
        self,
        recorder: Recorder,
        functions: Mapping[tuple[str, str], FunctionProto],
        opsets: Mapping[str, int],
        parent: Scope | None = None,
        module: str = "",
        arguments: Mapping[str, AttributeProto] | None = None,
    ) -> None:
        self.recorder, self.functions, self.opsets, self.parent, self.module = (
            recorder,
            functions,
            opsets,
            parent,
            module,
        )
        self.arguments = dict(arguments or {})
        self.values: dict[str, Value] = {}
        self.absent: set[str] = set()  # inputs of a function that its caller leaves out
        self.depth: int = parent.depth + 1 if parent else 0
        self._stated: dict[str, ValueInfoProto] = {}
        self._needed: set[str] = set()
        if self.depth > MAX_DEPTH:
            raise ForetraceError(f"{module or 'the graph'}: subgraphs and functions nest deeper than {MAX_DEPTH}")

    def find(self, name: str) -> Value | None:
        """The value called *name*, here or outside."""
        if name in self.values:
            return self.values[name]
        return self.parent.find(name) if self.parent else None

    def inner(self, module: str) -> Scope:
        """A scope for a subgraph, which sees the values of this one."""
        return Scope(self.recorder, self.functions, self.opsets, self, module, self.arguments)

    def apart(self, module: str, arguments: Mapping[str, AttributeProto], opsets: Mapping[str, int]) -> Scope:
        """A scope for a function's body, which sees only what it is given."""
        made = Scope(self.recorder, self.functions, opsets, self, module, arguments)
        made.parent = None
        return made

    def stated(self, name: str) -> Sized | None:
        """Shape and format that the file's value_info gives the value *name*, if it knows every dim."""
        info = self._stated.get(name)
        if info is None or not info.type.tensor_type.HasField("shape"):
            return None
        kind = info.type.tensor_type
        if any(not d.HasField("dim_value") and not d.dim_param for d in kind.shape.dim):
            return None
        shape = declared_shape(kind, name)
        return (shape, dtype_of(kind.elem_type, name)) if symbols_of(*shape) <= self.recorder.symbols.keys() else None

    def needed(self, name: str) -> bool:
        """Whether any node or result reads the value *name*."""
        return name in self._needed

    def symbols_behind(self, value: Value) -> frozenset[str]:
        """The open sizes that the data of *value* depend on: none where an input's or a weight's data are in it."""
        return value.depends or frozenset()

    def counted(self, call: Call, most: DimLike) -> DimLike:
        """A size that the data decide, at most *most*: a symbol of its own, by default the most."""
        name = symbol_name(call.node.name.rsplit("/", 1)[-1] or call.node.output[0])
        default = evaluate_dim(most, self.recorder.defaults()) if isinstance(most, Dim) else most
        return self.recorder.open(name, int(default), f"how many {call.where} finds")

    def equal(self, a: DimLike, b: DimLike, where: str) -> DimLike:
        """The size that *a* and *b* both have to be, as the graph only makes sense then."""
        if a == b:
            return a
        if isinstance(a, int) and isinstance(b, int):
            raise ForetraceError(f"{where}: sizes {a} and {b} do not fit")
        for bare, other in ((a, b), (b, a)):
            is_bare = isinstance(bare, Dim) and str(bare) in self.recorder.symbols
            if is_bare and (not isinstance(other, Dim) or str(bare) not in other.symbols):
                raise EqualSizesError(str(bare), other, where)
        for cut, whole in ((a, b), (b, a)):
            if (most := limit_of(cut, whole)) is not None and self.recorder.limit(whole, most, where):
                return whole
        raise OpenSizeError(f"{where}: the sizes {a} and {b} have to be equal", symbols_of(a, b))

    def run(self, nodes: Sequence[NodeProto], results: Iterable[str]) -> None:
        """Run *nodes* in an order they can run in."""
        self._needed = {name for n in nodes for name in reads(n)} | set(results)
        for node in self._ordered(nodes):
            self.recorder.count(MAX_NODES)
            self._step(node)

    def run_graph(self, graph: GraphProto, inputs: Sequence[Value]) -> list[Value]:
        """Run a subgraph on *inputs*; gives its results."""
        for info, value in zip(graph.input, inputs, strict=True):
            self.values[info.name] = value
        self.load(graph)
        self.run(graph.node, [o.name for o in graph.output])
        return [self.result(o.name) for o in graph.output]

    def load(self, graph: GraphProto) -> None:
        """Make the weights and stated shapes of *graph* known."""
        self._stated = {v.name: v for v in (*graph.value_info, *graph.output)}
        for tensor in graph.initializer:
            self.values[tensor.name] = self.weight(tensor, tensor.name)

    def weight(self, tensor: TensorProto, name: str) -> Value:
        """A tensor that the file holds, declared as a parameter or buffer."""
        value = from_tensor(tensor, f"tensor {name!r}")
        value.source = name
        self.recorder.declare_weight(value, tensor)
        return value

    def result(self, name: str) -> Value:
        """The value called *name*, which has to be there."""
        found = self.find(name)
        if found is None:
            raise GraphError(f"{self.module or 'the graph'}: nothing produces its result {name!r}")
        return found

    def _ordered(self, nodes: Sequence[NodeProto]) -> Sequence[NodeProto]:
        """*nodes* so that each follows what it reads: as they stand, if they do."""
        made: dict[str, int] = {}
        for i, node in enumerate(nodes):
            for name in filter(None, node.output):
                if name in made or name in self.values:
                    raise GraphError(f"the value {name!r} is produced twice: by {_named(node)} and before it")
                made[name] = i
        needs = [{made[name] for name in reads(node) if name in made} for node in nodes]
        if all(max(before, default=-1) < i for i, before in enumerate(needs)):
            return nodes
        order: list[NodeProto] = []
        waiting, done = list(range(len(nodes))), set[int]()
        while waiting:
            ready = [i for i in waiting if needs[i] <= done]
            if not ready:
                names = ", ".join(_named(nodes[i]) for i in waiting[:4])
                raise GraphError(f"the graph has a cycle: among {names}{', ...' if len(waiting) > 4 else ''}")
            order += [nodes[i] for i in ready]
            done.update(ready)
            waiting = [i for i in waiting if i not in done]
        return order

    def _step(self, node: NodeProto) -> None:
        ins = [self._input(node, name) for name in node.input]
        call = Call(node, ins, self)
        special = control.special(call)
        try:
            outs = special(call) if special else self._compute(call)
        except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError) as e:
            raise call.fail(f"its attributes or inputs are not those of the operator ({type(e).__name__}: {e})") from e
        for name, value in zip(node.output, outs, strict=False):
            if name:
                value.source = value.source or name
                self.values[name] = value

    def _input(self, node: NodeProto, name: str) -> Value | None:
        found = self.find(name) if name else None
        if found is None and name and name not in self.absent:
            raise GraphError(f"{_named(node)} reads {name!r}, which nothing produces")
        return found

    def _compute(self, call: Call) -> list[Value]:
        """An ordinary operator: its outputs' sizes, their data where known, and the op where something is computed."""
        sized = call.shapes()
        constant = all(v is None or v.constant for v in call.ins) and not call.op.startswith("Random")
        depends = _depends(call)
        outs = [Value(shape, dtype, constant=constant, depends=depends) for shape, dtype in sized]
        for value in outs:
            check_elements(value.shape, call.where)
            self.recorder.keep_positive(value.shape)
        data = fold(call)
        for value, known in zip(outs, data or (), strict=False):
            value.data = known
        if data is None or len(data) < len(outs):
            self.recorder.op(call, outs)
        return outs


def reads(node: NodeProto) -> Iterable[str]:
    """The names a node reads, those its subgraphs take from outside included."""
    yield from filter(None, node.input)
    for a in node.attribute:
        for graph in (a.g, *a.graphs) if a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) else ():
            own = {o for n in graph.node for o in n.output}
            own.update(v.name for v in graph.input)
            own.update(t.name for t in graph.initializer)
            named = (name for n in graph.node for name in reads(n))
            yield from (n for n in (*named, *(o.name for o in graph.output)) if n not in own)


def _depends(call: Call) -> frozenset[str] | None:
    """The open sizes that the data of an operator's result depend on; None where they depend on other data."""
    if call.op in ("Shape", "Size"):
        return symbols_of(*call.value(0).shape)
    found: frozenset[str] = frozenset()
    for v in call.ins:
        if v is not None and v.data is not None:
            found |= symbols_of(*v.data.flat)
        elif v is not None and not v.constant:
            if v.depends is None:
                return None
            found |= v.depends
    return found


def _named(node: NodeProto) -> str:
    return f"node {node.name or (node.output[0] if node.output else '?')!r} ({node.op_type})"


def substitute(dim: DimLike, values: Mapping[str, DimLike]) -> DimLike:
    """*dim* with symbols replaced."""
    return evaluate_dim(dim, {s: values.get(s, symbol(s)) for s in dim.symbols}) if isinstance(dim, Dim) else dim
