"""Products on a CPU: panels of the weights are copied into the order that the inner kernel reads, then multiplied.

    compute = 2 · b · m · n · k · (1 + idle_rows / m) / (efficiency · FLOP/s)
    traffic = (weights · (1 + packing) + input + output) / (memory_efficiency · bandwidth)
    seconds = launch floor + start + compute + traffic

Copying and multiplying take turns on the same cores, so they add up (Goto and van de Geijn, "Anatomy of
High-Performance Matrix Multiplication", 2008). The inner kernel works on several rows at once: a product of few rows
leaves its registers idle, as if it had *idle_rows* more. One row is a product of a vector: nothing is copied, and
memory decides.
"""

from dataclasses import dataclass

import numpy as np

from foretrace.replay.columns import Floats, Ints

from .facts import Facts
from .gemm import LAUNCH, MATH, MEMORY, Gemms, cold_share

PIPELINE = "cpu"


@dataclass(frozen=True)
class PackedConstants:
    """How a BLAS drives a CPU. Fitted (``benchmarks/fit_cpu.py``); dimensionless where no unit is given."""

    efficiency: float
    """Of the rate that the system states, which a benchmark reached."""
    idle_rows: float
    """Rows."""
    memory_efficiency: float
    """Of the bandwidth that the system states: a copy's, bytes read and written."""
    packing: float
    """Passes over the weights beside reading them once."""
    start_s: float


def price_packed(x: Gemms, f: Facts, c: PackedConstants) -> tuple[Floats, Ints]:
    """[r] seconds of each product, and [r] what limits it (`gemm.MATH`, `gemm.MEMORY`, `gemm.LAUNCH`)."""
    vector = x.m <= 1
    read_a = x.bytes_a if x.read_a is None else x.read_a
    left, right, result = x.b * x.m * x.k * read_a, x.b * x.k * x.n * x.bytes_b, x.b * x.m * x.n * x.bytes_out
    cold = cold_share(left + right + result, x.copies, f)
    rows = x.m + np.where(vector, 0.0, c.idle_rows)
    compute = 2.0 * x.b * rows * x.n * x.k / (c.efficiency * f.flops)
    moved = (right * (1.0 + np.where(vector, 0.0, c.packing)) + left + result) * cold
    traffic = moved / (c.memory_efficiency * f.bandwidth)
    start = f.start_s(c.start_s)
    limit = np.where(traffic > compute, MEMORY, MATH)
    return start + compute + traffic, np.where(compute + traffic < start, LAUNCH, limit)
