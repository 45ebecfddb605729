"""Collectives: the fastest of a library's protocols over the nearest links that join the ranks.

A protocol p of rings, n ranks, S bytes (the whole buffer: the sum, or everything gathered, scattered or exchanged)

    seconds = launch floor + start_p + step_p · latency · hops + S · passes / (efficiency_p · bandwidth)

    op               hops        passes
    all-reduce       2 (n - 1)   (2 (n - 1) + own) / n
    all-gather, reduce-scatter
                     n - 1       (n - 1 + own) / n
    all-to-all       n - 1       (n - 1 + own) / n       direct sends, of S / n
    broadcast        n - 1       1
    send and receive 1           1                       direct sends, of S

after Thakur, Rabenseifner, Gropp 2005 with the protocols of NCCL (Hu et al. 2025, arXiv:2507.04786): LL (8 bytes of
which 4 are a flag, quick to start), LL128 (8 bytes of 128 are a flag; NVLink only) and simple (whole chunks behind a
flag of their own). A direct send has no ring; up to 16 KiB it takes LL. `own` is the rank's own part, which it copies
through the same channels. Where the switch adds
(NVLS) an all-reduce passes the link (n + 1) / n times in two hops: each rank sends its whole buffer to the switch
once and receives the sums. Serving engines have an all-reduce of their own for small buffers, one kernel that reads
its peers' memory (vLLM's csrc/custom_all_reduce.cuh, which cites TensorRT-LLM's):

    one-shot = launch floor + start + step · latency · (n - 1) + S (n - 1) / (efficiency · bandwidth)
    two-shot = one-shot's start + second + step · latency · (n - 1) + 2 S (n - 1) / n / (efficiency · bandwidth)

up to `most_bytes`, and only where nearer links than PCIe join the ranks (both engines test for it). Ranks in k nodes
go by two levels: inside the node over all of S, between nodes over S / (ranks of a node); nothing of it was fitted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from foretrace.replay.columns import Floats, Ints, Mask
from foretrace.replay.costs import UnreachableError

from .facts import Facts

if TYPE_CHECKING:
    from foretrace.hardware import Link, System

OPS: Final = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "send_recv")
"""What `Collectives.op` counts in."""
ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, ALL_TO_ALL, BROADCAST, SEND_RECV = range(len(OPS))

LINK, HOPS, LAUNCH = range(3)
"""What the limit says: the links' bandwidth, their latency, or starting (the host's part included)."""

PCIE: Final = "pcie"
SCALE_OUT: Final = "scale-out"
NVLINK: Final = "nvlink"
SCALE_UP: Final = "scale-up"
"""Families of links, what protocols are fitted on: NVLink in any topology, any other link that is nearer than PCIe."""

FAMILIES: Final = (NVLINK, PCIE, SCALE_OUT)
"""Those with protocols of their own; others take NVLink's."""
PROTOCOLS: Final = ("low_latency", "low_latency_128", "simple", "direct", "in_switch")
"""The fields of `Protocols` that are one."""
NEEDED: Final = ("low_latency", "simple", "direct")
"""Those that every family of links has."""

NAMES: Final = (*((op, code) for code, op in enumerate(OPS)), ("send", SEND_RECV), ("recv", SEND_RECV))
"""(part of an operator's name, index into `OPS`), the first that is found; another's is priced as a broadcast."""

DIRECT_LOW_LATENCY: Final = 16384.0
"""bytes of the largest message that is sent by LL without a ring (NCCL's NCCL_P2P_LL_THRESHOLD)."""


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
    """How many accelerators the tier joins."""

    def usable(self, ranks: Floats) -> Floats:
        """[r] The share of an accelerator's links that lead to others of *ranks*.

        A switch gives all of them to anyone. A full mesh has one bundle for each peer; a DGX-1's cube-mesh two of six
        links to the nearest peer and four to the three of its quad (NVIDIA DGX-1V whitepaper, figure 4).
        """
        if self.topology == "mesh":
            return np.minimum(1.0, (ranks - 1) / max(self.ranks - 1, 1))
        if self.topology == "cube-mesh":
            return np.interp(ranks, [2.0, 4.0, 8.0], [1 / 3, 2 / 3, 1.0])
        return np.ones_like(ranks)


@dataclass(frozen=True)
class Protocol:
    """One way of moving data in rings. Fitted or cited."""

    start_s: float
    """s over the launch floor."""
    step: float
    """Link latencies a hop takes."""
    efficiency: float
    """Of the link's bandwidth."""


