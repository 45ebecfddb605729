"""A rank of a Chakra trace as a Graph: its collectives and its work, to be priced on other hardware."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from foretrace.ir import DTYPES, Graph, GraphError, Op, OpKind, Role, Tensor, UnknownNameError, Work, verify

from .nodes import ChakraNode, ChakraTrace, CollectiveType, NodeType, topological_order
from .read import load_chakra

_NAMES: Final = {
    CollectiveType.ALL_REDUCE: "_c10d_functional.all_reduce.default",
    CollectiveType.REDUCE: "c10d.reduce_.default",
    CollectiveType.ALL_GATHER: "_c10d_functional.all_gather_into_tensor.default",
    CollectiveType.GATHER: "c10d.gather_.default",
    CollectiveType.SCATTER: "c10d.scatter_.default",
    CollectiveType.BROADCAST: "_c10d_functional.broadcast.default",
    CollectiveType.ALL_TO_ALL: "_c10d_functional.all_to_all_single.default",
    CollectiveType.REDUCE_SCATTER: "_c10d_functional.reduce_scatter_tensor.default",
    CollectiveType.REDUCE_SCATTER_BLOCK: "_c10d_functional.reduce_scatter_tensor.default",
    CollectiveType.BARRIER: "c10d.barrier.default",
}
"""torch's names, by which cost models know a collective."""
_ON_DEVICE: Final = (NodeType.COMPUTE, NodeType.SEND, NodeType.RECEIVE, NodeType.COLLECTIVE)
_PHASES: Final = ("forward", "backward", "optimizer")


def chakra_graph(path: str | Path, rank: int | None = None, dtype: str = "bfloat16") -> Graph:
    """The graph of one *rank* (by default the first) of the Chakra trace at *path* (see `load_chakra`).

    A computation is an op of kind ``other`` whose work are its ``num_ops``, on matrix units in the format *dtype*, and
    its ``tensor_size``: what a roofline takes. Collectives have bytes and ranks. What the host did is left out, and so
    are times. A trace says nothing of tensors: its graph's footprint means nothing, and notes in the metadata say so.
    Raises `UnknownNameError` for a rank that is not there, `GraphError` for nodes that wait in a circle.
    """
    trace = load_chakra(path)
    found = next((r for r in trace.ranks if rank is None or r.rank == rank), None)
    if found is None:
        raise UnknownNameError("rank", str(rank), map(str, (r.rank for r in trace.ranks)))
    nodes = found.nodes
    order = topological_order([n.id for n in nodes], [(*n.data_deps, *n.ctrl_deps) for n in nodes])
    if len(order) < len(nodes):
        raise GraphError(f"{path}: {len(nodes) - len(order)} nodes wait for each other in a circle")
    tensors: list[Tensor] = []
    ops: list[Op] = []
    made: dict[int, tuple[int, ...]] = {}  # node to the tensors that stand for its end
    for node in (nodes[i] for i in order):
        needed = tuple(sorted({t for d in (*node.data_deps, *node.ctrl_deps) for t in made.get(d, ())}))
        if node.attributes.get("is_cpu_op") or node.type not in _ON_DEVICE:
            last = {ops[t].kind is OpKind.COLLECTIVE: t for t in needed}  # enough: either stream runs in order
            made[node.id] = tuple(sorted(last.values()))
            continue
        tensors.append(Tensor("", (1,), DTYPES[dtype], Role.ACTIVATION, len(tensors)))
        made[node.id] = (len(tensors) - 1,)
        ops.append(_op(node, needed, len(tensors) - 1, trace))
    notes = {"source": "Chakra execution trace", "dtype": dtype, "note.memory": "a Chakra trace says no tensors"}
    idle = sum(op.kind is OpKind.OTHER and not (op.work.matrix_flops or op.work.bytes_read) for op in ops)
    if idle:
        notes["note.work"] = f"{idle} of {len(ops)} nodes say neither num_ops nor tensor_size: they cost a launch"
    name = found.metadata.get("model")
    named = name if isinstance(name, str) and name else Path(path).name
    return verify(Graph(named, "train", {}, tuple(tensors), tuple(ops), notes))


def _op(node: ChakraNode, needed: tuple[int, ...], made: int, trace: ChakraTrace) -> Op:
    said = node.attributes
    module, phase = (said.get(key) for key in ("module", "phase"))
    place = {"module": module if isinstance(module, str) else "", "phase": phase if phase in _PHASES else "forward"}
    if node.type == NodeType.COMPUTE:
        moved = _whole(said.get("tensor_size"))
        work = Work(matrix_flops=_whole(said.get("num_ops")), bytes_read=moved - moved // 2, bytes_written=moved // 2)
        return Op(OpKind.OTHER, node.name, needed, (made,), {}, work=work, **place)
    size = _whole(said.get("comm_size"))
    if node.type == NodeType.COLLECTIVE:
        code = said.get("comm_type", 0)
        members = trace.groups.get(str(said.get("pg_name", "")), ())
        if code == CollectiveType.ALL_GATHER:
            size *= max(len(members), 1)  # Chakra counts what a rank puts in, we the whole
        name = _NAMES.get(code, node.name)
    else:
        members = tuple(sorted({_whole(said.get("comm_src")), _whole(said.get("comm_dst"))}))
        name = "c10d.send.default" if node.type == NodeType.SEND else "c10d.recv_.default"
    size = _whole(said.get("bytes")) or size
    attributes = {"bytes": size, **_placed(members)}
    work = Work(bytes_read=size, bytes_written=size)
    return Op(OpKind.COLLECTIVE, name, needed, (made,), attributes, work=work, **place)


def _placed(members: Sequence[int]) -> dict[str, Any]:
    """Where a group's *members* are among all ranks; nothing where they are unknown."""
    if not members:
        return {}
    steps = {b - a for a, b in pairwise(members)} or {1}
    where: dict[str, Any] = (
        {"stride": min(steps)} if len(steps) == 1 and min(steps) > 0 else {"members": tuple(members)}
    )
    return {"ranks": len(members), "base": members[0], **where}


def _whole(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 1 << 62 else 0
