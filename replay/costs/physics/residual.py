"""What measurements of a chip say beyond the formulae: a correction of each class of kernels, stored as plain numbers.

A correction is a factor and, where enough was measured, a Gaussian process on log(measured / physics) over the shapes
that were measured: near them it follows what they took, away from them it returns to the factor alone. It is data (the
points, a weight each, a length a feature), read from a profile's YAML and evaluated with numpy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from foretrace.ir import ForetraceError
from foretrace.replay.columns import KINDS, Floats, Ints, OpColumns

MOST_POINTS: Final = 3000
"""Points that a residual holds at the most."""
MOST_FEATURES: Final = 96
"""Features that its points have at the most."""
MOST_FACTOR: Final = 8.0
"""What a correction never goes beyond, up or down: further off, a row is no row of the class."""
ROWS_AT_ONCE: Final = 2048
"""Rows predicted together: what bounds the memory of a call."""

ATTRIBUTES: Final = (
    "b", "m", "n", "k", "weight_bytes", "batch", "q_len", "kv_len", "heads", "kv_heads", "head_dim", "v_dim", "window",
    "kv_bytes", "groups", "active", "longest", "around_bytes", "out_channels", "ranks", "nodes", "bytes", "launched",
    "copies",
)  # fmt: skip
"""Sizes of operators that a feature may be: its logarithm, 0 where an operator has none."""
DERIVED: Final = ("row_length", "bits", "flops", "moved", "seconds")
"""Features that every operator has: elements of a row, bits of its format, FLOP, bytes moved, the physics' seconds."""
CATEGORIES: Final = ("software", "name", "kind")
"""What is the same or not; a feature is ``name=aten.mm.default``."""
SAME: Final = float(np.sqrt(0.5))
"""The value of a category's feature where it holds: two that differ lie 1 apart."""


@dataclass(frozen=True, eq=False)
class Operators:
    """Some rows of a table as features see them."""

    columns: OpColumns
    at: Ints
    """[n] the rows."""
    seconds: Floats
    """[n] s by physics alone."""
    software: str

    def feature(self, name: str) -> Floats:
        """[n] one feature. Raises `KeyError` for a name that is none."""
        category, equals, value = name.partition("=")
        columns, at = self.columns, self.at
        if equals:
            if category == "software":
                return np.full(at.size, SAME * (value == self.software))
            if category == "name":
                return SAME * np.array([columns.names[i] == value for i in at.tolist()], np.float64)
            if category == "kind":
                return SAME * np.array([str(kind) == value for kind in KINDS], np.float64)[columns.kind[at]]
            raise KeyError(name)
        if name in ATTRIBUTES:
            found = columns.attribute(name)[at]
            return np.asarray(np.log(np.where(np.isfinite(found) & (found > 0), found, 1.0)))
        if name == "row_length":
            return np.log(np.maximum(columns.row_length()[at], 1.0))
        if name == "bits":
            return np.log(columns.by_dtype(lambda d: float(d.bits))[at])
        if name == "flops":
            return np.asarray(np.log1p((columns.matrix_flops + columns.vector_flops)[at]))
        if name == "moved":
            return np.log(np.maximum(columns.bytes[at], 1.0))
        if name == "seconds":
            return np.log(np.maximum(self.seconds, 1e-9))
        raise KeyError(name)

    def categories(self) -> list[str]:
        """The category features that hold of any of the rows, sorted."""
        kinds = {str(KINDS[code]) for code in np.unique(self.columns.kind[self.at]).tolist()}
        names = {self.columns.names[i] for i in self.at.tolist()}
        return sorted(
            [f"software={self.software}", *(f"kind={v}" for v in kinds), *(f"name={v}" for v in names if len(v) < 100)]
        )

    def matrix(self, names: Sequence[str]) -> Floats:
        """[n, f] the features called *names*."""
        return np.stack([self.feature(name) for name in names], axis=1) if names else np.zeros((self.at.size, 0))


@dataclass(frozen=True, eq=False)
class Residual:
    """A Gaussian process of p points in f features, as its mean: a Matérn 3/2 kernel times a weight each."""

    features: tuple[str, ...]
    lengths: Floats
    """[f] how far along each feature two points tell of each other."""
    points: Floats
    """[p, f]"""
    weights: Floats
    """[p]"""

    def log_factor(self, x: Floats) -> Floats:
        """[n] log(measured / physics) expected at *x* [n, f], before the factor of the class."""
        points = self.points / self.lengths
        found = np.empty(x.shape[0])
        for begin in range(0, x.shape[0], ROWS_AT_ONCE):
            found[begin : begin + ROWS_AT_ONCE] = (
                matern(distance(x[begin : begin + ROWS_AT_ONCE] / self.lengths, points)) @ self.weights
            )
        return found


