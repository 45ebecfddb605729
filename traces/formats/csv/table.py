"""Plain CSV: a row an event, our columns by name with a unit of time of the writer's choice."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from foretrace.ir import ForetraceError, FormatError, UnknownNameError, without_collector
from foretrace.traces.formats.parquet import decode_meta, encode_meta
from foretrace.traces.kinds import DEVICE_KINDS
from foretrace.traces.nesting import resolve
from foretrace.traces.strings import StringColumn
from foretrace.traces.trace import (
    COLUMNS,
    FLOAT_COLUMNS,
    INT_COLUMNS,
    MAX_EVENTS,
    MAX_RANKS,
    MAX_TIME_S,
    STRING_COLUMNS,
    Trace,
)

from .rows import Codes, parse_cells, read_blocks, read_rows

META: Final = "trace"  # a column whose first cell says what is known of the run
UNITS: Final = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}  # of a second
TIMES: Final = ("start", "duration", "spread")
KNOWN: Final = (*(c for c in COLUMNS if c.removesuffix("_s") not in TIMES), *(f"{t}_{u}" for t in TIMES for u in UNITS))
_LIMITS: Final = {"rank": (0, MAX_RANKS - 1)}


def read_csv(path: Path) -> Trace:
    """The Trace in a CSV file, gzipped or not, of ours or of ``nsys stats --report cuda_gpu_trace --format csv``.

    The header names our columns; `name`, and a start and a duration in _s, _ms, _us or _ns, must be there. An empty
    cell is the column's default. Without a `kind`, events on streams "gpu ..." are kernels, others cpu_op; without a
    `parent`, host events nest by time. Raises FormatError, naming file and line, for an unknown column (and the
    nearest), a bad or negative number, a row of another width.
    """
    rows = read_rows(path)
    line, header = next(rows, (0, []))
    if not header:
        raise FormatError(f"{path}: no header, and nothing else but separators")
    try:
        if not _is_ours(header):
            from .nsight import find_header, read_gpu_trace

            found = find_header(line, header, rows)
            if found is not None:
                return read_gpu_trace(found, rows, path)
        with without_collector():
            return _read(_places(header), len(header), rows, path)
    except ForetraceError as error:
        message = str(error)
        raise FormatError(message if message.startswith(str(path)) else f"{path}: {message}") from None


def encode_csv(trace: Trace) -> bytes:
    """All columns of *trace* as CSV in SI units, and what is known of the run as JSON in the column `trace`.

    `read_csv` gives the same trace back. Raises ForetraceError where info is not JSON.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([*COLUMNS, META])
    columns = [values.tolist() for values in trace.columns().values()]
    meta = encode_meta(trace).decode()
    if not len(trace):
        writer.writerow([*[""] * len(COLUMNS), meta])
    rows = zip(*columns, strict=True)
    for row in rows:
        writer.writerow([*row, meta])
        break
    writer.writerows((*row, "") for row in rows)
    return text.getvalue().encode()


def _is_ours(header: list[str]) -> bool:
    return "name" in [cell.strip() for cell in header]


def _places(header: list[str]) -> dict[str, tuple[int, float]]:
    """Per column of ours its place in the row and its units a second."""
    places: dict[str, tuple[int, float]] = {}
    for place, cell in enumerate(header):
        name = cell.strip()
        if name not in KNOWN and name != META:
            raise UnknownNameError("column", name[:60], (*KNOWN, META), "the header's")
        stem, _, unit = name.rpartition("_")
        column, scale = (f"{stem}_s", UNITS[unit]) if stem in TIMES else (name, 1.0)
        if column in places:
            raise FormatError(f"two columns for {column.removesuffix('_s')}: expected one")
        places[column] = (place, scale)
    for column in ("name", "start_s", "duration_s"):
        if column not in places:
            units = "" if column == "name" else ", _ms, _us or _ns"
            raise FormatError(f"no column {column}{units} in the header")
    return places


