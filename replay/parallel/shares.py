"""What each pipeline rank holds and updates: parameters, their gradients and optimizer state, and its share of the
optimizer's work.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from foretrace.replay.columns import Floats, Ints, Mask
from foretrace.transforms.stages import OpPass

from .cutting import Cutting
from .pieces import replica_group

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
    groups = tuple(replica_group(plan, expert)[2] for expert in (False, True))
    key = ("holdings", tuple(map(tuple, stages_of)), groups)
    return cutting.once(key, lambda: _holdings(cutting, stages_of, np.array(groups, np.float64)))


def _holdings(cutting: Cutting, stages_of: list[list[int]], groups: Floats) -> Holdings:
    """*groups*: ranks among which ZeRO divides a parameter, and one of an expert."""
    own, size = cutting.outline.belongings, cutting.size
    count = own.parameter.size
    gradient = np.where(own.gradient >= 0, size[own.gradient], 0.0)
    state: Floats = np.bincount(own.states[:, 0], size[own.states[:, 1]], minlength=count).astype(np.float64)
    held = np.zeros((len(stages_of), count), np.bool_)
    ops, parameters = cutting.parameters
    for rank, stages in enumerate(stages_of):
        used = own.of_storage[parameters[np.isin(cutting.stage[ops], stages)]]
        held[rank, used[used >= 0]] = True
    held[0, ~held.any(axis=0)] = True  # what nothing reads
    whole = size[own.parameter]
    shards = groups[cutting.gradients.experts[own.parameter].astype(np.int64)]
    elements = whole * 8 / np.maximum(own.bits, 1)
    return Holdings(own.parameter, held, whole, elements, gradient, state, shards, own.of_storage)


def optimizer_shares(cutting: Cutting, holdings: Holdings) -> tuple[Ints, Floats]:
    """The optimizer's ops, and [k, ops] the share of each that a rank runs: of the bytes it reads, those held there,
    divided where ZeRO divides.

    An op that names no parameter (it works on what the one before made) goes with the one before.
    """
    flow, ops = cutting.flow, cutting.outline.optimizer
    k = holdings.held.shape[0]
    shares = np.zeros((k, ops.size))
    if not ops.size:
        return ops, shares
    some = np.flatnonzero(cutting.passes[flow.read_op] == OpPass.OPTIMIZER)
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
