"""The Graph: what a model computes, in operators and tensors with symbolic shapes. Knows no framework.

`dim` sizes as expressions · `dtype` number formats · `graph` Tensor, Op, Graph · `work` FLOP and byte formulae ·
`verify` the rules · `blocks` repeated layers · `text` and `store` the two written forms · `network` a networkx view.
The protobuf form is reached through `load_graph` and `save_graph`, which import it when first called.
"""

import os

from .blocks import Block, count_layers, find_blocks, folded_size, op_signature, split_index
from .collector import without_collector
from .compiled import compiled
from .dim import Dim, DimLike, Shape, dim_max, dim_min, evaluate_dim, evaluate_dims, parse_dim, prod, symbol
from .dtype import DTYPES, DType, parse_dtype
from .errors import ForetraceError, FormatError, GraphError, UnknownNameError, nearest_names
from .files import read_file, write_atomically
from .graph import FREE_KINDS, MATRIX_KINDS, RESIDENT_ROLES, Graph, Op, OpKind, Role, Symbol, Tensor, Work
from .summary import summarize
from .text import parse_text, print_text
from .verify import verify
from .version import VERSION
from .work import op_work

__all__ = [
    "DTYPES",
    "FREE_KINDS",
    "MATRIX_KINDS",
    "RESIDENT_ROLES",
    "VERSION",
    "Block",
    "DType",
    "Dim",
    "DimLike",
    "ForetraceError",
    "FormatError",
    "Graph",
    "GraphError",
    "Op",
    "OpKind",
    "Role",
    "Shape",
    "Symbol",
    "Tensor",
    "UnknownNameError",
    "Work",
    "compiled",
    "count_layers",
    "dim_max",
    "dim_min",
    "evaluate_dim",
    "evaluate_dims",
    "find_blocks",
    "folded_size",
    "load_graph",
    "nearest_names",
    "op_signature",
    "op_work",
    "parse_dim",
    "parse_dtype",
    "parse_text",
    "print_text",
    "prod",
    "read_file",
    "save_graph",
    "split_index",
    "summarize",
    "symbol",
    "verify",
    "without_collector",
    "write_atomically",
]


def load_graph(path: str | os.PathLike[str]) -> Graph:
    """Read and verify a graph file. Raises `FormatError` naming the file and what is wrong with it."""
    from .store import load_graph

    return load_graph(path)


def save_graph(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Write *graph* to *path*, whole or not at all (`ForetraceError` on failure)."""
    from .store import save_graph

    save_graph(graph, path)
