"""Calibrating a profile to measured rows of one chip: what to change of each class, chosen by rows held back.

For each class of kernels on its pipeline (``gemm/ampere``) the candidates are, from least to most:

- physics: the constants as they are;
- scale: a factor for each software;
- constants: the class's constants times factors that all software shares, with a strong prior at 1, and the scale;
- residual, constants + residual: a Gaussian process on what is left (`gaussian`).

Rows are dealt into folds (fewer than eight: each is one, and only the scale is tried); each candidate is fitted
without a fold and scored on it. The best is kept where it beats the physics on the rows held back, else the physics
stays. Needs scipy.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Final

import numpy as np

from .calibration import CAPS, Errors, Sample
from .columns import Floats, Ints, Mask
from .costs.physics import Physics, Profile
from .costs.physics.calibrated import Calibration
from .costs.physics.collective import FAMILIES, PROTOCOLS
from .costs.physics.residual import ATTRIBUTES, DERIVED, MOST_FEATURES, Correction, Operators, Residual
from .costs.physics.spread import distance_of
from .gaussian import fit_residual, optimizer

LEAST_ROWS: Final = 8
"""Rows of a class under which nothing but a factor is fitted."""
FEWEST: Final = 2
"""Rows of a class under which nothing is: each of fewer than `LEAST_ROWS` is held back by itself."""
FEW: Final = 300
"""Rows of a class up to which every candidate sees all of them; constants are fitted on this many of more."""
FOLDS: Final = 5
NOISE: Final = 0.1
"""Of a row against the physics, as a logarithm: what constants are not asked to explain."""
FREEDOM: Final = 0.35
"""How far, in e-folds, a constant strays from its prior where rows do not insist."""
OFFSET: Final = 0.3
"""The same of a scale."""
BETTER: Final = 0.98
"""Share of a simpler candidate's error that a candidate's must be under, on rows held back, and by more than one
standard error of the difference."""
KNOWN: Final = 2.5
"""Standard errors asked of the first step away from constants that rows of the very chip, many more, were fitted to."""
UNKNOWN: Final = 0.5
"""The same of constants that were fitted to no chip at all: estimates, which a few rows outweigh."""
REACH: Final = 1.6
"""|log error| beyond which a row asks no more of a correction than one so far off: it is another kernel, or a fault."""
MOST_OPERATORS: Final = 400_000
"""Operators calibrated together: what bounds the memory of a call."""

_GEMM: Final = "efficiency fill_per_clock step_cycles tile_cycles memory_efficiency start_s split_start_s batched"
_PREFILL: Final = "efficiency exp_efficiency tile_cycles block_cycles tail memory_efficiency start_s"
_DECODE: Final = (
    "lone_cycles unit_per_clock unit_cycles token_cycles memory_efficiency start_s reduce_s query_passes occupancy"
)
_QUANTISE: Final = "traffic: amax amax_start_s quantize dynamic dynamic_start_s quantize_blocks quantize_blocks_start_s"
_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "gemm": (_GEMM,),
    "gemm_8bit": (_GEMM, _QUANTISE),
    "gemm_block_scaled": (_GEMM, _QUANTISE),
    "gemm_triton": (_GEMM, _QUANTISE),
    "packed": ("efficiency idle_rows memory_efficiency packing start_s",),
    "prefill": (_PREFILL,),
    "prefill_8bit": (f"{_PREFILL} low_precision",),
    "prefill_triton": (_PREFILL,),
    "encoder": (_PREFILL,),
    "latent_prefill": (_PREFILL,),
    "decode": (_DECODE,),
    "decode_8bit": (_DECODE,),
    "latent_decode": (_DECODE,),
    "convolution": ("slowdown winograd start_s",),
    "stream": (
        "memory_efficiency core_fill start_s vector_efficiency",
        "traffic: gelu_per_clock gated_per_clock rms_norm_per_clock norm_short norm_long softmax_short softmax_long "
        "amax quantize",
    ),
    "collective": (
        *(f"{family}_{protocol}: start_s step efficiency" for family in FAMILIES for protocol in PROTOCOLS),
        "shots: start_s step efficiency second_s",
        "launching: host_s copies",
    ),
}
_GROUPED: Final = (
    "efficiency fill_per_clock step_cycles tile_cycles memory_efficiency core_fill start_s bookkeeping_s "
    "around_efficiency",
)
"""Constants that matter most, by class; ``class:`` before those of another set. Ones that rows do not feel are left."""

Place = tuple[str, str, str]
"""(class, pipeline, constant)"""


def constants_of(kernels: str) -> list[tuple[str, str]]:
    """(class, constant) that a calibration of class *kernels* may move."""
    groups = _GROUPED if kernels.startswith("grouped") else _NAMES.get(kernels, ())
    found = []
    for group in groups:
        head, colon, names = group.rpartition(":")
        found += [(head if colon else kernels, name) for name in names.split()]
    return found


@dataclass(frozen=True, eq=False)
class Part:
    """Measured rows of one machine and software."""

    software: str
    sample: Sample

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.sample.seconds.size

    def predict(self, profile: Profile) -> Floats:
        """[n] s of each row, with *profile* for its software."""
        sample = self.sample
        costs = Physics(profile).price(sample.operators, sample.system, self.software)
        return costs.timed(sample.row, self.rows, sample.eager)

    def take(self, rows: Ints) -> "Part":
        """Some of the rows, in order."""
        operators, row = self.sample.operators, self.sample.row
        chosen = np.zeros(self.sample.seconds.size, np.bool_)
        chosen[rows] = True
        place, kept = np.cumsum(chosen) - 1, chosen[row]
        take = operators.take(kept)  # type: ignore[attr-defined]
        return Part(
            self.software, replace(self.sample, operators=take, row=place[row[kept]], seconds=self.sample.seconds[rows])
        )


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of one class."""

    kernels: str
    """``gemm/ampere``"""
    kept: str
    """The candidate: physics, scale, constants, residual, constants + residual."""
    before: Errors
    """Of the physics, on all rows."""
    after: Errors
    """Of what was kept, each row by a fit that did not see it."""
    spread: float
    """Factor to either side that holds 80 % of rows held back."""
    candidates: Mapping[str, float]
    """Candidate → MAPE on rows held back."""


