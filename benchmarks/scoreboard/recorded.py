"""Recorded traces against what we predict of the same steps: how far off, and what 50 measured operators change.

    python benchmarks/scoreboard/recorded.py [traces/recorded]

Every folder that `benchmarks/record.py` wrote is a system: its steps are replayed on its `system.yaml`, with the cost
model as it ships and calibrated on 50 rows of its own operator tables, and each prediction is held against the trace.
"""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

if __package__ in (None, ""):  # as a script of its own
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from recording.items import Item
from recording.machine import SYSTEM

import foretrace
from foretrace.ir import ForetraceError

ROOT: Final = Path(__file__).resolve().parents[2]
FOLDER: Final = ROOT / "traces" / "recorded"
INDEX: Final = "recorded.yaml"
POINTS: Final = 50
LEAST: Final = 14
"""Of the points, from each table that has so many: fewer than 8 rows of a class change nothing."""
MATCHED, MATCHED_EAGER_CPU = 0.97, 0.99
STEP_ERROR, STEP_MEDIAN = 0.08, 0.05

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Score:
    """One recorded step. Errors are (predicted - measured) / measured."""

    system: str
    item: Item
    device: str
    measured_s: float
    matched: float
    """Share of the measured operators' time that was matched."""
    before: float
    after: float | None
    """Calibrated; None where there is no operator table of the system."""
    mape_before: float | None
    """Of matched operators, weighted by time."""
    mape_after: float | None

    @property
    def matched_enough(self) -> bool:
        """Whether the share is what is asked."""
        return self.matched >= (MATCHED_EAGER_CPU if self.device == "cpu" and self.eager else MATCHED)

    @property
    def eager(self) -> bool:
        """Whether operators ran one by one."""
        return self.item.execution == "eager"


@dataclass
class Scored:
    """All of one run."""

    scores: list[Score] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    """(step, reason): neither measured nor scored."""


def score_all(folder: Path = FOLDER, progress: Progress = lambda _: None) -> Scored:
    """Every recorded system under *folder*, or the one that *folder* is."""
    scored = Scored()
    places = [folder] if _is_record(folder) else sorted(p for p in folder.glob("*") if _is_record(p))
    for place in places:
        with tempfile.TemporaryDirectory(prefix="foretrace-recorded-") as work:
            _score_system(place, Path(work), scored, progress)
    return scored


def _is_record(place: Path) -> bool:
    return (place / INDEX).is_file() or (place / "steps.jsonl").is_file()


def _score_system(place: Path, work: Path, scored: Scored, progress: Progress) -> None:
    import yaml

    name = place.name
    if not (place / INDEX).is_file():
        from scoreboard.record_layout import import_record

        place = import_record(place, work / "imported")
    index = yaml.safe_load((place / INDEX).read_text(encoding="utf-8"))
    system, costs = str(place / SYSTEM), None
    tables = [place / row["file"] for row in index["operators"]]
    if tables:
        progress(f"{name}: calibrating on {POINTS} of its operators")
        try:
            costs = calibrated(tables, work)
        except ForetraceError as error:
            scored.failed.append((f"{name}: calibration", str(error)))
    for row in index["failed"]:
        scored.failed.append((f"{name}: {Item.of_row(row).name} ({row['what']})", row["reason"]))
    for row in index["steps"]:
        item = Item.of_row(row)
        progress(f"{name}: {item.name}")
        try:
            scored.scores.append(_score(name, index["device"], place / row["file"], item, system, costs, work))
        except ForetraceError as error:
            scored.failed.append((f"{name}: {item.name}", str(error)))


def _score(name: str, device: str, file: Path, item: Item, system: str, costs: str | None, work: Path) -> Score:
    graph = item.capture(work / "models")
    measured = foretrace.load_trace(file)
    diffs = [
        foretrace.diff_traces(
            foretrace.replay_graph(graph, system, execution=item.execution, costs=c, dims=item.sizes()).trace,
            measured,
        )
        for c in ("physics", *([costs] if costs else []))
    ]
    return Score(
        name,
        item,
        device,
        diffs[0].measured_s,
        diffs[-1].matched_share,
        diffs[0].error,
        diffs[1].error if costs else None,
        diffs[0].mape_ops,
        diffs[1].mape_ops if costs else None,
    )


def calibrated(tables: Sequence[Path], work: Path, points: int = POINTS, seed: int = 0) -> str:
    """The path of a profile fitted to *points* rows of *tables*: `LEAST` of each sort, the rest by their time."""
    file = work / "points.parquet"
    draw(tables, file, points, seed)
    profile = work / "calibrated.yaml"
    foretrace.calibrate_costs([file], seed=seed).save(profile)
    return str(profile)


