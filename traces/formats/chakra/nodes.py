"""What a Chakra execution trace holds: nodes that wait on each other, one list a rank, and groups of ranks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from foretrace.ir import GraphError

if TYPE_CHECKING:
    from foretrace.traces import Trace

Value = Any
"""None, bool, int, float, str, bytes, or a tuple of one of these but None: what an attribute holds."""

VERSION: Final = "0.0.4"
"""Of Chakra's schema, written into each file."""

NO_TENSORS: Final = ("", "", "")


class NodeType(IntEnum):
    """What a node does. Files may hold other numbers."""

    INVALID = 0
    METADATA = 1
    MEMORY_LOAD = 2
    MEMORY_STORE = 3
    COMPUTE = 4
    SEND = 5
    RECEIVE = 6
    COLLECTIVE = 7


class CollectiveType(IntEnum):
    """The attribute ``comm_type`` of a collective. Files may hold other numbers."""

    ALL_REDUCE = 0
    REDUCE = 1
    ALL_GATHER = 2
    GATHER = 3
    SCATTER = 4
    BROADCAST = 5
    ALL_TO_ALL = 6
    REDUCE_SCATTER = 7
    REDUCE_SCATTER_BLOCK = 8
    BARRIER = 9


@dataclass(frozen=True, slots=True)
class ChakraNode:
    """One node of a rank. It runs when the nodes whose ids are in its dependencies have ended."""

    id: int
    name: str
    type: int
    """A `NodeType`, or a number that is none."""
    data_deps: tuple[int, ...] = ()
    """Ids of the nodes whose results it reads."""
    ctrl_deps: tuple[int, ...] = ()
    """Ids of the nodes that it follows for another reason: its launch, the order on its stream."""
    start_s: float = 0.0
    duration_s: float = 0.0
    attributes: Mapping[str, Value] = field(default_factory=dict)
    inputs: tuple[str, str, str] = NO_TENSORS
    """Values, shapes and types, as they stand in the file."""
    outputs: tuple[str, str, str] = NO_TENSORS

    @property
    def kind(self) -> str:
        """What it does in one word: our operator kind where we wrote the file, else by its type."""
        own = self.attributes.get("kind")
        if isinstance(own, str) and own:
            return own
        if self.type == NodeType.COMPUTE:
            return "cpu_op" if self.attributes.get("is_cpu_op") else "kernel"
        return _KINDS.get(self.type, f"node type {self.type}")

    @property
    def collective(self) -> str:
        """``all-reduce``...; ``collective 42`` where the type is unknown, ``""`` of other nodes."""
        if self.type != NodeType.COLLECTIVE:
            return ""
        code = self.attributes.get("comm_type", 0)
        return _COLLECTIVES.get(code, f"collective {code}")


_KINDS: Final[Mapping[int, str]] = {
    NodeType.INVALID: "invalid",
    NodeType.METADATA: "metadata",
    NodeType.MEMORY_LOAD: "memory_load",
    NodeType.MEMORY_STORE: "memory_store",
    NodeType.SEND: "send",
    NodeType.RECEIVE: "receive",
    NodeType.COLLECTIVE: "collective",
}
_COLLECTIVES: Final[Mapping[int, str]] = {c.value: c.name.lower().replace("_", "-") for c in CollectiveType}


@dataclass(frozen=True)
class ChakraRank:
    """The nodes of one rank: the content of one file."""

    rank: int
    nodes: tuple[ChakraNode, ...]
    metadata: Mapping[str, Value] = field(default_factory=dict)
    """Attributes of the whole file."""
    version: str = VERSION
    warnings: tuple[str, ...] = ()
    """What of the file could not be read, and what is odd in it."""


@dataclass(frozen=True)
class ChakraTrace:
    """The ranks of one run, ascending, and its communicator groups."""

    ranks: tuple[ChakraRank, ...]
    groups: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Group id (the ``pg_name`` of a node) → ranks."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the ranks' files warn of."""
        return tuple(w for r in self.ranks for w in r.warnings)

    @cached_property
    def trace(self) -> "Trace":
        """As a `Trace`, the type that predictions and measurements have; it holds no dependencies."""
        from .events import Events

        events = Events()
        for rank in self.ranks:
            events.add(rank.rank, rank.metadata, rank.nodes)
        return events.trace("a Chakra trace", self.warnings)


def topological_order(ids: Sequence[int], waits_for: Sequence[Iterable[int]]) -> list[int]:
    """Places of nodes in an order in which each comes after what it waits for, the first in the file first.

    *ids* of the nodes, and for each the ids it *waits_for*; ids that no node has are passed over. Nodes of a cycle,
    and those that wait for one, are left out. Raises `GraphError` for an id that two nodes have.
    """
    place = {id_: i for i, id_ in enumerate(ids)}
    if len(place) != len(ids):
        twice = next(id_ for i, id_ in enumerate(ids) if place[id_] != i)
        raise GraphError(f"two nodes have the id {twice}")
    left, order = [0] * len(ids), list[int]()
    after: list[list[int]] = [[] for _ in ids]
    for i, needed in enumerate(waits_for):
        before = {place[d] for d in needed if d in place}
        left[i] = len(before)
        for j in before:
            after[j].append(i)
        if not before:
            order.append(i)
    for i in order:  # grows as it is walked
        for j in after[i]:
            left[j] -= 1
            if not left[j]:
                order.append(j)
    return order


def check_nodes(nodes: Sequence[ChakraNode]) -> None:
    """Raise `GraphError` for an id that occurs twice, a dependency on no node, and a cycle."""
    order = topological_order([n.id for n in nodes], [(*n.data_deps, *n.ctrl_deps) for n in nodes])
    known = {node.id for node in nodes}
    for node in nodes:
        for d in (*node.data_deps, *node.ctrl_deps):
            if d not in known:
                raise GraphError(f"node {node.id} ({node.name!r:.60}) waits for {d}, and no node has that id")
    if len(order) < len(nodes):
        first = nodes[min(set(range(len(nodes))) - set(order))]
        raise GraphError(f"node {first.id} ({first.name!r:.60}) waits for itself, or for nodes that do")
