"""Distinct operators in columns, one row each: what a cost model prices, wherever the rows come from.

Two sources make them: a graph at one shape (`table.tabulate`) and a table of measured operators (`measured`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from foretrace.ir import DType, OpKind

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

KINDS: Final = tuple(OpKind)
KIND_CODE: Final[Mapping[OpKind, int]] = {kind: code for code, kind in enumerate(KINDS)}


@dataclass(frozen=True, eq=False)
class OpColumns(ABC):
    """r operators of known sizes."""

    kind: NDArray[np.int8]
    """[r] index into `KINDS`."""
    names: tuple[str, ...]
    """[r] the framework's name of each operator (``aten.addmm.default``)."""
    dtypes: tuple[DType, ...]
    dtype: NDArray[np.int8]
    """[r] index into `dtypes`: the format the op computes in."""
    matrix_flops: Floats
    """[r] FLOP, as all below."""
    vector_flops: Floats
    special_flops: Floats
    bytes_read: Floats
    """[r] bytes, as below."""
    bytes_written: Floats

    @property
    def rows(self) -> int:
        """The number of distinct ops."""
        return self.kind.size

    @property
    def bytes(self) -> Floats:
        """[r] bytes read and written."""
        return self.bytes_read + self.bytes_written

    def of_kind(self, kinds: Collection[OpKind]) -> Mask:
        """[r] True for the rows of one of *kinds*."""
        return np.isin(self.kind, [KIND_CODE[kind] for kind in kinds])

    def by_dtype(self, value: Callable[[DType], float]) -> Floats:
        """[r] *value* of each row's dtype, worked out once a dtype."""
        return np.array([value(d) for d in self.dtypes], np.float64)[self.dtype]

    @abstractmethod
    def attribute(self, name: str, absent: float = np.nan) -> Floats:
        """[r] The number that the attribute *name* holds (``m``, ``head_dim``; true is 1), else *absent*."""

    def warm_bytes(self) -> Floats:
        """[r] Of `bytes`, those that the shared cache may still hold when the op runs: all, where it is repeated."""
        return self.bytes

    @abstractmethod
    def row_length(self) -> Floats:
        """[r] Elements of the last dim of the first input."""
