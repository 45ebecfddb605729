"""Gaussian processes on log(measured / physics): how a residual's lengths and weights come from measured rows.

The marginal likelihood chooses how far along each feature two rows tell of each other, how large the process is and
how noisy the rows are, with priors that keep each near a usual value: tens of rows can be fitted. Needs scipy.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from foretrace.ir import ForetraceError

from .columns import Floats
from .costs.physics.residual import CATEGORIES, MOST_POINTS, Residual, matern

LIKELIHOOD_POINTS: Final = 200
"""Rows that choose the lengths; all of them carry weights."""
NOISE: Final = 0.05
"""Of a row, as a logarithm, before any is seen: what a repeat of a measurement differs by."""
LENGTH: Final = 2.5
"""Of a size, in e-folds: what a prior expects; a category's is 1."""
PRIOR: Final = 1.0
"""How far, in e-folds, lengths and noise stray from what the prior expects."""
ROUNDS: Final = 2
"""Fits of which each but the first counts rows less that the one before found far off."""
FAR: Final = 2.0
"""Standard deviations beyond which a row is far off."""


def optimizer() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """scipy's minimisers, of a function and of squares. Raises `ForetraceError` where scipy is missing."""
    try:
        from scipy.optimize import least_squares, minimize
    except ImportError:
        raise ForetraceError("calibrating needs scipy: pip install 'foretrace[calibrate]'") from None
    return minimize, least_squares


def fit_residual(names: Sequence[str], x: Floats, y: Floats, seed: int = 0) -> Residual | None:
    """The process of *y* [n], log(measured / physics), over the features *names* of *x* [n, f]; None: nothing varies.

    Deterministic: *seed* draws the rows that choose the lengths, where there are many, and those kept.
    """
    varies = np.flatnonzero(x.std(0) > 1e-6) if y.size else np.empty(0, np.int64)
    if not varies.size:
        return None
    draw = np.random.default_rng(seed)
    if y.size > MOST_POINTS:
        kept = np.sort(draw.choice(y.size, MOST_POINTS, replace=False))
        x, y = x[kept], y[kept]
    x = np.round(x[:, varies], 4)
    names = [names[i] for i in varies.tolist()]
    groups, place = _groups(names)
    few = np.sort(draw.choice(y.size, min(y.size, LIKELIHOOD_POINTS), replace=False))
    theta = _choose(x[few], y[few], groups, place)
    lengths = np.exp(theta[: len(groups)])[place]
    kernel = np.exp(2 * theta[-2]) * matern(_distance(x, lengths))
    noise = np.exp(2 * theta[-1])
    rows = np.ones(y.size)
    for _ in range(ROUNDS):
        inverse = np.linalg.inv(kernel + np.diag(noise / rows))
        alpha = inverse @ y
        rows = _trust(alpha, inverse)
    return Residual(tuple(names), lengths, x, np.exp(2 * theta[-2]) * alpha)


def _groups(names: Sequence[str]) -> tuple[list[str], "np.ndarray[Any, np.dtype[np.int64]]"]:
    """What has one length each: a size, or all values of a category; and the group of each feature."""
    heads = [name.partition("=")[0] for name in names]
    groups = list(dict.fromkeys(heads))
    return groups, np.array([groups.index(head) for head in heads])


def _distance(x: Floats, lengths: Floats) -> Floats:
    scaled = x / lengths
    square = (scaled * scaled).sum(1)
    return np.asarray(np.sqrt(np.maximum(square[:, None] + square - 2 * scaled @ scaled.T, 0.0)))


def _trust(alpha: Floats, inverse: Floats) -> Floats:
    """[n] 1, less for a row that the others contradict: by what its weight says of it left out."""
    off = np.abs(alpha) / np.sqrt(np.diag(inverse))
    return np.asarray(np.clip(np.minimum(1.0, FAR / np.maximum(off, 1e-12)), 0.02, 1.0))


def _choose(x: Floats, y: Floats, groups: list[str], place: Any) -> Floats:
    """Logarithms of each group's length, of the process's amplitude and of the noise."""
    minimize, _ = optimizer()
    count = len(groups)
    squares = np.zeros((count, y.size, y.size))
    for j in range(x.shape[1]):
        squares[place[j]] += (x[:, j, None] - x[:, j]) ** 2
    wide = max(1.0, np.sqrt(count / 3))  # distances grow with the number of features
    usual = [np.log(wide * (1.0 if group in CATEGORIES else LENGTH)) for group in groups]
    prior = np.array([*usual, 0.5 * np.log(max(float(np.mean(y * y)), 1e-4)) - 0.3, np.log(NOISE)])
    weight = np.ones(y.size)
    theta = prior

    def loss(at: Floats) -> tuple[float, Floats]:
        inverse_square = np.exp(-2 * at[:count])
        r = np.sqrt(3 * np.tensordot(inverse_square, squares, 1))
        decay = np.exp(2 * at[count] - r)
        kernel = (1 + r) * decay
        noise = np.exp(2 * at[count + 1]) / weight
        whole = kernel + np.diag(noise)
        lower = np.linalg.cholesky(whole)
        inverse = np.linalg.inv(whole)
        alpha = inverse @ y
        off = (at - prior) / PRIOR
        value = 0.5 * y @ alpha + np.log(np.diag(lower)).sum() + 0.5 * off @ off
        slope = inverse - np.outer(alpha, alpha)
        of_lengths = 1.5 * np.tensordot(squares, slope * decay, 2) * inverse_square
        gradient = np.array([*of_lengths, (slope * kernel).sum(), (np.diag(slope) * noise).sum()])
        return float(value), gradient + off / PRIOR

    for turn in range(ROUNDS):
        bounds = [(p - 4, p + 4) for p in prior[:-1]] + [(np.log(0.01), np.log(0.5))]
        found = minimize(loss, theta, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 20})
        theta = np.asarray(found.x)
        if turn < ROUNDS - 1:
            kernel = np.exp(2 * theta[count]) * matern(np.sqrt(np.tensordot(np.exp(-2 * theta[:count]), squares, 1)))
            inverse = np.linalg.inv(kernel + np.diag(np.exp(2 * theta[count + 1]) / weight))
            weight = _trust(inverse @ y, inverse)
    return theta
