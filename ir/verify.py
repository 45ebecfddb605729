"""`verify`: the rules every Graph keeps, checked with a message that names the op or tensor that breaks one."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

from .dim import Dim, DimLike, evaluate_dim, prod, symbol
from .errors import GraphError
from .graph import RESIDENT_ROLES, Graph, Op, OpKind, Symbol
from .values import MAX_DEPTH

PHASES: Final = ("forward", "prefill", "decode", "train")
MAX_RANK = 64
MAX_ELEMENTS = 1 << 256  # keeps every count printable; replay has a limit of its own
OP_PHASES: Final = ("forward", "backward", "optimizer")
MAX_SYMBOL_VALUE: Final = 1 << 62


def verify(graph: Graph) -> Graph:
    """Return *graph* if it holds together; raise `GraphError` naming the first place that does not.

    Checked: symbols with a default within their bounds; sizes over declared symbols, none negative at the defaults;
    storages that are tensors owning themselves; ids in range, one producer a tensor, inputs produced before they are
    read (a cycle is printed); attributes of the types a file can hold; geometry of the matrix kinds against the
    tensors they write.
    """
    if graph.phase not in PHASES:
        raise GraphError(f"graph {graph.name}: phase {graph.phase!r} is none of {', '.join(PHASES)}")
    if not all(isinstance(text, str) for item in graph.metadata.items() for text in item):
        raise GraphError(f"graph {graph.name}: metadata maps text to text, got {dict(graph.metadata)}")
    for name, s in graph.symbols.items():
        _check_symbol(name, s)
    sizes = _Sizes(graph)
    _check_tensors(graph, sizes)
    _check_order(graph)
    for i, op in enumerate(graph.ops):
        _check_op(i, op, graph, sizes)
    return graph


class _Sizes:
    """Checks sizes, each object once: the tensors and ops of a graph share most of theirs."""

    def __init__(self, graph: Graph) -> None:
        self.defaults = {name: s.default for name, s in graph.symbols.items()}
        self.done: set[int] = set()  # by identity: the graph keeps its sizes alive
        self.dims: set[Dim] = set()
        self.geometries: set[tuple[Any, ...]] = set()

    def check(self, where: str, dim: DimLike) -> None:
        """A size: an int or a Dim over known symbols, not negative at the symbols' defaults."""
        if isinstance(dim, Dim):
            if dim in self.dims:
                return
            self.check_symbols(where, dim)
            self.dims.add(dim)
            try:
                value = evaluate_dim(dim, self.defaults)
            except GraphError as e:
                raise GraphError(f"{where}: {e}") from e
            if value < 0:
                raise GraphError(f"{where}: the size {dim} is negative ({value}) at the symbols' defaults")
        elif not isinstance(dim, int) or isinstance(dim, bool):
            raise GraphError(f"{where}: a size is an int or a Dim, got {dim!r}")
        elif dim < 0:
            raise GraphError(f"{where}: the size {dim} is negative")

    def check_symbols(self, where: str, dim: Dim) -> None:
        if unknown := dim.symbols - self.defaults.keys():
            raise GraphError(f"{where}: {dim} uses undeclared symbols: {', '.join(sorted(unknown))}")

    def check_all(self, where: str, owner: object, dims: Iterable[DimLike]) -> None:
        """Check *dims*, the sizes that *owner* (a shape, a Work) holds."""
        for dim in dims:
            if id(dim) not in self.done:
                self.check(where, dim)
                self.done.add(id(dim))
        self.done.add(id(owner))

    def check_value(self, where: str, value: Any, depth: int = 0) -> None:
        """An attribute value: what `format_value` can write and a reader gets back."""
        if isinstance(value, tuple):
            if depth >= MAX_DEPTH:
                raise GraphError(f"{where} nests deeper than {MAX_DEPTH}")
            for item in value:
                self.check_value(where, item, depth + 1)
        elif isinstance(value, Dim):
            if value not in self.dims:
                self.check_symbols(where, value)
        elif value is not None and not isinstance(value, bool | int | float | str):
            raise GraphError(
                f"{where} holds a {type(value).__name__}: "
                "expected none, bool, int, float, text, a Dim or a tuple of these"
            )


