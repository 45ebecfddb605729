"""A replayed plan as Chakra traces: one a rank, each the pieces of its passes, with sends, receives and collectives.

Receives stand on the rank that waits, with the tag of their send. Every node starts when what it waits for has ended;
communication not before the step of the plan has it start, since it waits for other ranks too.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from foretrace.ir import OpKind
from foretrace.traces.formats.chakra import ChakraRank, NodeType
from foretrace.traces.formats.chakra.nodes import topological_order

from .chakra_groups import Groups, communication, group_members
from .chakra_nodes import Joins, OpFacts, RankNodes, metadata
from .columns import Ints
from .engine import TICKS_PER_SECOND, seconds_from_ticks
from .parallel.step import OPTIMIZER, Lane, Node

if TYPE_CHECKING:
    from .parallel import Parallel, PlanRun
    from .result import Result

_LANES = {Lane.COLLECTIVE: "replicas", Lane.SEND_ON: "send on", Lane.SEND_BACK: "send back"}


def plan_ranks(
    result: "Result", parallel: "Parallel", groups: Groups, ranks: Sequence[int] | None = None
) -> Iterator[ChakraRank]:
    """The global *ranks* of a plan, by default the first of each simulated one; their groups go into *groups*.

    Raises `UnknownNameError` for a rank that the plan has not.
    """
    chosen = [r.rank for r in parallel.ranks] if ranks is None else sorted(set(ranks))
    for rank in chosen:
        parallel.rank(rank)  # checks it
    run = parallel.run
    facts = OpFacts.joined(run.priced.graph, (run.table, run.priced.added_table))
    for rank in chosen:
        nodes = RankNodes(facts, rank, groups, {"cp": run.plan.cp})
        _PlanRank(run, nodes).fill()
        yield ChakraRank(rank, tuple(nodes.nodes), metadata(result, rank))


class _PlanRank:
    """Fills in the nodes of one rank of a plan."""

    def __init__(self, run: "PlanRun", nodes: RankNodes) -> None:
        self.run, self.nodes, self.plan = run, nodes, run.plan
        self.place = run.plan.place(nodes.rank)
        self.q = run.replicas.simulated(self.place, run.plan.pp)
        step = run.step
        device = run.timeline.end[step.run_of] - run.timeline.start[step.run_of]
        alone = np.maximum(run.timings.device[step.items.segment], 1)
        self.stretch = np.maximum(device / alone, 1.0)  # [items] slowed by communication beside them
        self.made: dict[int, tuple[int, ...]] = {}  # node of the step → ids
        self.ends: tuple[int, ...] = ()  # what the next piece follows on the device
        self.host_after: tuple[int, ...] = ()

    def fill(self) -> None:
        """Add every node, in an order in which each comes after what it waits for."""
        step = self.run.step
        own = np.flatnonzero(step.rank == self.q)
        own = own[np.isin(step.kind[own], (Node.RUN, Node.SEND, Node.GATHER, Node.REDUCE))]
        received = np.flatnonzero((step.to_rank == self.q) & (step.rank != self.q))
        there = np.concatenate([own, received])
        waits = self._waits(own, received)
        ids = there.tolist()
        for at in topological_order(ids, [waits[n] for n in ids]):
            n = ids[at]
            if step.kind[n] == Node.RUN:
                self._piece(n, waits[n])
            else:
                self._communicate(n, waits[n])

    def _waits(self, own: Ints, received: Ints) -> dict[int, list[int]]:
        """Node → those of this rank (or that send to it) that it waits for: by edges, and by the order on its lane."""
        step = self.run.step
        mine = np.zeros(step.kind.size, np.bool_)
        mine[own] = True
        here = mine.copy()
        here[received] = True
        edges = here[step.source] & mine[step.target]
        waits: dict[int, list[int]] = {n: [] for n in (*own.tolist(), *received.tolist())}
        for source, target in zip(step.source[edges].tolist(), step.target[edges].tolist(), strict=True):
            waits[target].append(source)
        for part in (own, received):
            order = part[np.lexsort((part, step.priority[part], step.lane[part], step.rank[part]))]
            same = (step.lane[order[1:]] == step.lane[order[:-1]]) & (step.rank[order[1:]] == step.rank[order[:-1]])
            for before, after in zip(order[:-1][same].tolist(), order[1:][same].tolist(), strict=True):
                waits[after].append(before)
        return waits

    def _piece(self, n: int, waits: Sequence[int]) -> None:
        """A stretch of ops of one pass."""
        run, step = self.run, self.run.step
        item = int(step.item[n])
        s, piece = int(step.items.segment[item]), int(step.items.piece[item])
        program, alone = run.segments.programs[s], run.timings.alone[s]
        ops = run.item_ops[piece] if piece >= 0 else run.segments.ops[s]
        seconds = seconds_from_ticks(alone.schedule.duration)
        seconds = np.where(program.on_device, seconds * self.stretch[item], seconds)
        before = [w for w in waits if step.kind[w] != Node.RUN]
        joins = Joins(tuple(i for w in before for i in self.made[w]), self.ends, self.host_after)
        micro_batch = int(step.items.micro_batch[item])
        if step.items.work[item] == OPTIMIZER:
            self.nodes.gather_micro_batches(micro_batch)
        ends = self.nodes.add_program(ops, program, None, seconds, micro_batch, joins)
        self.made[n] = self.ends = ends or self.ends
        self.host_after = self.ends if run.segments.mode.waits else ()

    def _communicate(self, n: int, waits: Sequence[int]) -> None:
        """A send, a receive, or a collective among replicas."""
        run, step = self.run, self.run.step
        op_id, lane = int(step.op[n]), _LANES[Lane(int(step.lane[n]))]
        size = self.nodes.facts.comm_bytes.get(op_id, 0)
        receives = step.rank[n] != self.q
        if step.kind[n] == Node.SEND:
            other = int(step.rank[n] if receives else step.to_rank[n]) % self.plan.pp
            peer = self.nodes.rank + (other - self.place["pp"]) * self.plan.stride("pp")
            ends = {"comm_src": peer, "comm_dst": self.nodes.rank} if receives else {
                "comm_src": self.nodes.rank, "comm_dst": peer
            }  # fmt: skip
            more = {"comm_size": size, "comm_tag": n, "comm_priority": 0, "bytes": size}
            sorts = [(NodeType.RECEIVE if receives else NodeType.SEND, ends | more)]
            lane = f"receive {lane}" if receives else lane
        else:
            op = self.nodes.facts.graph.ops[op_id]
            members = self._members(op_id) or group_members(op.attributes, self.nodes.rank)
            sorts = communication(op, size, self.nodes.rank, members, self.nodes.groups)
        times = int(run.timeline.schedule.duration[n]) / TICKS_PER_SECOND
        starts = int(run.timeline.start[n]) / TICKS_PER_SECOND
        data = tuple(i for w in waits if step.kind[w] == Node.RUN for i in self.made[w])
        self.made[n] = self.nodes.add_communication(op_id, lane, (None, times), data, sorts, starts)

    def _members(self, op_id: int) -> tuple[int, ...]:
        """Of a collective among pipeline ranks (gradients that several stages hold): those that take part."""
        step, plan = self.run.step, self.plan
        op = self.nodes.facts.graph.ops[op_id]
        stride = op.attributes.get("stride")
        if (
            op.kind is not OpKind.COLLECTIVE
            or plan.pp == 1
            or not isinstance(stride, int)
            or stride < plan.stride("pp")
        ):
            return ()
        there = np.unique(step.rank[(step.op == op_id) & (step.rank // plan.pp == self.q // plan.pp)]) % plan.pp
        first = self.nodes.rank - self.place["pp"] * plan.stride("pp")
        return tuple(first + p * plan.stride("pp") for p in there.tolist())
