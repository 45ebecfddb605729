"""How the accelerators of a tier are joined: links, routes, and what a group of them gets of its bandwidth.

A `Topology` is the network of one tier: `nodes` places, each with `per_node` accelerators that share `nics` ways out.
Inside a node (scale-up) every accelerator is a place of its own. Bandwidths are shares of the tier's `Link.bandwidth`:
what one accelerator can send alone. `Reach` says what a group of accelerators {base + i · stride} gets while all its
sibling groups run the same collective: with one way out each over a switch, all of it. Siblings slow each other where
NICs are fewer than accelerators, where leaf switches are oversubscribed, and where neighbours' paths cross.

    switch, tree       any pair at full bandwidth (a crossbar, or a fat tree that blocks nothing)
    fat-tree           leaf switches of `group_size` nodes, uplinks of their bandwidth / oversubscription; flows spread
                       evenly over the spines (Leiserson 1985; Al-Fares et al. 2008)
    rail               NIC j of `group_size` nodes meets at leaf switch j; the node's own links carry a message to the
                       rail of its target (NCCL's PXN), so only far nodes use the uplinks (Wang et al. 2023)
    dragonfly          groups of `group_size` nodes, each pair joined by one bundle; the better of the minimal way and
                       Valiant's through a random group, which loads twice as much (Kim et al. 2008)
    ring, torus-2d/-3d neighbours on `dims`, dimension-order routes the shorter way round (Dally and Towles 2004)
    mesh               every pair by a bundle of its own
    cube-mesh          two of six links to the nearest peer, four to the quad's three (NVIDIA DGX-1V whitepaper)
    custom             the `links` that the description lists, shortest paths
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np

from .sharing import Floats, Ints, Paths, finish_times, max_min_rates, slowest_rate

if TYPE_CHECKING:
    from .schema import Link

__all__ = ["Paths", "Placement", "Reach", "Topology", "finish_times", "max_min_rates", "place", "slowest_rate"]

MOST_FLOWS: Final = 1 << 17
"""Flows above which evenly spaced distances between members, at least `LEAST_DISTANCES`, stand for an exchange of all
with all, and fewer sibling groups (those nearest the first) for all."""
LEAST_DISTANCES: Final = 32
TORI: Final = {"ring": 1, "torus-2d": 2, "torus-3d": 3}
"""Topologies of neighbours, and their dimensions."""
_BY_DIMENSIONS: Final = {1: "ring", 2: "torus-2d", 3: "torus-3d"}
GROUPED: Final = ("fat-tree", "rail", "dragonfly")
"""Topologies of switches that join some nodes nearer than others."""


@dataclass(frozen=True)
class Placement:
    """How a group lies in the nodes of a system; of unequal ones the worst."""

    ranks: int
    stride: int
    """Distance of neighbouring members, in global rank numbers."""
    members: int
    """Members in one node."""
    nodes: int
    """Nodes that it spans."""
    alone: bool = False
    """True where no sibling groups run at the same time."""


@lru_cache(maxsize=4096)
def place(ranks: int, stride: int, node_size: int, count: int) -> Placement:
    """The worst-placed group of *ranks* members *stride* apart, among *count* accelerators in nodes of *node_size*.

    Groups tile the ranks: those of one block of ``ranks * stride`` are its offsets, and blocks follow one another.
    """
    span = ranks * stride
    blocks = np.arange(min(node_size // np.gcd(span, node_size), max(count // span, 1))) * span
    first = blocks[:, None] + np.arange(min(stride, node_size))
    last = first + (ranks - 1) * stride
    spanned = last // node_size - first // node_size + 1  # in a row, where neighbours are nearer than a node
    nodes = ranks if stride >= node_size else min(int(spanned.max()), ranks)
    return Placement(ranks, stride, -(-ranks // nodes), nodes)


@dataclass(frozen=True)
class Reach:
    """What a group gets of a tier, for each member."""

    ring: float
    """Share of `Link.bandwidth` that a member sends at to its neighbours, in rings over every dimension it spans."""
    ring_hops: float
    """Latencies of one pass of a ring through all places of the group."""
    direct: float
    """Share of `Link.bandwidth` that a member sends at to all others at once."""
    direct_hops: float
    """Latencies between the two members that are farthest apart."""


@dataclass(frozen=True)
class Topology:
    """The network of one tier (see the module)."""

    kind: str
    nodes: int
    per_node: int = 1
    nics: int = 1
    """Ways out of a node, each of the tier's bandwidth."""
    dims: tuple[int, ...] = ()
    oversubscription: float = 1.0
    group_size: int = 1
    """Nodes below a leaf switch, or in a dragonfly group."""
    links: tuple[tuple[int, int, float], ...] = field(default=(), repr=False)
    """Custom: (place, place, share of the tier's bandwidth in each direction)."""

    @classmethod
    def of(cls, link: "Link", nodes: int, per_node: int = 1) -> "Topology":
        """The network that *link* describes, between *nodes* nodes of *per_node* accelerators."""
        nics = min(link.nics_per_node or per_node, per_node)
        kind: str = link.topology or "switch"
        dims = link.dims or ()
        if kind == "torus" and dims:
            kind = _BY_DIMENSIONS[len(dims)]
        pairs = tuple((a, b, bandwidth / link.bandwidth) for a, b, bandwidth in link.links or ())
        return cls(kind, nodes, per_node, nics, dims, link.oversubscription, link.group_size or 1, pairs)

    def __post_init__(self) -> None:
        if self.kind in TORI and prod(self.dims or (0,)) != self.nodes:
            object.__setattr__(self, "dims", balanced(self.nodes, TORI[self.kind]))

    def holding(self, nodes: int) -> "Topology":
        """This network, with as many as *nodes* nodes where it has fewer (a table's rows go beyond the system)."""
        if nodes <= self.nodes or self.links:
            return self
        return replace(self, nodes=nodes)

    def reach(self, group: Placement) -> Reach:
        """What the members of *group* get while their siblings run the same (unless it is `alone`). Cached."""
        return _reach(self, group)

    def paths(self, source: Ints, target: Ints) -> tuple[Paths, Floats]:
        """Routes of flows from accelerators *source* to *target* [f], and the capacity of every link (shares)."""
        route = _ROUTES.get(self.kind, _switched)
        fabric, capacity = route(self, source, target)
        out, into, ways = _ways_out(self, source, target)
        nics = self.nodes * self.nics
        flows = np.arange(source.size)
        joined = Paths(
            source.size,
            np.concatenate([flows[ways], flows[ways], fabric.flow]),
            np.concatenate([out[ways], into[ways] + nics, fabric.link + 2 * nics]),
            np.concatenate([np.ones(2 * int(ways.sum())), fabric.weight]),
        )
        return joined, np.concatenate([np.ones(2 * nics), capacity])


