"""Grouped matrix multiplication, the experts of a mixture: rows of A active experts, each by weights [k, n] of its own.

As `gemm`, with the tiles of each expert by itself. What is known of the rows r_e of the experts is their sum m, how
many experts have any (*active*) and the most (*longest*); between these the rows of the expert at quantile q are taken
as longest · q^p, with p = longest · active / m - 1, which has the right mean; eighths of the experts stand for all. For
a tile of bm × bn

    blocks  = sum over experts of ceil(r_e / bm) · ceil(n / bn),   waves = ceil(blocks / cores)
    math    = 2 · bm · bn · bk · steps / (FLOP per clock · efficiency · power)              [cycles]
    fill    = (bm · bytes of A + bn · bytes of B) · bk · steps / fill_per_clock             [cycles]
    core    = waves · ((math⁴ + fill⁴)^¼ + steps · step_cycles + tile_cycles) / clock       [s]
    memory  = (active · n · k · bytes of B + m · k · bytes of A + m · n · bytes out) / (memory_efficiency · bandwidth),
              and no less than one block's operands / (core_fill · clock)                   [s]
    seconds = launch floor + start + (core² + memory²)^½                                    least over tiles

after MegaBlocks (Gale et al. 2023, block-sparse products tiled an expert at a time) and CUTLASS's grouped GEMM. Every
active expert's weights come from memory once, so few rows cost what the weights of the experts that they touch cost.

A fused layer on one rank is two of these, and around them kernels that route, permute, activate and sum:

    layer = bookkeeping + first + second + around bytes / (around_efficiency · bandwidth)

Bookkeeping holds the floors of those kernels too. A measured layer's first product carries them (`Groups.around`); in
a captured graph they are operators of their own. A benchmark's loads are made by `routing`.
"""

import re
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from foretrace.ir import ForetraceError
from foretrace.replay.columns import Floats, Ints

from .facts import Facts
from .gemm import FILL, LAUNCH, MATH, MEMORY, STEP_BYTES, power_share

TILES: Final = (
    (16, 64), (16, 128), (32, 64), (32, 128), (64, 64), (64, 128), (64, 256), (128, 64), (128, 128), (128, 256),
    (256, 128),
)  # fmt: skip
"""Rows of one expert and columns of outputs that one block makes (the menus of CUTLASS, Triton and Marlin MoE)."""
EIGHTHS: Final = np.arange(9)[:, None] / 8


@dataclass(frozen=True)
class GroupedConstants:
    """How a kernel library drives one pipeline. Fitted; dimensionless where no unit is given; see `GemmConstants`."""

    efficiency: float
    fill_per_clock: float
    """bytes/clk that one core takes from the shared cache."""
    step_cycles: float
    tile_cycles: float
    memory_efficiency: float
    core_fill: float
    """bytes/clk that one core can draw from memory."""
    start_s: float
    """s over the launch floor, of one grouped product."""
    bookkeeping_s: float
    """s of a layer's other kernels, less their bytes."""
    around_efficiency: float
    """Of the memory's bandwidth in those kernels."""
    energy_per_flop: float = 0.0
    """J/FLOP at the chip's peak clock, 0: never short of power."""


@dataclass(frozen=True, eq=False)
class Groups:
    """r grouped products."""

    rows: Floats
    """Rows of all experts here together."""
    active: Floats
    """Experts that have a row."""
    longest: Floats
    """Rows of the busiest expert."""
    n: Floats
    k: Floats
    bytes_a: Floats
    """bytes of an element of the activations."""
    bytes_b: Floats
    """bytes of an element of the weights, scales included."""
    bytes_out: Floats
    around: Floats | None = None
    """bytes that the kernels around the products of a fused layer move, on the first of its two; NaN: on its own."""

    def take(self, rows: Ints) -> "Groups":
        """Some of the products."""
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: column[rows] for name, column in columns.items() if column is not None})


@dataclass(frozen=True, eq=False)
class Layers:
    """r fused layers, each on one rank."""

    tokens: Floats
    hidden: Floats
    inter: Floats
    """Width of an expert on this rank."""
    projections: Floats
    """Columns of the first product over `inter`: 2 with a gate, 1 without."""
    rows: Floats
    """As in `Groups`."""
    active: Floats
    longest: Floats
    around_rows: Floats
    """Rows that the kernels around the products move: those of the rank, or all (tokens · topk) where they mask."""
    bytes_a: Floats
    bytes_b: Floats
    quantised: Floats
    """1 where activations arrive in 16 bits and are quantised, 0 else."""


