"""Ranks in several nodes: the algorithms of libraries of collectives over two tiers of links, and the fastest of them.

n ranks, m in each of k nodes; S bytes; a rank has bandwidth b and latency a inside its node, B (its share of the
network, which sibling groups have their own part of) and A between nodes; e, E what a protocol reaches of them; s, S'
the latencies that one of its steps takes. seconds = start + steps + traffic, with

    algorithm      steps                                    traffic
    ring           ((n - k) s a + H S' A) · passes'         S passes(n) / min(m E B, e b)
    tree           2 ((m - 1) s a + ceil(log2 k) S' A)      2 S / min(m E B, e b)
    in-switch      2 s a + what joins the nodes             max(S (m + 1) / m / (e b), S t / (m E B))
    recursive      passes' (log2 m s a + log2 k S' A)       S passes(m) / (e b) + S / m passes(k) / (E B)
    hierarchical   passes' ((m - 1) s a + H S' A)           as recursive: rings inside, rings between
    direct         passes' ((m - 1) s a + (n - m) S' A)     max(S (n - m) / n / (E B), S (m - 1) / n / (e b)) passes'

passes(n) is 2 (n - 1) / n of an all-reduce, (n - 1) / n of half of one, 1 of a broadcast; passes' is 2 of an
all-reduce, else 1; H the latencies of one pass through the nodes (k - 1 over a switch, less in the dimensions of a
torus). A flat ring crosses nodes on every NIC of the group's members, each ring with a part of the buffer. Trees are
double binary trees (Sanders, Speck, Träff 2009; NCCL 2.4), in which a rank sends and receives S twice; NCCL counts so
in two nodes too, and then rings. In-switch: the node's switch adds (NVLS), and trees (t = 2, of two nodes 1, as a tree
then has one edge) or switches between the nodes that add as well (SHARP: t = 1, one latency up and one down; Graham et
al. 2016) join the nodes, all at once.
Recursive halving and doubling, hierarchical and direct after Thakur, Rabenseifner, Gropp 2005 (a group that is no
power of two folds its rest in: two more steps, all of the buffer once more each way).
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from foretrace.replay.columns import Floats, Mask

from .facts import Facts
from .network import Fabric, Reaches
from .protocols import (
    ALGORITHMS,
    ALL_REDUCE,
    BROADCAST,
    DIRECT_LOW_LATENCY,
    SEND_RECV,
    CollectiveConstants,
    Collectives,
    Protocol,
    Protocols,
)

TREE_SHARE: Final = 0.92
"""Of the ring's bandwidth that a tree reaches (NCCL's tuning.cc)."""


class Fastest:
    """The fastest way so far of each of r collectives: [3, r] s of the link, of hops, of starting."""

    def __init__(self, rows: int) -> None:
        self.parts = np.full((3, rows), np.inf)

    def offer(self, link: Floats, hops: Floats, start: float, allowed: Mask) -> None:
        """Take this way where it is *allowed* and faster."""
        ways = np.stack([link, hops, np.full(link.size, start)])
        better = allowed & (ways.sum(axis=0) < self.parts.sum(axis=0))
        self.parts[:, better] = ways[:, better]


def recursive(ranks: Floats) -> tuple[Floats, Floats]:
    """[r] steps and [r] passes of one half of a recursive all-reduce (halving, or doubling) among *ranks*."""
    power = 2.0 ** np.floor(np.log2(np.maximum(ranks, 1.0)))
    rest = (power < ranks).astype(np.float64)
    return np.log2(power) + rest, (power - 1) / power + rest


@dataclass(frozen=True, eq=False)
class _Across:
    """Rows that span nodes, with what both tiers give them."""

    x: Collectives
    far: Fabric
    reach: Reaches
    near: Fabric | None
    """None where each node has one member."""
    inside: Floats
    """[r] bytes/s of a member inside its node; infinite without any."""

    @property
    def near_s(self) -> float:
        """s of a latency inside a node."""
        return self.near.latency_s if self.near else 0.0

    @property
    def rounds(self) -> Floats:
        """[r] 2 of an all-reduce, which gathers what it scattered; else 1."""
        return np.where(self.x.op == ALL_REDUCE, 2.0, 1.0)

    def passes(self, ranks: Floats) -> Floats:
        """[r] times the buffer passes one rank's links in rings among *ranks*."""
        return np.where(self.x.op == BROADCAST, 1.0, self.rounds * (ranks - 1) / ranks)

    def can(self, library: str, algorithm: str) -> Mask:
        """[r] True for the collectives that *library* runs by *algorithm*."""
        return np.isin(self.x.op, ALGORITHMS[library][algorithm])


def price_across(
    x: Collectives, near: Fabric | None, far: Fabric, p: Protocols, q: Protocols, facts: Facts, c: CollectiveConstants
) -> Floats:
    """[3, r] s of the link, of hops and of starting, for rows that span nodes.

    *p* are the protocols inside a node, over *near* (None: every node has one member), *q* those between, over *far*.
    """
    inside = np.full(x.ranks.size, np.inf)
    if near is not None:
        inside = near.bandwidth * near.inside(x.members, x.strides).ring
    rows = _Across(x, far, Reaches.of(far, x.groups), near, inside)
    best = Fastest(x.ranks.size)
    for local, between in ((p.low_latency, q.low_latency), (p.simple, q.simple)):
        _rings(rows, best, local, between, facts, c.library)
        tree = q.tree if q.tree and between is q.simple else _as_tree(between)
        _trees(rows, best, local, tree, facts, rows.can(c.library, "tree"))
        _recursive(rows, best, local, between, facts, c.library)
    _in_switch(rows, best, p, q, facts, rows.can(c.library, "in_switch"))
    _direct(rows, best, p.direct, q.direct, facts, rows.can(c.library, "direct"))
    message = x.bytes / np.where(x.op == SEND_RECV, 1.0, x.ranks)
    small = rows.can(c.library, "direct") & (message <= DIRECT_LOW_LATENCY)
    _direct(rows, best, p.low_latency, q.low_latency, facts, small)
    return best.parts