@dataclass(frozen=True)
class Own:
    """What a rank does beside sending."""

    own: float = 0.0
    """What copying the rank's own part costs, as a share of sending it (NVLink)."""


@dataclass(frozen=True)
class Protocols:
    """How a library of collectives drives one family of links; None for what it cannot do there."""

    low_latency: Protocol
    simple: Protocol
    direct: Protocol
    """Sends from rank to rank without a ring."""
    low_latency_128: Protocol | None = None
    in_switch: Protocol | None = None
    own: float = 0.0
    """What copying the rank's own part costs, as a share of sending it."""


@dataclass(frozen=True)
class Shots:
    """An engine's own all-reduce in one kernel."""

    start_s: float
    """s over the launch floor."""
    step: float
    """Link latencies for each peer."""
    efficiency: float
    """Of the link's bandwidth."""
    second_s: float
    """s of the barrier between the two shots."""
    most_bytes: float
    """bytes; the library takes over for larger buffers."""


@dataclass(frozen=True)
class Launching:
    """What a table's rows hold beside the kernel, where each is launched by itself (never in a captured graph)."""

    host_s: float
    """s that no collective of several ranks falls below: the host's issue, and ranks that wait for each other."""
    copies: float = 0.0
    """Times the buffer passes through memory beside the collective (a clone of an in-place operand is 2)."""


@dataclass(frozen=True)
class CollectiveConstants:
    """A library: its protocols by family of links, and what engines put around them."""

    protocols: Mapping[str, Protocols]
    shots: Shots | None = None
    launching: Launching | None = None


@dataclass(frozen=True, eq=False)
class Collectives:
    """r collectives."""

    op: Ints
    """Index into `OPS`."""
    bytes: Floats
    """The whole buffer."""
    ranks: Floats
    nodes: Floats

    def rows(self, chosen: "Mask | Ints") -> "Collectives":
        """Some of the rows."""
        return Collectives(self.op[chosen], self.bytes[chosen], self.ranks[chosen], self.nodes[chosen])


def op_of(name: str) -> int:
    """Index into `OPS` of the operator called *name* (``_c10d_functional.all_reduce.default``)."""
    return next((op for part, op in NAMES if part in name), BROADCAST)


def fabric_of(link: "Link", family: str, ranks: int) -> Fabric:
    """*link* as collectives see it; a scale-up link of bridges (``point-to-point``) joins two."""
    if family == SCALE_UP and "nvlink" in (link.technology or "").lower():
        family = NVLINK
    topology = link.topology or ("tree" if family == PCIE else "switch")
    joined = min(ranks, 2) if topology == "point-to-point" and family not in (PCIE, SCALE_OUT) else ranks
    return Fabric(family, link.bandwidth, link.latency_s or 1e-6, topology, link.reduces, joined)


def fabrics_of(system: "System") -> tuple[Fabric, ...]:
    """The tiers that join accelerators of *system*, nearest first, scale-out last."""
    tiers = system.network.tiers()
    sizes = {SCALE_UP: system.node_size, PCIE: system.node_size, SCALE_OUT: max(system.nodes, 2**30)}
    return tuple(fabric_of(tiers[name], name, size) for name, size in sizes.items() if name in tiers)


def price_collectives(
    rows: Collectives, fabrics: tuple[Fabric, ...], facts: Facts, constants: CollectiveConstants
) -> tuple[Floats, Ints, Mask]:
    """[r] seconds, [r] what limits (`LINK`, `HOPS`, `LAUNCH`), [r] True where nothing like it was ever fitted.

    One rank alone takes no time. Raises `UnreachableError` where no tier joins the ranks of a row.
    """
    local = np.maximum(np.ceil(rows.ranks / rows.nodes), 1.0)
    across = np.where(rows.nodes > 1, np.ceil(rows.ranks / local), 1.0)
    inside = Collectives(rows.op, rows.bytes, local, np.ones_like(local))
    parts = np.zeros((3, rows.op.size))
    guessed = rows.nodes > 1
    left = (local > 1) & ((rows.op != SEND_RECV) | (across == 1))
    for fabric in fabrics:
        chosen = np.flatnonzero(left & (local <= fabric.ranks)) if fabric.family != SCALE_OUT else np.array([], int)
        parts[:, chosen] = _price(inside.rows(chosen), fabric, facts, constants)
        guessed[chosen] |= fabric.topology not in ("switch", "point-to-point") or fabric.family != NVLINK
        left[chosen] = False
    outside = Collectives(rows.op, rows.bytes / np.where(rows.op == SEND_RECV, 1.0, local), across, rows.nodes)
    chosen = np.flatnonzero(across > 1)
    far = next((fabric for fabric in fabrics if fabric.family == SCALE_OUT), None)
    if left.any() or (chosen.size and far is None):
        row = int(np.flatnonzero(left)[0] if left.any() else chosen[0])
        raise UnreachableError(f"no link joins {rows.ranks[row]:.0f} ranks in {rows.nodes[row]:.0f} nodes")
    if far is not None and chosen.size:
        parts[:, chosen] += _price(outside.rows(chosen), far, facts, constants)
    seconds = np.asarray(parts.sum(axis=0), np.float64)
    limit = np.asarray(parts.argmax(axis=0), np.int64)
    if constants.launching is not None:
        seconds, limit = _launched(rows, seconds, limit, facts, constants.launching)
    return seconds, limit, guessed