def _read(places: dict[str, tuple[int, float]], width: int, rows: Iterator[tuple[int, list[str]]], path: Path) -> Trace:
    meta_place = places.pop(META, (None, 1.0))[0]
    found: dict[str, list[Any]] = {column: [] for column in places}
    texts = {column: Codes() for column in places if column in STRING_COLUMNS}
    meta: dict[str, Any] | None = None
    count = 0
    for lines, block in read_blocks(rows, width, path):
        if meta is None and meta_place is not None:
            meta = _meta(block[0][meta_place], lines[0])
            if not any(cell for place, cell in enumerate(block[0]) if place != meta_place):
                del lines[0], block[0]
        count += len(block)
        if count > MAX_EVENTS:
            raise FormatError(f"more than the {MAX_EVENTS} events that are read")
        cells = list(zip(*block, strict=True)) or [()] * width
        for column, (place, scale) in places.items():
            found[column].append(_block(column, cells[place], lines, scale, texts.get(column)))
    columns: dict[str, Any] = {}
    for column, parts in found.items():
        values = np.concatenate(parts) if parts else np.zeros(0)
        columns[column] = values
        if column in texts:
            columns[column] = StringColumn(values.astype(np.int32), tuple(texts[column]))
    trace = Trace.from_columns(columns, **(meta or {"title": path.name, "source": "foreign"}))
    return _completed(trace, places.keys())


def _block(column: str, cells: Sequence[str], lines: list[int], scale: float, table: Codes | None) -> NDArray[Any]:
    """The cells of a column: codes into *table*, or numbers within bounds."""
    if table is not None:
        return table.of(cells)
    if column in FLOAT_COLUMNS:
        empty = None if column in ("start_s", "duration_s") else 0.0
        values = parse_cells(cells, lines, float, np.float64, f"{column}: expected a number", empty) / scale
        limit = MAX_TIME_S if column.endswith("_s") else np.inf
        low = -limit if column == "start_s" else 0.0
        with np.errstate(invalid="ignore"):
            wrong = ~np.isfinite(values) | (values < low) | (values > limit)
        expected = f"{column}: expected a number" + (" that is not negative" if low == 0 else "")
        expected += f" of at most {limit:g}" if limit < np.inf else ""
    else:
        expected = f"{column}: expected a whole number"
        values = parse_cells(cells, lines, _integer, np.int64, expected, INT_COLUMNS[column])
        low, high = _LIMITS.get(column, (-1, (1 << 63) - 1))
        wrong = (values < low) | (values > high)
        expected = f"{column}: expected {low} or more" + (f", at most {high}" if column in _LIMITS else "")
    if wrong.any():
        row = int(wrong.argmax())
        raise FormatError(f"line {lines[row]}: {expected}, got {cells[row]!r:.60}")
    return values


def _integer(cell: str) -> int:
    """A whole number, also as spreadsheets write it: ``3.0``."""
    try:
        return int(cell)
    except ValueError:
        value = float(cell)
        if not value.is_integer() or abs(value) >= 1 << 53:
            raise ValueError(cell) from None
        return int(value)


def _meta(cell: str, line: int) -> dict[str, Any]:
    if not cell:
        return {}
    try:
        return decode_meta(json.loads(cell), f"line {line}")
    except (ValueError, RecursionError) as error:
        raise FormatError(f"line {line}: column {META}: no JSON: {error}") from None


def _completed(trace: Trace, given: Any) -> Trace:
    """Kinds from streams and parents from times, where the file has no such columns."""
    if "kind" not in given:
        device = trace.stream.where(lambda s: s.startswith("gpu "))
        trace = trace.replace(kind=StringColumn(device.astype(np.int32), ("cpu_op", "kernel")))
    if "parent" not in given:
        device = trace.kind.isin(DEVICE_KINDS)
        parent = resolve(trace.with_parents().parent, ~device, strict=True)
        trace = trace.replace(parent=np.where(device, -1, parent))
    return trace