@dataclass(frozen=True, eq=False)
class Correction:
    """That of one class of kernels on one pipeline."""

    scale: float = 1.0
    residual: Residual | None = None

    def factor(self, operators: Operators) -> Floats:
        """[n] measured over physics, as far as is known."""
        log = np.full(operators.at.size, np.log(self.scale))
        if self.residual is not None:
            log += self.residual.log_factor(operators.matrix(self.residual.features))
        most = np.log(MOST_FACTOR)
        return np.asarray(np.exp(np.clip(log, -most, most)))


def distance(x: Floats, y: Floats) -> Floats:
    """[n, p] Euclidean distances of *x* [n, f] and *y* [p, f]."""
    square = (x * x).sum(1)[:, None] + (y * y).sum(1) - 2 * x @ y.T
    return np.asarray(np.sqrt(np.maximum(square, 0.0)))


def matern(r: Floats) -> Floats:
    """The Matérn 3/2 kernel of amplitude 1 at distances *r*: once differentiable, as times of kernels are at best."""
    scaled = np.sqrt(3.0) * r
    return np.asarray((1 + scaled) * np.exp(-scaled))


# --- as YAML -----------------------------------------------------------------------------------------------------


def write_residual(residual: Residual) -> dict[str, Any]:
    """As plain data: numbers of a point in one line of text, which reads fast."""
    return {
        "features": list(residual.features),
        "lengths": [float(f"{v:.5g}") for v in residual.lengths.tolist()],
        "points": "\n".join(" ".join(f"{v:.5g}" for v in row) for row in residual.points.tolist()),
        "weights": " ".join(f"{v:.7g}" for v in residual.weights.tolist()),
    }


def read_residual(where: str, given: Any) -> Residual:
    """What `write_residual` wrote. Raises `ForetraceError` that names *where* for anything else."""
    if not isinstance(given, dict) or set(given) != {"features", "lengths", "points", "weights"}:
        raise ForetraceError(f"{where}: expected a mapping of features, lengths, points and weights")
    names = given["features"]
    if not isinstance(names, list) or not 0 < len(names) <= MOST_FEATURES:
        raise ForetraceError(f"{where}.features: expected a list of 1 to {MOST_FEATURES} names")
    for name in names:
        head, equals, _ = str(name).partition("=")
        if head not in (CATEGORIES if equals else (*ATTRIBUTES, *DERIVED)):
            raise ForetraceError(
                f"{where}.features: no feature {str(name)[:40]!r}: one of {', '.join((*ATTRIBUTES, *DERIVED))}, "
                f"or {', '.join(f'{c}=...' for c in CATEGORIES)}"
            )
    lengths = given["lengths"]
    if not isinstance(lengths, list) or len(lengths) != len(names):
        raise ForetraceError(f"{where}.lengths: expected a list of {len(names)} numbers, one a feature")
    scale = _numbers(f"{where}.lengths", " ".join(map(str, lengths)), len(names))
    if (scale <= 0).any():
        raise ForetraceError(f"{where}.lengths: expected numbers above 0")
    weights = _numbers(f"{where}.weights", given["weights"], MOST_POINTS)
    points = _numbers(f"{where}.points", given["points"], MOST_POINTS * len(names))
    if not weights.size or points.size != weights.size * len(names):
        raise ForetraceError(
            f"{where}.points: expected {len(names)} numbers for each of the {weights.size} weights, got {points.size}"
        )
    return Residual(tuple(map(str, names)), scale, points.reshape(weights.size, len(names)), weights)


def _numbers(where: str, given: Any, most: int) -> Floats:
    words = given.split(maxsplit=most) if isinstance(given, str) else [str(given)]
    if len(words) > most:
        raise ForetraceError(f"{where}: more than {most:,} numbers")
    try:
        found = np.array(words, np.float64)
    except ValueError:
        raise ForetraceError(f"{where}: expected numbers separated by spaces, got {' '.join(words)[:40]!r}") from None
    if not (np.abs(found) < 1e12).all():
        raise ForetraceError(f"{where}: expected finite numbers below 1e12")
    return found
