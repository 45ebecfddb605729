"""Number formats as data: a name, its bits in memory, and what sort of number it is."""

from dataclasses import dataclass
from typing import Final

from .errors import UnknownNameError


@dataclass(frozen=True, slots=True)
class DType:
    """One number format.

    `bits` is the storage of one element, block scales excluded; `sort` is one of
    ``float``, ``int``, ``uint``, ``bool``, ``complex``.
    """

    name: str
    bits: int
    sort: str

    @property
    def is_float(self) -> bool:
        """True for real floating-point formats of any width."""
        return self.sort == "float"

    def __str__(self) -> str:
        return self.name


DTYPES: Final[dict[str, DType]] = {
    d.name: d
    for d in (
        DType("float64", 64, "float"),
        DType("float32", 32, "float"),
        DType("tf32", 32, "float"),
        DType("bfloat16", 16, "float"),
        DType("float16", 16, "float"),
        DType("float8_e4m3", 8, "float"),
        DType("float8_e5m2", 8, "float"),
        DType("float8_e8m0", 8, "float"),
        DType("float6_e3m2", 6, "float"),
        DType("float6_e2m3", 6, "float"),
        DType("float4_e2m1", 4, "float"),
        DType("int64", 64, "int"),
        DType("int32", 32, "int"),
        DType("int16", 16, "int"),
        DType("int8", 8, "int"),
        DType("int4", 4, "int"),
        DType("uint64", 64, "uint"),
        DType("uint32", 32, "uint"),
        DType("uint16", 16, "uint"),
        DType("uint8", 8, "uint"),
        DType("uint4", 4, "uint"),
        DType("bool", 8, "bool"),
        DType("complex32", 32, "complex"),
        DType("complex64", 64, "complex"),
        DType("complex128", 128, "complex"),
    )
}
"""Every format by its name; names are those of torch, without the ``fn``/``fnuz`` suffixes."""

ALIASES: Final[dict[str, str]] = {
    "fp64": "float64",
    "fp32": "float32",
    "fp16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "fp8": "float8_e4m3",
    "fp8_e4m3": "float8_e4m3",
    "float8_e4m3fn": "float8_e4m3",
    "float8_e4m3fnuz": "float8_e4m3",
    "fp8_e5m2": "float8_e5m2",
    "float8_e5m2fnuz": "float8_e5m2",
    "float8_e8m0fnu": "float8_e8m0",
    "fp6": "float6_e3m2",
    "fp4": "float4_e2m1",
    "float4_e2m1fn_x2": "float4_e2m1",
}
"""Short names people type, and torch's suffixed ones."""


def parse_dtype(name: str) -> DType:
    """The format called *name* (or an alias, any case, a ``torch.`` prefix allowed).

    Raises `UnknownNameError` with the nearest names.
    """
    key = name.strip().lower().removeprefix("torch.")
    key = ALIASES.get(key, key)
    if key not in DTYPES:
        raise UnknownNameError("dtype", name, [*DTYPES, *ALIASES])
    return DTYPES[key]