@dataclass(frozen=True, eq=False)
class _Fitted:
    """A candidate fitted to some rows of a class."""

    constants: Mapping[tuple[str, str], float]
    """(class, constant) → factor."""
    scales: Mapping[str, float]
    """Software → factor."""
    residual: Residual | None = None


_UNCHANGED: Final = _Fitted({}, {})


def calibrate(
    profiles: Mapping[str, Profile],
    parts: Sequence[Part],
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[dict[str, Profile], list[Outcome]]:
    """*profiles* (software → profile) calibrated to *parts*, all of one chip, and what became of each class."""
    optimizer()
    changed = dict(profiles)
    outcomes = []
    classes = [_row_classes(part, changed) for part in parts]
    keys = sorted({key for of_part in classes for key in of_part if key}, key=lambda key: (_is_matrix(key), key))
    for key in keys:
        progress(f"calibrating {key}")
        chosen = [
            part.take(np.flatnonzero([found == key for found in of_part]))
            for part, of_part in zip(parts, classes, strict=True)
            if key in of_part
        ]
        changed, outcome = _calibrate_class(key, changed, chosen, seed)
        outcomes.append(outcome)
    return changed, sorted(outcomes, key=lambda o: o.kernels)


def _is_matrix(key: str) -> bool:
    return not key.startswith("stream")


def _row_classes(part: Part, profiles: Mapping[str, Profile]) -> list[str]:
    """The class of each row: that of its slowest operator, matrix work before what goes with it."""
    sample = part.sample
    model = Physics(profiles[part.software])
    keys = model.classes(sample.operators, sample.system, part.software)
    seconds = model.price(sample.operators, sample.system, part.software).seconds
    found = [""] * sample.seconds.size
    rank = np.array([_is_matrix(key) and bool(key) for key in keys])
    for i in np.lexsort((seconds, rank)).tolist():
        if keys[i]:
            found[int(sample.row[i])] = keys[i]
    return found


def _calibrate_class(
    key: str, profiles: dict[str, Profile], parts: list[Part], seed: int
) -> tuple[dict[str, Profile], Outcome]:
    """Choose and apply the best candidate for the rows of one class."""
    seconds = np.concatenate([part.sample.seconds for part in parts])
    before = _predict(key, profiles, parts, _UNCHANGED)
    held_back = {"physics": before}
    fits: dict[str, Callable[[list[Part]], _Fitted]] = {}
    if seconds.size >= FEWEST:
        fits = _candidates(key, profiles, seed, seconds.size)
        folds = min(FOLDS, seconds.size // 2) if seconds.size >= LEAST_ROWS else seconds.size
        fold = np.random.default_rng(seed).permutation(np.arange(seconds.size) % folds)
        held_back |= _cross_validate(key, profiles, parts, fold, seed)
    off = {name: np.abs(np.log(p / seconds)) for name, p in held_back.items()}
    score = {name: float(np.minimum(o, REACH).mean()) for name, o in off.items()}
    mape = {name: float(np.abs(p / seconds - 1).mean()) for name, p in held_back.items()}
    kept = "physics"
    fitted_on = [_fitted_on(key, profiles[part.software]) for part in parts]
    seen = [distance_of(p.sample.system.accelerator, on) == "seen" for p, on in zip(parts, fitted_on, strict=True)]
    known = KNOWN if all(seen) else 1.0 if any(fitted_on) else UNKNOWN
    for name in fits:  # from least to most: a further one must earn its place
        gain = np.minimum(off[kept], REACH) - np.minimum(off[name], REACH)
        sure = gain.mean() > (known if kept == "physics" else min(known, 1.0)) * gain.std() / np.sqrt(gain.size)
        if sure and score[name] < BETTER * score[kept] and mape[name] <= mape["physics"]:
            kept = name
    if kept != "physics":
        profiles = _applied(key, profiles, fits[kept](parts))
    outcome = Outcome(
        key,
        kept,
        Errors.of(before, seconds),
        Errors.of(held_back[kept], seconds),
        float(np.exp(np.quantile(off[kept], 0.8))),
        mape,
    )
    return profiles, outcome


def _fitted_on(key: str, profile: Profile) -> Mapping[str, str]:
    """The chips that the constants of a class were fitted to."""
    kernels, _, pipeline = key.partition("/")
    return profile.fitted_on.get(profile.key(kernels, pipeline), {})


def _cross_validate(
    key: str, profiles: Mapping[str, Profile], parts: list[Part], fold: Ints, seed: int
) -> dict[str, Floats]:
    """Candidate → s of each row, predicted by a fit that did not see it."""
    found: dict[str, Floats] = {}
    for number in range(int(fold.max()) + 1):
        fits = _candidates(key, profiles, seed, fold.size)
        known, asked = split_parts(parts, fold != number), split_parts(parts, fold == number)
        for name, fit in fits.items():
            found.setdefault(name, np.empty(fold.size))[fold == number] = _predict(key, profiles, asked, fit(known))
    return found


def split_parts(parts: Sequence[Part], chosen: Mask) -> list[Part]:
    """The rows *chosen* of all parts together."""
    found, begin = [], 0
    for part in parts:
        rows = np.flatnonzero(chosen[begin : begin + part.rows])
        begin += part.rows
        if rows.size:
            found.append(part.take(rows))
    return found


def _candidates(
    key: str, profiles: Mapping[str, Profile], seed: int, rows: int
) -> dict[str, Callable[[list[Part]], _Fitted]]:
    """What may be fitted to so many *rows* of the class, from least to most.

    Constants are fitted once for all that use them.
    """
    if rows < LEAST_ROWS:
        return {"scale": lambda parts: _fit_scales(key, profiles, parts, _UNCHANGED)}
    known: dict[int, _Fitted] = {}

    def constants(parts: list[Part]) -> _Fitted:
        if id(parts) not in known:
            known[id(parts)] = _fit_constants(key, profiles, parts, seed)
        return known[id(parts)]

    def both(parts: list[Part]) -> _Fitted:
        return _fit_rest(key, profiles, parts, constants(parts), seed)

    return {
        "scale": lambda parts: _fit_scales(key, profiles, parts, _UNCHANGED),
        "constants": constants,
        "residual": lambda parts: _fit_rest(key, profiles, parts, _fit_scales(key, profiles, parts, _UNCHANGED), seed),
        "constants + residual": both,
    }


# --- fits --------------------------------------------------------------------------------------------------------


def _fit_scales(key: str, profiles: Mapping[str, Profile], parts: list[Part], fitted: _Fitted) -> _Fitted:
    """A factor for each software: robust means, drawn to that of all and to 1 where rows are few."""
    wanted: dict[str, list[Floats]] = {part.software: [] for part in parts}
    for part in parts:
        wanted[part.software].append(_wanted(key, _applied(key, profiles, fitted), part)[1])
    every = {software: np.concatenate(found) for software, found in wanted.items()}
    pooled = np.concatenate(list(every.values()))
    common = _centre(pooled, 0.0, OFFSET)
    scales = {software: float(np.exp(_centre(logs, common, OFFSET / 2))) for software, logs in every.items()}
    return replace(fitted, scales={s: v * fitted.scales.get(s, 1.0) for s, v in scales.items()})


def _centre(logs: Floats, prior: float, freedom: float) -> float:
    """A robust mean of *logs* with a prior of *freedom* around *prior*."""
    if not logs.size:
        return prior
    centre = float(np.median(logs))
    for _ in range(20):
        weight = 1 / np.maximum(np.abs(logs - centre), NOISE) * NOISE
        sure = NOISE**2 / freedom**2
        centre = float(((weight * logs).sum() + sure * prior) / (weight.sum() + sure))
    return centre


def _fit_constants(key: str, profiles: Mapping[str, Profile], parts: list[Part], seed: int) -> _Fitted:
    """Factors of constants, shared by all software, and the scales; squares of log errors with a prior at 1."""
    _, least_squares = optimizer()
    parts = _thinned(parts, seed)
    kernels, _, pipeline = key.partition("/")
    software = sorted({part.software for part in parts})
    seconds = np.concatenate([part.sample.seconds for part in parts])
    places = [place for place in constants_of(kernels) if any(_has(profiles[s], place, pipeline) for s in software)]

    def errors(values: Floats, of: Sequence[tuple[str, str]]) -> Floats:
        factors = dict(zip(of, np.exp(values[: len(of)]).tolist(), strict=True))
        scales = dict(zip(software, np.exp(values[len(of) :]).tolist(), strict=False))
        return np.asarray(np.log(_predict(key, profiles, parts, _Fitted(factors, scales)) / seconds))

    start = errors(np.zeros(0), [])
    felt = [p for p in places if np.abs(errors(np.array([-0.2]), [p]) - start).max() > 1e-3]
    count = len(felt)
    loose = np.array([FREEDOM] * count + [OFFSET] * len(software))
    found = least_squares(
        lambda values: np.concatenate([errors(values, felt) / NOISE, values / loose]),
        np.zeros(count + len(software)),
        loss="soft_l1",
        diff_step=0.02,
        x_scale=0.3,
        bounds=(-3.0, 3.0),
        max_nfev=10,
        ftol=1e-3,
        xtol=1e-3,
    )
    values = np.exp(found.x).tolist()
    return _Fitted(dict(zip(felt, values[:count], strict=True)), dict(zip(software, values[count:], strict=True)))


def _fit_rest(key: str, profiles: Mapping[str, Profile], parts: list[Part], fitted: _Fitted, seed: int) -> _Fitted:
    """*fitted* with a Gaussian process on what it leaves."""
    applied = _applied(key, profiles, fitted)
    seen = [_wanted(key, applied, part) for part in parts]
    names = [*ATTRIBUTES, *DERIVED, *sorted({c for operators, _ in seen for c in operators.categories()})]
    names = names[:MOST_FEATURES]
    x = np.concatenate([operators.matrix(names) for operators, _ in seen])
    y = np.concatenate([logs for _, logs in seen])
    return replace(fitted, residual=fit_residual(names, x, y, seed))


def _thinned(parts: list[Part], seed: int) -> list[Part]:
    """`FEW` of the rows of *parts*, or all of fewer."""
    rows = sum(part.rows for part in parts)
    if rows <= FEW:
        return parts
    chosen = np.zeros(rows, np.bool_)
    chosen[np.random.default_rng(seed).choice(rows, FEW, replace=False)] = True
    return split_parts(parts, chosen)


# --- using a fit -------------------------------------------------------------------------------------------------


def _predict(key: str, profiles: Mapping[str, Profile], parts: Sequence[Part], fitted: _Fitted) -> Floats:
    """s of every row of *parts* together."""
    applied = _applied(key, profiles, fitted)
    return np.concatenate([np.empty(0), *(part.predict(applied[part.software]) for part in parts)])


def _has(profile: Profile, place: tuple[str, str], pipeline: str) -> bool:
    """Whether the profile has that constant, as a number above 0."""
    constants = _set_of(profile, place[0], pipeline)
    return constants is not None and 0 < getattr(constants, place[1], 0.0) < np.inf


def _set_of(profile: Profile, kernels: str, pipeline: str) -> object | None:
    """The constants that class *kernels* takes on *pipeline*; None without any."""
    if kernels in ("shots", "launching") or kernels.startswith(FAMILIES):
        return profile.find(kernels, pipeline)
    found: object = profile.constants(kernels, pipeline)
    return found


def _applied(key: str, profiles: Mapping[str, Profile], fitted: _Fitted) -> dict[str, Profile]:
    """*profiles* with what was *fitted* to the class *key*."""
    _, _, pipeline = key.partition("/")
    applied = {}
    for software, profile in profiles.items():
        sets, moved = dict(profile.sets), set()
        for (kernels, name), factor in fitted.constants.items():
            found = sets.get((kernels, pipeline)) or _set_of(profile, kernels, pipeline)
            if found is not None and name in {field.name for field in fields(found)}:  # type: ignore[arg-type]
                value = min(getattr(found, name) * factor, max(CAPS.get(name, np.inf), getattr(found, name)))
                sets[kernels, pipeline] = replace(found, **{name: value})  # type: ignore[type-var]
                moved.add((kernels, pipeline))
        own = profile.calibration or Calibration("", software, {})
        corrections = dict(own.corrections)
        if fitted.scales or fitted.residual:
            corrections[key] = Correction(fitted.scales.get(software, _mean(fitted.scales)), fitted.residual)
        calibration = replace(own, corrections=corrections, changed=own.changed | moved)
        applied[software] = replace(profile, sets=sets, calibration=calibration)
    return applied


def _mean(scales: Mapping[str, float]) -> float:
    return float(np.exp(np.mean(np.log(list(scales.values()))))) if scales else 1.0


def _wanted(key: str, profiles: Mapping[str, Profile], part: Part) -> tuple[Operators, Floats]:
    """Each row's operator of the class, and the log factor that would make the row right, as far as it can."""
    sample = part.sample
    model = Physics(profiles[part.software])
    costs = model.price(sample.operators, sample.system, part.software)
    mine = np.array([found == key for found in model.classes(sample.operators, sample.system, part.software)])
    own = np.flatnonzero(mine)
    own = own[np.argsort(costs.seconds[own], kind="stable")]
    slowest = np.full(sample.seconds.size, -1)
    slowest[sample.row[own]] = own
    of_class = np.bincount(sample.row[mine], costs.seconds[mine], minlength=sample.seconds.size)
    timed = costs.timed(sample.row, sample.seconds.size, sample.eager)
    total = np.bincount(sample.row, costs.seconds, minlength=sample.seconds.size)
    gap = costs.gap_s if sample.eager else 0.0
    rest = total - of_class + gap
    usable = (slowest >= 0) & (timed <= (total + gap) * 1.001)  # else the host's time hides the device's
    at = slowest[usable]
    ratio = (sample.seconds - rest)[usable] / of_class[usable]
    logs = np.clip(np.log(np.maximum(ratio, 1e-3)), -REACH, REACH)
    return Operators(sample.operators, at, costs.seconds[at], part.software), logs
