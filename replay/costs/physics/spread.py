"""How far measurements lie from a prediction, by how much of a chip the constants had seen.

A spread is a factor: 80 % of measurements lie between seconds / spread and seconds · spread. It is the 80 % quantile
of |log(predicted / measured)| on the calibration tables, fitted for three distances:

- seen: rows of the very chip were fitted;
- near: another chip of its generation was. Halfway (in logarithms) between the two others;
- far: no chip of its generation was. Rows priced with the constants of another pipeline.

How operators combine into a step: `foretrace.replay.costs.interval`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from foretrace.hardware import Accelerator


@dataclass(frozen=True)
class Spread:
    """Factors to either side that hold 80 % of measurements."""

    seen: float
    near: float
    far: float

    def of(self, distance: str) -> float:
        """That at *distance*: seen, near or far."""
        return float(getattr(self, distance))


UNKNOWN: Final = Spread(1.5, 2.0, 2.5)
"""Of a class of kernels that no table measures: a guess as wide as the widest class that is measured."""


def distance_of(chip: "Accelerator", fitted_on: Mapping[str, str]) -> str:
    """seen, near or far: where *chip* stands to the chips that constants were *fitted_on* (name → generation)."""
    if chip.name in fitted_on:
        return "seen"
    return "near" if chip.generation in fitted_on.values() else "far"
