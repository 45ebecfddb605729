"""Dense matrix multiplication, b × [m, k] × [k, n]: the fastest of a menu of tiles and of splits of K.

A tile of bm × bn outputs is one thread block (CTA); blocks run on the cores in waves. A block walks K in steps of
128 bytes. For each (tile, split s)

    blocks  = ceil(m / bm) · ceil(n / bn) · b · s,   waves = ceil(blocks / cores),   steps = ceil(k / (s · bk))
    math    = 2 · bm · bn · bk · steps / (FLOP per clock · efficiency · power)              [cycles]
    fill    = (bm + bn) · bk · steps · bytes per element / fill_per_clock                   [cycles]
    core    = waves · ((math⁴ + fill⁴)^¼ + steps · step_cycles + tile_cycles) / clock · (1 + row / long_row_bytes)  [s]
    memory  = max((panels of A and B + C) · cold / (memory_efficiency · bandwidth),
                  (panels of A and B + C) / min(busy cores · core_fill · clock, cache bandwidth))  [s]
    seconds = launch floor + start + (core² + memory²)^½ + (s > 1) · (split_start + partial sums)

after Stream-K (Osama et al. 2023) and our prototypes (docs/design.md). A model's weights are *cold*; in a measuring
loop the share 1 - bytes of the loop / cache of them is not, nor the input, which is the same all along. Blocks run down
the columns of the output, so a wave of W blocks shares a panel of A between max(1, W / rows of blocks) of them and one
of B between min(rows, W); an operand that fits in `resident` of the shared cache is read once all the same. Old chips
lose time on long rows of K (*row* bytes apart: a page of memory and a TLB entry for each), and libraries choose batched
kernels from a shorter menu.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from foretrace.replay.columns import Floats, Ints

from .facts import Facts

TILES: Final = (
    (256, 128), (128, 256), (256, 64), (64, 256), (128, 128), (128, 64), (64, 128), (64, 64),
    (128, 32), (32, 128), (64, 32), (32, 64), (32, 32), (16, 64),
)  # fmt: skip
"""Rows and columns of outputs that one block makes."""
STEP_BYTES: Final = 128
"""Bytes of K that a block takes at a step: one line of shared memory."""
MOST_SPLITS: Final = 64
WAVE_BLOCKS: Final = 2
"""Blocks that a core holds at once, and so the blocks of a wave that share panels in the cache, per core."""
HALF: Final = 2.0
"""bytes of an element that the units want in rows of 16 bytes."""
ALIGNED: Final = 8
"""Elements of `HALF` in 16 bytes."""
CHUNK: Final = 8192
"""Shapes priced at once, so that the columns at work stay in the processor's cache."""

MATH, FILL, MEMORY, LAUNCH = range(4)
"""What `Gemms.limit` says: the matrix units, their feed from the shared cache, the memory, or starting."""


@dataclass(frozen=True)
class GemmConstants:
    """How a kernel library drives one pipeline. Fitted; dimensionless where no unit is given."""

    efficiency: float
    """Of the units' peak, in a block's inner loop."""
    fill_per_clock: float
    """bytes/clk that one core takes from the shared cache."""
    step_cycles: float
    """clk of each step that nothing hides."""
    tile_cycles: float
    """clk to start and to write out a tile."""
    memory_efficiency: float
    core_fill: float
    """bytes/clk that one core can draw from memory."""
    start_s: float
    """s over the launch floor."""
    split_start_s: float
    """s of a second pass over partial sums."""
    split_per_clock: float
    """bytes/clk/core of that pass."""
    resident: float
    """Share of the shared cache that an operand may fill and still be there for the next wave."""
    long_row_bytes: float = np.inf
    """bytes of K at which the walk takes twice as long."""
    batched: float = 1.0
    """Seconds of the core's work in a batch (b > 1) over those of the same blocks in one product."""
    batched_tile: float = 0.0
    """The least rows and columns of a tile in a batch."""
    unaligned: float = 2.9
    """Seconds of the core's work where rows of 16-bit operands are no multiples of 16 bytes, over those where they
    are: no vectorised loads, no asynchronous copies. ``benchmarks/fit_training.py``: a vocabulary of 50257 on A100."""
    energy_per_flop: float = 0.0
    """J/FLOP at the chip's peak clock, 0: never short of power. A chip short of it lowers its clock (`power_share`)."""


@dataclass(frozen=True, eq=False)
class Gemms:
    """r shapes."""

    b: Floats
    m: Floats
    n: Floats
    k: Floats
    bytes_a: Floats
    """bytes of an element of the left operand."""
    bytes_b: Floats
    bytes_out: Floats
    read_a: Floats | None = None
    """bytes that memory gives for an element of the left operand; None: `bytes_a` (less where elements repeat)."""
    copies: Floats | None = None
    """Sets of operands that take turns in a measuring loop; None: all is cold."""

    def rows(self, chosen: "slice | Ints") -> "Gemms":
        """Some of the shapes."""
        read_a = None if self.read_a is None else self.read_a[chosen]
        copies = None if self.copies is None else self.copies[chosen]
        columns = (self.b, self.m, self.n, self.k, self.bytes_a, self.bytes_b, self.bytes_out)
        b, m, n, k, bytes_a, bytes_b, bytes_out = (column[chosen] for column in columns)
        return Gemms(b, m, n, k, bytes_a, bytes_b, bytes_out, read_a, copies)


