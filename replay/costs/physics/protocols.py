"""Collectives and the protocols of the libraries that run them: the rows that are priced, and constants."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from foretrace.replay.columns import Floats, Ints, Mask

OPS: Final = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "send_recv")
"""What `Collectives.op` counts in."""
ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, ALL_TO_ALL, BROADCAST, SEND_RECV = range(len(OPS))

LINK, HOPS, LAUNCH = range(3)
"""What the limit says: the links' bandwidth, their latency, or starting (the host's part included)."""

PROTOCOLS: Final = ("low_latency", "low_latency_128", "simple", "direct", "in_switch", "tree")
"""The fields of `Protocols` that are one."""
NEEDED: Final = ("low_latency", "simple", "direct")
"""Those that every family of links has."""

NAMES: Final = (*((op, code) for code, op in enumerate(OPS)), ("send", SEND_RECV), ("recv", SEND_RECV))
"""(part of an operator's name, index into `OPS`), the first that is found; another's is priced as a broadcast."""

NCCL, ANY = "nccl", "any"
ALGORITHMS: Final[Mapping[str, Mapping[str, tuple[int, ...]]]] = {
    NCCL: {
        "ring": (ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, BROADCAST),
        "tree": (ALL_REDUCE,),
        "in_switch": (ALL_REDUCE,),
        "direct": (ALL_TO_ALL, SEND_RECV),
        "recursive": (),
        "hierarchical": (),
    },
    ANY: {
        "ring": (ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, BROADCAST),
        "tree": (ALL_REDUCE, BROADCAST),
        "in_switch": (ALL_REDUCE,),
        "direct": (ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, ALL_TO_ALL, SEND_RECV),
        "recursive": (ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER),
        "hierarchical": (ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER),
    },
}
"""Library → algorithm → the collectives that it runs so. NCCL (and RCCL, made from it) rings all ranks in one flat
ring a NIC and trees only what it sums (tuning.cc); other libraries may do all that is known."""

LIBRARIES: Final[Mapping[str, str]] = {"NVIDIA": NCCL, "AMD": NCCL}
"""Vendor of the accelerators → what their libraries may do; others `ANY`."""

DIRECT_LOW_LATENCY: Final = 16384.0
"""bytes of the largest message that is sent by LL without a ring (NCCL's NCCL_P2P_LL_THRESHOLD)."""


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
    tree: Protocol | None = None
    """Whole chunks along a double binary tree between nodes; None: `simple`, at the tree's share of bandwidth."""
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
    library: str = NCCL
    """Whose algorithms are chosen from (a key of `ALGORITHMS`)."""


@dataclass(frozen=True, eq=False)
class Collectives:
    """r collectives."""

    op: Ints
    """Index into `OPS`."""
    bytes: Floats
    """The whole buffer."""
    ranks: Floats
    nodes: Floats
    """Nodes that the group spans."""
    stride: Floats | None = None
    """Distance of neighbouring members in global rank numbers; None: 1."""
    alone: Mask | None = None
    """True where no sibling group runs at the same time (a row of a measured table); None: everywhere."""

    def rows(self, chosen: "Mask | Ints") -> "Collectives":
        """Some of the rows."""
        stride = None if self.stride is None else self.stride[chosen]
        alone = None if self.alone is None else self.alone[chosen]
        return Collectives(self.op[chosen], self.bytes[chosen], self.ranks[chosen], self.nodes[chosen], stride, alone)

    @property
    def strides(self) -> Floats:
        """[r] `stride`, or ones."""
        return np.ones_like(self.ranks) if self.stride is None else self.stride

    @property
    def members(self) -> Floats:
        """[r] Ranks of the group in one node: of unequal ones the most."""
        return np.maximum(np.ceil(self.ranks / self.nodes), 1.0)

    @property
    def groups(self) -> Ints:
        """[r, 5] How each group lies in the nodes: the fields of a `Placement`."""
        alone = np.ones(self.ranks.size) if self.alone is None else self.alone
        return np.stack([self.ranks, self.strides, self.members, self.nodes, alone], axis=1).astype(np.int64)


def op_of(name: str) -> int:
    """Index into `OPS` of the operator called *name* (``_c10d_functional.all_reduce.default``)."""
    return next((op for part, op in NAMES if part in name), BROADCAST)
