"""Operators that move more than they compute: pointwise, norms, softmax, reductions, gathers, copies, sorts.

    memory  = traffic · cold bytes / (memory_efficiency · bandwidth)                     [s]
    feed    = traffic · bytes / (busy cores · per_clock · clock)                         [s]
    units   = vector FLOP / vector rate, special results / special rate                  [s]
    seconds = launch floor + start + (memory² + feed² + units²)^½

*traffic* is how often a kernel moves its compulsory bytes: a row that does not fit a block's registers is read
again by every pass over it (three reads for softmax, two for a norm). Warm bytes are those that the shared
cache may still hold from the op before; of them the share `1 - footprint / cache` survives, none past the cache's size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foretrace.ir import OpKind
from foretrace.replay.columns import KIND_CODE, Floats, Ints

from .facts import Facts

BLOCK_BYTES = 16384.0
"""Bytes that one block of a streaming kernel moves: 256 threads, four vectors of 16 bytes each. A kernel of fewer
blocks than cores keeps only that many cores busy."""

MEMORY, VECTOR, SPECIAL, LAUNCH = range(4)
"""What limits a row."""


@dataclass(frozen=True)
class StreamConstants:
    """How well a chip streams. Fitted; dimensionless where no unit is given."""

    memory_efficiency: float
    core_fill: float
    """bytes/clk that one core draws, from wherever."""
    start_s: float
    """s over the launch floor."""
    vector_efficiency: float
    """Of the ordinary and special units' peak."""


@dataclass(frozen=True)
class TrafficConstants:
    """Times a kernel moves its compulsory bytes, by family; 1 is the least. Fitted."""

    pointwise: float = 1.0
    gelu_per_clock: float = np.inf
    """bytes/clk that one core gets through (a kernel that does not load whole vectors waits on its own latency)."""
    gated_per_clock: float = np.inf
    """The same of silu_and_mul and its like."""
    rms_norm_per_clock: float = np.inf
    norm_short: float = 1.0
    norm_long: float = 1.5
    """Rows past `long_row`: two reads and one write."""
    softmax_short: float = 1.0
    softmax_long: float = 1.5
    long_row: float = 1024.0
    """Elements of a row that one block still keeps in registers (PyTorch: 1024)."""
    reduction: float = 1.0
    amax: float = 1.0
    """The scale of a tensor or row, before quantising."""
    amax_start_s: float = 0.0
    """s more of that: a kernel of its own."""
    quantize: float = 1.0
    dynamic: float = 1.0
    """A scale and its application, together."""
    dynamic_start_s: float = 0.0
    """s more of those: kernels of their own."""
    quantize_blocks: float = 1.0
    """A scale for each block of 128 elements, and its application."""
    quantize_blocks_start_s: float = 0.0
    gather: float = 1.0
    sort: float = 8.0
    """Radix sort of 32-bit keys, 4 bits at a pass, each a read and a write (Merrill and Grimshaw 2011)."""
    scan: float = 1.0
    copy: float = 1.0


@dataclass(frozen=True, eq=False)
class Streams:
    """r operators."""

    bytes: Floats
    """Compulsory."""
    warm_bytes: Floats
    """Of them, those that the cache may hold."""
    vector_flops: Floats
    special_flops: Floats
    traffic: Floats
    """Times the bytes move."""
    per_clock: Floats
    """bytes/clk that the kernel gets through on one core at the most."""
    extra_s: Floats
    """s of further kernels."""


def traffic_of(
    kinds: NDArray[np.int8], names: Sequence[str], row_length: Floats, c: TrafficConstants
) -> tuple[Floats, Floats, Floats]:
    """[r] times the bytes of each op move, [r] bytes/clk that it gets through on a core, [r] s of further kernels."""
    bare = np.array([_family(name) for name in names], object)
    traffic = np.full(len(names), c.pointwise)
    for kind, value in (
        (OpKind.REDUCTION, c.reduction),
        (OpKind.EMBEDDING, c.gather),
        (OpKind.GATHER_SCATTER, c.gather),
        (OpKind.SORT, c.sort),
        (OpKind.SCAN, c.scan),
        (OpKind.COPY, c.copy),
    ):
        traffic[kinds == KIND_CODE[kind]] = value
    long = row_length > c.long_row
    norms, softmaxes = kinds == KIND_CODE[OpKind.NORM], kinds == KIND_CODE[OpKind.SOFTMAX]
    traffic[norms] = np.where(long, c.norm_long, c.norm_short)[norms]
    traffic[softmaxes] = np.where(long, c.softmax_long, c.softmax_short)[softmaxes]
    for family, value in (
        ("quantize", c.quantize),
        ("amax", c.amax),
        ("dynamic", c.dynamic),
        ("blocks", c.quantize_blocks),
    ):
        traffic[bare == family] = value
    per_clock = np.full(len(names), np.inf)
    for family, value in (
        ("rms_norm", c.rms_norm_per_clock),
        ("gelu", c.gelu_per_clock),
        ("gated", c.gated_per_clock),
    ):
        per_clock[bare == family] = value
    traffic[bare == "rms_norm"] = 1.0
    extra_s = np.zeros(len(names))
    for family, value in (
        ("amax", c.amax_start_s),
        ("dynamic", c.dynamic_start_s),
        ("blocks", c.quantize_blocks_start_s),
    ):
        extra_s[bare == family] = value
    return traffic, per_clock, extra_s


def _family(name: str) -> str:
    """``foretrace.silu_and_mul`` → gated: what `TrafficConstants` knows by name."""
    if "rms_norm" in name:
        return "rms_norm"
    if "_and_mul" in name or "swiglu" in name or "geglu" in name:
        return "gated"
    if "compute_scale" in name or "amax" in name:
        return "amax"
    if "dynamic_quantize" in name:
        return "blocks" if "blocks" in name else "dynamic"
    if "quantize" in name and "dequantize" not in name:
        return "quantize"
    return "gelu" if "gelu" in name else ""


def price_streams(x: Streams, f: Facts, c: StreamConstants) -> tuple[Floats, Ints]:
    """[r] seconds of each operator, and [r] what limits it."""
    survives = np.clip(1 - x.bytes / f.cache_bytes, 0, 1) if f.cache_bytes else np.zeros_like(x.bytes)
    warm = np.minimum(x.warm_bytes, x.bytes) * survives
    memory = x.traffic * (x.bytes - warm) / (c.memory_efficiency * f.bandwidth)
    # the core that has most to do moves a block, or its share of the whole
    busy = np.maximum(x.bytes / np.maximum(np.minimum(x.bytes, BLOCK_BYTES), np.maximum(x.bytes / f.cores, 1.0)), 1.0)
    fed = np.minimum(busy * np.minimum(c.core_fill, x.per_clock) * f.clock_hz, f.cache_bandwidth)
    feed = x.traffic * x.bytes / fed
    per_second = c.vector_efficiency * busy * f.clock_hz
    vector = x.vector_flops / (f.vector_per_clock * per_second)
    special = x.special_flops / (f.exp_per_clock * per_second)
    start = f.start_s(c.start_s)
    took = np.sqrt(memory**2 + feed**2 + vector**2 + special**2)
    limit = np.stack([np.maximum(memory, feed), vector, special]).argmax(axis=0)
    extra = x.extra_s * f.start_scale
    return start + took + extra, np.where(took < start + extra, LAUNCH, limit)
