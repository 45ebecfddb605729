"""The step of a plan as one schedule for the engine: pieces of passes on the ranks of a pipeline, and what joins them.

Each simulated rank has a host, a device, a stream for collectives among replicas, and one for sends to each
neighbour. An item (one piece of one row of the pipeline schedule) is up to four nodes: *lead* and *issue* on the host,
*run* on the device, *block* where the host waits for a value (see `segment`). The host runs ahead of the device over
micro-batches, as PyTorch does; sends run beside computation, and only the receiver waits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from foretrace.replay.columns import Floats, Ints, Mask
from foretrace.replay.engine import Engine, Schedule, Timeline, run
from foretrace.transforms.schedules import Pass

from .segment import Timings


class Node(IntEnum):
    """What a node of the step is."""

    LEAD = 0
    ISSUE = 1
    RUN = 2
    BLOCK = 3
    SEND = 4
    GATHER = 5
    REDUCE = 6


class Lane(IntEnum):
    """What a node of a rank occupies."""

    HOST = 0
    DEVICE = 1
    BLOCK = 2
    COLLECTIVE = 3
    SEND_ON = 4
    SEND_BACK = 5


Arrive = Callable[[Ints, Ints], None]
"""Joins communication to the items that wait for it."""
_LANE = {Node.LEAD: Lane.HOST, Node.ISSUE: Lane.HOST, Node.RUN: Lane.DEVICE, Node.BLOCK: Lane.BLOCK}
OPTIMIZER = 4
"""The `work` of an item that is no pass of a schedule."""


@dataclass(frozen=True, eq=False)
class Items:
    """i pieces in order on each of k ranks: ranks behind each other, each in the order of its schedule."""

    rank: Ints
    """[i] simulated rank."""
    row: Ints
    """[i] row of the pipeline schedule (of its class), -1 for the optimizer."""
    micro_batch: Ints
    """[i] -1 for the optimizer."""
    stage: Ints
    """[i] -1 for the optimizer."""
    work: Ints
    """[i] a `Pass`, or `OPTIMIZER`."""
    segment: Ints
    """[i]"""
    piece: Ints
    """[i] which of the distinct pieces it is."""


@dataclass(eq=False)
class StepGraph:
    """Nodes and edges of a step, durations left open."""

    kind: Ints
    """[n] a `Node`."""
    item: Ints
    """[n] of host and device nodes their item, of communication the item after (or before) which it runs."""
    op: Ints
    """[n] op id of communication, -1."""
    rank: Ints
    """[n]"""
    lane: Ints
    """[n]"""
    priority: Ints
    """[n]"""
    source: Ints
    """[edges]"""
    target: Ints
    to_rank: Ints
    """[n] the rank that receives a send, -1."""
    stretch: Floats
    """[n] what slow links make of communication."""
    items: Items
    run_of: Ints
    """[i] the run node of each item."""
    overlapped: tuple[Ints, Ints]
    """Pairs (item, op id of communication that begins with it): what slows it down."""

    def run(self, timings: Timings, ticks: Ints, slowdown: float, engine: Engine = "auto") -> Timeline:
        """Replay with the segments' *timings* and *ticks* [ops] for communication."""
        schedule = Schedule.from_edges(
            self.durations(timings, ticks, slowdown),
            self.rank * len(Lane) + self.lane,
            self.source,
            self.target,
            np.ones((int(self.rank.max(initial=0)) + 1) * len(Lane), np.bool_),
            priority=self.priority,
        )
        return run(schedule, engine, self._label)

    def durations(self, timings: Timings, ticks: Ints, slowdown: float) -> Ints:
        """[n] ticks."""
        segment = self.items.segment
        added = self.slowed(timings, ticks, slowdown)
        lead, device, host = timings.lead[segment], timings.device[segment] + added, timings.host[segment]
        own = np.where(self.item >= 0, self.item, 0)
        of_item = np.stack([lead, host - lead, device, np.maximum(timings.block[segment], 0)])
        found = of_item[np.minimum(self.kind, Node.BLOCK), own] if segment.size else np.zeros(self.kind.size, np.int64)
        communicates = np.flatnonzero(self.kind >= Node.SEND)
        found[communicates] = np.rint(ticks[self.op[communicates]] * self.stretch[communicates])
        return np.asarray(found, np.int64)

    def slowed(self, timings: Timings, ticks: Ints, slowdown: float) -> Ints:
        """[i] ticks that each item takes longer for the collectives beside it."""
        item, op = self.overlapped
        beside = np.bincount(item, ticks[op], minlength=self.items.segment.size)
        return np.rint(slowdown * np.minimum(beside, timings.compute[self.items.segment])).astype(np.int64)

    def _label(self, node: int) -> str:
        return f"{Node(int(self.kind[node])).name.lower()} on pipeline rank {self.rank[node]}"


