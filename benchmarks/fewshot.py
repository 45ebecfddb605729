"""What 50 measured rows of a GPU are worth: each class of the issue's table calibrated on them, scored on the others.

    FORETRACE_GROUNDTRUTH=... python benchmarks/fewshot.py [--seeds 3] [--points 50] [--only PATTERN] [--libraries]

The rows come from ``calib`` where it has that many of the GPU and class (then the profile that ships has seen those
rows as well), else from ``valid``, as if they were a user's own measurements; those are left out of the score.
Nothing that is fitted here is kept: this is the only place where rows of ``valid`` reach a fit.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foretrace.hardware import load_system
from foretrace.ir import ForetraceError
from foretrace.replay.calibration import Errors, Sample
from foretrace.replay.costs.physics import load_profile
from foretrace.replay.costs.roofline import matrix_rate
from foretrace.replay.few_shot import Part, calibrate, split_parts
from foretrace.replay.measured import machine, read_measurements

POINTS = 50
SEEDS = 3
LEAST_SCORED = 10
"""Rows left to score under which a GPU is left out."""
COLLECTIVES = frozenset({"all_reduce", "all_gather", "all_to_all", "reduce_scatter", "send_recv", "broadcast"})


@dataclass(frozen=True)
class Class:
    """One row of the issue's accuracy table."""

    name: str
    table: str
    kinds: frozenset[str]
    mape: float
    """The most asked with 50 points."""
    median: float | None = None
    dtypes: frozenset[str] = frozenset()
    at_least_bytes: float = 0.0


CLASSES = (
    Class("GEMM bf16/fp16", "gemm", frozenset({"gemm"}), 0.07, 0.05, frozenset({"bf16", "fp16"})),
    Class(
        "GEMM fp32, int8, fp8", "gemm", frozenset({"gemm"}), 0.09, None, frozenset({"fp32", "int8", "fp8", "fp8_block"})
    ),
    Class("attention prefill", "attention", frozenset({"attention_prefill"}), 0.09),
    Class("attention decode", "attention", frozenset({"attention_decode"}), 0.08),
    Class(
        "elementwise, norm, softmax over 4 MB",
        "elementwise",
        frozenset({"elementwise", "norm", "softmax"}),
        0.08,
        at_least_bytes=4e6,
    ),
    Class("collectives in one node", "collectives", COLLECTIVES, 0.10),
    Class("MoE", "moe", frozenset({"moe"}), 0.16),
)


def read_parts(path: Path, one: Class) -> dict[str, list[Part]]:
    """GPU → the rows of a class, of quality ok, in formats that the GPU has."""
    found: dict[str, list[Part]] = {}
    for whole in read_measurements(path):
        for gpu, variant, software, rows in whole.split():
            q = whole.take(rows)
            try:
                system = machine(load_system(gpu), variant)
            except ForetraceError:
                continue
            use = q.kind.is_in(one.kinds)
            if one.dtypes:
                use &= q.dtype.is_in(one.dtypes)
            if one.at_least_bytes:
                use &= q.sum(q.operators.bytes) >= one.at_least_bytes
            own = {d for d in q.operators.dtypes if matrix_rate(system.accelerator, d)[1] == d}
            native = np.array([d in own for d in q.operators.dtypes], np.bool_)[q.operators.dtype]
            if one.table in ("gemm", "attention", "moe"):
                use &= q.sum((~native).astype(np.float64)) == 0
            if use.any():
                q = q.take(use)
                sample = Sample(q.operators, q.row, q.seconds, system, software == "eager")
                found.setdefault(gpu, []).append(Part(software, sample))
    return found


