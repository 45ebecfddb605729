"""The roofline: an op takes as long as the busiest of the units it needs, and no less than the shortest kernel.

seconds = max(matrix FLOPs / matrix peak, vector FLOPs / vector peak, special FLOPs / special rate,
              bytes / memory bandwidth, launch floor)

(Williams, Waterman, Patterson 2009, with one ceiling a unit.) Bytes are the compulsory ones, peaks the published
ones, so nothing real is faster save by what a cache keeps from the op before.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from foretrace.ir import DTYPES, FREE_KINDS, MATRIX_KINDS, DType, OpKind
from foretrace.replay.columns import Floats, Mask, OpColumns

from . import BOUNDS, Costs

if TYPE_CHECKING:
    from foretrace.hardware import Accelerator, System

HIGH_FACTOR: Final = 3.0
"""The high end of the interval over the bound. On measured bf16 GEMMs the datasheet roofline has a mean error of
41 to 51 % (our prototypes: A100 51, H100 46, L40S 41); it errs low, so the mean GEMM takes about 1 / (1 - 0.5) = 2
times the bound, and single shapes more. The low end is the bound itself."""

UNVALIDATED: Final = (
    f"the interval of the roofline (the bound to {HIGH_FACTOR:g} times it) is not yet validated against measurements"
)

_STANDS_IN: Final = {
    "float4_e2m1": "float8_e4m3",
    "float6_e2m3": "float8_e4m3",
    "float6_e3m2": "float8_e4m3",
    "float8_e4m3": "bfloat16",
    "float8_e5m2": "bfloat16",
    "bfloat16": "float32",
    "float16": "float32",
    "tf32": "float32",
    "float64": "float32",
    "complex64": "float32",
    "complex128": "float64",
    "int4": "int8",
    "uint8": "int8",
    "int8": "int32",
}
"""Whose units run a format that a chip lacks, where its description does not say (`compute.emulated_with`):
the next wider format that holds every value. float64 has none; what is left is float32, and any integer's too."""


@dataclass(frozen=True)
class Roofline:
    """The cost model of this file."""

    name: str = "roofline"

    def price(self, columns: OpColumns, system: "System", software: str = "eager") -> Costs:
        """Price every row of *columns* on one accelerator of *system*, whatever the software."""
        chip = system.accelerator
        free = columns.of_kind(FREE_KINDS)
        share = causal_share(columns)
        vector_rate = columns.by_dtype(lambda d: _vector_rate(chip, d))
        limits = np.stack(
            [
                columns.matrix_flops * share / columns.by_dtype(lambda d: matrix_rate(chip, d)[0]),
                columns.vector_flops * share / vector_rate,
                columns.special_flops * share / (chip.special_rate or np.inf),
                columns.bytes / chip.memory.bandwidth,
                chip.launch_floor_s * columns.attribute("repeat", 1.0),  # a loop's body launches at every trip
            ]
        )
        limits[:, free] = 0.0
        seconds = limits.max(axis=0, initial=0.0)
        bound = np.where(free, BOUNDS.index("free"), limits.argmax(axis=0)).astype(np.int8)
        other = np.flatnonzero(columns.of_kind({OpKind.OTHER, OpKind.COLLECTIVE}))
        unmodelled = {columns.names[i] for i in other.tolist()}
        warnings = [UNVALIDATED, *emulations(columns, chip)]
        if not np.isfinite(vector_rate).all():
            warnings.append(f"{chip.name} states no vector peak: vector FLOPs take no time")
        return Costs(
            seconds,
            seconds,
            seconds * HIGH_FACTOR,
            bound,
            unmodelled=tuple(sorted(unmodelled)),
            warnings=tuple(warnings),
        )


def causal_share(columns: OpColumns) -> Floats:
    """[r] The share of an attention's (query, key) pairs that a flash kernel works on; 1 for every other op.

    With the attribute ``causal`` query i of q sees the first kv - q + i + 1 keys (the last query sees all), at most
    ``window`` of them where that is given: for q = kv and no window the share is (q + 1) / (2 kv). Kernels skip
    masked tiles whole; what they waste at the tiles' edges is left out.
    """
    q, kv = columns.attribute("q_len", 1.0), columns.attribute("kv_len", 1.0)
    window = np.where(columns.attribute("window", 0.0) > 0, columns.attribute("window", 0.0), np.inf)

    def seen_up_to(x: Floats) -> Floats:  # sum of min(c, window) for c = 1 .. x
        inside: Floats = np.minimum(x, window)
        return inside * (inside + 1) / 2 + (x - inside) * inside

    pairs = seen_up_to(kv) - seen_up_to(np.maximum(kv - q, 0.0))
    causal = columns.of_kind({OpKind.ATTENTION}) & (columns.attribute("causal", 0.0) == 1)
    share = np.divide(pairs, q * kv, out=np.ones(columns.rows), where=causal & (q * kv > 0))
    balanced = causal & (columns.attribute("balanced", 0.0) > 0)  # context parallel ranks that share the work alike
    return np.where(balanced, 0.5, share)


def matrix_rate(chip: "Accelerator", dtype: DType) -> tuple[float, DType]:
    """FLOP/s of matrix work in *dtype*, and the format whose units do it.

    The matrix units' own rate, else the vector units' (a GPU's plain fp32 matmul), else those of the format that
    emulates it; of all a chip has the slowest matrix rate where none of them is there.
    """
    asked, tried = dtype, set[DType]()
    while asked not in tried:
        if rate := chip.matrix_flops(asked) or chip.vector_flops(asked):
            return rate, asked
        tried.add(asked)
        asked = chip.emulated_with(asked) or DTYPES[_STANDS_IN.get(asked.name, "float32")]
    rates = chip.compute.matrix or chip.compute.vector
    name = min(rates, key=lambda d: rates[d])
    return rates[name], DTYPES[name]


def _vector_rate(chip: "Accelerator", dtype: DType) -> float:
    """FLOP/s of vector work: the format's own, else float32's (where 16-bit and integer pointwise is computed)."""
    return chip.vector_flops(dtype) or chip.vector_flops(DTYPES["float32"]) or np.inf


def emulations(columns: OpColumns, chip: "Accelerator") -> list[str]:
    """One warning for each format of matrix work that the chip runs on another format's units."""
    matrix: Mask = columns.of_kind(MATRIX_KINDS)
    found = []
    for code in np.unique(columns.dtype[matrix]).tolist():
        dtype = columns.dtypes[code]
        used = matrix_rate(chip, dtype)[1]
        if used != dtype:
            found.append(f"{chip.name} has no {dtype} units: its matrix work is timed on those of {used}")
    return found