def cold_share(moved: Floats, copies: Floats | None, f: Facts) -> Floats:
    """[r] Share of *moved* [r] bytes that memory, not the cache, gives: all where nothing repeats (*copies* None).

    A loop over *copies* sets of operands leaves nothing of them in a cache that they fill.
    """
    if copies is None or not f.cache_bytes:
        return np.ones_like(moved)
    return np.clip(moved * copies / f.cache_bytes, 0.0, 1.0)


def power_share(facts: Facts, energy_per_flop: float) -> float:
    """Share of the clock that the board's power allows: (0.88 · W / (peak · J per FLOP))^0.6, at most 1.

    The form is our prototypes': power rises with clock and voltage, so a chip at half its budget loses a third.
    """
    if not energy_per_flop:
        return 1.0
    return float(min(1.0, 0.88 * facts.power_w / (facts.flops * energy_per_flop)) ** 0.6)


def price_gemms(shapes: Gemms, facts: Facts, constants: GemmConstants) -> tuple[Floats, Ints]:
    """[r] seconds of each shape, and [r] what limits it (`MATH`, `FILL`, `MEMORY`, `LAUNCH`)."""
    seconds, limit = np.empty(shapes.m.size), np.empty(shapes.m.size, np.int64)
    for start in range(0, shapes.m.size, CHUNK):
        part = slice(start, start + CHUNK)
        seconds[part], limit[part] = _price(shapes.rows(part), facts, constants)
    return seconds, limit


def _price(x: Gemms, f: Facts, c: GemmConstants) -> tuple[Floats, Ints]:
    step = STEP_BYTES / x.bytes_a
    steps = np.ceil(x.k / step)
    most = np.minimum(MOST_SPLITS, steps)
    read_a = x.bytes_a if x.read_a is None else x.read_a
    left, right, result = x.b * x.m * x.k * read_a, x.b * x.k * x.n * x.bytes_b, x.b * x.m * x.n * x.bytes_out
    kept = c.resident * f.cache_bytes
    left_kept, right_kept = left <= kept * x.b, right <= kept * x.b
    cold = cold_share(left + right + result, x.copies, f)
    input_cold = cold
    if x.copies is not None:  # the input is the same all along
        input_cold = np.where(np.isinf(x.copies), 1.0, cold_share(left + right + result, np.ones_like(cold), f))
    wave = WAVE_BLOCKS * f.cores
    partial_s = 8.0 * x.b * x.m * x.n / (c.split_per_clock * f.cores * f.clock_hz)
    rate = f.flops_per_clock * c.efficiency * power_share(f, c.energy_per_flop)
    bandwidth = c.memory_efficiency * f.bandwidth
    slower = (1 + x.k * x.bytes_a / c.long_row_bytes) * np.where(x.b > 1, c.batched, 1.0) / f.clock_hz
    odd = (x.bytes_a == HALF) & ((x.k % ALIGNED != 0) | (x.n % ALIGNED != 0)) & (np.minimum(x.k, x.n) >= ALIGNED)
    slower = np.where(odd, c.unaligned, 1.0) * slower
    too_small = np.where(x.b > 1, c.batched_tile, 0.0)
    restricted = bool(too_small.any())
    again_s = c.split_start_s * f.start_scale + partial_s
    best = np.full(x.m.size, np.inf)
    by_memory, by_math = np.zeros((2, x.m.size), np.bool_)
    for rows, columns in TILES:
        down, across = np.ceil(x.m / rows), np.ceil(x.n / columns)
        tiles = down * across * x.b
        left_moved = left * np.where(left_kept, 1.0, across / np.minimum(np.maximum(wave / down, 1), across))
        right_moved = right * np.where(right_kept, 1.0, down / np.minimum(down, wave)) + result
        moved = left_moved + right_moved
        from_memory = (left_moved * input_cold + right_moved * cold) / bandwidth
        math_step = 2.0 * rows * columns * step / rate
        fill_step = (rows * STEP_BYTES + columns * step * x.bytes_b) / (c.fill_per_clock * f.fill_scale)
        math2, fill2 = math_step * math_step, fill_step * fill_step
        walk_step = np.sqrt(np.sqrt(math2 * math2 + fill2 * fill2)) + c.step_cycles
        filling = np.minimum(np.maximum(np.floor(f.cores / tiles), 1), most)
        for splits in (None, filling, np.minimum(2 * filling, most)):
            blocks = tiles if splits is None else tiles * splits
            walked = steps if splits is None else np.ceil(steps / splits)
            core = np.ceil(blocks / f.cores) * (walked * walk_step + c.tile_cycles) * slower
            drawn = moved / np.minimum(np.minimum(blocks, f.cores) * (c.core_fill * f.clock_hz), f.cache_bandwidth)
            memory = np.maximum(from_memory, drawn)
            took = np.sqrt(core * core + memory * memory)
            if splits is not None:
                took += np.where(splits > 1, again_s, 0.0)
            better = took < best
            if restricted:
                better &= min(rows, columns) >= too_small
            np.copyto(best, took, where=better)
            np.copyto(by_memory, memory > core, where=better)
            np.copyto(by_math, math_step >= fill_step, where=better)
    start = f.start_s(c.start_s)
    limit = np.where(by_memory, MEMORY, np.where(by_math, MATH, FILL))
    return start + best, np.where(best < start, LAUNCH, limit)
