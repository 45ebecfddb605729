"""`validate_tables`: hold a cost model against tables of measured rows, and say how far off it is and where."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from foretrace.ir import ForetraceError, FormatError, OpKind
from foretrace.ir.graph import MATRIX_KINDS
from foretrace.replay.columns import KINDS, Floats, Mask
from foretrace.replay.costs import BOUNDS, CostModel, Costs, UnreachableError, load_costs
from foretrace.replay.costs.roofline import matrix_rate
from foretrace.replay.measured import (
    ROWS_AT_ONCE,
    Measurements,
    Table,
    count_rows,
    machine,
    measure,
    missing,
    read_tables,
    table_class,
)

from .row_values import Row, Verdict
from .scores import Collector, Group, Point, Validation
from .whole_models import Replays, WholeClass, rows_of, whole_class

if TYPE_CHECKING:
    from foretrace.hardware import System

DEFAULT_COSTS: Final = "physics"
UNITS_OFF: Final = 300.0
"""A table whose median prediction is this many times off, up or down, has its units wrong by 10**3."""

_NOT_ASKED: Final = "of a GPU that --gpu did not ask for"
_DESCRIBES: Final = (
    "model",
    "mode",
    "option",
    "batch",
    "seq",
    "prefill_tokens",
    "input_tokens",
    "output_len",
    "mbs",
    "tp",
    "pp",
    "dp",
    "grad_acc",
)

Progress = Callable[[str], None]


def validate_tables(
    paths: Iterable[str | Path],
    *,
    costs: str | CostModel = DEFAULT_COSTS,
    quality: str = "ok",
    gpus: Sequence[str] = (),
    worst: int = 10,
    progress: Progress = lambda _: None,
) -> Validation:
    """Price every row of the tables at *paths* (.parquet or .csv) and score the predictions.

    *quality* takes rows that their table calls so (``all``: any), *gpus* only rows of these; *worst* is how many of
    the rows furthest off to describe. Rows that cannot be priced are counted by reason in `Validation.skipped`.

    Raises `FormatError` for a table that cannot be read or lacks a column, `UnknownNameError` for a cost model or GPU
    asked for that does not exist.
    """
    model = load_costs(costs) if isinstance(costs, str) else costs
    run = _Run(model, quality, frozenset(_system(name, "").name for name in gpus), Collector(worst), progress)
    named = [str(path) for path in paths]
    for path in named:
        run.table(path)
    return run.collector.finish(model.name, named, run.unmodelled, run.warnings, list(run.notes))


def count_stages(paths: Iterable[str | Path]) -> int:
    """How often `validate_tables` reports progress on *paths*, as far as their headers tell."""
    return sum(1 + (count_rows(path) or 0) // ROWS_AT_ONCE for path in paths)


class _Run:
    """One call of `validate_tables`."""

    def __init__(
        self, model: CostModel, quality: str, gpus: frozenset[str], collector: Collector, progress: Progress
    ) -> None:
        self.model, self.quality, self.gpus, self.collector, self.progress = model, quality, gpus, collector, progress
        self.replays = Replays(model, progress)
        self.unmodelled: set[str] = set()
        self.warnings: list[str] = []
        self.notes: dict[str, None] = {}

    def table(self, path: str) -> None:
        """Score every row of one file."""
        ratios: list[Floats] = []
        for table in read_tables(path):
            self.progress(f"{Path(path).name}: row {table.first:,}")
            sort = table_class(table)
            if sort is None:
                ratios += self.whole(table)
                continue
            measured = measure(table, sort, self.quality)
            for reason, count in measured.refused.items():
                self.collector.skip(reason, count)
            for gpu, variant, software, rows in measured.split():
                ratios += self.part(measured.take(rows), gpu, variant, software)
        self.check_units(path, np.concatenate(ratios) if ratios else np.empty(0))

    def whole(self, table: Table) -> list[Floats]:
        """Replay the rows of a table of whole models, one at a time."""
        sort = whole_class(table)
        if sort is None:
            raise FormatError(
                f"{table.path}: its columns are those of no table that we know: {', '.join(table.columns)}"
            )
        for name in sort.needs:
            if name not in table:
                raise missing(table.path, name, table.columns)
        cells: list[tuple[Point, bool]] = []
        for i, row in enumerate(rows_of(table)):
            place = table.first + i
            self.progress(f"{Path(table.path).name}: row {place:,}")
            try:
                cells += self.cells(row, sort, table.path, place)
            except ForetraceError as error:
                self.collector.skip(str(error), 1)
        if not cells:
            return []
        known = self.collector.groups
        predicted = np.array([point.predicted_s for point, _ in cells])
        seconds = np.array([point.measured_s for point, _ in cells])
        self.collector.add(
            np.array([known.setdefault(point.group, len(known)) for point, _ in cells], np.int32),
            predicted,
            seconds,
            np.array([inside for _, inside in cells]),
            np.full(len(cells), np.nan),
            lambda i: cells[i][0],
        )
        return [predicted / seconds]

    def cells(self, row: Row, sort: WholeClass, path: str, place: int) -> Iterator[tuple[Point, bool]]:
        """Each time that a row measures, and whether it lies in its interval."""
        said = str(row.get("quality") or row.get("label_quality") or "")
        if self.quality != "all" and said not in (self.quality, ""):
            raise ForetraceError(f"quality {said!r}, and {self.quality!r} is asked for")
        gpu = str(row["gpu"])
        system = _system(gpu, "")
        if self.gpus and system.name not in self.gpus:
            raise ForetraceError(_NOT_ASKED)
        what = " ".join(f"{n}={_shown(row[n])}" for n in _DESCRIBES if n in row and str(row[n]) not in ("", "nan"))
        for cell in sort.cells(row, system, self.replays):
            group = Group(gpu, str(row.get("dtype") or row.get("precision") or ""), cell.kind)
            if isinstance(cell, Verdict):
                self.collector.judge(group, cell.measured, cell.predicted)
                continue
            inside = cell.low_s <= cell.measured_s <= cell.high_s
            if cell.aside:
                self.collector.put_beside(group, cell.predicted_s, cell.measured_s, inside)
            else:
                yield Point(group, path, place, what, cell.predicted_s, cell.measured_s, cell.bound), inside

    def check_units(self, path: str, ratios: Floats) -> None:
        """Warn where all of a table is 1000 times off."""
        middle = float(np.median(ratios)) if ratios.size else 1.0
        if not 1 / UNITS_OFF < middle < UNITS_OFF:
            self.warnings.append(
                f"{path}: predictions are {middle:.2g} times what was measured: are its times in another unit "
                "than the column's name says?"
            )

    def part(self, measured: Measurements, gpu: str, variant: str, software: str) -> list[Floats]:
        """Price and score rows of one GPU and software; what comes back is predicted / measured."""
        try:
            system = _system(gpu, variant)
        except ForetraceError as error:
            self.collector.skip(str(error), measured.rows)
            return []
        if self.gpus and system.name not in self.gpus:
            self.collector.skip(_NOT_ASKED, measured.rows)
            return []
        usable = np.ones(measured.rows, np.bool_)
        for reason, rows in _emulated(measured, system):
            self.collector.skip(reason, int((rows & usable).sum()))
            usable &= ~rows
        measured = measured.take(usable)
        if not measured.rows:
            return []
        try:
            priced = self.model.price(measured.operators, system, software)
        except UnreachableError as error:
            far = measured.largest(measured.operators.attribute("nodes", 1.0)) > 1
            if far.all() or not far.any():
                self.collector.skip(f"{gpu}: {error}", measured.rows)
                return []
            return [r for rows in (~far, far) for r in self.part(measured.take(rows), gpu, variant, software)]
        self.unmodelled |= set(priced.unmodelled)
        self.notes |= dict.fromkeys(priced.warnings)
        predicted = priced.timed(measured.row, measured.rows, measured.dispatched)
        device, low, high = (measured.sum(s) for s in (priced.seconds, priced.low_s, priced.high_s))
        low, high = predicted * low / device, predicted * high / device  # the host's share is as uncertain
        group = measured.kind.joined(measured.dtype, lambda kind, dtype: f"{kind}\0{dtype}")
        groups = [Group(gpu, *reversed(text.split("\0"))) for text in group.values]
        known = self.collector.groups
        codes = np.array([known.setdefault(g, len(known)) for g in groups], np.int32)[group.codes]
        self.collector.add(
            codes,
            predicted,
            measured.seconds,
            (low <= measured.seconds) & (measured.seconds <= high),
            measured.sum(measured.operators.bytes),
            lambda i: _point(measured, groups[group.codes[i]], priced, predicted, i),
        )
        return [predicted / measured.seconds]


@lru_cache(maxsize=256)
def _system(gpu: str, variant: str) -> "System":
    """The system of one *gpu* of a table, its links those that *variant* names."""
    from foretrace.hardware import load_system

    if not gpu:
        raise ForetraceError("gpu is empty")
    return machine(load_system(gpu), variant)


def _emulated(measured: Measurements, system: "System") -> list[tuple[str, Mask]]:
    """(reason, rows) of matrix work in formats that the chip has no units for."""
    chip, operators = system.accelerator, measured.operators
    matrix = operators.of_kind(MATRIX_KINDS)
    found = []
    for code in np.unique(operators.dtype[matrix]).tolist():
        dtype = operators.dtypes[code]
        used = matrix_rate(chip, dtype)[1]
        if used != dtype:
            rows = np.zeros(measured.rows, np.bool_)
            rows[measured.row[matrix & (operators.dtype == code)]] = True
            found.append((f"{chip.name} has no {dtype} units: a replay would emulate it with {used}", rows))
    return found


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _point(measured: Measurements, group: Group, priced: Costs, predicted: Floats, row: int) -> Point:
    """One row in words: the operator of it that takes longest."""
    own = np.flatnonzero(measured.row == row)
    longest = int(own[np.argmax(priced.seconds[own])])
    sizes = {name: column[longest] for name, column in measured.operators.attributes.items()}
    what = " ".join(f"{name}={value:g}" for name, value in sizes.items() if not np.isnan(value))
    kind = KINDS[measured.operators.kind[longest]]
    return Point(
        group,
        measured.path,
        int(measured.number[row]),
        f"{measured.operators.names[longest]} {what}" if kind is not OpKind.MATMUL else what,
        float(predicted[row]),
        float(measured.seconds[row]),
        BOUNDS[priced.bound[longest]],
    )
