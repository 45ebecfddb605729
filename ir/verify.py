"""`verify`: the rules every Graph keeps, checked with a message that names the op or tensor that breaks one."""

from collections.abc import Iterable

from .dim import Dim, prod
from .errors import GraphError
from .graph import RESIDENT_ROLES, Graph, Op, OpKind, Tensor

PHASES = ("forward", "prefill", "decode", "train")


def verify(graph: Graph) -> Graph:
    """Return *graph* if it holds together; raise `GraphError` naming the first place that does not.

    Checked: ids in range, one producer a tensor, inputs produced before they are read (a cycle is printed),
    sizes non-negative and over declared symbols, a view no larger than its storage's owner by dtype,
    geometry of matmul and attention against the tensors they write.
    """
    _check_tensors(graph)
    _check_order(graph)
    for i, op in enumerate(graph.ops):
        check = _GEOMETRY.get(op.kind)
        if check is not None:
            check(f"op {i} ({op.name} in {op.module or 'the model'})", op, graph)
    return graph


def _check_tensors(graph: Graph) -> None:
    known = frozenset(graph.symbols)
    count = len(graph.tensors)
    for i, tensor in enumerate(graph.tensors):
        where = f"tensor {i} ({tensor.name})"
        if not 0 <= tensor.storage < count:
            raise GraphError(f"{where}: storage {tensor.storage} is no tensor of this graph of {count}")
        for dim in tensor.shape:
            if isinstance(dim, int):
                if dim < 0:
                    raise GraphError(f"{where}: shape {list(tensor.shape)} has a negative size")
            else:
                _check_symbols(where, dim, known)
    for i, op in enumerate(graph.ops):
        work = op.work
        for dim in (
            work.matrix_flops,
            work.vector_flops,
            work.special_flops,
            work.bytes_read,
            work.bytes_written,
        ):
            if isinstance(dim, Dim):
                _check_symbols(f"op {i} ({op.name})", dim, known)


def _check_symbols(where: str, dim: Dim, known: frozenset[str]) -> None:
    if unknown := dim.symbols - known:
        raise GraphError(f"{where}: {dim} uses undeclared symbols: {', '.join(sorted(unknown))}")


def _check_order(graph: Graph) -> None:
    count = len(graph.tensors)
    producer: dict[int, int] = {}
    for i, op in enumerate(graph.ops):
        for t in (*op.inputs, *op.outputs):
            if not 0 <= t < count:
                raise GraphError(f"op {i} ({op.name}): tensor {t} is dangling: the graph has {count} tensors")
        for t in op.outputs:
            if t in producer:
                raise GraphError(f"tensor {t} ({graph.tensors[t].name}) is produced by op {producer[t]} and by op {i}")
            producer[t] = i
    for i, op in enumerate(graph.ops):
        for t in op.inputs:
            made_by = producer.get(t)
            if made_by is None and graph.tensors[t].role not in RESIDENT_ROLES:
                tensor = graph.tensors[t]
                raise GraphError(
                    f"op {i} ({op.name}): input {t} ({tensor.name}) is dangling: no op produces it and its role is {tensor.role}"
                )
            if made_by is not None and made_by >= i:
                raise GraphError(_order_error(graph, i, made_by))


def _order_error(graph: Graph, reader: int, made_by: int) -> str:
    import networkx as nx

    dag = nx.DiGraph(
        (p, i) for i, op in enumerate(graph.ops) for t in op.inputs if (p := graph.producers.get(t)) is not None
    )
    try:
        cycle = [a for a, _ in nx.find_cycle(dag)]
    except nx.NetworkXNoCycle:
        return f"op {reader} ({graph.ops[reader].name}) reads what op {made_by} produces later: ops must stand in an order they can run in"
    shown = " → ".join(f"{i} ({graph.ops[i].name})" for i in [*cycle[:8], cycle[0]])
    return f"the graph has a cycle of {len(cycle)} ops: {shown}"


def _need(where: str, op: Op, names: Iterable[str]) -> None:
    if missing := [n for n in names if n not in op.attributes]:
        raise GraphError(f"{where}: a {op.kind} op needs the attributes {', '.join(missing)}")


def _output(where: str, op: Op, graph: Graph) -> Tensor:
    if not op.outputs:
        raise GraphError(f"{where}: a {op.kind} op needs an output")
    return graph.tensors[op.outputs[0]]


def _check_matmul(where: str, op: Op, graph: Graph) -> None:
    _need(where, op, "bmnk")
    a, out = op.attributes, _output(where, op, graph)
    if (product := a["b"] * a["m"] * a["n"]) != prod(out.shape):
        raise GraphError(f"{where}: b*m*n = {product} but the output has shape {list(map(str, out.shape))}")


def _check_attention(where: str, op: Op, graph: Graph) -> None:
    _need(where, op, ("batch", "heads", "kv_heads", "q_len", "kv_len", "head_dim", "v_dim"))
    a, out = op.attributes, _output(where, op, graph)
    if (product := a["batch"] * a["heads"] * a["q_len"] * a["v_dim"]) != prod(out.shape):
        raise GraphError(
            f"{where}: batch*heads*q_len*v_dim = {product} but the output has shape {list(map(str, out.shape))}"
        )
    heads, kv_heads = a["heads"], a["kv_heads"]
    if isinstance(heads, int) and isinstance(kv_heads, int) and (kv_heads < 1 or heads % kv_heads):
        raise GraphError(f"{where}: {heads} query heads do not divide over {kv_heads} KV heads")


_GEOMETRY = {OpKind.MATMUL: _check_matmul, OpKind.ATTENTION: _check_attention}