@dataclass(frozen=True, eq=False)
class Joins:
    """What runs once a step on every class of replicas, beside the items."""

    gathers: Sequence[tuple[int, ...]]
    """[pieces] op ids of the all-gathers that each distinct piece waits for."""
    reduces: Sequence[tuple[int, ...]]
    """[pieces] op ids of the collectives after it."""
    shared: Sequence[tuple[int, tuple[int, ...]]]
    """(op id, pipeline ranks) of gradients that several pipeline ranks sum."""
    updates: Sequence[Sequence[int]]
    """[pipeline ranks] op ids of the all-gathers after the optimizer."""
    sends: Ints
    """[2, stages - 1] op ids of sends over each cut, onward and back."""


class Builder:
    """Adds nodes and edges in blocks."""

    def __init__(self) -> None:
        self.columns: list[tuple[Ints, ...]] = []
        self.edges: list[tuple[Ints, Ints]] = []
        self.nodes = 0

    def add(
        self,
        kind: Node,
        rank: Ints,
        priority: Ints,
        item: "Ints | int",
        op: "Ints | int" = -1,
        lane: "Ints | int" = -1,
        to: "Ints | int" = -1,
    ) -> Ints:
        """Nodes of one kind; gives their ids."""
        n = rank.size
        on = int(_LANE.get(kind, Lane.COLLECTIVE)) if lane < 0 else lane
        columns = [np.broadcast_to(c, n) for c in (int(kind), rank, priority, item, op, on, to)]
        self.columns.append(tuple(np.asarray(c, np.int64) for c in columns))
        self.nodes += n
        return np.arange(self.nodes - n, self.nodes)

    def join(self, source: "Ints | Sequence[int]", target: "Ints | Sequence[int]") -> None:
        """Edges."""
        ends = np.broadcast_arrays(np.asarray(source, np.int64), np.asarray(target, np.int64))
        self.edges.append((ends[0].ravel(), ends[1].ravel()))


def build_step(items: Items, blocks: Mask, joins: Joins, links: Floats, host_receives: bool = False) -> StepGraph:
    """The step's nodes.

    *blocks* [segments]: the host waits in it. *links* [classes, pipeline ranks]: the relative bandwidth of each rank.
    *host_receives*: the host waits for what other stages send, and issues what reads it only then.
    """
    ranks = links.shape[1]
    b = Builder()
    count = items.rank.size
    at = np.arange(count)
    first = np.searchsorted(items.rank, np.arange(int(items.rank.max(initial=0)) + 2))
    place = at - first[items.rank]  # on its rank
    before = np.where(place > 0, at - 1, -1)
    lead = b.add(Node.LEAD, items.rank, 8 * place, at)
    b.add(Node.ISSUE, items.rank, 8 * place + 1, at)
    device = b.add(Node.RUN, items.rank, 8 * place, at)
    b.join(lead, device)
    blocking = np.flatnonzero(blocks[items.segment])
    block = np.full(count, -1)
    block[blocking] = b.add(Node.BLOCK, items.rank[blocking], 8 * place[blocking], blocking)
    following = blocking[(blocking + 1 < count) & (place[np.minimum(blocking + 1, count - 1)] > 0)]
    b.join(block[following], lead[following + 1])
    late = blocking[before[blocking] >= 0]
    b.join(device[before[late]], block[late])

    def arrive(source: Ints, item: Ints) -> None:
        b.join(source, device[item])
        stops = block[item] >= 0
        b.join(source[stops], block[item[stops]])

    def receive(source: Ints, item: Ints) -> None:
        arrive(source, item)
        if host_receives:
            b.join(source, lead[item])

    overlapped = [_add_gathers(b, items, device, place, joins, arrive)]
    _add_sends(b, items, device, place, joins, receive, ranks)
    overlapped.append(_add_reduces(b, items, device, place, joins, ranks))
    columns = [np.concatenate(c) for c in zip(*b.columns, strict=True)]
    kind, rank, priority, item, op, lane, to = columns
    source, target = (np.concatenate(e) for e in zip(*b.edges, strict=True))
    pairs = tuple(np.concatenate(p).astype(np.int64) for p in zip(*overlapped, strict=True))
    near = np.minimum(links.ravel()[rank], np.where(to >= 0, links.ravel()[to], np.inf))
    stretch = 1 / np.where(lane == Lane.COLLECTIVE, links.min(axis=0)[rank % ranks], near)
    ends = (pairs[0], pairs[1])
    return StepGraph(kind, item, op, rank, lane, priority, source, target, to, stretch, items, device, ends)


def _of_pieces(ops: Sequence[tuple[int, ...]], piece: Ints) -> tuple[Ints, Ints]:
    """Pairs (item, one of the *ops* of its piece) for items of *piece* [i]; the optimizer's piece, -1, has none."""
    each = np.array([*(len(o) for o in ops), 0], np.int64)
    items = np.repeat(np.arange(piece.size), each[piece])
    return items, np.array([o for p in piece[each[piece] > 0].tolist() for o in ops[p]], np.int64)