def quantile_rows(x: Groups) -> Floats:
    """[8, r] the mean rows of an expert in each eighth of the active ones, the least busy first."""
    mean = x.rows / x.active
    longest = np.maximum(x.longest, mean)
    below = EIGHTHS ** (longest / mean)  # the share of the rows up to a quantile: the integral of longest · q^p
    return np.asarray(np.maximum(8 * mean * np.diff(below, axis=0), np.minimum(mean, 1.0)))


def price_groups(x: Groups, facts: Facts, constants: GroupedConstants) -> tuple[Floats, Ints]:
    """[r] seconds of each product, and [r] what limits it (`gemm.MATH`, `FILL`, `MEMORY`, `LAUNCH`)."""
    f, c = facts, constants
    step = STEP_BYTES / x.bytes_a
    steps = np.ceil(x.k / step)
    rate = f.flops_per_clock * c.efficiency * power_share(f, c.energy_per_flop)
    bandwidth = c.memory_efficiency * f.bandwidth
    moved = x.active * x.n * x.k * x.bytes_b + x.rows * (x.k * x.bytes_a + x.n * x.bytes_out)
    expert_rows = quantile_rows(x)
    best = np.full(x.rows.size, np.inf)
    shares = np.zeros((3, x.rows.size))
    for rows, columns in TILES:
        blocks = x.active * np.ceil(expert_rows / rows).mean(axis=0) * np.ceil(x.n / columns)
        math = 2.0 * rows * columns * step / rate
        fill = (rows * STEP_BYTES + columns * step * x.bytes_b) / (c.fill_per_clock * f.fill_scale)
        walk = np.sqrt(np.sqrt(math**4 + fill**4)) + c.step_cycles
        core = np.ceil(blocks / f.cores) * (steps * walk + c.tile_cycles) / f.clock_hz
        operands = x.k * (np.minimum(rows, x.longest) * x.bytes_a + np.minimum(columns, x.n) * x.bytes_b)
        memory = np.maximum(moved / bandwidth, operands / (c.core_fill * f.clock_hz))
        took = np.sqrt(core * core + memory * memory)
        better = took < best
        best = np.where(better, took, best)
        for share, now in zip(shares, (math, fill, memory / core), strict=True):
            np.copyto(share, now, where=better)
    start = f.start_s(c.start_s)
    limit = np.where(shares[2] > 1, MEMORY, np.where(shares[0] >= shares[1], MATH, FILL))
    limit = np.where(best < start, LAUNCH, limit)
    if x.around is None:
        return start + best, limit
    around = np.where(np.isnan(x.around), 0.0, c.bookkeeping_s + x.around / (c.around_efficiency * f.bandwidth))
    return start + best + around, np.where(around > start + best, LAUNCH, limit)


def balanced(rows: Floats, groups: Floats) -> tuple[Floats, Floats]:
    """[r] experts that have any of *rows* dealt out in turn to *groups*, and [r] rows of the busiest."""
    active = np.minimum(groups, rows)
    return active, np.ceil(rows / active)


def products(x: Layers) -> tuple[Groups, Groups]:
    """The two grouped products of each layer, in order; the first carries the kernels around them."""
    two = np.full_like(x.rows, 2.0)
    wide = x.inter * x.projections
    first = Groups(x.rows, x.active, x.longest, wide, x.hidden, x.bytes_a, x.bytes_b, two, around_bytes(x))
    return first, Groups(x.rows, x.active, x.longest, x.hidden, x.inter, x.bytes_a, x.bytes_b, two)


def around_bytes(x: Layers) -> Floats:
    """[r] bytes that the kernels around the products move, in 16 bits: permute, quantise, activate, sum.

    Permuting reads and writes the rows; activating reads the first product and writes its input to the second; the
    sum reads a row for each expert of a token and writes the token. Quantising reads 2 bytes and writes `bytes_a`,
    of tokens before they are permuted or of rows after. A kernel that masks the rows of other ranks writes zeros there.
    """
    permute = 4 * x.rows * x.hidden
    activate = 2 * x.around_rows * x.inter * (x.projections + 1)
    combine = 2 * x.hidden * (x.around_rows + x.tokens)
    zeros = 2 * (x.around_rows - x.rows) * (x.projections * x.inter + x.hidden)
    narrowed = x.quantised * (np.maximum(x.rows, x.tokens) * x.hidden + x.rows * x.inter)
    return permute + activate + combine + np.maximum(zeros, 0.0) + narrowed * (2 + x.bytes_a)


