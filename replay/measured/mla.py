"""Rows of multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): expanded in prefill, absorbed in decode."""

from typing import Final

import numpy as np

from foretrace.ir import OpKind
from foretrace.replay.columns import Floats, Mask

from .attention import attention_block, phase_of
from .columns import Block, Sizes
from .formats import compute_codes, operand_bytes
from .tables import Table, Text

SIZES: Final = ("batch", "q_len", "kv_len", "n_heads")

RANK: Final = 512.0
"""Width of the latent, of DeepSeek-V2, V3 and R1 and of Kimi K2 (their config.json), as all below."""
ROPE: Final = 64.0
PLAIN: Final = 128.0
"""Width of a head's key before its rotary part, and of its value."""

_WITH_PROJECTIONS: Final = ("aic_vllm",)
"""Prefixes of sources that time vLLM's whole latent layer: the latents' up-projection in prefill, and the absorbed
ones of queries and values in decode. On calib their prefill time grows by 1.1 us (H100) and 3.6 us (A100) a thousand
(token, head), which is the flow of that projection; the others' by half of that, the reading of the operands."""


def kinds(table: Table) -> Text:
    """[n] mla_prefill, mla_decode."""
    return phase_of(table).map(lambda phase: f"mla_{phase}")


def blocks(table: Table) -> list[Block]:
    """One attention each row (its projections too where the source times them)."""
    heads = table.number("n_heads")
    row = np.arange(table.rows)
    one, zero = np.ones(table.rows), np.zeros(table.rows)
    expanded = attention_block(
        table,
        row,
        "aten.scaled_dot_product_attention.default",
        heads=heads,
        kv_heads=heads,
        head_dim=one * (PLAIN + ROPE),
        v_dim=one * PLAIN,
        causal=one,
        kv_width=zero,
    )
    # prefill reads what the projections have just written, in 16 bits whatever the cache's format
    tokens = table.number("batch") * table.number("kv_len")
    fresh = tokens * heads * (2 * PLAIN + ROPE) * operand_bytes(table.text("dtype"))
    expanded = Block(**{**vars(expanded), "bytes_read": expanded.bytes_read + fresh})
    absorbed = attention_block(
        table,
        row,
        "flash_mla.flash_mla_with_kvcache",
        heads=heads,
        kv_heads=one,
        head_dim=one * (RANK + ROPE),
        v_dim=one * RANK,
        causal=one,
        kv_width=one * (RANK + ROPE),
    )
    decode = phase_of(table).is_in({"decode"})
    projected = table.text("source", "").are(lambda s: s.startswith(_WITH_PROJECTIONS))
    return [
        expanded.take(~decode),
        absorbed.take(decode),
        *_expanding(table, projected & ~decode),
        *_absorbing(table, projected & decode),
    ]


def _expanding(table: Table, chosen: Mask) -> list[Block]:
    """Prefill: latents to keys and values of every head, and the rotary part put beside each key."""
    tokens, heads = table.number("batch") * table.number("kv_len"), table.number("n_heads")
    up = _matmul(table, np.ones(table.rows), tokens, heads * 2 * PLAIN, RANK)
    element = operand_bytes(table.text("dtype"))
    keys = tokens * heads * (PLAIN + ROPE) * element
    beside = Block(up.row, OpKind.COPY, "aten.cat.default", up.dtype, {}, keys, keys, length=PLAIN)
    return [up.take(chosen), beside.take(chosen)]


def _absorbing(table: Table, chosen: Mask) -> list[Block]:
    """Decode: queries into the space of the latents, and what attention gives back out of it."""
    batch, heads = table.number("batch"), table.number("n_heads")
    into, out = _matmul(table, heads, batch, RANK, PLAIN), _matmul(table, heads, batch, PLAIN, RANK)
    return [into.take(chosen), out.take(chosen)]


def _matmul(table: Table, b: Floats, m: Floats, n: Sizes, k: float) -> Block:
    element = operand_bytes(table.text("dtype"))
    return Block(
        np.arange(table.rows),
        OpKind.MATMUL,
        "aten.bmm.default",
        compute_codes(table.text("dtype")),
        {"b": b, "m": m, "n": n, "k": k, "bias": 0.0},
        b * (m * k + n * k) * element,
        b * m * n * element,
        matrix_flops=2 * b * m * n * k,
        length=k,
    )
