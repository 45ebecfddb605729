"""What ``nsys stats --report cuda_gpu_trace --format csv`` prints."""

import re
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final

import numpy as np

from foretrace.ir import FormatError
from foretrace.traces.strings import StringColumn
from foretrace.traces.trace import MAX_EVENTS, MAX_TIME_S, Trace

from .rows import Codes, parse_cells, read_blocks

PREAMBLE: Final = 64  # rows that may come before the header: what nsys says it is doing
_UNIT: Final = re.compile(r"\s*\((\w+)\)$")
_SECONDS: Final = {"ns": 1e9, "nsec": 1e9, "us": 1e6, "usec": 1e6, "ms": 1e3, "msec": 1e3, "s": 1.0, "sec": 1.0}
_BYTES: Final = {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
_DEVICE: Final = re.compile(r"(.*?)\s*\((\d+)\)$")
_NEEDED: Final = ("Start", "Duration", "Device", "Strm", "Name")
Header = dict[str, tuple[int, str, int]]  # name -> (place, unit, cells of the header)


def find_header(line: int, first: list[str], rows: Iterator[tuple[int, list[str]]]) -> Header | None:
    """The header among the first rows, by name with places and units; None where there is none."""
    for _, cells in chain([(line, first)], islice(rows, PREAMBLE)):
        header: Header = {}
        for place, cell in enumerate(cells):
            unit = _UNIT.search(cell)
            header[_UNIT.sub("", cell).strip()] = (place, unit[1] if unit else "", len(cells))
        if {"Start", "Duration", "Name"} <= header.keys():
            return header
    return None


def read_gpu_trace(header: Header, rows: Iterator[tuple[int, list[str]]], path: Path) -> Trace:
    """The kernels, copies and memsets of the report; times start at the first. Raises FormatError, naming the line."""
    missing = [name for name in _NEEDED if name not in header]
    if missing:
        raise FormatError(f"{path}: no column {missing[0]}: expected the report cuda_gpu_trace of nsys stats")
    scales = [_scale(header, name, _SECONDS, path) for name in ("Start", "Duration")]
    size_scale = _scale(header, "Bytes", _BYTES, path) if "Bytes" in header else 1.0
    numbers: dict[str, list[Any]] = {"start": [], "duration": [], "correlation": [], "bytes": []}
    names, streams = Codes(), Codes()
    codes: dict[str, list[Any]] = {"name": [], "stream": []}
    count = 0
    system = ""
    for lines, block in read_blocks(rows, header["Name"][2], path):
        column = {name: [cells[place] for cells in block] for name, (place, _, _) in header.items()}
        for key, name, scale in (("start", "Start", scales[0]), ("duration", "Duration", scales[1])):
            values = parse_cells(column[name], lines, float, np.float64, f"{name}: expected a number") / scale
            wrong = ~np.isfinite(values) | (values < 0) | (values > MAX_TIME_S)
            if wrong.any():
                row = int(wrong.argmax())
                raise FormatError(
                    f"line {lines[row]}: {name}: expected a time that is not negative, got {column[name][row]!r:.60}"
                )
            numbers[key].append(values)
        blank = [""] * len(block)
        numbers["correlation"].append(
            parse_cells(column.get("CorrId", blank), lines, int, np.int64, "CorrId: expected a number", -1)
        )
        size = parse_cells(column.get("Bytes", blank), lines, float, np.float64, "Bytes: expected a number", 0.0)
        numbers["bytes"].append(size * size_scale)
        devices = [_DEVICE.match(device) or device for device in column["Device"]]
        system = system or next((d[1] for d in devices if isinstance(d, re.Match) and d[1]), "")
        labels = [
            f"gpu {d if isinstance(d, str) else d[2]} stream {s}" for d, s in zip(devices, column["Strm"], strict=True)
        ]
        codes["name"].append(names.of(column["Name"]))
        codes["stream"].append(streams.of(labels))
        count += len(block)
        if count > MAX_EVENTS:
            raise FormatError(f"more than the {MAX_EVENTS} events that are read")
    if not count:
        raise FormatError(f"{path}: a header and no events")
    start = np.concatenate(numbers["start"])
    kernels = StringColumn(np.concatenate(codes["name"]), tuple(names))
    return Trace.from_columns(
        {
            "name": kernels,
            "kind": kernels.map(_kind),
            "stream": StringColumn(np.concatenate(codes["stream"]), tuple(streams)),
            "correlation": np.concatenate(numbers["correlation"]),
            "start_s": start - start.min(),
            "duration_s": np.concatenate(numbers["duration"]),
            "bytes_moved": np.concatenate(numbers["bytes"]),
        },
        title=path.name,
        source="foreign",
        system=system,
        info={"warnings": ["device work alone: no operators, modules or phases; the SQLite export has them"]},
    )


def _kind(name: str) -> str:
    return "copy" if name.startswith("[CUDA memcpy") else "memset" if name.startswith("[CUDA memset") else "kernel"


def _scale(header: Header, name: str, units: dict[str, float], path: Path) -> float:
    """How many of the column's units a second is, or how many bytes one of them is."""
    unit = header[name][1]
    if unit not in units:
        raise FormatError(f"{path}: column {name}: expected a unit of {', '.join(units)}, got {unit!r}")
    return units[unit]
