"""Rows of attention calls: prefill, decode and encoder, grouped queries, sliding windows, caches in 8 bits."""

from typing import Final

import numpy as np

from foretrace.ir import OpKind
from foretrace.ir.work import VECTOR_FLOPS_PER_ELEMENT
from foretrace.replay.columns import Floats, Ints, Mask

from .columns import Block, renamed
from .formats import compute_codes, operand_bytes, result_bytes
from .software import copies_of
from .tables import Table, Text, unfit

SIZES: Final = ("batch", "q_len", "kv_len", "n_heads", "n_kv_heads", "head_dim", "v_dim")
NATURALS: Final = ("window",)
OPTIONAL: Final = ("v_dim", "window", "n_kv_heads")
PHASES: Final = ("prefill", "decode", "encoder")


def phase_of(table: Table) -> Text:
    """[n] prefill, decode or encoder: as the table says, else by the query's length and the mask."""
    if "phase" in table:
        return table.text("phase")
    decode = table.number("q_len") == 1
    causal = table.number("causal", 1.0) == 1
    return Text(np.where(decode, 1, np.where(causal, 0, 2)).astype(np.int32), PHASES)


def refuse(table: Table) -> list[tuple[str, Mask]]:
    """Rows of a phase that we do not know, and of heads that share no keys evenly."""
    phase = phase_of(table)
    heads = table.number("n_heads")
    kv_heads = table.number("n_kv_heads") if "n_kv_heads" in table else heads
    return [
        *unfit(phase, lambda v: v in PHASES, lambda v: f"phase {v} is none of {', '.join(PHASES)}"),
        ("n_kv_heads does not divide n_heads", heads % kv_heads != 0),
        ("q_len is more than kv_len", (table.number("q_len") > table.number("kv_len")) & ~phase.is_in({"encoder"})),
    ]


def kinds(table: Table) -> Text:
    """[n] attention_prefill, attention_decode, attention_encoder; attention_backward."""
    backward = Text((table.number("backward", 0.0) == 1).astype(np.int32), ("", "backward"))
    return phase_of(table).joined(backward, lambda phase, back: f"attention_{back or phase}")


def blocks(table: Table) -> list[Block]:
    """One attention each row; keys and values are read in the cache's format."""
    heads, head_dim = table.number("n_heads"), table.number("head_dim")
    kv_heads = table.number("n_kv_heads") if "n_kv_heads" in table else heads
    v_dim = table.number("v_dim") if "v_dim" in table else head_dim
    unmasked = phase_of(table).is_in({"encoder"})
    causal = table.number("causal") if "causal" in table else np.where(unmasked, 0.0, 1.0)
    block = attention_block(
        table,
        np.arange(table.rows),
        "aten.scaled_dot_product_attention.default",
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        v_dim=v_dim,
        causal=causal,
        kv_width=kv_heads * (head_dim + v_dim),
    )
    triton = table.text("kernel", "").are(lambda k: "triton" in k)
    backward = ~triton & (table.number("backward", 0.0) == 1)
    return [
        block.take(~triton & ~backward),
        renamed(block.take(triton), "triton.attention"),
        renamed(block.take(backward), "aten._scaled_dot_product_flash_attention_backward.default"),
    ]


def cache_bytes(table: Table) -> Floats:
    """[n] bytes an element of the cache of keys and values."""
    dtype = table.text("dtype")
    return operand_bytes(table.text("kv_dtype", "").joined(dtype, lambda of_cache, own: of_cache or own))


def attention_block(
    table: Table,
    row: Ints,
    name: str,
    *,
    heads: Floats,
    kv_heads: Floats,
    head_dim: Floats,
    v_dim: Floats,
    causal: Floats,
    kv_width: Floats,
) -> Block:
    """An attention for each row of *table*; *kv_width* [n] elements of the cache a token."""
    batch, q_len, kv_len = (table.number(name) for name in ("batch", "q_len", "kv_len"))
    window = table.number("window", 0.0)
    dtype = table.text("dtype")
    kv_bytes = cache_bytes(table)
    decode = q_len == 1
    seen = np.where(decode & (window > 0), np.minimum(kv_len, window), kv_len)
    scores = batch * heads * q_len * kv_len
    backward = table.number("backward", 0.0)
    widths = np.where(backward == 1, 3 * head_dim + 2 * v_dim, head_dim + v_dim)  # as `ir.work` counts them
    times = np.where(backward == 1, 2.0, 1.0)  # the gradient of each tensor beside it
    attributes = {
        "batch": batch,
        "heads": heads,
        "kv_heads": kv_heads,
        "q_len": q_len,
        "kv_len": kv_len,
        "head_dim": head_dim,
        "v_dim": v_dim,
        "causal": np.fmax(causal, decode),  # one query sees what a window leaves of its past
        "masked": 0.0,
        "window": window,
        "kv_bytes": kv_bytes,
        "copies": np.where(np.isinf(copies_of(table)), np.inf, 1.0),  # a benchmark calls on one cache again and again
        "backward": backward,
    }
    return Block(
        row,
        OpKind.ATTENTION,
        name,
        compute_codes(dtype),
        attributes,
        times * (batch * heads * q_len * head_dim * operand_bytes(dtype) + batch * seen * kv_width * kv_bytes),
        batch * heads * q_len * v_dim * result_bytes(dtype) + (times - 1) * batch * seen * kv_width * kv_bytes,
        matrix_flops=2 * scores * widths,
        vector_flops=VECTOR_FLOPS_PER_ELEMENT[OpKind.SOFTMAX] * scores,
        special_flops=scores,
        length=head_dim,
    )