def _check_symbol(name: str, s: Symbol) -> None:
    symbol(name)
    if name != s.name:
        raise GraphError(f"symbol {name}: declared under that name but calls itself {s.name!r}")
    bounds = (s.minimum, s.default, *(() if s.maximum is None else (s.maximum,)))
    if not all(isinstance(b, int) and 0 <= b <= MAX_SYMBOL_VALUE for b in bounds) or list(bounds) != sorted(bounds):
        raise GraphError(
            f"symbol {name}: expected 0 <= minimum <= default <= maximum, got minimum {s.minimum}, "
            f"default {s.default}, maximum {s.maximum}"
        )


def _check_tensors(graph: Graph, sizes: _Sizes) -> None:
    tensors = graph.tensors
    for i, tensor in enumerate(tensors):
        storage = tensor.storage
        if not 0 <= storage < len(tensors):
            raise GraphError(
                f"{_tensor(graph, i)}: storage {storage} is no tensor of this graph of {len(tensors)} tensors"
            )
        if tensors[storage].storage != storage:
            raise GraphError(
                f"{_tensor(graph, i)}: storage {storage} ({tensors[storage].name}) is itself a view of "
                f"{tensors[storage].storage}; a view names the tensor that owns the memory"
            )
        if len(tensor.shape) > MAX_RANK or math.prod(d for d in tensor.shape if isinstance(d, int)) > MAX_ELEMENTS:
            raise GraphError(
                f"{_tensor(graph, i)}: expected at most {MAX_RANK} dimensions and 2**256 elements, "
                f"got {len(tensor.shape)} dimensions"
            )
        if id(tensor.shape) not in sizes.done:
            sizes.check_all(_tensor(graph, i), tensor.shape, tensor.shape)


def _tensor(graph: Graph, i: int) -> str:
    return f"tensor {i} ({graph.tensors[i].name})"


def _check_order(graph: Graph) -> None:
    count = len(graph.tensors)
    producer: dict[int, int] = {}
    for i, op in enumerate(graph.ops):
        for t in op.outputs:
            if not 0 <= t < count:
                raise GraphError(f"op {i} ({op.name}): output {t} is dangling: the graph has {count} tensors")
            if t in producer:
                raise GraphError(f"{_tensor(graph, t)} is produced by op {producer[t]} and by op {i}")
            producer[t] = i
    for i, op in enumerate(graph.ops):
        for t in op.inputs:
            made_by = producer.get(t)
            if made_by is None:
                _check_source(i, op, t, graph)
            elif made_by >= i:
                raise GraphError(_order_error(graph, i, made_by))


def _check_source(i: int, op: Op, t: int, graph: Graph) -> None:
    """An input that no op produces must be there before the step begins."""
    if not 0 <= t < len(graph.tensors):
        raise GraphError(f"op {i} ({op.name}): input {t} is dangling: the graph has {len(graph.tensors)} tensors")
    tensor = graph.tensors[t]
    if tensor.role not in RESIDENT_ROLES:
        raise GraphError(
            f"op {i} ({op.name}): input {t} ({tensor.name}) is dangling: "
            f"no op produces it and its role is {tensor.role}"
        )


def _order_error(graph: Graph, reader: int, made_by: int) -> str:
    import networkx as nx

    dag = nx.DiGraph((p, i) for i, before in enumerate(graph.predecessors) for p in before)
    try:
        cycle = [a for a, _ in nx.find_cycle(dag)]
    except nx.NetworkXNoCycle:
        return (
            f"op {reader} ({graph.ops[reader].name}) reads what op {made_by} ({graph.ops[made_by].name}) produces "
            "later: ops must stand in an order they can run in"
        )
    first = cycle.index(min(cycle))
    cycle = cycle[first:] + cycle[:first]
    steps = [f"{i} ({graph.ops[i].name})" for i in cycle[:8]]
    if len(cycle) > 8:
        steps.append("...")
    return f"the graph has a cycle of {len(cycle)} ops: {' → '.join([*steps, steps[0]])}"


