"""Attention: flash kernels over many queries (prefill, encoder, training), and split-KV kernels over few (decode).

Prefill (FlashAttention-2, Dao 2023; -3, Shah et al. 2024). A block takes `BLOCK` queries of one head (or of the g
query heads that share a KV head, packed) past all keys they see, a tile of `TILE` keys at a time:

    tile    = (math^p + exp^p)^(1/p) + tile_cycles, math = 4 · block · tile · D / (FLOP per clock · efficiency),
              exp = block · tile / (exp per clock · exp_efficiency)
    block   = tiles it sees · tile + block_cycles
    core    = max(longest block, all blocks / cores + tail · longest) / clock
    seconds = launch floor + start + (core² + memory²)^½

Decode (FlashDecoding, Dao et al. 2023). Each of batch × KV heads is a unit whose keys and values are read once;
units are split along the context until they fill the cores:

    lone    = lone_cycles + bytes of a unit / unit_per_clock                 one unit alone on its core
    core    = units · (unit_cycles + tokens · token_cycles) / cores          all of them, cores full; no less than
              FLOP / (FLOP per clock · cores)
    memory  = (KV bytes + query bytes · query_passes) / (memory_efficiency · bandwidth)
    seconds = launch floor + start + (lone² + core² + memory²)^½ + (split) · reduce           split or not: the less

A library packs the query heads of a KV head into a tile up to `pack` of them; past that (and at one head, where
`flat_single` is 1) it runs one unit a query head ("flat" kernels: masked MHA), with constants of its own.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from foretrace.replay.columns import Floats, Ints

from .facts import Facts
from .gemm import cold_share

BLOCKS: Final = (64, 128)
"""Queries of a block."""
TILE: Final = 128
"""Keys of a tile."""
LEAST_HEAD: Final = 64
"""Head dims under this are padded to it."""
SPLIT_TOKENS: Final = 128
"""Keys that a split has at the least."""

MATH, EXP, MEMORY, LAUNCH = range(4)
"""What limits a row: matrix units, exponentials, memory, starting."""


@dataclass(frozen=True)
class PrefillConstants:
    """How a library's flash kernel drives one pipeline. Fitted; dimensionless where no unit is given."""

    efficiency: float
    """Of the matrix units' peak inside a tile."""
    exp_efficiency: float
    """Of the special-function units' peak."""
    tile_cycles: float
    block_cycles: float
    tail: float
    """Share of the longest block that stands after the others."""
    memory_efficiency: float
    """Of the memory, counting what a call does besides (writing the cache, rotary embedding)."""
    start_s: float
    """s over the launch floor."""
    overlap: float
    """p: 1 where exponentials wait for the matrix units, large where they run beside them (FlashAttention-3)."""
    low_precision: float
    """Rate of the matrix units on 8-bit inputs over that on 16-bit ones that the kernel reaches."""
    backward: float = 1.25
    """Seconds per FLOP of the backward pass over the forward one's (FlashAttention-2, figures 4 to 6: 1.1 to 1.4)."""


@dataclass(frozen=True)
class DecodeConstants:
    """How a library's decode kernel drives one pipeline. Fitted; cycles (clk) of one core."""

    lone_cycles: float
    unit_per_clock: float
    """bytes/clk that one unit draws alone."""
    unit_cycles: float
    token_cycles: float
    """clk a key of one unit costs its core, all cores busy."""
    memory_efficiency: float
    start_s: float
    reduce_s: float
    """s of the second pass, where the context is split."""
    query_passes: float
    """Times the query and output bytes move (rotary embedding, appending to the cache)."""
    occupancy: float
    """Units a core runs at once before the context is split no further."""
    pack: float
    """Query heads of one KV head that share a unit at the most."""
    flat_single: float
    """1 where a KV head with a single query head runs the flat kernel."""
    flat_unit_cycles: float
    flat_token_cycles: float


@dataclass(frozen=True, eq=False)
class Attentions:
    """r calls: sizes of each, bytes of an element of queries and of the cache."""

    batch: Floats
    q_len: Floats
    kv_len: Floats
    heads: Floats
    kv_heads: Floats
    head_dim: Floats
    v_dim: Floats
    window: Floats
    """Keys that a query sees at the most; 0: all."""
    causal: Floats
    """1 or 0."""
    bytes_q: Floats
    bytes_kv: Floats
    kv_width: Floats
    """Elements of the cache a token and KV head: `head_dim` + `v_dim`; a latent holds its values in its `head_dim`."""
    mask_bytes: Floats
    """Bytes of a mask that is read."""
    copies: Floats
    """Sets of operands that take turns in a measuring loop; inf: all is cold."""

    def rows(self, chosen: Ints) -> "Attentions":
        """Some of the calls."""
        return Attentions(*(column[chosen] for column in vars(self).values()))

    @property
    def seen(self) -> Floats:
        """[r] Keys that the last query sees."""
        return np.where(self.window > 0, np.minimum(self.window, self.kv_len), self.kv_len)


