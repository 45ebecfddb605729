"""Convolution as the matrix multiplication it is: [pixels, k] × [k, channels] for each group, without unfolding.

    m = batch · output pixels, n = output channels / groups, k = input channels / groups · kernel, b = groups

priced as a GEMM (implicit GEMM: Chetlur et al. 2014, cuDNN) whose loads skip a little, and, for 3 × 3 kernels of
stride 1 on ordinary units, as Winograd F(2×2, 3×3): 2.25 times fewer multiplications for more memory traffic (Lavin
and Gray 2016). The faster is taken, as cuDNN's heuristic tries to.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from foretrace.replay.columns import Floats, Ints

from .facts import Facts
from .gemm import GemmConstants, Gemms, price_gemms

WINOGRAD_SAVES: Final = 2.25
"""Multiplications of a direct 3 × 3 over those of F(2×2, 3×3): 36 / 16."""


@dataclass(frozen=True)
class ConvolutionConstants:
    """How a library turns a convolution into a GEMM. Fitted; dimensionless."""

    slowdown: float
    """Seconds over those of the plain GEMM of the same sizes."""
    winograd: float
    """Seconds of the Winograd path over those of a GEMM of 2.25 times fewer multiplications; inf: not used."""
    start_s: float
    """s besides: layout changes, workspace."""


@dataclass(frozen=True, eq=False)
class Convolutions:
    """r convolutions: those of a GEMM, and whether Winograd applies."""

    gemms: Gemms
    input_bytes: Floats
    """bytes of the input once; its unfolded form is never written."""
    three_by_three: Floats
    """1 where the kernel is 3 × 3 of stride 1."""


def price_convolutions(x: Convolutions, f: Facts, g: GemmConstants, c: ConvolutionConstants) -> tuple[Floats, Ints]:
    """[r] seconds of each, and [r] what limits it (as `gemm.price_gemms`)."""
    s = x.gemms
    g = replace(g, unaligned=1.0)  # libraries fill channels up while they unfold
    unfolded = np.maximum(s.b * s.m * s.k, 1)
    read_once = np.minimum(x.input_bytes / unfolded, s.bytes_a)  # bytes of the input an unfolded element stands for
    gemms = Gemms(s.b, s.m, s.n, s.k, s.bytes_a, s.bytes_b, s.bytes_out, read_once)
    direct, limit = price_gemms(gemms, f, g)
    fewer = Gemms(s.b, s.m, s.n, np.maximum(s.k / WINOGRAD_SAVES, 1), s.bytes_a, s.bytes_b, s.bytes_out, read_once)
    winograd = np.where(x.three_by_three > 0, price_gemms(fewer, f, g)[0] * c.winograd, np.inf)
    least = 2 * s.b * s.m * s.n * s.k / f.flops
    return np.minimum(np.maximum(direct * c.slowdown, least), winograd) + c.start_s, limit
