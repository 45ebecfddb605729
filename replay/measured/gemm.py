"""Rows of matrix multiplications: b times [m, k] by [k, n]."""

from typing import Final

import numpy as np

from foretrace.ir import OpKind

from .columns import Block, renamed
from .formats import compute_codes, known_format, number_format, operand_bytes, result_bytes, weight_bytes
from .quantise import quantise
from .software import copies_of
from .tables import Table

SIZES: Final = ("m", "n", "k")

_TRITON: Final = "pipeweave_fp8"
"""Source of fp8 products by SGLang's Triton kernel: on calib they take 0.5 us a step of 128 of K, however few rows."""


def blocks(table: Table) -> list[Block]:
    """A matmul each row; before it the quantisation of its input where the format has one and the row includes it."""
    b, m, n, k = table.number("b", 1.0), *(table.number(name) for name in SIZES)
    dtype = table.text("dtype")
    row = np.arange(table.rows)
    operand, result = operand_bytes(dtype), result_bytes(dtype)
    batched = table.text("op", "linear").is_in({"bmm", "baddbmm"}) | (b > 1)
    weight = np.where(batched, operand, weight_bytes(dtype))
    bias = table.number("bias", 0.0)
    matmul = Block(
        row,
        OpKind.MATMUL,
        "aten.mm.default",
        compute_codes(dtype),
        {"b": b, "m": m, "n": n, "k": k, "bias": bias, "weight_bytes": weight, "copies": copies_of(table)},
        b * (m * k * operand + n * k * weight) + bias * n * result,
        b * m * n * result,
        matrix_flops=2 * b * m * n * k,
        vector_flops=bias * b * m * n,
        length=k,
    )
    scaled = dtype.are(lambda d: known_format(d) and number_format(d).scale_bits > 0)
    triton = table.text("source", "").are(lambda s: s.startswith(_TRITON))
    triton |= table.text("kernel", "").are(lambda k: "triton" in k.lower())
    matmuls = [
        matmul.take(~batched & ~scaled & ~triton),
        renamed(matmul.take(batched & ~scaled & ~triton), "aten.bmm.default"),
        renamed(matmul.take(scaled & ~triton), "deep_gemm.block_scaled_mm.default"),
        renamed(matmul.take(triton), "triton.scaled_mm.default"),
    ]
    return [*quantise(table, b * m, k), *matmuls]
