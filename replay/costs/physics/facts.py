"""What the formulae ask of a chip, for one number format: rates per core and clock, so that constants carry over."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from foretrace.ir import DTYPES, DType
from foretrace.replay.costs.roofline import matrix_rate

if TYPE_CHECKING:
    from foretrace.hardware import Accelerator

SIMT: Final = "simt"
"""Matrix work on a GPU's ordinary units, as ``simt-GENERATION``."""
GENERIC: Final = "generic"
"""Constants for a chip of no pipeline that was ever measured."""

PIPELINES: Final = {
    "volta": "volta",
    "turing": "volta",
    "ampere": "ampere",
    "ada": "ampere",
    "blackwell-geforce": "ampere",
    "hopper": "hopper",
    "blackwell": "hopper",
    "cdna1": "cdna",
    "cdna2": "cdna",
    "cdna3": "cdna",
    "cdna4": "cdna",
    "x86": "cpu",
    "arm": "cpu",
}
"""Generation → the way its matrix units are fed: mma.sync from registers (volta), cp.async into shared memory and
mma.sync (ampere), TMA and wgmma or tcgen05 (hopper), MFMA (cdna). Constants belong to one way each: ones fitted on
another are 35 to 65 % wrong (our prototypes)."""


CACHE_SPEED: Final = 3.0
"""Bandwidth of a shared cache over that of the memory where it is not published: between H100's (1.9) and those of A100
and RTX 4090 (3.5 and 4.1) in the library."""
LARGEST_CORE: Final = 4096.0
"""FLOP/clk of the largest core that constants were fitted on (Hopper's SM in 16 bits). A device with a few larger ones
(a TPU's, an NPU's) is taken as so many cores of this size: what feeds them is as wide."""
FITTED_CLOCK_HZ: Final = {"ampere": 1.41e9, "hopper": 1.83e9}
"""Clock of the chips that the fixed times of a pipeline were fitted on: A100 SXM and H100 SXM."""

FILL_SCALE: Final = {"blackwell": 2.0}
"""What a generation feeds its cores over the one it resembles: two cores of a Blackwell pair each load half of an
operand and share it (tcgen05 with cta_group::2, PTX ISA 8.6), as its units ask twice of Hopper's a clock."""


@dataclass(frozen=True)
class Facts:
    """One accelerator in one number format. SI units; rates per clock are of one core."""

    pipeline: str
    """Whose constants apply."""
    cores: int
    clock_hz: float
    flops_per_clock: float
    """FLOP/clk/core of matrix work in the format."""
    vector_per_clock: float
    """FLOP/clk/core of ordinary work in the format."""
    exp_per_clock: float
    """Exponentials/clk/core."""
    bandwidth: float
    """bytes/s of the memory."""
    cache_bandwidth: float
    """bytes/s of the shared cache; `CACHE_SPEED` times the memory's where not published."""
    cache_bytes: float
    """bytes of the shared cache; 0 without one, or where the bandwidth is what a benchmark reached through it."""
    launch_floor_s: float
    power_w: float
    """W, board limit; inf where not published."""
    fill_scale: float
    """Bytes a clock that reach a core over those of the chip that its pipeline was fitted on."""
    start_scale: float
    """Fixed times of a kernel over those of the chip that its pipeline was fitted on: they are clocks, not seconds."""

    def start_s(self, seconds: float) -> float:
        """s before a kernel's first block works and after its last: the shortest kernel, and *seconds* as fitted."""
        return self.launch_floor_s + seconds * self.start_scale

    @property
    def flops(self) -> float:
        """FLOP/s of matrix work."""
        return self.flops_per_clock * self.cores * self.clock_hz


def pipeline_of(chip: "Accelerator") -> str:
    """The pipeline of *chip*'s matrix units."""
    return PIPELINES.get(chip.cost_generation, PIPELINES.get(chip.generation, GENERIC))


def facts_of(chip: "Accelerator", dtype: DType) -> Facts:
    """The `Facts` of *chip* for *dtype* (that of the units which run it, where the chip has none of its own)."""
    rate, used = matrix_rate(chip, dtype)
    on_matrix_units = bool(chip.matrix_flops(used))
    clock = chip.clock_hz if on_matrix_units else chip.vector_clock_hz or chip.clock_hz
    pipeline = pipeline_of(chip)
    if chip.kind == "gpu" and not on_matrix_units:
        pipeline = f"{SIMT}-{chip.cost_generation}"
    if chip.kind == "cpu":
        pipeline = "cpu"
    vector = chip.vector_flops(dtype) or chip.vector_flops(DTYPES["float32"]) or rate
    cores = chip.cores
    if chip.kind in ("tpu", "npu"):
        cores = max(cores, math.ceil(rate / (clock * LARGEST_CORE)))
    vector_clock = chip.vector_clock_hz or chip.clock_hz
    return Facts(
        pipeline,
        cores,
        clock,
        rate / (cores * clock),
        vector / (cores * vector_clock),
        (chip.special_rate or vector / 8) / (cores * vector_clock),
        chip.memory.bandwidth,
        (chip.cache.bandwidth if chip.cache else None) or CACHE_SPEED * chip.memory.bandwidth,
        chip.cache.capacity_bytes if chip.cache and not chip.measured else 0.0,
        chip.launch_floor_s,
        chip.tdp_w or float("inf"),
        FILL_SCALE.get(chip.generation, 1.0),
        FITTED_CLOCK_HZ.get(pipeline, clock) / clock,
    )
