"""Rows of fused mixture-of-experts layers on one rank: two grouped matmuls, the first with all the kernels around them.

The kernels around (routing, permutation, quantisation, activation, sum) are of each engine's own and were never
measured alone: the first matmul carries their bytes, `around_bytes` (`costs.physics.grouped`).
"""

import re
from typing import Final, NamedTuple

import numpy as np

from foretrace.ir import OpKind
from foretrace.replay.columns import Floats, Mask
from foretrace.replay.costs.physics.grouped import Groups, Layers, Load, products, routing

from .columns import Block, Sizes
from .formats import compute_codes, known_format, number_format, operand_bytes, weight_bytes
from .tables import Table, Text, unfit

SIZES: Final = ("tokens", "hidden", "inter", "topk", "experts", "moe_tp", "moe_ep")
OPTIONAL: Final = ("moe_tp", "moe_ep")

_UNGATED_SHAPES: Final = {(2688, 1856), (1024, 2688), (2048, 5120), (4096, 2688), (8192, 5120)}
"""(hidden, inter) of models whose experts have no gate: Nemotron 3 Nano, Super and Ultra (squared ReLU; the latter two
between latents of a quarter of the hidden size). From their config.json."""

_ALWAYS_GATED: Final = r"^vllm_fused_moe$"
"""vLLM 0.14's benchmark runs the gated kernel at those shapes too: on calib its time has both projections."""

_ALL_ROWS: Final = r"triton|marli|fused_moe"
"""Kernels that allocate, activate and sum tokens * topk rows whatever share of the experts is on the rank. Tables cut
long names off: ``..._marli``."""

UNNAMED: Final = "aten._grouped_mm.default"
"""The grouped matmul of a table that does not say which kernel ran: each library's usual one."""
_FAMILIES: Final = (
    (r"marli", "marlin.grouped_mm"),
    (r"^vllm_fp8moe_flashinfer_cutlass", "cutlass.grouped_mm"),  # block-scaled: CUTLASS's own, launched by FlashInfer
    (r"flashinfer", "flashinfer.grouped_mm"),
    (r"triton|^vllm_fused_moe$", "triton.grouped_mm"),
    (r"^moe_torch_flow", "cutlass.grouped_mm"),
)
"""(pattern of the kernel's name in a table, what the operator is called); the first that is found counts."""

_WIDENED: Final = r"^sglang_fused_moe_triton"
"""Kernels whose 4-bit weights are widened to 16 bits when they are loaded."""

MOST: Final = 1e7
"""Tokens, or experts, beyond which a row is no layer."""

_WHOLE_TOKENS: Final = ("aic_sglang_0.5.10",)
"""Sources whose rank, of several, gives each token it sees all its topk rows, on experts of its own (from calib)."""


def refuse(table: Table) -> list[tuple[str, Mask]]:
    """Rows whose experts cannot be divided or whose routing we do not know."""
    experts, ranks = table.number("experts"), table.number("moe_ep", 1.0)
    said = table.text("distribution", "balanced")
    return [
        *unfit(said, known_distribution, lambda v: f"distribution {v} is none that we know"),
        ("topk is more than experts", table.number("topk") > experts),
        ("moe_ep does not divide experts", experts % ranks != 0),
        ("moe_tp does not divide inter", table.number("inter") % table.number("moe_tp", 1.0) != 0),
    ]


def gated(table: Table) -> Mask:
    """[n] True where an expert multiplies its activation with a gate (two projections up, one down)."""
    if "gated" in table:
        return np.equal(table.number("gated"), 1)
    kernel = table.text("kernel", "")
    plain = kernel.are(lambda k: "nongated" in k)
    hidden, inter = table.number("hidden"), table.number("inter")
    for shape in _UNGATED_SHAPES:
        plain |= (hidden == shape[0]) & (inter == shape[1])
    return ~plain | kernel.are(lambda k: re.search(_ALWAYS_GATED, k) is not None)


def known_distribution(name: str) -> bool:
    """Whether `routing` knows the distribution called *name*."""
    return name in ("", "balanced", "uniform") or re.fullmatch(r"power_law_\d+(\.\d+)?", name) is not None