_PLAIN = frozenset({type(None), bool, int, float, str})


def _check_op(i: int, op: Op, graph: Graph, sizes: _Sizes) -> None:
    if op.phase not in OP_PHASES:
        raise GraphError(f"{_op(i, op)}: phase {op.phase!r} is none of {', '.join(OP_PHASES)}")
    if id(op.work) not in sizes.done:
        w = op.work
        dims = (w.matrix_flops, w.vector_flops, w.special_flops, w.bytes_read, w.bytes_written)
        sizes.check_all(f"{_op(i, op)}: work", w, dims)
    for name, value in op.attributes.items():
        if value.__class__ not in _PLAIN and id(value) not in sizes.done:
            sizes.check_value(f"{_op(i, op)}: the attribute {name}", value)
            sizes.done.add(id(value))
    if op.kind in _NEEDS:
        _check_geometry(i, op, graph, sizes)


def _op(i: int, op: Op) -> str:
    return f"op {i} ({op.name} in {op.module or 'the model'})"


_NEEDS: Final[dict[OpKind, tuple[str, ...]]] = {
    OpKind.MATMUL: ("b", "m", "n", "k"),
    OpKind.GROUPED_MATMUL: ("b", "m", "n", "k"),
    OpKind.CONVOLUTION: ("k",),
    OpKind.ATTENTION: ("batch", "heads", "kv_heads", "q_len", "kv_len", "head_dim", "v_dim"),
}
"""Attributes that hold the geometry of a kind, all sizes; `op_work` reads them."""
_WRITES: Final[dict[OpKind, tuple[str, ...]]] = {
    OpKind.MATMUL: ("b", "m", "n"),
    OpKind.ATTENTION: ("batch", "heads", "q_len", "v_dim"),
}
"""Attributes whose product is the element count of the op's first output."""


def _check_geometry(i: int, op: Op, graph: Graph, sizes: _Sizes) -> None:
    a = op.attributes
    if missing := [n for n in _NEEDS[op.kind] if n not in a]:
        raise GraphError(f"{_op(i, op)}: a {op.kind} op needs the attributes {', '.join(missing)}")
    if not op.outputs:
        raise GraphError(f"{_op(i, op)}: a {op.kind} op needs an output")
    out = graph.tensors[op.outputs[0]]
    geometry = (op.kind, out.shape, *(a[name] for name in _NEEDS[op.kind]))
    if geometry in sizes.geometries:
        return
    for name in _NEEDS[op.kind]:
        value = a[name]
        if not isinstance(value, int | Dim) or isinstance(value, bool) or (isinstance(value, int) and value < 0):
            raise GraphError(f"{_op(i, op)}: the attribute {name} is a size, got {value!r}")
    if (written := _WRITES.get(op.kind)) and not a.get("backward"):  # a backward writes as its forward's inputs are
        product = prod(a[name] for name in written)
        if not _may_agree(product, out.elements, sizes.defaults):
            shape = ", ".join(map(str, out.shape))
            raise GraphError(f"{_op(i, op)}: {'*'.join(written)} = {product} but the output has shape [{shape}]")
    if op.kind is OpKind.ATTENTION:
        heads, kv_heads = a["heads"], a["kv_heads"]
        if isinstance(heads, int) and isinstance(kv_heads, int) and (kv_heads < 1 or heads % kv_heads):
            raise GraphError(f"{_op(i, op)}: {heads} query heads do not divide over {kv_heads} KV heads")
    sizes.geometries.add(geometry)


def _may_agree(product: DimLike, elements: DimLike, defaults: Mapping[str, int]) -> bool:
    """Whether the two are one expression; where a rounding division hides it, whether they agree at *defaults*."""
    difference = product - elements
    if isinstance(difference, int) or all(isinstance(atom, str) for m, _ in difference.terms for atom in m):
        return difference == 0
    try:
        return bool(evaluate_dim(difference, defaults) == 0)
    except GraphError:
        return False
