"""The tiers of links of a system as collectives see them: bandwidth, latency, and what a group gets of them."""

from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING, Final

import numpy as np

from foretrace.hardware.topology import Placement, Reach, Topology, place
from foretrace.replay.columns import Floats, Ints
from foretrace.replay.costs import UnreachableError

if TYPE_CHECKING:
    from foretrace.hardware import Link, System

PCIE: Final = "pcie"
SCALE_OUT: Final = "scale-out"
NVLINK: Final = "nvlink"
SCALE_UP: Final = "scale-up"
"""Families of links, what protocols are fitted on: NVLink in any topology, any other link that is nearer than PCIe."""

FAMILIES: Final = (NVLINK, PCIE, SCALE_OUT)
"""Those with protocols of their own; others take NVLink's."""

LATENCY_S: Final = (1e-6, 3e-6)
"""s of a link whose description says none: inside a node, between nodes. Orders of magnitude."""


@dataclass(frozen=True, eq=False)
class Reaches:
    """[r] what each of r groups gets of a tier (`Reach`)."""

    ring: Floats
    ring_hops: Floats
    direct: Floats
    direct_hops: Floats

    @classmethod
    def of(cls, fabric: "Fabric", groups: Ints) -> "Reaches":
        """What *groups* [r, fields of a `Placement`] get of *fabric*; equal ones are worked out once."""
        distinct, place_of = np.unique(groups, axis=0, return_inverse=True)
        found = [astuple(fabric.reach(Placement(n, s, m, k, bool(alone)))) for n, s, m, k, alone in distinct.tolist()]
        return cls(*np.array(found).reshape(-1, len(fields(Reach)))[place_of.ravel()].T)


@dataclass(frozen=True)
class Fabric:
    """One tier of links as collectives see it."""

    family: str
    bandwidth: float
    """bytes/s of one accelerator in one direction, all its links together."""
    latency_s: float
    """s from end to end."""
    topology: str
    reduces: bool
    """The switch adds."""
    ranks: int
    """How many accelerators (scale-out: nodes) the tier joins."""
    network: Topology | None = None
    """Its links, where the description says more than `topology`."""

    def reach(self, group: Placement) -> Reach:
        """What each member of *group* gets of `bandwidth`, and how many latencies are between them."""
        network = self.network or Topology(self.topology, self.ranks)
        if network.links and group.nodes > network.nodes:
            raise UnreachableError(f"the {self.family} links join {network.nodes} nodes, {group.nodes} are asked for")
        return network.holding(group.nodes).reach(group)

    def usable(self, ranks: Floats) -> Floats:
        """[r] The share of an accelerator's links that lead to others of *ranks*, neighbours in a node."""
        return self.inside(ranks, np.ones_like(ranks)).ring

    def inside(self, ranks: Floats, stride: Floats) -> Reaches:
        """What groups of *ranks* [r] members of one node, *stride* [r] apart, get of this tier inside it."""
        one = np.ones_like(ranks)
        return Reaches.of(self, np.stack([ranks, stride, one, ranks, one * 0], axis=1).astype(np.int64))


def fabric_of(link: "Link", family: str, ranks: int, per_node: int = 1) -> Fabric:
    """*link* as collectives see it, joining *ranks* (scale-out: nodes of *per_node* accelerators).

    A scale-up link of bridges (``point-to-point``) joins two.
    """
    if family == SCALE_UP and "nvlink" in (link.technology or "").lower():
        family = NVLINK
    topology = link.topology or ("tree" if family == PCIE else "switch")
    joined = min(ranks, 2) if topology == "point-to-point" and family not in (PCIE, SCALE_OUT) else ranks
    latency_s = link.latency_s or LATENCY_S[family == SCALE_OUT]
    network = Topology.of(link.model_copy(update={"topology": topology}), *_places(family, joined, per_node))
    return Fabric(family, link.bandwidth, latency_s, topology, link.reduces, joined, network)


def _places(family: str, joined: int, per_node: int) -> tuple[int, int]:
    """Places of a tier and accelerators in each: nodes of many between nodes, inside a node each its own."""
    return (joined, per_node) if family == SCALE_OUT else (joined, 1)


def fabrics_of(system: "System") -> tuple[Fabric, ...]:
    """The tiers that join accelerators of *system*, nearest first, scale-out last."""
    tiers = system.network.tiers()
    sizes = {SCALE_UP: system.node_size, PCIE: system.node_size, SCALE_OUT: system.nodes}
    return tuple(fabric_of(tiers[name], name, size, system.node_size) for name, size in sizes.items() if name in tiers)


def nodes_spanned(system: "System", ranks: Floats, stride: Floats) -> Floats:
    """[r] nodes of *system* that a group of *ranks*, *stride* apart, spans where it lies worst (`place`)."""
    distinct, place_of = np.unique(np.stack([ranks, stride], axis=1).astype(np.int64), axis=0, return_inverse=True)
    found = [place(n, s, system.node_size, system.count).nodes for n, s in distinct.tolist()]
    return np.array(found, np.float64)[place_of.ravel()]
