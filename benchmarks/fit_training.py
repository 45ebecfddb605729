"""Fit what training frameworks add to kernels, on the training rows of the ground truth's ``calib`` folder.

    FORETRACE_GROUNDTRUTH=... python benchmarks/fit_training.py [megatron-deepspeed|nanotron] [--rows 200] [--rounds 2]

Starts from `hosting` and `pace` of the profiles of those names in ``replay/costs/profiles``, and writes them back with
the errors on all calibration rows. ``valid`` is never read. A constant moves by factors that shrink (coordinate descent
on the mean |log error|, clipped so that broken runs do not count); rows of more than 10 % MFU count double.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml

from foretrace.hardware import System, load_system
from foretrace.ir import ForetraceError
from foretrace.replay.costs import load_costs
from foretrace.replay.costs.physics.facts import GENERIC
from foretrace.replay.costs.physics.hosting import Hosting, Pace
from foretrace.replay.costs.physics.profile import FOLDER, Profile, load_profile, read_yaml
from foretrace.replay.measured import read_tables
from foretrace.row_values import Row
from foretrace.training_rows import COMPUTE_BOUND, TrainingReplays, mfu_of, read_run, system_of
from foretrace.whole_models import Replays, rows_of

COMMAND = "python benchmarks/fit_training.py"
MOST_ERROR = 0.7
"""|log error| from which on a run counts as broken."""
FITS = {
    "megatron-deepspeed": (
        "vtrain_single",
        ("hosting.forward", "hosting.backward", "pace.kernels", "pace.streams", "pace.collectives"),
    ),
    "nanotron": (
        "hf_ultrascale_sweep",
        (
            "hosting.forward",
            "hosting.backward",
            "pace.kernels",
            "pace.streams",
            "pace.exposed",
            "hosting.pipeline_step_s",
            "hosting.across_step_s",
        ),
    ),
}
"""Profile → the source of its rows, and the constants that move."""
TITLE = "# Training framework {}: its host and its pace over the kernels of eager PyTorch. Times are in microseconds.\n"


@dataclass(frozen=True)
class Case:
    """One row and its system."""

    row: Row
    system: System
    weight: float


def main() -> None:
    """Fit the profiles named, all without any."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("profiles", nargs="*", choices=[*FITS, []], help="profiles to fit")
    parser.add_argument("--rows", type=int, default=200, help="rows that each step of the descent sees")
    parser.add_argument("--rounds", type=int, default=2, help="of the descent; 0: only the errors")
    arguments = parser.parse_args()
    if not (folder := os.environ.get("FORETRACE_GROUNDTRUTH")):
        sys.exit("FORETRACE_GROUNDTRUTH: set it to the folder of the ground-truth tables")
    table = Path(folder) / "calib" / "train_sweeps.parquet"
    for name in arguments.profiles or FITS:
        fit(name, table, arguments.rows, arguments.rounds)


def fit(name: str, table: Path, most: int, rounds: int) -> None:
    """Move the constants of one profile, and write them with their errors."""
    source, names = FITS[name]
    cases = list(_cases(table, source))
    seen = _one_of_each(cases, most)
    replays = TrainingReplays(load_costs("physics"), Replays(load_costs("physics")).graph)
    profile = load_profile(name)
    best, step = _loss(replays, profile, seen) if rounds else 0.0, 1.25
    print(f"{name}: {len(seen)} of {len(cases)} rows, {best:.4f}", flush=True)
    for _ in range(rounds):
        for constant in names:
            for factor in (step, 1 / step):
                while (loss := _loss(replays, moved := _moved(profile, constant, factor), seen)) < best:
                    best, profile = loss, moved
                    print(f"  {constant} = {_value(profile, constant):.4g}: {best:.4f}", flush=True)
        step = 1 + (step - 1) / 2.5
    write(name, profile, _errors(replays, profile, cases))


def _cases(table: Path, source: str) -> "Sequence[Case]":
    found = []
    for piece in read_tables(table):
        for row in rows_of(piece):
            if row["source"] == source and row["status"] != "OOM":
                system = system_of(read_run(row), load_system(str(row["gpu"])))
                found.append(Case(row, system, 1.0))
    return found


