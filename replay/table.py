"""A graph at one shape in columns: one row for each distinct operator, so that equal layers are priced once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from foretrace.ir import DTYPES, RESIDENT_ROLES, Dim, DimLike, DType, Graph, GraphError, Op, evaluate_dims, prod

from .columns import KIND_CODE, Floats, Ints, OpColumns

MAX_TENSOR_BYTES: Final = 1e15
"""What no memory holds: beyond it a size is a mistake (sums of float64 stay exact to 9e15)."""


@dataclass(frozen=True, eq=False)
class OpTable(OpColumns):
    """The n ops of `graph` with its symbols bound: r rows of distinct ops, and the row of each op.

    Two ops share a row where kind, name, attributes, work and the shapes and dtypes they touch agree.
    """

    graph: Graph
    bindings: Mapping[str, int]
    row: Ints
    """[n] the row of each op."""
    first: Ints
    """[r] the first op of each row."""
    tensor_bytes: Floats
    """[tensors] the size of each tensor of the graph, bytes."""

    @property
    def ops(self) -> int:
        """The number of ops."""
        return self.row.size

    def attribute(self, name: str, absent: float = np.nan) -> Floats:
        """[r] The number that the attribute *name* holds (``m``, ``head_dim``; true is 1), else *absent*."""
        values = [self.graph.ops[i].attributes.get(name) for i in self.first.tolist()]
        column = np.full(self.rows, absent)
        sizes = [i for i, v in enumerate(values) if isinstance(v, int | Dim)]
        column[sizes] = evaluate_dims([values[i] for i in sizes], self.bindings)
        floats = [i for i, v in enumerate(values) if isinstance(v, float)]
        column[floats] = [values[i] for i in floats]
        return column

    def warm_bytes(self) -> Floats:
        """[r] Bytes of activations: what stays in memory from step to step has left the cache since."""
        graph = self.graph
        found = np.zeros(self.rows)
        for r, i in enumerate(self.first.tolist()):
            op = graph.ops[i]
            resident = {t for t in op.inputs if graph.tensors[t].role in RESIDENT_ROLES}
            found[r] = self.tensor_bytes[list(resident)].sum() if resident else 0.0
        return np.maximum(self.bytes - found, 0.0)

    def row_length(self) -> Floats:
        """[r] Elements of the last dim of the first input (of the first output where there is no input)."""
        graph = self.graph
        tensors = [(*graph.ops[i].inputs, *graph.ops[i].outputs)[:1] for i in self.first.tolist()]
        shapes = [graph.tensors[t[0]].shape if t else () for t in tensors]
        return evaluate_dims([shape[-1] if shape else 1 for shape in shapes], self.bindings)


def tabulate(graph: Graph, bindings: Mapping[str, int]) -> OpTable:
    """*graph* at *bindings* (`Graph.bind`), each distinct expression worked out once.

    Numbers are float64: integers are exact up to 2**53. Raises `GraphError` for a symbol without a value
    and for a tensor beyond `MAX_TENSOR_BYTES`.
    """
    codes = np.array(graph.op_codes, np.int64)
    _, places, inverse = np.unique(codes, return_index=True, return_inverse=True)
    order = np.argsort(places)  # rows in the order their first ops stand in
    first = places[order].tolist()
    row = np.argsort(order)[inverse].astype(np.int64)
    ops = [graph.ops[i] for i in first]
    work = [op.work for op in ops]
    dtypes: dict[DType, int] = {}
    dtype = [dtypes.setdefault(compute_dtype(op, graph), len(dtypes)) for op in ops]

    def sizes(dims: list[DimLike]) -> Floats:
        return evaluate_dims(dims, bindings)

    return OpTable(
        np.array([KIND_CODE[op.kind] for op in ops], np.int8),
        tuple(op.name for op in ops),
        tuple(dtypes),
        np.array(dtype, np.int8),
        sizes([w.matrix_flops for w in work]),
        sizes([w.vector_flops for w in work]),
        sizes([w.special_flops for w in work]),
        sizes([w.bytes_read for w in work]),
        sizes([w.bytes_written for w in work]),
        graph,
        bindings,
        row,
        np.array(first, np.int64),
        _tensor_bytes(graph, bindings),
    )


def _tensor_bytes(graph: Graph, bindings: Mapping[str, int]) -> Floats:
    """[tensors] The size of each tensor in whole bytes (`Tensor.bytes`)."""
    formats = np.array(graph.formats, np.int64)
    _, first, inverse = np.unique(formats, return_index=True, return_inverse=True)
    distinct = [graph.tensors[t] for t in first.tolist()]
    elements = evaluate_dims([prod(t.shape) for t in distinct], bindings)
    sizes = np.ceil(elements * [t.dtype.bits for t in distinct] / 8)
    given = ", ".join(f"{name}={value}" for name, value in bindings.items())
    if sizes.min(initial=0.0) < 0:
        raise GraphError(f"a tensor of a negative size at {given}: the graph does not hold for these sizes")
    if sizes.max(initial=0.0) > MAX_TENSOR_BYTES:
        raise GraphError(f"a tensor of {sizes.max():.3g} bytes at {given}: expected at most {MAX_TENSOR_BYTES:.3g}")
    return np.asarray(sizes[inverse], np.float64)


def compute_dtype(op: Op, graph: Graph) -> DType:
    """The format *op* computes in: that of its first float input, else of its first tensor; float32 without any."""
    dtypes = [graph.tensors[t].dtype for t in (*op.inputs, *op.outputs)]
    floats = (d for d in dtypes[: len(op.inputs)] if d.is_float)
    return next(floats, dtypes[0] if dtypes else DTYPES["float32"])
