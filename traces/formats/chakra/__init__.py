"""MLCommons Chakra execution traces, in and out: what ASTRA-sim and its kin replay.

`nodes` what a trace holds · `wire` bytes · `read` files in · `write` files out · `events` nodes as a `Trace` ·
`graph` a rank's work as a Graph.
"""

from .events import load_events, read_events
from .graph import chakra_graph
from .nodes import VERSION, ChakraNode, ChakraRank, ChakraTrace, CollectiveType, NodeType, check_nodes
from .read import RankReader, load_chakra, load_rank, looks_like_chakra
from .wire import CutOffError
from .write import encode_rank, save_chakra, save_ranks

__all__ = [
    "VERSION",
    "ChakraNode",
    "ChakraRank",
    "ChakraTrace",
    "CollectiveType",
    "CutOffError",
    "NodeType",
    "RankReader",
    "chakra_graph",
    "check_nodes",
    "encode_rank",
    "load_chakra",
    "load_events",
    "load_rank",
    "looks_like_chakra",
    "read_events",
    "save_chakra",
    "save_ranks",
]
