"""What each pipeline rank holds and updates: parameters, their gradients and optimizer state, and its share of the
optimizer's work.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from foretrace.ir import Role
from foretrace.replay.columns import Floats, Ints, Mask

from .pieces import Cutting, replica_group

if TYPE_CHECKING:
    from foretrace.transforms.plan import Plan


@dataclass(frozen=True, eq=False)
class Holdings:
    """p parameters on k pipeline ranks."""

    parameter: Ints
    """[p] tensor ids."""
    held: Mask
    """[k, p] whether a rank holds a parameter (a tied one stands on several)."""
    bytes: Floats
    """[p] of the parameter, as captured."""
    elements: Floats
    """[p]"""
    gradient_bytes: Floats
    """[p] as captured; 0 where it has no gradient."""
    state_bytes: Floats
    """[p] of the optimizer's state, as captured."""
    shards: Floats
    """[p] ranks among which ZeRO divides what belongs to it, 1 where it does not."""
    of_storage: Ints
    """[tensors] the parameter (index) that a storage belongs to (itself, its gradient, its state); -1: none."""

    def sums(self, column: Floats) -> Floats:
        """[k] what each rank holds of *column* [p]."""
        return np.asarray(self.held @ column, np.float64)


def find_holdings(cutting: Cutting, stages_of: list[list[int]], plan: "Plan") -> Holdings:
    """What ranks hold that run *stages_of* [k] stages."""
    graph, flow = cutting.graph, cutting.flow
    ids = np.flatnonzero(flow.is_role(Role.PARAMETER) & (flow.storage == np.arange(flow.storage.size)))
    index = {graph.tensors[t].name: i for i, t in enumerate(ids.tolist())}
    of_storage = np.full(flow.storage.size, -1, np.int64)
    of_storage[ids] = np.arange(ids.size)
    gradient, state = np.zeros((2, ids.size))
    for t in np.flatnonzero(flow.is_role(Role.GRADIENT)).tolist():
        if (p := index.get(graph.tensors[t].name, -1)) >= 0:
            s = int(flow.storage[t])
            of_storage[s] = p
            gradient[p] = cutting.size[s]
    for t in np.flatnonzero(flow.is_role(Role.OPTIMIZER_STATE)).tolist():
        s = int(flow.storage[t])
        name = graph.tensors[t].name.split(".", 2)
        if s == t and len(name) == 3 and (p := index.get(name[2], -1)) >= 0:
            of_storage[s] = p
            state[p] += cutting.size[s]
    held = np.zeros((len(stages_of), ids.size), np.bool_)
    ops, parameters = cutting.parameters
    for rank, stages in enumerate(stages_of):
        used = of_storage[parameters[np.isin(cutting.stage[ops], stages)]]
        held[rank, used[used >= 0]] = True
    held[0, ~held.any(axis=0)] = True  # what nothing reads
    bits = np.array([graph.tensors[t].dtype.bits for t in ids.tolist()], np.float64)
    size = cutting.size[ids]
    groups = np.array([replica_group(plan, expert)[2] for expert in (False, True)], np.float64)
    shards = groups[cutting.gradients.experts[ids].astype(np.int64)]
    return Holdings(ids, held, size, size * 8 / np.maximum(bits, 1), gradient, state, shards, of_storage)


def optimizer_shares(cutting: Cutting, holdings: Holdings) -> tuple[Ints, Floats]:
    """The optimizer's ops, and [k, ops] the share of each that a rank runs: of the bytes it reads, those held there,
    divided where ZeRO divides.

    An op that names no parameter (it works on what the one before made) goes with the one before.
    """
    flow = cutting.flow
    ops = np.flatnonzero(np.array([op.phase == "optimizer" for op in cutting.graph.ops], np.bool_))
    k = holdings.held.shape[0]
    shares = np.zeros((k, ops.size))
    if not ops.size:
        return ops, shares
    some = np.isin(flow.read_op, ops)
    op = np.searchsorted(ops, flow.read_op[some])
    parameter = holdings.of_storage[flow.storage[flow.read[some]]]
    known = parameter >= 0
    op, parameter = op[known], parameter[known]
    whole = np.bincount(op, holdings.bytes[parameter], minlength=ops.size)
    for rank in range(k):
        own = np.where(holdings.held[rank, parameter], (holdings.bytes / holdings.shards)[parameter], 0.0)
        shares[rank] = np.bincount(op, own, minlength=ops.size) / np.maximum(whole, 1.0)
    every = holdings.sums(holdings.bytes / holdings.shards) / max(float(holdings.bytes.sum()), 1.0)
    before = np.maximum.accumulate(np.where(whole > 0, np.arange(ops.size), -1))
    shares = np.where(before < 0, every[:, None], shares[:, before])
    return ops, shares
