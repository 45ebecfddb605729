"""Fit the constants of the kernel-library profiles that ship, on the ``calib`` folder of the ground-truth tables.

    FORETRACE_GROUNDTRUTH=... python benchmarks/fit_profiles.py [STAGE...] [--rows 1500]

Each stage fits one set (class, pipeline) of one profile and writes it back to ``replay/costs/profiles``, with the
rows it saw and its errors. Stages run in order: later ones stand on earlier ones. ``valid`` is never read.
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import yaml
from fit_stages import STAGES, Stage

from foretrace.hardware import load_system
from foretrace.replay.calibration import Errors, Free, Sample, fit
from foretrace.replay.columns import KINDS
from foretrace.replay.costs.physics.collective import PROTOCOLS
from foretrace.replay.costs.physics.profile import CLASSES, FOLDER, GENERIC, Profile, load_profile, read_yaml
from foretrace.replay.measured import machine, read_measurements

COMMAND = "python benchmarks/fit_profiles.py"


def main() -> None:
    """Run the stages whose names contain an argument; all without any."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", help="parts of stage names, e.g. gemm/ampere")
    parser.add_argument("--rows", type=int, default=1500, help="rows of each GPU at the most")
    arguments = parser.parse_args()
    if not (folder := os.environ.get("FORETRACE_GROUNDTRUTH")):
        sys.exit("FORETRACE_GROUNDTRUTH: set it to the folder of the ground-truth tables")
    if not arguments.stages or "timing_floor" in arguments.stages:
        floors(Path(folder) / "calib")
    chosen = [s for s in STAGES if not arguments.stages or any(part in s.name for part in arguments.stages)]
    for stage in chosen:
        run(stage, Path(folder) / "calib" / f"{stage.table}.parquet", arguments.rows)
    if any(stage.table == "collectives" for stage in chosen):
        middles()
    if not arguments.stages or "scale-out" in arguments.stages:
        import fit_network  # which stands on this file

        fit_network.main()
    if not arguments.stages or "spread" in arguments.stages:
        spreads(Path(folder) / "calib", arguments.rows)


def middles() -> None:
    """What collectives take on chips of no pipeline that was measured: the geometric mean of those that were."""
    for name in ("serving", "vllm", "sglang"):
        data = read_yaml(FOLDER / f"{name}.yaml")
        for kernels in ("collective", "launching", *(f"nvlink_{protocol}" for protocol in PROTOCOLS)):
            measured = [known for pipeline, known in data.get(kernels, {}).items() if pipeline != GENERIC]
            if len(measured) > 1:
                means = {k: np.exp(np.mean([np.log(known[k]) for known in measured])) for k in measured[0]}
                data[kernels][GENERIC] = {k: float(f"{mean:.4g}") for k, mean in means.items()}
        (FOLDER / f"{name}.yaml").write_text(_page(name, data), encoding="utf-8")
    load_profile.cache_clear()


def floors(folder: Path) -> None:
    """What the host takes of an eager call: rows whose device work is under 5 us, median, geometric mean of GPUs."""
    found: dict[str, list[float]] = {}
    amd: list[float] = []
    for table in ("elementwise", "gemm"):
        for whole in read_measurements(folder / f"{table}.parquet"):
            for gpu, _, software, rows in whole.split():
                q = whole.take(rows)
                if software != "eager":
                    continue
                short = Sample(q.operators, q.row, q.seconds, load_system(gpu)).predict(load_profile("eager")) < 8e-6
                kind = q.largest(q.operators.kind.astype(float))
                for code in np.unique(kind[short]).tolist():
                    rows_of = short & (kind == code)
                    if rows_of.sum() >= 5:
                        typical = float(np.median(q.seconds[rows_of]))
                        (amd if gpu.startswith("MI") else found.setdefault(str(KINDS[int(code)]), [])).append(typical)
    data = read_yaml(FOLDER / "eager.yaml")
    shown: dict[str, float] = {k: round(float(np.exp(np.mean(np.log(v)))) * 1e6, 1) for k, v in sorted(found.items())}
    profile = load_profile("eager")
    gaps = []
    for whole in read_measurements(folder / "elementwise.parquet"):
        for gpu, _, software, rows in whole.split():
            q = whole.take(rows)
            q = q.take(q.kind.is_in({"elementwise"}))
            device = Sample(q.operators, q.row, q.seconds, load_system(gpu)).predict(profile)
            longer = (q.seconds > 60e-6) & (q.seconds < 200e-6)
            if software == "eager" and longer.sum() > 50:
                gaps.append(float(np.median((q.seconds - device)[longer])))
    share = np.exp(np.mean(np.log(amd))) / np.exp(np.mean(np.log(list(shown.values())))) * 1e6
    shown["amd_share"] = round(float(share), 2)
    data["timing_floor"] = shown | {"other": shown["elementwise"], "gap": round(float(np.median(gaps)) * 1e6, 1)}
    data.setdefault("fitted", {})["timing_floor"] = {"rows": f"of little work on {max(map(len, found.values()))} GPUs"}
    print([f"{g * 1e6:.1f}" for g in gaps], data["timing_floor"])
    (FOLDER / "eager.yaml").write_text(_page("eager", data), encoding="utf-8")
    load_profile.cache_clear()
    print(f"timing_floor: {shown} us {found}")


