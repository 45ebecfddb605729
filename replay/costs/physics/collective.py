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

up to `most_bytes`, and only where nearer links than PCIe join the ranks (both engines test for it). Ranks in several
nodes: see `algorithms`.
"""

from collections.abc import Callable

import numpy as np

from foretrace.replay.columns import Floats, Ints, Mask
from foretrace.replay.costs import UnreachableError

from .algorithms import Fastest, price_across, recursive
from .facts import Facts
from .network import FAMILIES, NVLINK, PCIE, SCALE_OUT, SCALE_UP, Fabric, fabric_of, fabrics_of, nodes_spanned
from .protocols import (
    ALGORITHMS,
    ALL_GATHER,
    ALL_REDUCE,
    ALL_TO_ALL,
    ANY,
    BROADCAST,
    DIRECT_LOW_LATENCY,
    HOPS,
    LAUNCH,
    LIBRARIES,
    LINK,
    NCCL,
    NEEDED,
    OPS,
    PROTOCOLS,
    REDUCE_SCATTER,
    SEND_RECV,
    CollectiveConstants,
    Collectives,
    Launching,
    Own,
    Protocol,
    Protocols,
    Shots,
    op_of,
)  # fmt: skip

__all__ = [
    "ALGORITHMS", "ALL_GATHER", "ALL_REDUCE", "ALL_TO_ALL", "ANY", "BROADCAST", "DIRECT_LOW_LATENCY", "FAMILIES",
    "HOPS", "LAUNCH", "LIBRARIES", "LINK", "NCCL", "NEEDED", "NVLINK", "OPS", "PCIE", "PROTOCOLS", "REDUCE_SCATTER",
    "SCALE_OUT", "SCALE_UP", "SEND_RECV", "CollectiveConstants", "Collectives", "Fabric", "Launching", "Own",
    "Protocol", "Protocols", "Shots", "fabric_of", "fabrics_of", "hops_and_passes", "nodes_spanned", "op_of",
    "price_collectives", "protocols_of",
]  # fmt: skip


def protocols_of(find: Callable[[str], Protocol | None], nvlink: Own) -> dict[str, Protocols]:
    """The protocols of each family of links that has those `NEEDED`; *find* gives a class's constants, or None."""
    parts = {family: {part: find(f"{family}_{part}") for part in PROTOCOLS} for family in FAMILIES}
    found: dict[str, Protocols] = {}
    for family, known in parts.items():
        needed = [known[name] for name in NEEDED]
        rest = {name: known[name] for name in PROTOCOLS if name not in NEEDED}
        if all(needed):
            low, simple, direct = (way for way in needed if way is not None)
            found[family] = Protocols(low, simple, direct, own=nvlink.own if family == NVLINK else 0.0, **rest)
    return found


def price_collectives(
    rows: Collectives, fabrics: tuple[Fabric, ...], facts: Facts, constants: CollectiveConstants
) -> tuple[Floats, Ints, Mask]:
    """[r] seconds, [r] what limits (`LINK`, `HOPS`, `LAUNCH`), [r] True where nothing like it was ever fitted.

    One rank alone takes no time. Raises `UnreachableError` where no tier joins the ranks of a row.
    """
    local = rows.members
    spans = rows.nodes > 1
    across = spans & (rows.ranks > 1)
    parts = np.zeros((3, rows.op.size))
    guessed = spans.copy()
    far = next((fabric for fabric in fabrics if fabric.family == SCALE_OUT), None)
    left = (local > 1) & ~(across & (rows.op == SEND_RECV))
    for fabric in fabrics:
        extent = (local - 1) * rows.strides + 1 if fabric.topology == "point-to-point" else local
        chosen = np.flatnonzero(left & (extent <= fabric.ranks) & (fabric.family != SCALE_OUT))
        one = chosen[~across[chosen]]
        parts[:, one] = _price(rows.rows(one), fabric, facts, constants)
        many = chosen[across[chosen]]
        if far is not None and many.size:
            known, beyond = _protocols(fabric, constants), _protocols(far, constants)
            parts[:, many] = price_across(rows.rows(many), fabric, far, known, beyond, facts, constants)
        guessed[chosen] |= fabric.topology not in ("switch", "point-to-point") or fabric.family != NVLINK
        left[chosen] = False
    chosen = np.flatnonzero(across & ((local == 1) | (rows.op == SEND_RECV)))
    if left.any() or (across.any() and far is None):
        row = int(np.flatnonzero(left if left.any() else across)[0])
        raise UnreachableError(f"no link joins {rows.ranks[row]:.0f} ranks in {rows.nodes[row]:.0f} nodes")
    if far is not None and chosen.size:
        beyond = _protocols(far, constants)
        parts[:, chosen] = price_across(rows.rows(chosen), None, far, beyond, beyond, facts, constants)
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