def _add_gathers(
    b: Builder, items: Items, device: Ints, place: Ints, joins: Joins, arrive: Arrive
) -> tuple[Ints, Ints]:
    """All-gathers of parameters, one item ahead: each begins when the item two before has ended (FSDP2 holds two)."""
    some, op = _of_pieces(joins.gathers, items.piece)
    if not some.size:
        return some, op
    gather = b.add(Node.GATHER, items.rank[some], 8 * (place[some] - 2) + 1, some, op)
    late = place[some] >= 2
    b.join(device[some[late] - 2], gather[late])
    arrive(gather, some)
    beside = place[some] >= 1
    return some[beside] - 1, op[beside]


def _add_sends(b: Builder, items: Items, device: Ints, place: Ints, joins: Joins, arrive: Arrive, ranks: int) -> None:
    """What a stage needs of its neighbours: a send where they are on other ranks."""
    stages = joins.sends.shape[1] + 1
    if stages == 1:
        return
    passes = items.row >= 0
    starts = passes & np.concatenate([[True], items.row[1:] != items.row[:-1]])
    starts |= passes & np.concatenate([[True], items.rank[1:] != items.rank[:-1]])
    ends = passes & np.append((items.row[1:] != items.row[:-1]) | (items.rank[1:] != items.rank[:-1]), True)
    replica = items.rank // ranks
    shape = (int(replica.max(initial=0)) + 1, stages, int(items.micro_batch.max(initial=0)) + 1)
    forward = items.work == Pass.FORWARD
    backward = (items.work == Pass.BACKWARD) | (items.work == Pass.BACKWARD_INPUT)
    for way, chosen in enumerate((forward, backward)):
        begin, end = (np.full(shape, -1) for _ in range(2))
        for table, marks in ((begin, starts), (end, ends)):
            some = np.flatnonzero(marks & chosen)
            table[replica[some], items.stage[some], items.micro_batch[some]] = some
        source, target = (end[:, :-1], begin[:, 1:]) if way == 0 else (end[:, 1:], begin[:, :-1])
        cut = np.broadcast_to(np.arange(stages - 1)[None, :, None], source.shape).ravel()
        source, target = source.ravel(), target.ravel()
        there = (source >= 0) & (target >= 0)
        source, target, cut = source[there], target[there], cut[there]
        op = joins.sends[way, cut]
        near = (items.rank[source] == items.rank[target]) | (op < 0)
        arrive(device[source[near]], target[near])
        s, t = source[~near], target[~near]
        lane = Lane.SEND_ON if way == 0 else Lane.SEND_BACK
        sends = b.add(Node.SEND, items.rank[s], 8 * place[s] + 3, s, op[~near], int(lane), items.rank[t])
        b.join(device[s], sends)
        arrive(sends, t)


def _add_reduces(b: Builder, items: Items, device: Ints, place: Ints, joins: Joins, ranks: int) -> tuple[Ints, Ints]:
    """Collectives after items, those that pipeline ranks share, and the optimizer that waits for them all.

    Replicas run in step: a collective begins when every class has come to it.
    """
    classes = int(items.rank.max(initial=0)) // ranks + 1
    optimizer = np.flatnonzero(items.work == OPTIMIZER)
    update = np.full(classes * ranks, -1)
    update[items.rank[optimizer]] = device[optimizer]
    some, op = _of_pieces(joins.reduces, items.piece)
    reduce = b.add(Node.REDUCE, items.rank[some], 8 * place[some] + 2, some, op)
    per_class = reduce.size // classes
    for other in range(classes):  # the items of all classes are the same, in the same order
        waits = np.roll(device[some].reshape(classes, per_class), other, axis=0) if per_class else device[some]
        b.join(waits.ravel(), reduce)
    own = update[items.rank[some]]
    b.join(reduce[own >= 0], own[own >= 0])
    following = some + 1
    beside = (following < items.rank.size) & (place[np.minimum(following, place.size - 1)] > 0)
    last = np.searchsorted(items.rank, np.arange(classes * ranks), "right") - 1
    ends = np.where(update >= 0, last - 1, last)  # the last item before the optimizer
    for shared, members in joins.shared:
        for c in range(classes):
            q = np.array(members, np.int64) + c * ranks
            node = b.add(Node.REDUCE, q, 8 * (place[ends[q]] + 1) + 3, ends[q], shared)
            b.join(np.repeat(device[ends[q]], q.size), np.tile(node, q.size))
            chosen = update[q] >= 0
            b.join(node[chosen], update[q][chosen])
    for r in range(classes * ranks):
        ops, end = np.array(joins.updates[r % ranks], np.int64), last[r]
        node = b.add(Node.GATHER, np.full(ops.size, r), 8 * (place[end] + 2) + np.arange(ops.size), end, ops)
        b.join(np.full(ops.size, device[end]), node)
    slowed = beside & (items.work[np.minimum(following, place.size - 1)] != OPTIMIZER)
    return following[slowed], op[slowed]