def few_shot_rows(
    folder: str | Path | None = None,
    points: int = POINTS,
    seeds: int = SEEDS,
    only: str = "",
    libraries: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """A cell for each class and GPU, as plain data.

    Its keys: ``class``, ``gpu``, ``software``, ``n`` scored, ``points_from`` (calib or valid), ``zero_shot`` and
    ``calibrated`` (mape, median, p90; means over seeds), ``asked``, ``kept`` (what won, by seed).

    *libraries*: further cells whose points are all of one library. Errors are fractions.
    """
    root = Path(folder or os.environ["FORETRACE_GROUNDTRUTH"])
    cells = []
    for one in CLASSES:
        calib = read_parts(root / "calib" / f"{one.table}.parquet", one)
        for gpu, parts in sorted(read_parts(root / "valid" / f"{one.table}.parquet", one).items()):
            if only and not re.search(only, f"{one.name} {gpu}"):
                continue
            groups: list[tuple[str, list[Part]]] = [("all", parts)]
            names = sorted({part.software for part in parts})
            if libraries and len(names) > 1:
                groups += [(name, [part for part in parts if part.software == name]) for name in names]
            for software, chosen in groups:
                known = [p for p in calib.get(gpu, []) if software in ("all", p.software)]
                if (cell := _cell(one, gpu, software, known, chosen, points, seeds)) is not None:
                    cells.append(cell)
                    progress(_line(cell))
    return cells


def _cell(
    one: Class, gpu: str, software: str, calib: list[Part], valid: list[Part], points: int, seeds: int
) -> dict[str, Any] | None:
    from_calib = sum(part.rows for part in calib) >= points
    source = calib if from_calib else valid
    rows = sum(part.rows for part in source)
    if not from_calib and rows < points + LEAST_SCORED:
        return None
    profiles = {part.software: load_profile(part.software) for part in [*calib, *valid]}
    before, after, kept, scored = [], [], [], 0
    for seed in range(seeds):
        chosen = np.zeros(rows, np.bool_)
        chosen[np.random.default_rng(seed).choice(rows, points, replace=False)] = True
        asked = valid if from_calib else split_parts(valid, ~chosen)
        fitted, outcomes = calibrate(profiles, split_parts(source, chosen), seed)
        before.append(_errors(asked, profiles))
        after.append(_errors(asked, fitted))
        kept.append(", ".join(f"{o.kernels} {o.kept}" for o in outcomes))
        scored = before[-1].n
    return {
        "class": one.name,
        "gpu": gpu,
        "software": software,
        "n": scored,
        "points": points,
        "points_from": "calib" if from_calib else "valid",
        "zero_shot": _means(before),
        "calibrated": _means(after),
        "asked": {"mape": one.mape, "median": one.median},
        "kept": kept,
    }


def _errors(parts: Sequence[Part], profiles: dict[str, Any]) -> Errors:
    predicted = [part.predict(profiles[part.software]) for part in parts]
    return Errors.of(np.concatenate(predicted), np.concatenate([part.sample.seconds for part in parts]))


def _means(errors: Sequence[Errors]) -> dict[str, float]:
    return {name: float(np.mean([getattr(e, name) for e in errors])) for name in ("mape", "median", "p90")}


def table(cells: Sequence[dict[str, Any]]) -> list[str]:
    """The cells as Markdown, a pooled line for each class (every row weighs the same) after its GPUs."""
    lines = ["| class | GPU | library | points from | n | zero-shot MAPE / median | 50 points | asked | |"]
    lines.append("|---" * 9 + "|")
    for name in dict.fromkeys(cell["class"] for cell in cells):
        own = [cell for cell in cells if cell["class"] == name]
        whole = [cell for cell in own if cell["software"] == "all"]
        for cell in own:
            lines.append(_line(cell))
        weights = [cell["n"] for cell in whole]
        pooled = {
            key: {m: float(np.average([c[key][m] for c in whole], weights=weights)) for m in ("mape", "median")}
            for key in ("zero_shot", "calibrated")
        }
        sources = " and ".join(sorted({cell["points_from"] for cell in whole}))
        lines.append(
            _line(
                {**own[0], **pooled, "gpu": "**pooled**", "software": "all", "points_from": sources, "n": sum(weights)}
            )
        )
    return lines


def _line(cell: dict[str, Any]) -> str:
    before, after, asked = cell["zero_shot"], cell["calibrated"], cell["asked"]
    met = after["mape"] <= asked["mape"] and (asked["median"] is None or after["median"] <= asked["median"])
    wanted = f"≤ {asked['mape']:.0%}" + ("" if asked["median"] is None else f" / ≤ {asked['median']:.0%}")
    return (
        f"| {cell['class']} | {cell['gpu']} | {cell['software']} | {cell['points_from']} | {cell['n']:,} "
        f"| {before['mape']:.1%} / {before['median']:.1%} | {after['mape']:.1%} / {after['median']:.1%} "
        f"| {wanted} | {'met' if met else 'missed'} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--points", type=int, default=POINTS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--only", default="", help="pattern found in 'CLASS GPU'")
    parser.add_argument("--libraries", action="store_true", help="also cells whose points are all of one library")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not (folder := os.environ.get("FORETRACE_GROUNDTRUTH")):
        sys.exit("FORETRACE_GROUNDTRUTH: set it to the folder that holds calib/ and valid/ (see the README)")
    cells = few_shot_rows(
        folder,
        arguments.points,
        arguments.seeds,
        arguments.only,
        arguments.libraries,
        lambda what: print(what, file=sys.stderr, flush=True),
    )
    print(json.dumps(cells, indent=2) if arguments.json else "\n".join(table(cells)))


if __name__ == "__main__":
    main()