def loads(table: Table) -> "Loads":
    """[n] rows, active experts and rows of the busiest expert of the rank; ones where a row makes no sense."""
    tokens, topk, experts = (table.number(name) for name in ("tokens", "topk", "experts"))
    ranks, said = table.number("moe_ep", 1.0), table.text("distribution", "balanced")
    keys = np.stack([tokens, topk, experts, ranks, said.codes])
    least, most = keys[:4].min(axis=0), keys[:4].max(axis=0)
    usable = (least >= 1) & (most < MOST) & (keys[1] <= keys[2]) & (keys[2] % keys[3] == 0)
    usable &= said.are(known_distribution)
    distinct, place = np.unique(keys[:, usable].astype(np.int64), axis=1, return_inverse=True)
    found = [_load(t, k, e, r, said.values[code]) for t, k, e, r, code in distinct.T.tolist()]
    columns = np.ones((table.rows, 3))
    columns[usable] = np.array(found, np.float64).reshape(-1, 3)[place.reshape(-1)]
    rows, active, longest = columns.T
    whole = table.text("source", "").are(lambda s: s.startswith(_WHOLE_TOKENS)) & (ranks > 1)
    seen = np.where(whole, topk * np.minimum(tokens, rows), rows)
    return Loads(seen, active, np.where(whole, np.maximum(longest / rows * seen, seen / active), longest))


def _load(tokens: int, topk: int, experts: int, ranks: int, distribution: str) -> Load:
    return routing(tokens, experts, topk, ranks, distribution)


class Loads(NamedTuple):
    """`Load` of each row [n]."""

    rows: Floats
    active: Floats
    longest: Floats


def kernels(table: Table) -> Text:
    """[n] what the grouped matmuls of each row are called (`_FAMILIES`)."""
    return table.text("kernel", "").map(
        lambda kernel: next((name for pattern, name in _FAMILIES if re.search(pattern, kernel)), UNNAMED)
    )


def layers(table: Table) -> Layers:
    """The layer of each row."""
    dtype, kernel, rank = table.text("dtype"), table.text("kernel", ""), loads(table)
    tokens, topk = table.number("tokens"), table.number("topk")
    everywhere = kernel.are(lambda k: re.search(_ALL_ROWS, k) is not None)
    widened = kernel.are(lambda k: re.search(_WIDENED, k) is not None)
    stored = weight_bytes(dtype)
    return Layers(
        tokens,
        table.number("hidden"),
        table.number("inter") / table.number("moe_tp", 1.0),
        np.where(gated(table), 2.0, 1.0),
        *rank,
        np.where(everywhere, tokens * topk, rank.rows),
        operand_bytes(dtype),
        np.where(widened & (stored < 1), 2.0, stored),
        dtype.numbers(lambda d: float(known_format(d) and number_format(d).quantised)),
    )


def blocks(table: Table) -> list[Block]:
    """The two grouped matmuls of each row, by what they are called."""
    name = kernels(table)
    return [
        _block(table, part, value).take(name.is_in({value}))
        for part in products(layers(table))
        for value in name.values
    ]


def _block(table: Table, x: Groups, name: str) -> Block:
    """A grouped matmul of the rank's rows by the weights of its experts."""
    attributes: dict[str, Sizes] = {
        "b": 1.0,
        "m": x.rows,
        "n": x.n,
        "k": x.k,
        "groups": np.maximum(table.number("experts") / table.number("moe_ep", 1.0), 1.0),
        "tokens": table.number("tokens"),
        "topk": table.number("topk"),
        "active": x.active,
        "longest": x.longest,
        "weight_bytes": x.bytes_b,
    }
    if x.around is not None:
        attributes["around_bytes"] = x.around
    return Block(
        np.arange(table.rows),
        OpKind.GROUPED_MATMUL,
        name,
        compute_codes(table.text("dtype")),
        attributes,
        x.rows * x.k * x.bytes_a + x.active * x.n * x.k * x.bytes_b + (0.0 if x.around is None else x.around),
        x.rows * x.n * x.bytes_out,
        matrix_flops=2 * x.rows * x.n * x.k,
        length=x.k,
    )
