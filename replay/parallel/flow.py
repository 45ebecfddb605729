"""Who makes and who reads what, in flat arrays: bytes that cross a cut, gradients and when they are ready."""

from dataclasses import dataclass
from itertools import chain
from typing import Final

import numpy as np

from foretrace.ir import FREE_KINDS, Graph, OpKind, Role
from foretrace.replay.columns import Floats, Ints, Mask
from foretrace.transforms.stages import OpPass

ROLES: Final = tuple(Role)
_ROLE_CODE: Final = {role: code for code, role in enumerate(ROLES)}


@dataclass(frozen=True, eq=False)
class Flow:
    """The reads and writes of a graph's ops, as pairs."""

    read_op: Ints
    """[reads] the op, ascending."""
    read: Ints
    """[reads] the tensor."""
    write_op: Ints
    """[writes]"""
    written: Ints
    """[writes]"""
    storage: Ints
    """[tensors]"""
    role: Ints
    """[tensors] index into `ROLES`."""
    producer: Ints
    """[tensors] the op that makes it, -1: none."""
    launching: Mask
    """[ops] those that start work on the device."""

    def is_role(self, *roles: Role) -> Mask:
        """[tensors] those of one of *roles*."""
        wanted = np.zeros(len(ROLES), np.bool_)
        wanted[[_ROLE_CODE[r] for r in roles]] = True
        found: Mask = wanted[self.role]
        return found


def trace_flow(graph: Graph) -> Flow:
    """The `Flow` of *graph*."""
    ops, tensors = graph.ops, graph.tensors
    reads, writes = ([len(op.inputs) for op in ops], [len(op.outputs) for op in ops])
    read = np.fromiter(chain.from_iterable(op.inputs for op in ops), np.int64, sum(reads))
    written = np.fromiter(chain.from_iterable(op.outputs for op in ops), np.int64, sum(writes))
    at = np.arange(len(ops))
    write_op = np.repeat(at, writes)
    producer = np.full(len(tensors), -1, np.int64)
    producer[written] = write_op
    return Flow(
        np.repeat(at, reads),
        read,
        write_op,
        written,
        np.array([t.storage for t in tensors], np.int64),
        np.array([_ROLE_CODE[t.role] for t in tensors], np.int64),
        producer,
        np.array([op.kind not in FREE_KINDS for op in ops], np.bool_),
    )


def derived_ops(graph: Graph, place: Ints) -> Mask:
    """[ops] Forwards before the first layer that no parameter goes into: masks, positions, rotary tables.

    Every stage makes those that it reads itself, as Megatron-LM and torch.distributed.pipelining models do.
    """
    found = np.zeros(len(graph.ops), np.bool_)
    made: set[int] = set()
    given = {Role.INPUT, Role.BUFFER}
    for i in np.flatnonzero(place < 0).tolist():
        op = graph.ops[i]
        if op.phase != "backward" and all(t in made or graph.tensors[t].role in given for t in op.inputs):
            found[i] = True
            made.update(op.outputs)
    return found


def derived_reads(flow: Flow, derived: Mask) -> tuple[Ints, Ints]:
    """Pairs (op, *derived* op that it reads a result of)."""
    maker = flow.producer[flow.read]
    some = np.flatnonzero(maker >= 0)
    some = some[derived[maker[some]]]
    return flow.read_op[some], maker[some]


def needed_by(reads: tuple[Ints, Ints], ops: Ints) -> Ints:
    """The derived ops that *ops* read something of, directly or through one another, in program order.

    *reads* are the pairs of `derived_reads`.
    """
    reader, maker = reads
    wanted = np.unique(maker[np.isin(reader, ops)])
    while True:
        more = np.union1d(wanted, maker[np.isin(reader, wanted)])
        if more.size == wanted.size:
            return wanted
        wanted = more


def crossing_reads(flow: Flow, stage: Ints, derived: Mask) -> tuple[Ints, Ints, Ints]:
    """Triples (op that makes it, op of another stage that reads it, storage) of what is sent between stages."""
    maker = flow.producer[flow.read]
    some = (maker >= 0) & (stage[flow.read_op] >= 0)
    maker, reader, tensor = maker[some], flow.read_op[some], flow.storage[flow.read[some]]
    there = stage[maker] != stage[reader]
    there &= (stage[maker] >= 0) & ~derived[maker]
    there &= ~flow.is_role(Role.PARAMETER, Role.BUFFER, Role.INPUT)[tensor]
    return maker[there], reader[there], tensor[there]