def run(stage: Stage, table: Path, rows: int) -> None:
    """Fit one stage and write its set."""
    began = time.perf_counter()
    samples = list(_samples(stage, table, None))
    if not samples:
        print(f"{stage.name}: no rows")
        return
    profile = _started(stage)
    free = [Free(stage.kernels, stage.pipeline, tuple(stage.names.split()))]
    for also in filter(None, stage.also.split()):
        kernels, names = also.split(":")
        free.append(Free(kernels, stage.pipeline, tuple(names.split(","))))
    fitted = fit(profile, list(_samples(stage, table, rows)), free, stage.prior)
    errors = []
    for sample in samples:
        e = Errors.of(sample.predict(fitted), sample.seconds)
        errors.append(f"{sample.system.name}: n={e.n} MAPE={e.mape:.1%} median={e.median:.1%} bias={e.bias:.3f}")
    said = {
        "on": {s.system.name: s.system.accelerator.generation for s in samples},
        "errors": {
            f"{stage.table}.parquet {stage.dtypes} {stage.sources} {stage.kinds}".replace(" .*", ""): "; ".join(errors)
        },
    }
    for one in free:
        write_set(stage.profile, one.kernels, stage.pipeline, fitted, said)
    if stage.carry:  # what is the library's own, not the pipeline's
        names = stage.names.split()
        there = load_profile(stage.profile).constants(stage.kernels, stage.carry)
        mine = fitted.sets[stage.kernels, stage.pipeline]
        carried = replace(there, **{name: getattr(mine, name) for name in names})
        sets = {**fitted.sets, (stage.kernels, stage.carry): carried}
        note = {"on": {}, "errors": {f"{', '.join(names)} as on {stage.pipeline}": "none measured"}}
        write_set(stage.profile, stage.kernels, stage.carry, replace(fitted, sets=sets), note)
    print(f"{stage.name}: {'; '.join(errors)} ({time.perf_counter() - began:.0f} s)", flush=True)


def spreads(calib: Path, rows: int) -> None:
    """How far rows lie from their predictions: with the constants of their chip, and with another pipeline's."""
    found: dict[tuple[str, str], dict[str, list[np.ndarray]]] = {}
    crossed_by_chip: dict[tuple[str, str, str], list[np.ndarray]] = {}
    for stage in STAGES:
        if stage.kernels == "traffic" and stage.table != "elementwise":
            continue
        kernels = "stream" if stage.kernels == "traffic" else stage.kernels
        profile = load_profile(stage.profile)
        own = profile.key(stage.kernels, stage.pipeline)
        others = [p for k, p in profile.sets if k == own[0] and p != own[1] and p != GENERIC]
        if stage.pipeline.startswith("simt"):
            others = [p for p in others if p.startswith("simt")]
        else:
            others = [p for p in others if p in ("ampere", "hopper")]
        for sample in _samples(stage, calib / f"{stage.table}.parquet", rows):
            place = found.setdefault((stage.profile, kernels), {"seen": [], "far": []})
            error = np.log(sample.predict(profile) / sample.seconds)
            place["seen"].append(error)
            for other in others:
                swapped = {(k, stage.pipeline): s for (k, p), s in profile.sets.items() if p == other}
                sets = {**profile.sets, **swapped, (stage.kernels, stage.pipeline): profile.sets[own[0], other]}
                crossed = sample.predict(replace(profile, sets=sets))
                place["far"].append(np.log(crossed / sample.seconds))
                crossed_by_chip.setdefault((stage.profile, kernels, sample.system.name), []).append(place["far"][-1])
    for name in sorted({profile for profile, _ in found}):
        data = read_yaml(FOLDER / f"{name}.yaml")
        shown: dict[str, dict[str, float]] = {}
        for (profile_name, kernels), place in sorted(found.items()):
            if profile_name == name:
                seen = float(np.quantile(np.abs(np.concatenate(place["seen"])), 0.8))
                far = float(np.quantile(np.abs(np.concatenate(place["far"])), 0.8)) if place["far"] else 2 * seen
                far = max(far, seen)
                factors = {"seen": seen, "near": (seen + far) / 2, "far": far}
                shown[kernels] = {k: round(float(np.exp(v)), 3) for k, v in factors.items()}
        data["spread"] = shown
        (FOLDER / f"{name}.yaml").write_text(_page(name, data), encoding="utf-8")
        print(f"spread of {name}: {shown}")
    # held-out chips: rows priced with what another chip's pipeline was fitted to, and what all of them share
    apart = [np.concatenate(errors) for errors in crossed_by_chip.values()]
    common = np.mean([e.mean() ** 2 for e in apart])
    whole = np.mean([np.mean(e**2) for e in apart])
    data = read_yaml(FOLDER / "serving.yaml")
    data["correlation"] = round(float(common / whole), 3)
    (FOLDER / "serving.yaml").write_text(_page("serving", data), encoding="utf-8")
    print(f"correlation: {data['correlation']}")
    load_profile.cache_clear()