def draw(tables: Sequence[Path], file: Path, points: int, seed: int) -> None:
    """Write *points* distinct rows of *tables* to *file*, drawn by their share of the steps that *tables* are of.

    Rows that do not say how often their step runs them are alike.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    shares: Counter[tuple[Any, ...]] = Counter()
    for table in tables:
        read = pq.read_table(table).to_pylist()
        whole = sum(row["latency_us"] * (row.get("count") or 0) for row in read)
        for row in read:
            if str(row["gpu"]).endswith(".yaml"):
                row["gpu"] = str((table.parent / row["gpu"]).resolve())
            key = tuple((k, v) for k, v in row.items() if k not in _MEASURED)
            rows.setdefault(key, row)
            shares[key] += row["latency_us"] * row["count"] / whole if row.get("count") else 1.0
    every = list(rows.values())
    chosen = np.zeros(len(every), np.bool_)
    share = np.array([shares[key] for key in rows])
    order = np.random.default_rng(seed)
    kinds = np.array([row["table"] for row in every])
    for kind in sorted(set(kinds.tolist())):
        own = np.flatnonzero(kinds == kind)
        chosen[_weighted(order, own, share[own], min(LEAST, points - int(chosen.sum())))] = True
    rest = np.flatnonzero(~chosen)
    chosen[_weighted(order, rest, share[rest], points - int(chosen.sum()))] = True
    columns = list(dict.fromkeys(name for row in every for name in row))
    taken = sorted((row for row, c in zip(every, chosen.tolist(), strict=True) if c), key=lambda row: str(row["table"]))
    pq.write_table(pa.table({name: [row.get(name) for row in taken] for name in columns}), file)


_MEASURED: Final = frozenset({"latency_us", "spread_us", "count", "source"})


def _weighted(order: np.random.Generator, at: Any, share: Any, count: int) -> Any:
    """*count* of *at*, or all, drawn without replacement by their *share*."""
    if count <= 0 or not at.size:
        return at[:0]
    return order.choice(at, min(count, at.size), replace=False, p=share / share.sum())


# --- as Markdown -------------------------------------------------------------------------------------------------

HEAD: Final = """\
| system | model | step | run | measured | matched | error | 50 points | operators | 50 points |
|---|---|---|---|--:|--:|--:|--:|--:|--:|"""


def table(scored: Scored) -> Iterator[str]:
    """A line for each step, then the summary and what failed."""
    yield HEAD
    for s in scored.scores:
        sizes = " ".join(f"{name} {value}" for name, value in s.item.sizes().items())
        run = " ".join((s.item.dtype, s.item.execution, *(["eager attention"] if s.item.attention == "eager" else [])))
        yield (
            f"| {s.system} | {s.item.model} | {s.item.phase}, {sizes} | {run} | {_time(s.measured_s)} "
            f"| {s.matched:.1%} | {s.before:+.1%} | {_signed(s.after)} | {_share(s.mape_before)} "
            f"| {_share(s.mape_after)} |"
        )
    yield ""
    yield from summary(scored)
    for what, reason in scored.failed:
        yield f"- Not scored: {what}: {' '.join(reason.split())}"


def summary(scored: Scored) -> Iterator[str]:
    """What is asked of all steps, and whether it is met."""
    if not (scores := scored.scores):
        yield "No recorded trace is here (traces/recorded/README.md says how to record some)."
        return
    enough = sum(s.matched_enough for s in scores)
    least = min(s.matched for s in scores)
    yield (
        f"- Matched: {enough} of {len(scores)} steps have ≥ {MATCHED:.0%} of the measured operators' time matched "
        f"({MATCHED_EAGER_CPU:.0%} on CPU eager); the least is {least:.1%}: {_verdict(enough == len(scores))}"
    )
    for what, errors in (
        ("as shipped", [s.before for s in scores]),
        (f"with {POINTS} points", [s.after for s in scores if s.after is not None]),
    ):
        if not errors:
            yield f"- Step error {what}: no operator table to calibrate on"
            continue
        off = np.abs(errors)
        within, median = int((off <= STEP_ERROR).sum()), float(np.median(off))
        asked = "" if what == "as shipped" else f": {_verdict(within == len(errors) and median <= STEP_MEDIAN)}"
        yield (
            f"- Step error {what}: {within} of {len(errors)} within {STEP_ERROR:.0%}, median {median:.1%} "
            f"(≤ {STEP_MEDIAN:.0%} asked), largest {off.max():.1%}{asked}"
        )


def _verdict(met: bool) -> str:
    return "met" if met else "**missed**"


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _signed(error: float | None) -> str:
    return "–" if error is None else f"{error:+.1%}"


def _share(error: float | None) -> str:
    return "–" if error is None else f"{error:.1%}"


TITLE: Final = "## Recorded traces"
BEFORE: Final = "\n## By GPU\n"
"""What follows the section in docs/accuracy.md."""


def with_section(page: str, lines: Sequence[str]) -> str:
    """*page* with *lines* as its section of recorded traces; as it is without any."""
    if not lines:
        return page
    before, found, rest = page.partition(f"\n{TITLE}\n")
    after = rest.partition("\n## ") if found else ("", "", "")
    if found:
        return f"{before.rstrip()}\n{chr(10).join(lines).rstrip()}\n{after[1]}{after[2]}"
    before, found, rest = page.partition(BEFORE)
    return f"{before.rstrip()}\n{chr(10).join(lines).rstrip()}\n{found}{rest}"


def section(progress: Progress = lambda _: None) -> list[str]:
    """The part of docs/accuracy.md; empty where nothing was recorded."""
    if not any(_is_record(p) for p in FOLDER.glob("*")):
        return []
    return [
        f"\n{TITLE}\n",
        "Steps that we measured (`benchmarks/record.py`, traces/recorded), replayed on the system that was recorded:",
        "with the cost model as it ships, and calibrated on",
        f"{POINTS} rows of that system's own operator tables (`measure --ops`), the same points for all its steps.",
        "*matched*: share of the measured operators' time that the diff gives a partner; *error*: of the whole step;",
        "*operators*: mean error of matched ones, weighted by time. The constants of a CPU that ship were fitted on",
        "the operator tables of xeon-2-cores (`benchmarks/fit_cpu.py`), so that 50 of its rows change nothing;",
        "the other folder is held out, and no step was fitted on. What a shared machine adds from minute to minute is",
        "in both. No GPU was at hand.\n",
        *table(score_all(progress=progress)),
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    arguments = parser.parse_args()
    progress = lambda what: print(what, file=sys.stderr, flush=True)  # noqa: E731
    print("\n".join(table(score_all(arguments.folder, progress))))


if __name__ == "__main__":
    main()