def balanced(places: int, dimensions: int) -> tuple[int, ...]:
    """*places* as a product of *dimensions* factors, as near to each other as they come, greatest last."""
    if dimensions == 1:
        return (places,)
    root = int(places ** (1 / dimensions) + 1e-9)
    factor = next(f for f in range(max(root, 1), 0, -1) if places % f == 0)
    return (factor, *balanced(places // factor, dimensions - 1))


def unreached(places: int, links: Sequence[tuple[int, int, float]]) -> int | None:
    """The first of *places* that *links* do not join to place 0; None where they join all."""
    missing = np.flatnonzero(_distances(places, links, 0) < 0)
    return int(missing[0]) if missing.size else None


# --- what a group gets --------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _reach(net: Topology, group: Placement) -> Reach:
    one_pass = float(max(group.nodes if net.per_node > 1 else group.ranks, 2) - 1)
    whole = _closed_form(net, group)
    if whole is not None:
        return Reach(whole, one_pass, whole, 1.0)
    table = _members(net, group)
    ring, hops = _ring(net, group, table)
    direct, farthest = _direct(net, group, table)
    hops = hops if net.kind in TORI or net.links else one_pass
    return Reach(min(ring, 1.0), hops, min(direct, 1.0), farthest)


def _closed_form(net: Topology, group: Placement) -> float | None:
    """The share where no link but those out of a node is shared; None where routes decide."""
    together = min(group.members, net.per_node) if group.alone else net.per_node
    out = min(1.0, net.nics / together)
    if net.kind == "mesh":
        places = group.nodes if net.per_node > 1 else group.ranks
        return min(out, net.nics / together * (places - 1) / max(net.nodes - 1, 1))
    if net.kind == "cube-mesh":
        return float(np.interp(group.ranks, [2.0, 4.0, 8.0], [1 / 3, 2 / 3, 1.0]))
    if net.kind in (*TORI, *GROUPED) or net.links:
        return None
    return out


def _members(net: Topology, group: Placement) -> Ints:
    """[groups, ranks] accelerators of *group* and its siblings; of one alone, its own from node 0 on."""
    index = np.arange(group.ranks)
    if group.alone:
        return (index // group.members * net.per_node + index % group.members)[None, :]
    total, span = net.nodes * net.per_node, group.ranks * group.stride
    blocks = max(total // span, 1)
    offsets = (np.arange(blocks)[:, None] * span + np.arange(group.stride)).ravel()
    offsets = offsets[: max(MOST_FLOWS // (group.ranks * 4), group.stride)]
    return np.asarray((offsets[:, None] + index * group.stride) % total, np.int64)


def _ring(net: Topology, group: Placement, table: Ints) -> tuple[float, float]:
    """Share of each member in rings, latencies of a pass: from each node to the same place in the next.

    On a torus the buffer is split over rings in both directions of every dimension that the group spans (bucket
    algorithm: Jain and Sabharwal 2010), or follows one ring through all members where that is better.
    """
    step = group.members if net.per_node > 1 else 1
    onward = np.roll(table, -step, axis=1).ravel()
    if net.kind not in TORI:
        paths, capacity = net.paths(table.ravel(), onward)
        links = np.bincount(paths.flow, minlength=1).max(initial=1) - 2.0  # less the ways out and in
        return slowest_rate(paths, capacity), float(max(links, 1.0) * (max(table.shape[1] // step, 2) - 1))
    source = np.concatenate([table.ravel(), onward])
    paths, capacity = net.paths(source, np.concatenate([onward, table.ravel()]))
    flat = 2 * slowest_rate(paths, capacity), float(max(group.nodes, table.shape[1] // step) - 1)
    along = [_along(net, table, dim) for dim in range(len(net.dims))]
    spanned = [flows for flows in along if flows is not None]
    if not spanned:
        return flat
    source, target = (np.concatenate([flows[i] for flows in spanned for i in ends]) for ends in ((0, 1), (1, 0)))
    paths, capacity = net.paths(source, target)
    rings = 2 * len(spanned) * slowest_rate(paths, capacity)
    covered = prod(int(flows[2]) for flows in spanned) * (table.shape[1] // _places(net, table[0]).size)
    if rings < flat[0] or covered != table.shape[1]:  # not a box of the torus
        return flat
    return rings, float(sum(int(flows[2]) - 1 for flows in spanned))


def _along(net: Topology, table: Ints, dim: int) -> tuple[Ints, Ints, int] | None:
    """Flows from each member to the next of its group along one dimension, and members in such a line."""
    where = np.stack(np.unravel_index(table // net.per_node, net.dims))
    rest = [where[other] for other in range(len(net.dims)) if other != dim]
    sizes = [size for other, size in enumerate(net.dims) if other != dim]
    group = np.broadcast_to(np.arange(len(table))[:, None], table.shape)
    key = np.ravel_multi_index((group, *rest, table % net.per_node), (len(table), *sizes, net.per_node)).ravel()
    members = table.ravel()
    order = np.lexsort((where[dim].ravel(), key))
    starts = np.flatnonzero(np.diff(key[order], prepend=-1))
    ends = np.append(starts[1:], order.size)
    following = np.arange(1, order.size + 1)
    following[ends - 1] = starts
    moves = following != np.arange(order.size)
    if not moves.any():
        return None
    return members[order][moves], members[order][following[moves]], int((ends - starts).max())


def _places(net: Topology, members: Ints) -> Ints:
    return np.unique(members // net.per_node)


def _direct(net: Topology, group: Placement, table: Ints) -> tuple[float, float]:
    """Share of each member sending to all others outside its node at once, latencies of the longest way."""
    ranks = table.shape[1]
    kept = min(ranks - 1, max(MOST_FLOWS // table.size, LEAST_DISTANCES))
    distances = np.unique(np.linspace(1, ranks - 1, kept).round().astype(np.int64))
    table = table[: max(MOST_FLOWS // (ranks * distances.size), 1)] if net.kind == "custom" else table
    source = np.tile(table.ravel(), distances.size)
    target = np.concatenate([np.roll(table, -int(d), axis=1).ravel() for d in distances])
    leaves = source // net.per_node != target // net.per_node
    paths, capacity = net.paths(source[leaves], target[leaves])
    each = int(leaves.sum()) / table.size  # flows of one member
    weight = np.bincount(paths.flow, paths.weight, max(paths.flows, 1)) - 2.0
    farthest = float(weight.max(initial=1.0)) if net.kind in TORI or net.links else 1.0
    return slowest_rate(paths, capacity) * each, max(farthest, 1.0)


# --- routes -------------------------------------------------------------------------------------------------------


def _ways_out(
    net: Topology, source: Ints, target: Ints
) -> tuple[Ints, Ints, "np.ndarray[tuple[int], np.dtype[np.bool_]]"]:
    """[f] the way out of the source's node, the way into the target's, True where the flow leaves its node."""
    a, b = source // net.per_node, target // net.per_node
    nic_b = target % net.per_node * net.nics // net.per_node
    nic_a = nic_b if net.kind == "rail" else source % net.per_node * net.nics // net.per_node
    return a * net.nics + nic_a, b * net.nics + nic_b, a != b


def _switched(net: Topology, source: Ints, target: Ints) -> tuple[Paths, Floats]:
    """Leaf switches with uplinks and downlinks; of a crossbar there is none."""
    a, b = source // net.per_node // net.group_size, target // net.per_node // net.group_size
    leaves, width = -(-net.nodes // net.group_size), net.nics * net.group_size / net.oversubscription
    if net.kind == "rail":
        rail = target % net.per_node * net.nics // net.per_node
        a, b, leaves, width = a * net.nics + rail, b * net.nics + rail, leaves * net.nics, width / net.nics
    far = np.flatnonzero(a != b) if net.kind in GROUPED else np.array([], np.int64)
    link = np.concatenate([a[far], b[far] + leaves])
    return Paths(source.size, np.tile(far, 2), link, np.ones(link.size)), np.full(2 * leaves, width)


def _dragonfly(net: Topology, source: Ints, target: Ints) -> tuple[Paths, Floats]:
    """The better of minimal and Valiant's routes for these flows (adaptive routing, as one choice for all)."""
    a, b = source // net.per_node // net.group_size, target // net.per_node // net.group_size
    groups, width = -(-net.nodes // net.group_size), net.nics * net.group_size / net.oversubscription
    far = np.flatnonzero(a != b)
    bundle = np.full(groups * groups, width / max(groups - 1, 1))
    minimal = Paths(source.size, far, a[far] * groups + b[far], np.ones(far.size))
    valiant = Paths(source.size, np.tile(far, 2), np.concatenate([a[far], b[far] + groups]), np.full(2 * far.size, 2.0))
    around = np.full(2 * groups, width)
    if groups < 3 or slowest_rate(minimal, bundle) >= slowest_rate(valiant, around):
        return minimal, bundle
    return valiant, around


def _torus(net: Topology, source: Ints, target: Ints) -> tuple[Paths, Floats]:
    """Dimension by dimension, the shorter way round, both ways where they are equal."""
    dims = np.array(net.dims)
    at = np.stack(np.unravel_index(source // net.per_node, net.dims))
    to = np.stack(np.unravel_index(target // net.per_node, net.dims))
    flows, links, weights = [], [], []
    directions = 2 * dims.size
    for dim, size in enumerate(net.dims):
        ahead = (to[dim] - at[dim]) % size
        for sign, distance in ((1, ahead), (-1, (size - ahead) % size)):
            share = np.where(2 * distance < size, 1.0, np.where(2 * distance == size, 0.5, 0.0)) * (distance > 0)
            here = at.copy()
            for hop in range(int(distance[share > 0].max(initial=0))):
                moving = np.flatnonzero((share > 0) & (distance > hop))
                place = np.ravel_multi_index(tuple(here[:, moving]), net.dims)
                flows.append(moving)
                links.append(place * directions + 2 * dim + (sign < 0))
                weights.append(share[moving])
                here[dim] = (here[dim] + sign) % size
        at[dim] = to[dim]
    flow, link = (np.concatenate([np.array([], np.int64), *parts]) for parts in (flows, links))
    paths = Paths(source.size, flow, link, np.concatenate([np.array([]), *weights]))
    return paths, np.full(prod(net.dims) * directions, net.nics / directions)


def _custom(net: Topology, source: Ints, target: Ints) -> tuple[Paths, Floats]:
    """Shortest paths over the listed links, the first listed of equal ones."""
    number: dict[tuple[int, int], int] = {}
    capacity: list[float] = []
    for a, b, width in net.links:
        for pair in ((a, b), (b, a)):
            if pair in number:
                capacity[number[pair]] += width
            else:
                number[pair] = len(capacity)
                capacity.append(width)
    begins, ends = source // net.per_node, target // net.per_node
    routes: dict[tuple[int, int], list[int]] = {}
    for end in np.unique(ends).tolist():
        away = _distances(net.nodes, net.links, end)
        for start in np.unique(begins[ends == end]).tolist():
            here, route = start, []
            while here != end:
                onward = min((m for n, m in number if n == here), key=lambda m: (away[m], number[here, m]))
                route.append(number[here, onward])
                here = onward
            routes[start, end] = route
    found = Paths.of([routes[pair] for pair in zip(begins.tolist(), ends.tolist(), strict=True)])
    return found, np.array(capacity)


def _distances(places: int, links: Sequence[tuple[int, int, float]], start: int) -> Ints:
    """[places] links between each place and *start*; -1 where no path leads there."""
    near: list[list[int]] = [[] for _ in range(places)]
    for a, b, _ in links:
        near[a].append(b)
        near[b].append(a)
    away = np.full(places, -1)
    away[start] = 0
    queue = deque([start])
    while queue:
        here = queue.popleft()
        for onward in near[here]:
            if away[onward] < 0:
                away[onward] = away[here] + 1
                queue.append(onward)
    return away


_ROUTES: Final = {**dict.fromkeys(TORI, _torus), "dragonfly": _dragonfly, "custom": _custom}
