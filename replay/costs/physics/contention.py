"""Different collectives at once: how much each is slowed where they share links between nodes, max-min fair.

`Topology.reach` knows of sibling groups, which run the same collective at the same time. This is for the rest: a
gradient's all-reduce beside an exchange of experts, a pipeline's sends beside either. Each collective is the flows of
its algorithm between nodes: a ring's from every member to its counterpart in the next node, each with its share of the
passes; a direct exchange's from each member to each in other nodes. Rates are max-min fair, and rise where one ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from foretrace.hardware.topology import finish_times
from foretrace.ir import ForetraceError
from foretrace.replay.columns import Floats, Ints

from .network import SCALE_OUT, fabrics_of
from .protocols import ALL_REDUCE, ALL_TO_ALL, BROADCAST, SEND_RECV

if TYPE_CHECKING:
    from foretrace.hardware import System


@dataclass(frozen=True, eq=False)
class Traffic:
    """One collective under way."""

    op: int
    """Index into `OPS`."""
    bytes: float
    """The whole buffer."""
    members: Ints
    """[n] global ranks, in the group's order."""
    start_s: float = 0.0

    def flows(self, node_size: int) -> tuple[Ints, Ints, Floats]:
        """[f] source and [f] target accelerators of what passes between nodes, [f] bytes of each."""
        members, n = self.members, self.members.size
        node = members // node_size
        if self.op in (ALL_TO_ALL, SEND_RECV):
            i, j = (x.ravel() for x in np.meshgrid(np.arange(n), np.arange(n), indexing="ij"))
            chosen = node[i] != node[j] if self.op == ALL_TO_ALL else (j == i + 1) & (node[i] != node[j])
            each = self.bytes / (n if self.op == ALL_TO_ALL else 1)
            return members[i[chosen]], members[j[chosen]], np.full(int(chosen.sum()), each)
        spans = np.unique(node).size
        if spans == 1:
            return members[:0], members[:0], np.zeros(0)
        local = -(-n // spans)
        target = np.roll(members, -local)
        passes = {ALL_REDUCE: 2 * (n - 1) / n, BROADCAST: 1.0}.get(self.op, (n - 1) / n)
        crosses = node != target // node_size
        return members[crosses], target[crosses], np.full(int(crosses.sum()), self.bytes * passes / local)


def slowdowns(system: "System", traffics: Sequence[Traffic]) -> Floats:
    """[t] factor of 1 or more on what each of *traffics* takes between nodes, where all of them share the links.

    What stays in one node is not slowed. Raises `ForetraceError` for a member that *system* has not.
    """
    fabric = next((fabric for fabric in fabrics_of(system) if fabric.family == SCALE_OUT), None)
    last = max((int(traffic.members.max()) for traffic in traffics), default=0)
    if last >= system.count:
        raise ForetraceError(f"rank {last} is a member of a collective, but {system.name} has {system.count}")
    if fabric is None or fabric.network is None or not traffics:
        return np.ones(len(traffics))
    parts = [traffic.flows(system.node_size) for traffic in traffics]
    source, target, nbytes = (np.concatenate([part[i] for part in parts]) for i in range(3))
    owner = np.repeat(np.arange(len(parts)), [part[0].size for part in parts])
    start = np.array([traffic.start_s for traffic in traffics])
    paths, capacity = fabric.network.paths(source, target)
    together = np.zeros(len(parts))
    np.maximum.at(together, owner, finish_times(paths, capacity * fabric.bandwidth, nbytes, start[owner]))
    alone = np.zeros(len(parts))
    for i in np.unique(owner).tolist():
        mine = owner == i
        own, capacity = fabric.network.paths(source[mine], target[mine])
        alone[i] = finish_times(own, capacity * fabric.bandwidth, nbytes[mine]).max()
    taken = np.where(alone > 0, (together - start) / np.where(alone > 0, alone, 1.0), 1.0)
    return np.maximum(taken, 1.0)
