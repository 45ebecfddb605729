"""Schedules in files: CSV, or YAML with a list ``schedule``; read as data, within bounds, errors with their line.

The two forms of one row::

    rank,slot,micro_batch,stage,pass
    0,0,0,0,forward

    name: mine
    schedule:
    - {rank: 0, slot: 0, micro_batch: 0, stage: 0, pass: forward}

A pass is ``forward``, ``backward``, ``backward-input`` or ``backward-weight``, or the letter F, B, I or W. Lines of a
CSV that begin with ``#`` are comments.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from foretrace.hardware.quantity import printable, quoted
from foretrace.ir import ForetraceError, FormatError, nearest_names, read_file, write_atomically

from .check import check
from .table import Pass, PipelineSchedule, ScheduleError

SUFFIXES: Final = (".csv", ".yaml", ".yml")
COLUMNS: Final = ("rank", "slot", "micro_batch", "stage", "pass")
MAX_BYTES: Final = 32 << 20
_PASSES: Final = {name: work for work in Pass for name in (work.label, work.letter.lower())}
_NUMBER: Final = re.compile(r"[0-9]{1,9}", re.ASCII)

_Row = tuple[int, dict[str, str]]
"""The line that a row begins on, and its cells by column."""


def read_schedule(path: str | os.PathLike[str]) -> PipelineSchedule:
    """The schedule in the CSV or YAML file at *path*, complete and able to run.

    Its ranks, stages and micro-batches are those that occur. Raises `FormatError` for a file that cannot be read as
    either form, `ScheduleError` with the line of a wrong cell, and as `check`.
    """
    path = Path(path)
    shown = printable(str(path), 200)
    if path.suffix.lower() not in SUFFIXES:
        raise FormatError(f"{shown}: expected a schedule in a file that ends in {', '.join(SUFFIXES)}")
    try:
        text = read_file(path, MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise FormatError(f"{shown}: not UTF-8 text (byte {e.start})") from None
    named: list[str] = []
    if path.suffix.lower() == ".csv":
        rows = _csv_rows(text, shown)
    else:
        from .yaml_rows import yaml_rows

        rows = yaml_rows(text, shown, COLUMNS, named)
    numbers = np.fromiter((number for row in rows for number in _numbers(row, shown)), np.int64)
    table = numbers.reshape(-1, len(COLUMNS))
    if not table.size:
        raise ScheduleError(f"{shown}: expected rows of {', '.join(COLUMNS)}, got none")
    rank, slot, micro_batch, stage, work = table.T
    ranks, stages, micro_batches = (int(column.max()) + 1 for column in (rank, stage, micro_batch))
    name = named[0] if named else printable(path.stem, 60)
    schedule = PipelineSchedule(name, ranks, stages, micro_batches, rank, slot, micro_batch, stage, work)
    try:
        check(schedule)
    except ScheduleError as e:
        raise ScheduleError(f"{shown}: {e}") from None
    return schedule


def write_schedule(schedule: PipelineSchedule, path: str | os.PathLike[str]) -> None:
    """Write *schedule* to *path*, as CSV or YAML by its suffix; whole or not at all. Raises `ForetraceError`."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ForetraceError(f"cannot write {path}: expected a name that ends in {', '.join(SUFFIXES)}")
    columns = (schedule.rank, schedule.slot, schedule.micro_batch, schedule.stage, schedule.work)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    cells = ((*numbers, Pass(work).label) for *numbers, work in rows)
    if suffix == ".csv":
        lines = [",".join(COLUMNS), *(",".join(map(str, row)) for row in cells)]
    else:
        name = schedule.name.replace("'", "''")
        items = (", ".join(f"{k}: {v}" for k, v in zip(COLUMNS, row, strict=True)) for row in cells)
        lines = [f"name: '{name}'", "schedule:", *(f"- {{{item}}}" for item in items)]
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def _csv_rows(text: str, shown: str) -> Iterator[_Row]:
    """The rows below the header; the columns may come in any order."""
    header: list[str] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        cells = [cell.strip().strip('"') for cell in line.split(",")]
        if header is None:
            header = cells
            if sorted(header) != sorted(COLUMNS):
                raise FormatError(
                    f"{shown}:{number}: expected the header {','.join(COLUMNS)}, got {quoted(','.join(header))}"
                )
            continue
        if len(cells) != len(header):
            raise ScheduleError(f"{shown}:{number}: expected {len(header)} cells, got {len(cells)}")
        yield number, dict(zip(header, cells, strict=True))


def _numbers(row: _Row, shown: str) -> list[int]:
    """The cells of *row* in the order of `COLUMNS`, the pass as its code."""
    line, cells = row
    numbers = []
    for column in COLUMNS[:-1]:
        if not _NUMBER.fullmatch(cells[column]):
            raise ScheduleError(
                f"{shown}:{line}: {column}: expected a whole number from 0, got {quoted(cells[column])}"
            )
        numbers.append(int(cells[column]))
    word = cells["pass"].lower().replace("_", "-")
    if word not in _PASSES:
        near = nearest_names(word[:60], [work.label for work in Pass])
        known = "nearest: " + ", ".join(near) if near else "one of " + ", ".join(work.label for work in Pass)
        raise ScheduleError(f"{shown}:{line}: unknown pass {quoted(cells['pass'])}; {known}")
    return [*numbers, int(_PASSES[word])]
