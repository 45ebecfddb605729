"""What a collective of a Graph is in Chakra: its type, bytes, ends, and the communicator group it is among.

``comm_size`` is what a rank puts in, as ASTRA-sim counts: of an all-gather its own part, of all others the whole
buffer. Our own count, always the whole, is the attribute ``bytes``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from foretrace.ir import Op, OpKind
from foretrace.traces.formats.chakra import CollectiveType, NodeType

_SORTS: Final = (
    ("allreduce", CollectiveType.ALL_REDUCE),
    ("reducescatter", CollectiveType.REDUCE_SCATTER),
    ("allgather", CollectiveType.ALL_GATHER),
    ("alltoall", CollectiveType.ALL_TO_ALL),
    ("broadcast", CollectiveType.BROADCAST),
    ("barrier", CollectiveType.BARRIER),
    ("gather", CollectiveType.GATHER),
    ("scatter", CollectiveType.SCATTER),
    ("reduce", CollectiveType.REDUCE),
)
"""(part of an operator's name without underscores, what it is), the first that is found."""


@dataclass
class Groups:
    """Communicator groups by number, from 1 as ASTRA-sim wants them; equal ones are one."""

    ranks: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _known: dict[tuple[int, ...], str] = field(default_factory=dict)

    def of(self, members: tuple[int, ...]) -> str:
        """The id of the group of *members*."""
        found = self._known.setdefault(members, str(len(self._known) + 1))
        self.ranks[found] = members
        return found


def group_members(attributes: Mapping[str, Any], rank: int) -> tuple[int, ...]:
    """The ranks that a collective of *rank* is among, from its attributes; empty where they do not say.

    ``members`` are named; or there are ``ranks`` of them, ``stride`` apart, from ``base`` on. Without a base they are
    an axis of a mesh: the group of each rank that is ``stride`` away starts where the axis' coordinate is 0.
    """
    named, ranks = attributes.get("members"), attributes.get("ranks")
    if isinstance(named, tuple) and named:
        return named
    if not isinstance(ranks, int) or ranks < 1:
        return ()
    stride, base = attributes.get("stride", 1), attributes.get("base")
    if not isinstance(stride, int) or stride < 1:
        return ()
    if not isinstance(base, int):
        base = rank - rank // stride % ranks * stride
    return tuple(range(base, base + stride * ranks, stride))


def communication(
    op: Op, size: int, rank: int, members: tuple[int, ...], groups: Groups
) -> list[tuple[NodeType, dict[str, Any]]]:
    """What *op* of *rank*, of *size* bytes among *members*, is in Chakra: (type, attributes) of one node, of two for a
    send and receive."""
    if op.kind is not OpKind.COLLECTIVE:
        return [(NodeType.COMPUTE, {})]
    function = op.name.split("::")[-1].split(".")
    bare = function[1 if len(function) > 1 else 0].replace("_", "")
    if bare.startswith(("send", "recv")) or "peer" in op.attributes:
        return _between(bare, op, size, rank, members)
    sort = next((sort for part, sort in _SORTS if part in bare), None)
    if sort is None:
        return [(NodeType.COMPUTE, {"bytes": size})]
    own = -(-size // len(members)) if sort is CollectiveType.ALL_GATHER and members else size
    more = {"comm_type": int(sort), "comm_size": own, "comm_priority": 0, "bytes": size}
    return [(NodeType.COLLECTIVE, more | ({"pg_name": groups.of(members)} if members else {}))]


def _between(
    bare: str, op: Op, size: int, rank: int, members: tuple[int, ...]
) -> list[tuple[NodeType, dict[str, Any]]]:
    """A send to the next of *members*, a receive from the one before, or both; to a ``peer`` where it is named."""
    at = members.index(rank) if rank in members else -1
    peer = op.attributes.get("peer")
    dst, src = (peer, peer) if peer is not None else (rank, rank) if at < 0 else (
        members[(at + 1) % len(members)], members[at - 1]
    )  # fmt: skip
    given = {"comm_size": size, "comm_tag": 0, "comm_priority": 0, "bytes": size}
    send = (NodeType.SEND, given | {"comm_src": rank, "comm_dst": dst})
    receive = (NodeType.RECEIVE, given | {"comm_src": src, "comm_dst": rank})
    if bare.startswith("sendrecv"):
        return [send, receive]
    return [receive] if bare.startswith("recv") else [send]