# --- the loads that a routing distribution gives -----------------------------------------------------------------

DEALS: Final = 16
"""Ways of dealing the experts to ranks that `routing` takes the mean of."""
_WEYL: Final = 0.6180339887498949
"""Golden ratio - 1: its multiples are the most even sequence (Weyl; Kronecker)."""


class Load(NamedTuple):
    """Rows of the experts of one rank."""

    rows: float
    active: float
    longest: float


def routing(tokens: int, experts: int, topk: int, ranks: int = 1, distribution: str = "balanced") -> Load:
    """The load of the busiest of *ranks* ranks of *experts*, by the distribution's name.

    ``balanced`` deals tokens out in turn. ``power_law_A`` is aiconfigurator's benchmark (its collector's
    ``power_law_logits_v3``): loads of experts from a power law of exponent A between 1 and 0.8 of the tokens
    (0.01 and 2 where rows are fewer than experts), scaled to tokens · topk, and the rank of the largest sum. Theirs
    are one random draw; here the loads are the law's quantiles, dealt to ranks in `DEALS` even ways, and the mean.

    Raises `ForetraceError` for another name and for sizes that no router has.
    """
    if min(tokens, experts, topk, ranks) < 1 or topk > experts or experts % ranks:
        raise ForetraceError(f"routing: {tokens} tokens to {topk} of {experts} experts on {ranks} ranks")
    match = re.fullmatch(r"power_law_(\d+(?:\.\d+)?)", distribution)
    if match is None and distribution not in ("", "balanced", "uniform"):
        raise ForetraceError(f"routing: expected balanced or power_law_ALPHA, got {distribution!r}")
    if match is None:
        rows = float(np.ceil(tokens * topk / ranks))
        active, longest = balanced(np.array(rows), np.array(experts / ranks))
        return Load(rows, float(active), float(longest))
    return _power_law(float(match[1]), tokens, experts, topk, ranks)


def _whole(weights: Floats, total: int, most: int) -> Floats:
    """[experts] whole rows, *total* in all and at most *most* each, in the proportion of *weights* (ascending)."""
    if total >= most * weights.size:  # every expert is full
        return np.full(weights.size, float(most))
    order = np.arange(weights.size, 0, -1) - 1  # the heaviest first: they are the ones that are full
    full = np.arange(weights.size)
    scale = (total - most * full) / np.cumsum(weights)[order]  # of the others, with so many full
    share = np.minimum(weights * scale[int(np.argmax(weights[order] * scale <= most))], most)
    rows: Floats = np.floor(share + 1e-9)
    left = round(float(total - rows.sum()))
    rows[np.argsort(np.where(rows < most, rows - share, 1.0), kind="stable")[:left]] += 1  # largest remainders
    return rows


@lru_cache(maxsize=1 << 14)
def _power_law(alpha: float, tokens: int, experts: int, topk: int, ranks: int) -> Load:
    low, high = (1.0, max(0.8 * tokens, 1.0)) if tokens * topk > experts else (0.01, 2.0)
    u = (np.arange(experts) + 0.5) / experts
    power = 1 - alpha
    drawn = low * (high / low) ** u if power == 0 else ((high**power - low**power) * u + low**power) ** (1 / power)
    whole = _whole(drawn, tokens * topk, tokens)
    found = []
    for deal in range(1, DEALS + 1 if ranks > 1 else 2):
        order = np.argsort(np.modf(np.arange(1, experts + 1) * (_WEYL * deal + deal**2 * _WEYL**3))[0], kind="stable")
        groups = whole[order].reshape(ranks, -1)
        busiest = groups[groups.sum(axis=1).argmax()]
        found.append((busiest.sum(), (busiest > 0).sum(), busiest.max()))
    rows, active, longest = np.maximum(np.array(found, np.float64).mean(axis=0), 1.0)
    return Load(float(rows), float(active), float(longest))