def _one_of_each(cases: "Sequence[Case]", most: int) -> "list[Case]":
    """A row of each model, plan and micro-batch, of a middling number of micro-batches; *most* of them, at random."""
    found: dict[tuple[object, ...], list[Case]] = {}
    for case in cases:
        key = tuple(case.row[name] for name in ("hidden", "layers", "tp", "pp", "dp", "zero", "mbs"))
        found.setdefault(key, []).append(case)
    middle = [sorted(some, key=lambda c: c.row["grad_acc"])[len(some) // 2] for some in found.values()]
    return [middle[i] for i in np.random.default_rng(0).permutation(len(middle))[:most].tolist()]


def _predict(replays: TrainingReplays, profile: Profile, cases: Sequence[Case]) -> "np.ndarray":
    """[n, 2] log(predicted / measured), and the MFU measured; NaN for what cannot be replayed."""
    costs = replace(load_costs("physics"), profile=profile)
    own = replace(replays, costs=costs)
    found = np.full((len(cases), 2), np.nan)
    for i, case in enumerate(cases):
        try:
            run = read_run(case.row)
            result = own.run(run, case.system, profile)
        except ForetraceError:
            continue
        measured = float(case.row["step_ms"]) * 1e-3
        found[i] = np.log(result.timeline.makespan / 1e12 / measured), mfu_of(run, own, case.system, measured)
    return found


def _loss(replays: TrainingReplays, profile: Profile, cases: Sequence[Case]) -> float:
    error, mfu = _predict(replays, profile, cases).T
    weight = np.where(mfu > COMPUTE_BOUND, 2.0, 1.0)
    known = ~np.isnan(error)
    return float(np.average(np.minimum(np.abs(error[known]), MOST_ERROR), weights=weight[known]))


def _errors(replays: TrainingReplays, profile: Profile, cases: Sequence[Case]) -> dict[str, str]:
    error, mfu = _predict(replays, profile, cases).T
    said = {}
    for label, rows in (("all", mfu >= 0), ("MFU > 10 %", mfu > COMPUTE_BOUND)):
        e = np.expm1(error[rows])
        mape, median, bias = np.abs(e).mean(), np.median(np.abs(e)), np.exp(error[rows].mean())
        said[f"train_sweeps.parquet {label}"] = f"n={e.size} MAPE={mape:.1%} median={median:.1%} bias={bias:.3f}"
    print(f"{profile.name}: {said}")
    return said


def _value(profile: Profile, constant: str) -> float:
    kernels, name = constant.split(".")
    return float(getattr(profile.sets[kernels, GENERIC], name))


def _moved(profile: Profile, constant: str, factor: float) -> Profile:
    kernels, name = constant.split(".")
    moved = replace(profile.sets[kernels, GENERIC], **{name: _value(profile, constant) * factor})
    return replace(profile, sets={**profile.sets, (kernels, GENERIC): moved})


def write(name: str, profile: Profile, errors: dict[str, str]) -> None:
    """The profile's file."""
    data = read_yaml(FOLDER / f"{name}.yaml")
    for kernels, default in (("hosting", Hosting(1.0, 1.0)), ("pace", Pace())):
        shown = {}
        for key, value in vars(profile.sets.get((kernels, GENERIC), default)).items():
            if value != getattr(default, key) or key in ("forward", "backward", "kernels", "streams"):
                scaled = value * 1e6 if key.endswith("_s") else value
                shown[key.removesuffix("_s")] = float(f"{scaled:.4g}")
        data[kernels] = {GENERIC: shown}
    data["fitted"] = {f"{kernels}/{GENERIC}": {"on": {}, "errors": dict(errors)} for kernels in ("hosting", "pace")}
    text = TITLE.format(name) + f"# Command: {COMMAND} {name}, {time.strftime('%Y-%m')}\n"
    body = yaml.safe_dump(data, sort_keys=False, width=1000, allow_unicode=True)
    (FOLDER / f"{name}.yaml").write_text(text + body, encoding="utf-8")
    load_profile.cache_clear()


if __name__ == "__main__":
    main()