def _as_tree(ring: Protocol) -> Protocol:
    return Protocol(ring.start_s, ring.step, ring.efficiency * TREE_SHARE)


def _rings(a: _Across, best: Fastest, p: Protocol, q: Protocol, f: Facts, library: str) -> None:
    """Flat: one ring through all ranks for each NIC of the group."""
    x = a.x
    width = np.minimum(x.members * q.efficiency * a.reach.ring * a.far.bandwidth, p.efficiency * a.inside)
    between = a.reach.ring_hops * q.step * a.far.latency_s
    hops = a.rounds * (between + (x.ranks - x.nodes) * p.step * a.near_s)
    best.offer(x.bytes * a.passes(x.ranks) / width, hops, f.launch_floor_s + q.start_s, a.can(library, "ring"))


def _trees(a: _Across, best: Fastest, p: Protocol, q: Protocol, f: Facts, allowed: Mask) -> None:
    """Chains inside the nodes, double binary trees between."""
    x = a.x
    each = x.members * q.efficiency * a.reach.direct * a.far.bandwidth
    halves = np.where(x.op == BROADCAST, 1.0, 2.0)
    between = np.ceil(np.log2(x.nodes)) * a.reach.direct_hops * q.step * a.far.latency_s
    hops = halves * (between + (x.members - 1) * p.step * a.near_s)
    link = x.bytes * halves / np.minimum(each, p.efficiency * a.inside)
    best.offer(link, hops, f.launch_floor_s + q.start_s, allowed)


def _in_switch(a: _Across, best: Fastest, p: Protocols, q: Protocols, f: Facts, allowed: Mask) -> None:
    """Switches that add: of the nodes, between the nodes, or both."""
    x, near, far = a.x, a.near, a.far
    adds = near is not None and near.reduces and p.in_switch is not None
    if not (adds or far.reduces):
        return
    tree = q.tree or _as_tree(q.simple)
    depth, passes = np.ceil(np.log2(x.nodes)) * a.reach.direct_hops, np.where(x.nodes > 2, 2.0, 1.0)
    efficiency, step = tree.efficiency, tree.step
    if far.reduces:
        depth, passes, efficiency, step = np.ones_like(depth), np.ones_like(passes), q.simple.efficiency, q.simple.step
    outside = x.bytes * passes / (x.members * efficiency * a.reach.direct * far.bandwidth)
    way = p.in_switch if adds and p.in_switch is not None else p.simple
    count = x.members if near is not None else np.ones_like(x.members)
    local = x.bytes * ((count + 1) / count if adds else 2 * (count - 1) / count) / (way.efficiency * a.inside)
    hops = 2 * depth * step * far.latency_s + 2 * (1.0 if adds else count - 1) * way.step * a.near_s
    start = f.launch_floor_s + max(q.simple.start_s, way.start_s if adds else 0.0)
    best.offer(np.maximum(outside, local), hops, start, allowed & (x.members > 1 if not far.reduces else True))


def _recursive(a: _Across, best: Fastest, p: Protocol, q: Protocol, f: Facts, library: str) -> None:
    """Inside the nodes over the whole buffer, then between over each member's part: halving and doubling, or rings."""
    x = a.x
    part = x.bytes / x.members
    start = f.launch_floor_s + q.start_s
    for algorithm in ("recursive", "hierarchical"):
        rings = algorithm == "hierarchical"
        share = a.reach.ring if rings else a.reach.direct
        steps, passes = (x.members - 1, (x.members - 1) / x.members) if rings else recursive(x.members)
        far_steps, far_passes = (a.reach.ring_hops, (x.nodes - 1) / x.nodes) if rings else recursive(x.nodes)
        far_steps = far_steps * (1.0 if rings else a.reach.direct_hops)
        hops = a.rounds * (steps * p.step * a.near_s + far_steps * q.step * a.far.latency_s)
        local = x.bytes * passes / (p.efficiency * a.inside)
        link = a.rounds * (local + part * far_passes / (q.efficiency * share * a.far.bandwidth))
        best.offer(link, hops, start, a.can(library, algorithm))


def _direct(a: _Across, best: Fastest, p: Protocol, q: Protocol, f: Facts, allowed: Mask) -> None:
    """Each to each; a send and receive is of one message to another node."""
    x = a.x
    one = x.op == SEND_RECV
    local = np.where(one, 0.0, x.members - 1)
    outer = np.where(one, 1.0, x.ranks - x.members)
    sent = np.where(one, 1.0, outer / x.ranks)
    bandwidth = q.efficiency * a.reach.direct * a.far.bandwidth
    link = a.rounds * np.maximum(x.bytes * sent / bandwidth, x.bytes * local / x.ranks / (p.efficiency * a.inside))
    sends = outer + a.reach.direct_hops - 1
    hops = a.rounds * (local * p.step * a.near_s + sends * q.step * a.far.latency_s)
    best.offer(link, hops, f.launch_floor_s + q.start_s, allowed)
