"""The kernels that turn 16-bit activations into the 8- and 4-bit formats that a matmul computes in.

Engines scale by tensor, by row or by block, with different kernels. What each source's rows contain was read off calib,
H100, rows of tall activations and few columns (m k > 6e7, n <= 4096), where the time beyond that of the matmul, as
bytes an element at 90 % of the memory's bandwidth, was:

====================================  =========  ==================================================================
TensorRT-LLM fp8                      7.6 - 8.2  scale and conversion measured alone: 4.6 + 3.0; and 7.0 + 1.4 us of
                                                 the 12.5 us that the smallest matmul takes
vLLM and SGLang fp8 (dynamic, a row)  6.5 - 10   one kernel that reads a row, then scales it, as a norm does
fp8_block                             3.2 - 6.2  one kernel, blocks of 128 in registers
pipeweave fp8                         0.8 - 2.9  no kernel: profiled matmuls
====================================  =========  ==================================================================
"""

import re
from typing import Final

import numpy as np

from foretrace.ir import DTYPES, OpKind
from foretrace.replay.columns import Floats, Mask

from .columns import Block, dtype_codes
from .formats import known_format, number_format, operand_bytes
from .tables import Table

GEMM_ONLY: Final = r"^(pipeweave_|foretrace_operators)"
"""Sources whose low-precision rows time the multiplication alone."""
SCALED_BY_TENSOR: Final = r"trtllm"
"""Sources that find one scale for the whole activation at each call."""


def quantise(table: Table, rows: Floats, cols: Floats) -> list[Block]:
    """The kernels before a matmul of each row of *table*, for its activation of [rows, cols]."""
    dtype, source = table.text("dtype"), table.text("source", "")
    quantised = dtype.are(lambda d: known_format(d) and number_format(d).quantised)
    quantised &= ~source.are(lambda s: re.search(GEMM_ONLY, s) is not None)
    whole = dtype.are(lambda d: d.strip().lower() == "fp8")
    by_tensor = quantised & whole & source.are(lambda s: re.search(SCALED_BY_TENSOR, s) is not None)
    by_row = quantised & whole & ~by_tensor
    element = operand_bytes(dtype)

    def kernel(name: str, chosen: Mask) -> Block:
        return _kernel(table, name, rows, cols, element).take(chosen)

    return [
        scale_block(table, rows, cols).take(by_tensor),
        kernel("foretrace.quantize.default", by_tensor),
        kernel("foretrace.dynamic_quantize_rows.default", by_row),
        kernel("foretrace.dynamic_quantize_blocks.default", quantised & ~whole),
    ]


def scale_block(table: Table, rows: Floats, cols: Floats) -> Block:
    """The scale of a whole [rows, cols] tensor, of its largest element."""
    elements, codes = rows * cols, dtype_codes(DTYPES["bfloat16"], table.rows)
    return Block(
        np.arange(table.rows),
        OpKind.REDUCTION,
        "foretrace.compute_scale.default",
        codes,
        {"rows": rows, "cols": cols},
        elements * 2.0,
        np.full(table.rows, 4.0),
        vector_flops=elements,
        length=cols,
    )


def _kernel(table: Table, name: str, rows: Floats, cols: Floats, element: Floats) -> Block:
    codes = dtype_codes(DTYPES["bfloat16"], table.rows)
    elements, sizes = rows * cols, {"rows": rows, "cols": cols}
    read, written, row = elements * 2.0, elements * element, np.arange(table.rows)
    return Block(row, OpKind.ELEMENTWISE, name, codes, sizes, read, written, vector_flops=2 * elements, length=cols)