def crossing_bytes(
    flow: Flow, stage: Ints, passes: Ints, reads: tuple[Ints, Ints, Ints], size: Floats, stages: int
) -> Floats:
    """[2, stages - 1] bytes that a micro-batch sends over each cut, forward and backward.

    *reads* are the triples of `crossing_reads`, *size* [tensors]. A storage counts once a cut; what stage 0 makes and
    stage 3 reads passes the stages between. Gradients of parameters that two stages share do not: they are summed once
    a step.
    """
    found = np.zeros((2, max(stages - 1, 0)))
    if stages == 1:
        return found
    maker, reader, tensor = reads
    sums = np.zeros(stage.size, np.bool_)  # ops that finish a gradient: what they read of its size is part of it
    finished = np.full(stage.size, -1.0)
    gradient = flow.is_role(Role.GRADIENT)[flow.written]
    sums[flow.write_op[gradient]] = True
    finished[flow.write_op[gradient]] = size[flow.written[gradient]]
    there = ~(sums[reader] & (size[tensor] == finished[reader]))
    maker, reader, tensor = maker[there], reader[there], tensor[there]
    up = (passes[maker] == OpPass.FORWARD) & (stage[reader] > stage[maker])
    down = (passes[maker] == OpPass.BACKWARD_INPUT) & (stage[reader] < stage[maker])
    for way, chosen in enumerate((up, down)):
        low = np.minimum(stage[maker[chosen]], stage[reader[chosen]])
        high = np.maximum(stage[maker[chosen]], stage[reader[chosen]])
        pairs = np.unique(np.stack([low, high, tensor[chosen]], axis=1), axis=0)
        for c in range(stages - 1):
            over = (pairs[:, 0] <= c) & (c < pairs[:, 1])
            found[way, c] = size[np.unique(pairs[over, 2])].sum()
    return found


@dataclass(frozen=True, eq=False)
class Gradients:
    """The gradients of parameters, in the order they are ready."""

    storage: Ints
    """[g]"""
    op: Ints
    """[g] the op after which each is whole."""
    stage: Ints
    """[g]"""
    elements: Ints
    """[g]"""
    bytes: Ints
    """[g] as captured."""
    parameter_bytes: Ints
    """[g] of the parameter."""
    parameter: Ints
    """[g] the parameter's tensor id; -1: none of that name."""
    expert: Mask
    """[g] True for weights of experts, which expert parallel ranks do not have in common."""
    experts: Mask
    """[tensors] the same, by storage."""


def find_gradients(graph: Graph, flow: Flow, stage: Ints, size: Floats) -> Gradients:
    """The gradients of *graph*; *size* [tensors] bytes."""
    is_gradient = flow.is_role(Role.GRADIENT)
    storages = np.unique(flow.storage[is_gradient])
    ready = np.full(len(graph.tensors), -1, np.int64)
    writes = flow.launching[flow.write_op] & (stage[flow.write_op] >= 0)
    np.maximum.at(ready, flow.storage[flow.written[writes]], flow.write_op[writes])
    storages = storages[ready[storages] >= 0]
    storages = storages[np.argsort(ready[storages], kind="stable")]
    named = {graph.tensors[t].storage: graph.tensors[t].name for t in np.flatnonzero(is_gradient).tolist()}
    parameters = {
        graph.tensors[t].name: t for t in np.flatnonzero(flow.is_role(Role.PARAMETER)).tolist() if t == flow.storage[t]
    }
    whole = size[storages].astype(np.int64)
    bits = np.array([graph.tensors[s].dtype.bits for s in storages.tolist()], np.int64)
    own = [parameters.get(named[s], -1) for s in storages.tolist()]
    grouped = np.zeros(len(graph.tensors), np.bool_)
    of_experts = np.array([op.kind is OpKind.GROUPED_MATMUL for op in graph.ops], np.bool_)
    grouped[flow.storage[flow.read[of_experts[flow.read_op]]]] = True
    return Gradients(
        storages,
        ready[storages],
        stage[ready[storages]],
        whole * 8 // np.maximum(bits, 1),
        whole,
        np.array([int(size[p]) if p >= 0 else int(w) for p, w in zip(own, whole, strict=True)], np.int64),
        np.array(own, np.int64),
        np.array([bool(grouped[p]) if p >= 0 else False for p in own], np.bool_),
        grouped,
    )
