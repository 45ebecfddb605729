"""What is known of one value of an ONNX graph: its sizes, its number format and, where sizes need it, its data."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from onnx import TensorProto, TypeProto, numpy_helper

from foretrace.ir import DTYPES, Dim, DimLike, DType, ForetraceError, GraphError, Shape, parse_dim, prod, symbol

MAX_SIZE: Final = 1 << 36
"""The largest single dim that is taken for meant."""
MAX_ELEMENTS: Final = 1 << 50
MAX_KNOWN: Final = 1 << 12
"""Elements of a value whose data are followed: shapes, axes, positions; not weights."""
MAX_FLOATS: Final = 64

_NAMES: Final = {
    "FLOAT": "float32", "UINT8": "uint8", "INT8": "int8", "UINT16": "uint16", "INT16": "int16", "INT32": "int32",
    "INT64": "int64", "STRING": "uint64", "BOOL": "bool", "FLOAT16": "float16", "DOUBLE": "float64",
    "UINT32": "uint32", "UINT64": "uint64", "COMPLEX64": "complex64", "COMPLEX128": "complex128",
    "BFLOAT16": "bfloat16", "FLOAT8E4M3FN": "float8_e4m3", "FLOAT8E4M3FNUZ": "float8_e4m3",
    "FLOAT8E5M2": "float8_e5m2", "FLOAT8E5M2FNUZ": "float8_e5m2", "UINT4": "uint4", "INT4": "int4",
    "FLOAT4E2M1": "float4_e2m1", "FLOAT8E8M0": "float8_e8m0", "FLOAT6E2M3": "float6_e2m3",
    "FLOAT6E3M2": "float6_e3m2",
}  # fmt: skip
"""ONNX's formats by ours; a string is taken for a pointer of 64 bits."""
_DTYPES: Final = {code: DTYPES[_NAMES[name]] for name, code in TensorProto.DataType.items() if name in _NAMES}
_CODES: Final = {d.name: code for code, d in reversed(_DTYPES.items())}


class OpenSizeError(ForetraceError):
    """Something is not known while the sizes called `symbols` stay open: they have to be fixed."""

    def __init__(self, message: str, symbols: Iterable[str]) -> None:
        super().__init__(message)
        self.symbols = frozenset(symbols)


class EqualSizesError(Exception):
    """The graph only makes sense where the open size `symbol` is `value`: start again with that."""

    def __init__(self, name: str, value: DimLike, where: str) -> None:
        super().__init__(f"{name} = {value}")
        self.symbol, self.value, self.where = name, value, where


@dataclass(slots=True)
class Value:
    """One value: `data` holds ints, floats, bools and Dims (dtype object) where it is known.

    `constant`: the same at every run. `depends`: the open sizes that its data depend on; None: on other data too.
    `items`: the values of a sequence. `tensor`: its id among the graph's tensors, once something computes with it.
    `source`: what it is named in the file.
    """

    shape: Shape
    dtype: DType
    data: np.ndarray[Any, Any] | None = None
    constant: bool = False
    depends: frozenset[str] | None = None
    source: str = ""
    tensor: int | None = None
    items: list[Value] | None = field(default=None, repr=False)

    @property
    def rank(self) -> int:
        """How many dims the value has."""
        return len(self.shape)

    @property
    def elements(self) -> DimLike:
        """How many elements the value has."""
        return prod(self.shape)


def known(data: Any, dtype: str = "int64") -> Value:
    """A value whose data are known."""
    array = data if isinstance(data, np.ndarray) else np.array(data, dtype=object)
    symbols = frozenset(s for v in array.flat if isinstance(v, Dim) for s in v.symbols)
    return Value(tuple(array.shape), DTYPES[dtype], array, not symbols, symbols)


def dtype_of(code: int, where: str) -> DType:
    """Our format for ONNX's number of it."""
    if code not in _DTYPES:
        raise ForetraceError(f"{where}: number format {code} is not known")
    return _DTYPES[code]


def code_of(dtype: DType) -> int:
    """ONNX's number for our format."""
    return _CODES[dtype.name]


def sizes(dims: Iterable[int], where: str) -> Shape:
    """A shape the file states, checked."""
    shape = tuple(dims)
    for d in shape:
        if d < 0 or d > MAX_SIZE:
            raise ForetraceError(f"{where}: a size of {d}: expected 0 to 2**36")
    check_elements(shape, where)
    return shape


def check_elements(shape: Shape, where: str) -> None:
    """Refuse a shape that no memory holds, or with a negative size."""
    total = 1
    for d in shape:
        if isinstance(d, int):
            if d < 0:
                raise ForetraceError(f"{where}: the size {d} is negative")
            total *= d
    if total > MAX_ELEMENTS:
        raise ForetraceError(f"{where}: {total:.3g} elements, more than any memory holds")


def from_tensor(tensor: TensorProto, where: str) -> Value:
    """A tensor the file holds; its data where they are small, present and no float weights."""
    shape = sizes(tensor.dims, where)
    value = Value(shape, dtype_of(tensor.data_type, where), constant=True, source=tensor.name)
    count = prod(shape)
    most = MAX_FLOATS if value.dtype.is_float else MAX_KNOWN
    if isinstance(count, int) and count <= most and tensor.data_location != TensorProto.EXTERNAL:
        if tensor.data_type == TensorProto.STRING:
            return value
        try:
            value.data = np.asarray(numpy_helper.to_array(tensor), dtype=object)
        except (ValueError, TypeError, KeyError) as e:
            if count:
                raise ForetraceError(f"{where}: its data do not fill its shape {list(shape)}: {e}") from e
    return value


def symbol_name(text: str) -> str:
    """*text* as the name of a symbol: ``DynamicDimension.0`` → ``DynamicDimension_0``."""
    name = re.sub(r"[^A-Za-z0-9_]+", "_", text).strip("_")[:90] or "dim"
    name = name if not name[0].isdigit() else f"d{name}"
    try:
        symbol(name)
    except GraphError:  # a word that expressions need
        return f"{name}_size"
    return name


def declared_shape(kind: TypeProto.Tensor, name: str) -> Shape:
    """The shape that the file gives the value *name*; unnamed dims are called NAME_AXIS."""
    dims: list[DimLike] = []
    for axis, d in enumerate(kind.shape.dim):
        if d.HasField("dim_value") and (d.dim_value >= 0):
            dims += sizes([d.dim_value], f"input {name!r}")
        elif d.dim_param and d.dim_param.strip("? -"):
            dims.append(_named(d.dim_param))
        else:
            dims.append(symbol(symbol_name(f"{name}_{axis}")))
    return tuple(dims)


def _named(text: str) -> DimLike:
    """A dim from its name, or from an expression such as ``past_sequence_length + 1``."""
    try:
        dim = parse_dim(text)
        return dim if isinstance(dim, Dim) else symbol(symbol_name(text))
    except GraphError:
        return symbol(symbol_name(text))