def _protocols(fabric: Fabric, c: CollectiveConstants) -> Protocols:
    """Those of the links of *fabric*, else NVLink's, else any."""
    return c.protocols.get(fabric.family) or c.protocols.get(NVLINK) or next(iter(c.protocols.values()))


def _price(x: Collectives, fabric: Fabric, f: Facts, c: CollectiveConstants) -> Floats:
    """[3, r] s of the link, of hops and of starting, of the fastest way inside one node."""
    p = _protocols(fabric, c)
    reach = fabric.inside(x.ranks, x.strides)
    bandwidth, exchanged = fabric.bandwidth * reach.ring, fabric.bandwidth * reach.direct
    hops, passes = hops_and_passes(x.op, x.ranks, p.own)
    direct = (x.op == ALL_TO_ALL) | (x.op == SEND_RECV)
    reduces = x.op == ALL_REDUCE
    rounds = np.where(reduces, 2.0, 1.0)
    best = Fastest(x.op.size)

    def offer(way: Protocol, count: Floats, traffic: Floats, width: Floats, allowed: Mask, more_s: float = 0.0) -> None:
        link = traffic / (way.efficiency * width)
        best.offer(link, count * (way.step * fabric.latency_s), f.launch_floor_s + way.start_s + more_s, allowed)

    ringed = np.where(direct, hops, hops / np.maximum(x.ranks - 1, 1.0) * reach.ring_hops)
    message = x.bytes / np.where(x.op == ALL_TO_ALL, x.ranks, 1.0)
    for ring in (p.low_latency, p.low_latency_128, p.simple):
        if ring is not None:
            allowed = ~direct | ((message <= DIRECT_LOW_LATENCY) & (ring is p.low_latency))
            offer(ring, ringed, x.bytes * passes, np.where(direct, exchanged, bandwidth), allowed)
    offer(p.direct, hops, x.bytes * passes, exchanged, direct)
    if p.in_switch is not None and fabric.reduces:
        up_and_down = x.bytes * (x.ranks + 1) / x.ranks
        offer(p.in_switch, np.full_like(hops, 2.0), up_and_down, bandwidth, reduces & (hops > 2))
    beyond_rings = ("recursive", "direct") if c.library != NCCL and not fabric.topology.startswith("torus") else ()
    for algorithm in beyond_rings:
        allowed = np.isin(x.op, ALGORITHMS[c.library][algorithm]) & ~direct
        steps, halved = recursive(x.ranks) if algorithm == "recursive" else (x.ranks - 1, (x.ranks - 1) / x.ranks)
        way = p.simple if algorithm == "recursive" else p.direct
        offer(way, rounds * steps * reach.direct_hops, x.bytes * rounds * halved, exchanged, allowed)
    if c.shots is not None and fabric.family not in (PCIE, SCALE_OUT):
        s, others = c.shots, x.ranks - 1
        shot = Protocol(s.start_s, s.step, s.efficiency)
        small = reduces & (x.bytes <= s.most_bytes)
        offer(shot, others, x.bytes * others, bandwidth, small)
        offer(shot, 2 * others, 2 * x.bytes * others / x.ranks, bandwidth, small, s.second_s)
    return best.parts
