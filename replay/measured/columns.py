"""Measured operators in columns: the rows of a table as what a graph would hold in their place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from foretrace.ir import DTYPES, DType, OpKind
from foretrace.replay.columns import KIND_CODE, Floats, Ints, Mask, OpColumns

ALL_DTYPES: Final = tuple(DTYPES.values())
DTYPE_CODE: Final[Mapping[str, int]] = {d.name: code for code, d in enumerate(ALL_DTYPES)}

Sizes = Floats | float


@dataclass(frozen=True, eq=False)
class MeasuredColumns(OpColumns):
    """r operators whose attributes are columns themselves; NaN where an operator has no such attribute."""

    attributes: Mapping[str, Floats]
    lengths: Floats

    def attribute(self, name: str, absent: float = np.nan) -> Floats:
        """[r] The number that the attribute *name* holds, else *absent*."""
        column = self.attributes.get(name)
        if column is None:
            return np.full(self.rows, absent)
        return column.copy() if np.isnan(absent) else np.where(np.isnan(column), absent, column)

    def row_length(self) -> Floats:
        """[r] Elements of the last dim of the first input."""
        return self.lengths

    def take(self, rows: Ints | Mask) -> "MeasuredColumns":
        """Some of the operators, with the formats that they use."""
        used, dtype = np.unique(self.dtype[rows], return_inverse=True)
        names = np.array(self.names, object)[rows].tolist() if self.names else []
        return MeasuredColumns(
            self.kind[rows],
            tuple(names),
            tuple(self.dtypes[code] for code in used.tolist()),
            dtype.astype(np.int8),
            self.matrix_flops[rows],
            self.vector_flops[rows],
            self.special_flops[rows],
            self.bytes_read[rows],
            self.bytes_written[rows],
            {name: column[rows] for name, column in self.attributes.items()},
            self.lengths[rows],
        )


@dataclass(frozen=True, eq=False)
class Block:
    """One operator for each of m rows of a table: one kind and name, sizes by row (a number: of all of them)."""

    row: Ints
    """[m] the row of the table that each operator is (part of)."""
    kind: OpKind
    name: str
    dtype: NDArray[np.int8]
    """[m] index into `ALL_DTYPES`."""
    attributes: Mapping[str, Sizes]
    bytes_read: Floats
    bytes_written: Floats
    matrix_flops: Sizes = 0.0
    vector_flops: Sizes = 0.0
    special_flops: Sizes = 0.0
    length: Sizes = 1.0

    def take(self, chosen: Mask) -> "Block":
        """Some of the operators."""

        def some(value: Sizes) -> Sizes:
            return value if isinstance(value, float | int) else value[chosen]

        return Block(
            self.row[chosen],
            self.kind,
            self.name,
            self.dtype[chosen],
            {name: some(value) for name, value in self.attributes.items()},
            self.bytes_read[chosen],
            self.bytes_written[chosen],
            some(self.matrix_flops),
            some(self.vector_flops),
            some(self.special_flops),
            some(self.length),
        )


def renamed(block: Block, name: str) -> Block:
    """*block* under another name."""
    return replace(block, name=name)


def join(blocks: Sequence[Block]) -> tuple[MeasuredColumns, Ints]:
    """The operators of *blocks* as columns, and the row of the table of each."""
    blocks = [block for block in blocks if block.row.size]
    sizes = [block.row.size for block in blocks]
    total = sum(sizes)
    at = np.cumsum([0, *sizes])

    def joined(parts: Sequence[Sizes]) -> Floats:
        column = np.empty(total)
        for i, part in enumerate(parts):
            column[at[i] : at[i + 1]] = part
        return column

    dtype = np.concatenate([b.dtype for b in blocks]) if blocks else np.empty(0, np.int8)
    names = dict.fromkeys(name for block in blocks for name in block.attributes)
    columns = MeasuredColumns(
        np.repeat(np.array([KIND_CODE[b.kind] for b in blocks], np.int8), sizes),
        tuple(name for block in blocks for name in [block.name] * block.row.size),
        ALL_DTYPES,
        dtype,
        joined([b.matrix_flops for b in blocks]),
        joined([b.vector_flops for b in blocks]),
        joined([b.special_flops for b in blocks]),
        joined([b.bytes_read for b in blocks]),
        joined([b.bytes_written for b in blocks]),
        {name: joined([b.attributes.get(name, np.nan) for b in blocks]) for name in names},
        joined([b.length for b in blocks]),
    )
    row = np.concatenate([b.row for b in blocks]) if blocks else np.empty(0, np.int64)
    return columns.take(np.arange(total)), row.astype(np.int64)


def dtype_codes(dtype: DType, rows: int) -> NDArray[np.int8]:
    """[rows] the code of one format."""
    return np.full(rows, DTYPE_CODE[dtype.name], np.int8)
