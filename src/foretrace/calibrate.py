"""`calibrate_costs`: fit a profile to measured rows of one GPU, and keep of the fit what rows held back confirm."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from foretrace.ir import ForetraceError, UnknownNameError
from foretrace.ir.files import write_atomically
from foretrace.replay.calibrated_file import calibrated_yaml
from foretrace.replay.calibration import Sample
from foretrace.replay.costs.physics import load_profile, profile_names
from foretrace.replay.few_shot import LEAST_ROWS, MOST_OPERATORS, Outcome, Part, calibrate, split_parts
from foretrace.replay.measured import Measurements, read_measurements

from .validate import UNITS_OFF, _emulated, _system

TRACES: Final = (".trace", ".pftrace", ".json", ".gz")
"""Endings of traces, whose operators carry no table of sizes."""
_OTHER: Final = "of a GPU that --gpu did not ask for"

Progress = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class CalibrationResult:
    """A profile fitted to measured rows, and what became of each class of kernels."""

    gpu: str
    """As the hardware library names it."""
    rows: int
    """Rows that were fitted or held back in turn."""
    software: tuple[str, ...]
    """Those of the rows, the one of most rows first."""
    outcomes: tuple[Outcome, ...]
    """A class each, sorted."""
    skipped: dict[str, int]
    """Reason → rows that could not be used."""
    text: str
    """The profile, as YAML."""
    warnings: list[str] = field(default_factory=list)

    def save(self, path: str | Path) -> None:
        """Write the profile: all of it or nothing."""
        write_atomically(path, self.text.encode())
        load_profile.cache_clear()

    def to_json(self) -> dict[str, Any]:
        """The result as ``--json`` prints it; errors as fractions."""
        return {
            "gpu": self.gpu,
            "rows": self.rows,
            "software": list(self.software),
            "classes": [
                {
                    "class": o.kernels,
                    "n": o.before.n,
                    "kept": o.kept,
                    "before": {"mape": o.before.mape, "median_ape": o.before.median, "bias": o.before.bias},
                    "after": {"mape": o.after.mape, "median_ape": o.after.median, "bias": o.after.bias},
                    "spread": o.spread,
                    "candidates": dict(o.candidates),
                }
                for o in self.outcomes
            ],
            "skipped": [{"reason": reason, "count": count} for reason, count in self.skipped.items()],
            "warnings": self.warnings,
        }


def calibrate_costs(
    paths: Iterable[str | Path],
    *,
    gpu: str | None = None,
    software: str | None = None,
    points: int | None = None,
    seed: int = 0,
    quality: str = "ok",
    command: str = "foretrace.calibrate_costs",
    progress: Progress = lambda _: None,
) -> CalibrationResult:
    """Fit the tables at *paths* (.parquet or .csv in the format of `validate_tables`), measured on one GPU.

    *gpu* picks one where the tables hold several; *software* says what ran the rows (a profile's name), else each row
    does; *points* takes so many rows, drawn with *seed*. Needs scipy. Raises `ForetraceError` where there is nothing
    to fit, or several GPUs; `FormatError` for a table that cannot be read or lacks a column.
    """
    named = [str(path) for path in paths]
    for path in named:
        if Path(path).suffix.lower() in TRACES:
            raise ForetraceError(
                f"{path}: is a trace: its operators carry no sizes to fit on. Give a table of measured rows "
                "(.parquet or .csv, the format of 'foretrace validate')"
            )
    if software is not None and software not in profile_names():
        raise UnknownNameError("software", software, profile_names(), f"one of {', '.join(profile_names())}")
    if points is not None and points < LEAST_ROWS:
        raise ForetraceError(f"--points {points}: expected {LEAST_ROWS} or more")
    if points is not None and seed < 0:
        raise ForetraceError(f"--seed {seed}: expected 0 or more")
    skipped: Counter[str] = Counter()
    parts = _read(named, gpu, software, quality, skipped, progress)
    chip = parts[0].sample.system.accelerator
    if points is not None:
        rows = sum(part.rows for part in parts)
        chosen = np.zeros(rows, np.bool_)
        chosen[np.random.default_rng(seed).choice(rows, min(points, rows), replace=False)] = True
        parts = split_parts(parts, chosen)
    count = Counter[str]()
    for part in parts:
        count[part.software] += part.rows
    rows = sum(count.values())
    used = sum(part.sample.operators.rows for part in parts)
    if used > MOST_OPERATORS:
        raise ForetraceError(f"{rows:,} rows are more than one calibration takes: draw some with --points 20000")
    _check_units(parts, named)
    fitted, outcomes = calibrate({name: load_profile(name) for name in count}, parts, seed, progress)
    if all(outcome.before.n < LEAST_ROWS for outcome in outcomes):
        most = max(outcome.before.n for outcome in outcomes)
        raise ForetraceError(
            f"{', '.join(named)}: {most} rows of one class of kernels are too few to hold any back: measure "
            f"{LEAST_ROWS} or more (30 to 50 make a good calibration)"
        )
    warnings = []
    for outcome in outcomes:
        if outcome.before.n < LEAST_ROWS and outcome.kept == "physics":
            warnings.append(f"{outcome.kernels}: {outcome.before.n} rows are too few to hold any back: physics kept")
        elif outcome.before.n < LEAST_ROWS:
            warnings.append(f"{outcome.kernels}: {outcome.before.n} rows are few: a factor alone was fitted")
        elif outcome.kept == "physics":
            warnings.append(f"{outcome.kernels}: no fit beat the physics on rows held back: physics kept")
    order = tuple(name for name, _ in count.most_common())
    about = {"rows": rows, "command": command}
    text = calibrated_yaml(fitted, order[0], outcomes, chip, about)
    return CalibrationResult(chip.name, rows, order, tuple(outcomes), dict(skipped), text, warnings)


def _read(
    paths: Sequence[str],
    gpu: str | None,
    software: str | None,
    quality: str,
    skipped: Counter[str],
    progress: Progress,
) -> list[Part]:
    """The usable rows of the tables, by machine and software. Raises `ForetraceError` without any, or of two GPUs."""
    asked = _system(gpu, "").accelerator.name if gpu else None
    parts: list[Part] = []
    chips: dict[str, int] = {}
    for path in paths:
        progress(f"reading {Path(path).name}")
        for measured in read_measurements(path, quality):
            skipped.update(measured.refused)
            for name, variant, own, rows in measured.split():
                parts += _part(measured.take(rows), name, variant, software or own, asked, skipped, chips)
    if len(chips) > 1:
        found = ", ".join(f"{name} ({count:,} rows)" for name, count in sorted(chips.items()))
        raise ForetraceError(f"rows of {len(chips)} GPUs: {found}. A profile is of one: pick it with --gpu")
    if not parts:
        why = "; ".join(f"{reason} ({count:,})" for reason, count in skipped.most_common(5)) or "the tables are empty"
        raise ForetraceError(f"{', '.join(paths)}: no row to calibrate on: {why}")
    return parts


def _part(
    measured: Measurements,
    gpu: str,
    variant: str,
    software: str,
    asked: str | None,
    skipped: Counter[str],
    chips: dict[str, int],
) -> list[Part]:
    try:
        system = _system(gpu, variant)
    except ForetraceError as error:
        skipped[str(error)] += measured.rows
        return []
    name = system.accelerator.name
    if asked is not None and name != asked:
        skipped[_OTHER] += measured.rows
        return []
    usable = np.ones(measured.rows, np.bool_)
    for reason, rows in _emulated(measured, system):
        skipped[reason] += int((rows & usable).sum())
        usable &= ~rows
    if not usable.any():
        return []
    measured = measured.take(usable)
    chips[name] = chips.get(name, 0) + measured.rows
    eager = software == "eager" and not measured.looped.any()
    return [Part(software, Sample(measured.operators, measured.row, measured.seconds, system, eager))]


def _check_units(parts: Sequence[Part], paths: Sequence[str]) -> None:
    """Raise `ForetraceError` where all rows are 1000 times off."""
    ratios = [part.predict(load_profile(part.software)) / part.sample.seconds for part in parts]
    middle = float(np.median(np.concatenate(ratios)))
    if not 1 / UNITS_OFF < middle < UNITS_OFF:
        raise ForetraceError(
            f"{', '.join(paths)}: predictions are {middle:.2g} times what was measured: are the times in another unit "
            "than the column's name says?"
        )
