"""How far measurements lie from a prediction, by how much of a chip the constants had seen.

A spread is a factor: 80 % of measurements lie between seconds / spread and seconds · spread. It is the 80 % quantile
of |log(predicted / measured)| on the calibration tables, fitted for three distances:

- seen: rows of the very chip were fitted;
- near: another chip of its generation was. Halfway (in logarithms) between the two others;
- far: no chip of its generation was. Rows priced with the constants of another pipeline.

Errors of operators are correlated: a chip's clock or memory is off for all of them. With a share `correlation` of
the variance common to all rows of a chip, the errors of a sum whose parts take shares w of it have the variance
correlation + (1 - correlation) · sum w² of a single row's (`step_share`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from foretrace.replay.columns import Floats

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


def step_share(seconds: Floats, correlation: float) -> float:
    """Spread of a sum of independent-but-for-*correlation* parts [r] over that of one, in logarithms."""
    total = seconds.sum()
    if not total:
        return 1.0
    shares = seconds / total
    return float(np.sqrt(correlation + (1 - correlation) * (shares * shares).sum()))
