"""What the `dtype` of a table means: the format computed in, that of the weights, and what quantises the input."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from foretrace.ir import DTYPES, DType, UnknownNameError, parse_dtype

from .columns import DTYPE_CODE
from .tables import Text

BLOCK: Final = 128
"""Elements that share a scale in block-scaled fp8 (DeepSeek-V3, arXiv:2412.19437, section 3.3.2)."""


@dataclass(frozen=True)
class NumberFormat:
    """A number format of matrix work as engines name it."""

    compute: DType
    """Of the multiplication."""
    weight: DType
    """Of the weights in memory."""
    quantised: bool = False
    """True where the input arrives in 16 bits and is converted to `compute`."""
    scale_bits: float = 0.0
    """Bits a weight's element, of the scales that blocks of weights share."""

    @property
    def weight_bytes(self) -> float:
        """Bytes an element of the weights, scales included."""
        return (self.weight.bits + self.scale_bits) / 8


def _format(compute: str, weight: str = "", quantised: bool = False, scale_bits: float = 0.0) -> NumberFormat:
    return NumberFormat(DTYPES[compute], DTYPES[weight or compute], quantised, scale_bits)


_ENGINES: Final = {
    "fp8": _format("float8_e4m3", quantised=True),
    "fp8_static": _format("float8_e4m3", quantised=True),
    "fp8_block": _format("float8_e4m3", quantised=True, scale_bits=32 / BLOCK**2),
    "nvfp4": _format("float4_e2m1", quantised=True, scale_bits=8 / 16),  # one e4m3 a 16 elements
    "mxfp4": _format("float4_e2m1", quantised=True, scale_bits=8 / 32),  # one e8m0 a 32 elements
    "mxfp8": _format("float8_e4m3", quantised=True, scale_bits=8 / 32),
    "w4a16_mxfp4": _format("bfloat16", "float4_e2m1", scale_bits=8 / 32),
    "w4a8_mxfp4_mxfp8": _format("float8_e4m3", "float4_e2m1", quantised=True, scale_bits=8 / 32),
    "w4afp8": _format("float8_e4m3", "int4", quantised=True, scale_bits=16 / 128),
    "int4_wo": _format("bfloat16", "int4", scale_bits=16 / 128),  # one 16-bit scale a group of 128
    "int8_wo": _format("bfloat16", "int8"),
    "int8": _format("int8"),
    "sq": _format("int8"),
}
"""Names of engines, from aiconfigurator's (its `GEMMQuantMode` and `MoEQuantMode`)."""


def number_format(name: str) -> NumberFormat:
    """The format called *name*, as engines or as torch name it. Raises `UnknownNameError`."""
    key = name.strip().lower()
    if key in _ENGINES:
        return _ENGINES[key]
    try:
        return _format(parse_dtype(key).name)
    except UnknownNameError:
        raise UnknownNameError("dtype", name, [*_ENGINES, *DTYPES]) from None


def known_format(name: str) -> bool:
    """Whether `number_format` knows *name*."""
    try:
        number_format(name)
    except UnknownNameError:
        return False
    return True


def _compute_code(name: str) -> float:
    return DTYPE_CODE[number_format(name).compute.name] if known_format(name) else DTYPE_CODE["float32"]


def compute_codes(names: Text) -> NDArray[np.int8]:
    """[n] the format that each row computes in, as an index into `ALL_DTYPES`; float32 where unknown (refused)."""
    return names.numbers(_compute_code).astype(np.int8)


def operand_bytes(names: Text) -> NDArray[np.float64]:
    """[n] bytes an element of an activation in the format computed in."""
    return names.numbers(lambda name: number_format(name).compute.bits / 8 if known_format(name) else 4.0)


def weight_bytes(names: Text) -> NDArray[np.float64]:
    """[n] bytes an element of a weight, its scales included."""
    return names.numbers(lambda name: number_format(name).weight_bytes if known_format(name) else 4.0)


def result_bytes(names: Text) -> NDArray[np.float64]:
    """[n] bytes an element of the result: 16 bits at least, for formats of 8 and 4."""
    return names.numbers(lambda name: max(number_format(name).compute.bits, 16) / 8 if known_format(name) else 4.0)