def price_prefill(x: Attentions, f: Facts, c: PrefillConstants) -> tuple[Floats, Ints]:
    """[r] seconds of each call, and [r] what limits it. *f* is of a 16-bit format (`Attentions.bytes_q` 1: 8-bit)."""
    rate = f.flops_per_clock * c.efficiency * np.where(x.bytes_q <= 1, c.low_precision, 1.0)
    width = (np.maximum(x.head_dim, LEAST_HEAD) + np.maximum(x.v_dim, LEAST_HEAD)) / 2
    moved = (
        x.batch
        * (
            x.q_len * x.heads * (x.head_dim * x.bytes_q + x.v_dim * np.maximum(x.bytes_q, 2))
            + x.kv_len * x.kv_heads * x.kv_width * x.bytes_kv
        )
        + x.mask_bytes
    )
    memory = np.maximum(
        moved * cold_share(moved, x.copies, f) / (c.memory_efficiency * f.bandwidth), moved / f.cache_bandwidth
    )
    best = np.full(x.batch.size, np.inf)
    by_exp = np.zeros(x.batch.size, bool)
    by_memory = np.zeros(x.batch.size, bool)
    group = np.maximum(x.heads / x.kv_heads, 1)
    for rows in BLOCKS:
        math = 4.0 * rows * TILE * width / rate
        exp = rows * TILE / (f.exp_per_clock * c.exp_efficiency)
        tile = (math**c.overlap + exp**c.overlap) ** (1 / c.overlap) + c.tile_cycles
        for packed in (False, True):
            queries = rows / group if packed else np.full_like(group, rows)  # distinct positions in a block
            per_head = np.ceil(x.q_len * (group if packed else 1.0) / rows)
            span = np.minimum(x.seen + np.minimum(queries, x.q_len), x.kv_len)  # keys past a block, at the most
            before = np.clip(np.floor((span - (x.kv_len - x.q_len)) / queries), 0, per_head)  # blocks that see fewer
            causal_sum = (
                before * (x.kv_len - x.q_len) + queries * before * (before + 1) / 2 + (per_head - before) * span
            )
            keys = np.where(x.causal > 0, np.minimum(causal_sum, per_head * span), per_head * span)
            tiles = keys / TILE + np.where(x.causal > 0, 0.5, 0.0) * per_head
            blocks = per_head * x.batch * np.where(packed, x.kv_heads, x.heads)
            longest = np.ceil(span / TILE) * tile + c.block_cycles
            whole = (tiles * tile + per_head * c.block_cycles) * blocks / per_head
            spread = whole / f.cores + c.tail * longest * np.minimum(1.0, blocks / f.cores)
            core = np.maximum(longest, spread) / f.clock_hz
            took = np.sqrt(core**2 + memory**2)
            better = took < best
            best = np.where(better, took, best)
            np.copyto(by_exp, exp > math, where=better)
            np.copyto(by_memory, memory > core, where=better)
    start = f.start_s(c.start_s)
    limit = np.where(by_memory, MEMORY, np.where(by_exp, EXP, MATH))
    return start + best, np.where(best < start, LAUNCH, limit)


def price_decode(x: Attentions, f: Facts, c: DecodeConstants) -> tuple[Floats, Ints]:
    """[r] seconds of each call, and [r] what limits it."""
    group = np.maximum(x.heads * x.q_len / x.kv_heads, 1)
    flat = (group > c.pack) | ((group <= 1) & (c.flat_single > 0))
    units = x.batch * np.where(flat, x.heads, x.kv_heads)
    seen = x.seen
    most = np.clip(np.floor(c.occupancy * f.cores / units), 1, np.maximum(1, np.ceil(seen / SPLIT_TOKENS)))
    key_bytes = x.kv_width * x.bytes_kv
    unit = np.where(flat, c.flat_unit_cycles, c.unit_cycles)
    token = np.where(flat, c.flat_token_cycles, c.token_cycles) * (x.head_dim + x.v_dim) / 256
    rows = x.batch * x.q_len
    math = 2 * rows * x.heads * seen * (x.head_dim + x.v_dim) / (f.flops_per_clock * f.cores)
    queries = rows * x.heads * (x.head_dim * x.bytes_q + x.v_dim * np.maximum(x.bytes_q, 2))  # read, results written
    around = c.query_passes * 2 * rows * (x.heads + 2 * x.kv_heads) * x.head_dim
    moved = x.batch * seen * x.kv_heads * key_bytes + np.maximum(around, queries)
    memory = np.maximum(
        moved * cold_share(moved, x.copies, f) / (c.memory_efficiency * f.bandwidth), moved / f.cache_bandwidth
    )
    took, busy = np.full_like(memory, np.inf), np.zeros_like(memory)
    for splits in (np.ones_like(most), most):  # no library splits where that costs more
        tokens = np.ceil(seen / splits)
        lone = c.lone_cycles + tokens * key_bytes / c.unit_per_clock
        core = np.maximum(units * splits * (unit + tokens * token) / f.cores, math)
        now = np.sqrt(lone**2 + core**2) / f.clock_hz
        total = np.sqrt(now**2 + memory**2) + np.where(splits > 1, c.reduce_s * f.start_scale, 0.0)
        better = total < took
        took, busy = np.where(better, total, took), np.where(better, now, busy)
    start = f.start_s(c.start_s)
    limit = np.where(memory > busy, MEMORY, MATH)
    return start + took, np.where(took < start, LAUNCH, limit)