def _launched(rows: Collectives, seconds: Floats, limit: Ints, facts: Facts, how: Launching) -> tuple[Floats, Ints]:
    """The host's floor, smoothly, for those of several ranks; ranks of a send and receive do not gather first."""
    gathering = (rows.op != SEND_RECV) & (rows.ranks > 1)
    floor = np.where(gathering, how.host_s, 0.0)
    copied = np.where(gathering, how.copies * rows.bytes / facts.bandwidth, 0.0)
    together = np.sqrt(np.sqrt((seconds + copied) ** 4 + floor**4))
    return together, np.where(floor > seconds + copied, LAUNCH, limit)


def hops_and_passes(op: Ints, ranks: Floats, own: float) -> tuple[Floats, Floats]:
    """[r] messages that wait for one another, [r] times the buffer passes one rank's links (module docstring)."""
    others = ranks - 1
    hops = np.choose(op, [2 * others, others, others, others, others, np.ones_like(others)])
    exchanged = (others + own) / ranks
    reduced = (2 * others + own) / ranks
    whole = np.ones_like(others)
    return hops, np.choose(op, [reduced, exchanged, exchanged, exchanged, whole, whole])


def _price(x: Collectives, fabric: Fabric, f: Facts, c: CollectiveConstants) -> Floats:
    """[3, r] s of the link, of hops and of starting, of the fastest way over one tier."""
    known = c.protocols
    p = known.get(fabric.family) or known.get(NVLINK) or next(iter(known.values()))
    bandwidth = fabric.bandwidth * fabric.usable(x.ranks)
    hops, passes = hops_and_passes(x.op, x.ranks, p.own)
    direct = (x.op == ALL_TO_ALL) | (x.op == SEND_RECV)
    reduces = x.op == ALL_REDUCE
    best = np.full((3, x.op.size), np.inf)

    def offer(start: float, step: float, count: Floats, traffic: Floats, efficiency: float, allowed: Mask) -> None:
        ways = np.stack(
            [
                traffic / (efficiency * bandwidth),
                count * (step * fabric.latency_s),
                np.full(count.size, f.launch_floor_s + start),
            ]
        )
        better = allowed & (ways.sum(axis=0) < best.sum(axis=0))
        best[:, better] = ways[:, better]

    message = x.bytes / np.where(x.op == ALL_TO_ALL, x.ranks, 1.0)
    for ring in (p.low_latency, p.low_latency_128, p.simple):
        if ring is not None:
            allowed = ~direct | ((message <= DIRECT_LOW_LATENCY) & (ring is p.low_latency))
            offer(ring.start_s, ring.step, hops, x.bytes * passes, ring.efficiency, allowed)
    offer(p.direct.start_s, p.direct.step, hops, x.bytes * passes, p.direct.efficiency, direct)
    if p.in_switch is not None and fabric.reduces:
        up_and_down = x.bytes * (x.ranks + 1) / x.ranks
        two = np.full_like(hops, 2.0)
        offer(p.in_switch.start_s, p.in_switch.step, two, up_and_down, p.in_switch.efficiency, reduces & (hops > 2))
    if c.shots is not None and fabric.family not in (PCIE, SCALE_OUT):
        s, others = c.shots, x.ranks - 1
        small = reduces & (x.bytes <= s.most_bytes)
        offer(s.start_s, s.step, others, x.bytes * others, s.efficiency, small)
        both = 2 * x.bytes * others / x.ranks
        offer(s.start_s + s.second_s, s.step, 2 * others, both, s.efficiency, small)
    return best