def _samples(stage: Stage, table: Path, most: int | None) -> Iterator[Sample]:
    for whole in read_measurements(table):
        for gpu, variant, software, rows in whole.split():
            q = whole.take(rows)
            use = (q.seconds >= stage.at_least) & bool(re.fullmatch(stage.gpus, gpu))
            use &= q.dtype.is_in({v for v in q.dtype.values if re.fullmatch(stage.dtypes, v)})
            use &= q.kind.is_in({v for v in q.kind.values if re.fullmatch(stage.kinds, v)})
            use &= q.source.is_in({v for v in q.source.values if re.match(stage.sources, v)})
            if stage.where is not None and use.any():
                use &= stage.where(q)
            if most is not None and use.sum() > most:
                kept = np.random.default_rng(0).choice(np.flatnonzero(use), most, replace=False)
                use = np.isin(np.arange(use.size), kept)
            if use.any():
                q = q.take(use)
                yield Sample(q.operators, q.row, q.seconds, machine(load_system(gpu), variant), software == "eager")


def _started(stage: Stage) -> Profile:
    """The stage's profile with a set of its own to start from."""
    profile = load_profile(stage.profile)
    sets = dict(profile.sets)
    for also in stage.also.split():
        kernels = also.split(":")[0]
        sets[kernels, stage.pipeline] = profile.constants(kernels, stage.pipeline)
    given = asdict(profile.constants(stage.kernels, stage.pipeline))
    start = {k: float(v) for k, v in (part.split("=") for part in stage.start.split())}
    given |= {k: v for k, v in start.items() if "." not in k}
    sets[stage.kernels, stage.pipeline] = CLASSES[stage.kernels](**given)
    for place, value in start.items():
        kernels, dot, name = place.partition(".")
        if dot:
            sets[kernels, stage.pipeline] = replace(sets[kernels, stage.pipeline], **{name: value})
    moving = [(stage.kernels, n) for n in stage.names.split()]
    moving += [(also.split(":")[0], n) for also in stage.also.split() for n in also.split(":")[1].split(",")]
    for kernels, name in moving:  # a limit that was none so far starts from where it would show
        value = getattr(sets[kernels, stage.pipeline], name)
        if np.isinf(value) or (name.endswith("_start_s") and value == 0):
            started = 1e-6 if name.endswith("_s") else 8.0
            sets[kernels, stage.pipeline] = replace(sets[kernels, stage.pipeline], **{name: started})
    return replace(profile, sets=sets)


def write_set(name: str, kernels: str, pipeline: str, fitted: Profile, said: dict) -> None:
    """Put the set of class *kernels* for *pipeline* into the page of profile *name*, with what is *said* of its fit."""
    path = FOLDER / f"{name}.yaml"
    data = read_yaml(path)
    constants = fitted.sets[kernels, pipeline]
    shown = {}
    for field in fields(constants):
        value = getattr(constants, field.name)
        if np.isinf(value) or value == field.default:
            continue
        key, value = (field.name[:-2], value * 1e6) if field.name.endswith("_s") else (field.name, value)
        shown[key] = value if float(value).is_integer() else float(f"{value:.4g}")
    data.setdefault(kernels, {})[pipeline] = shown
    known = data.setdefault("fitted", {})
    before = known.get(f"{kernels}/{pipeline}", {"on": {}, "errors": {}})  # of a set that stages share
    known[f"{kernels}/{pipeline}"] = {part: before[part] | said[part] for part in said}
    path.write_text(_page(name, data), encoding="utf-8")
    load_profile.cache_clear()


def _page(name: str, data: dict) -> str:
    """The file: its classes in order, times in microseconds, what each set was fitted on at its end."""
    head = [
        f"# Kernel-library profile {name}: constants by class of kernels and pipeline (see replay/costs/physics).",
        "# Times are in microseconds. `fitted` says what each set was fitted on, and its errors there.",
    ]
    order = ["extends", "title", "experts", "timing_floor", *CLASSES, "spread", "correlation", "fitted"]
    parts = [yaml.safe_dump({k: data[k]}, sort_keys=False, width=1000, allow_unicode=True) for k in order if k in data]
    return "\n".join(head) + f"\n# Command: {COMMAND}\n" + "".join(parts)


if __name__ == "__main__":
    main()
