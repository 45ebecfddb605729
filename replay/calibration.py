"""Fitting constants of a profile to measurements: least squares on log(predicted / measured), with a pull to a prior.

The same fit makes the profiles that ship (from all of a table, weak prior) and a user's own (from tens of points,
strong prior). Constants are fitted as logarithms: they stay positive, and a prior of weight w holds each within about
1 / w of its start, in units of e-folds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from .columns import Floats, Ints, OpColumns
from .costs.physics import Physics, Profile

if TYPE_CHECKING:
    from foretrace.hardware import System

SOFT: Final = 0.1
"""|log error| beyond which a row counts linearly, not squared (soft L1): measured tables hold outliers."""
LEAST: Final = 1e-6
"""What a constant of 0 starts its fit from, as its logarithm has no value."""
CAPS: Final[Mapping[str, float]] = {
    "efficiency": 0.98,
    "memory_efficiency": 0.98,
    "exp_efficiency": 1.2,
    "vector_efficiency": 1.0,
    "around_efficiency": 0.98,
    "tail": 1.0,
    "reduce_s": 1e-4,
    "bandwidth_efficiency": 0.98,
}
"""The most that a fit may make of a constant: no unit does more than its peak."""


@dataclass(frozen=True, eq=False)
class Sample:
    """n measured rows of one machine: the operators that each is, and what they took together."""

    operators: OpColumns
    row: Ints
    """[r] the row of each operator."""
    seconds: Floats
    """[n] measured, s."""
    system: "System"
    eager: bool = False
    """True where a row is timed with its dispatch, and so is never shorter than the host's own time."""

    def predict(self, profile: Profile) -> Floats:
        """[n] s of each row."""
        costs = Physics(profile).price(self.operators, self.system)
        return costs.timed(self.row, self.seconds.size, self.eager)


@dataclass(frozen=True)
class Free:
    """Constants of one set of a profile that a fit may change."""

    kernels: str
    pipeline: str
    names: tuple[str, ...]


def fit(profile: Profile, samples: Sequence[Sample], free: Sequence[Free], prior: float = 0.1) -> Profile:
    """*profile* with the constants *free* fitted to *samples*; every sample weighs the same, however many rows it has.

    *prior*: weight of each constant's start, in rows per sample set (see the module). Needs scipy.
    """
    from scipy.optimize import least_squares

    places = [(one.kernels, one.pipeline, name) for one in free for name in one.names]
    given = np.array([max(getattr(profile.sets[k, p], name), LEAST) for k, p, name in places])
    limit = np.log([CAPS.get(name, np.inf) for *_, name in places])
    start = np.minimum(np.log(given), limit - 1e-3)
    weights = [np.full(s.seconds.size, 30.0 / np.sqrt(s.seconds.size * len(samples))) for s in samples]

    def residuals(logs: Floats) -> Floats:
        fitted = with_constants(profile, dict(zip(places, np.exp(logs).tolist(), strict=True)))
        errors = [
            np.log(s.predict(fitted) / s.seconds) * w for s, w in zip(samples, weights, strict=True) if s.seconds.size
        ]
        return np.concatenate([*errors, (logs - start) * prior])

    found = least_squares(
        residuals, start, bounds=(-np.inf, limit), loss="soft_l1", f_scale=SOFT, diff_step=0.02, max_nfev=30
    )
    return with_constants(profile, dict(zip(places, np.exp(found.x).tolist(), strict=True)))


def with_constants(profile: Profile, values: Mapping[tuple[str, str, str], float]) -> Profile:
    """*profile* with (class, pipeline, constant) set to *values*."""
    sets = dict(profile.sets)
    by_set: dict[tuple[str, str], dict[str, float]] = {}
    for (kernels, pipeline, name), value in values.items():
        by_set.setdefault((kernels, pipeline), {})[name] = value
    for key, changed in by_set.items():
        sets[key] = replace(sets[key], **changed)
    return replace(profile, sets=sets)


@dataclass(frozen=True)
class Errors:
    """How predictions p stand to measurements y. Fractions."""

    n: int
    mape: float
    median: float
    p90: float
    bias: float
    """Geometric mean of p / y."""

    @classmethod
    def of(cls, predicted: Floats, measured: Floats) -> "Errors":
        """The errors of *predicted* against *measured* [n]; NaN without a row."""
        if not measured.size:
            return cls(0, np.nan, np.nan, np.nan, np.nan)
        off = np.abs(predicted / measured - 1)
        bias = float(np.exp(np.mean(np.log(predicted / measured))))
        return cls(measured.size, float(off.mean()), float(np.median(off)), float(np.quantile(off, 0.9)), bias)
