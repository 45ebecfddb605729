"""Nsight Systems SQLite exports: kernels joined to the CUDA calls and the NVTX ranges that issued them."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foretrace.ir import ForetraceError, FormatError, without_collector
from foretrace.traces.formats.joins import Raw, join
from foretrace.traces.kinds import DEVICE_KINDS, DEVICE_WORK
from foretrace.traces.nesting import lookup, nesting_order, stack_pass
from foretrace.traces.strings import StringColumn
from foretrace.traces.trace import MAX_TIME_S, Trace

from .parts import Part, concatenate, join_parts, read_devices, read_parts
from .tables import EXPORT, Ints, open_database

MAX_PROCESSES = 4096
Mask = NDArray[np.bool_]


def read_nsight(path: Path) -> Trace:
    """The Trace in an Nsight Systems SQLite export (``nsys export --type sqlite``).

    Kinds: kernel, copy, memset, sync, launch, driver, and NVTX ranges as annotation, or as cpu_op with shapes where
    PyTorch's emit_nvtx wrote them. Kernels carry the module and phase of the ranges around their launch
    ("module:PATH", "phase:NAME"). Each process that used a GPU is a rank. Times start at the first event; what is not
    sound is left out and counted in ``info["warnings"]``. Raises FormatError, naming the file, for one that is cut
    off, is no such export, or holds no sound event.
    """
    with open_database(path) as database, without_collector():
        warnings: list[str] = []
        parts = read_parts(database, warnings)
        devices = read_devices(database)
        if not parts:
            found = ", ".join(database.tables()[:8]) or "none"
            raise FormatError(
                f"{path}: no kernels, CUDA calls or NVTX ranges (tables: {found}); make one with {EXPORT}"
            )
    try:
        return _build(parts, devices, warnings, path)
    except ForetraceError as error:
        raise FormatError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None


def _build(parts: list[Part], devices: list[dict[str, Any]], warnings: list[str], path: Path) -> Trace:
    part = join_parts(parts)
    parts.clear()
    keep = _sound(part.values["start"], part.values["end"], warnings)
    if not keep.any():
        raise FormatError(f"{path}: no sound event among {len(keep)}: " + "; ".join(warnings))
    rows: Any = slice(None) if keep.all() else np.flatnonzero(keep)
    v = {c: values[rows] for c, values in part.values.items()}
    kind = part.kind.take(rows)
    on_device = kind.isin(DEVICE_KINDS)
    process, rank = _processes(v, on_device, kind.isin(DEVICE_WORK), warnings)
    base = int(v["start"].min())
    start, end = v["start"] - base, v["end"] - base
    aside = _aside(v, process, start, end, part.loose[rows], on_device)
    raw = Raw(
        name=part.name.take(rows),
        kind=kind,
        stream=_streams(v, on_device, aside),
        start_s=_seconds(start),
        duration_s=_seconds(end - start),
        tolerance_s=0.0,
        shapes=part.shapes.take(rows),
        hierarchy=StringColumn.constant("", len(kind)),
        correlation=v["correlationId"],
        external_id=part.op_id[rows],
        sequence=part.sequence[rows],
        bytes_moved=np.maximum(v["bytes"], 0).astype(np.float64),
    )
    columns, order = _join_processes(raw, process)
    used = set(v["deviceId"][on_device].tolist())
    name = next((d["name"] for d in devices if d["id"] in used), devices[0]["name"] if devices else "")
    return Trace.from_columns(
        {**columns, "rank": rank[order]},
        title=path.name,
        source="foreign",
        system=name,
        info={"warnings": warnings, "start_ns": base, "devices": devices},
    )


def _seconds(ns: Ints) -> NDArray[np.float64]:
    return ns.astype(np.float64) / 1e9


def _join_processes(raw: Raw, process: Ints) -> tuple[dict[str, Any], Ints]:
    """The joined columns, process by process, and the rows of *raw* in that order.

    Ids are unique in a process only: those of the second and later ones are moved out of each other's way.
    """
    joined: list[dict[str, Any]] = []
    groups = [np.flatnonzero(process == p) for p in range(int(process.max()) + 1)]
    before = 0
    for number, rows in enumerate(groups):
        columns = _handed_down(join(_taken(raw, rows) if len(groups) > 1 else raw))
        for name, bits in (("correlation", 32), ("external_id", 40)):
            columns[name] = np.where(columns[name] >= 0, columns[name] + (number << bits), -1)
        columns["parent"] = np.where(columns["parent"] >= 0, columns["parent"] + before, -1)
        before += len(rows)
        joined.append(columns)
    if len(joined) == 1:
        return joined[0], groups[0]
    together = {
        name: concatenate([columns[name] for columns in joined])
        if isinstance(first, StringColumn)
        else np.concatenate([columns[name] for columns in joined])
        for name, first in joined[0].items()
    }
    return together, np.concatenate(groups)


def _taken(raw: Raw, rows: Ints) -> Raw:
    def take(value: Any) -> Any:
        return value.take(rows) if isinstance(value, StringColumn) else value[rows] if np.ndim(value) else value

    return Raw(**{f.name: take(getattr(raw, f.name)) for f in fields(raw)})


def _sound(start: Ints, end: Ints, warnings: list[str]) -> Mask:
    """Mask of the events whose times hold; the others are counted in *warnings*."""
    readable = (start >= 0) & (end >= 0)
    middle = float(np.median(start[readable])) if readable.any() else 0.0
    limit = MAX_TIME_S * 1e9 / 2
    tests = {
        "without a readable start or end": ~readable,
        "with a negative duration": end < start,
        "too far from the others in time": (np.abs(start - middle) > limit) | (np.abs(end - middle) > limit),
    }
    keep = np.ones(len(start), np.bool_)
    for reason, wrong in tests.items():
        if count := int((wrong & keep).sum()):
            warnings.append(f"{count} events {reason}: left out")
        keep &= ~wrong
    return keep


def _processes(v: dict[str, Ints], on_device: Mask, work: Mask, warnings: list[str]) -> tuple[Ints, Ints]:
    """Per event the number of its process, and its rank: those of processes that used a GPU count up."""
    key = np.where(v["globalPid"] >= 0, v["globalPid"], v["globalTid"]) >> 24
    hosts = np.unique(key[~on_device & (key >= 0)])
    key[key < 0] = hosts[0] if len(hosts) else 0
    keys, process = np.unique(key, return_inverse=True)
    if len(keys) > MAX_PROCESSES:
        raise FormatError(f"{len(keys)} processes; at most {MAX_PROCESSES} are read")
    used = np.unique(process[work])
    rank = np.zeros(len(keys), np.int64)
    rank[used] = np.arange(len(used))
    if len(used) > 1:
        pids = ", ".join(str(k & 0xFFFFFF) for k in keys[used][:8].tolist())
        warnings.append(f"{len(used)} processes used a GPU: ranks are in the order of their ids ({pids})")
    return process.astype(np.int64), rank[process]


def _aside(v: dict[str, Ints], process: Ints, start: Ints, end: Ints, loose: Mask, on_device: Mask) -> Mask:
    """The start/end ranges of threads on which not all of them nest with the calls."""
    if not loose.any():
        return loose
    host = np.flatnonzero(~on_device)
    group = np.unique(process[host] << 24 | v["globalTid"][host] & 0xFFFFFF, return_inverse=True)[1]
    order = nesting_order(group, start[host], end[host])
    clash = stack_pass(order, group, start[host], end[host])[1]
    bad = np.bincount(group, clash) > 0
    aside = np.zeros(len(loose), np.bool_)
    aside[host] = loose[host] & bad[group]
    return aside


def _streams(v: dict[str, Ints], on_device: Mask, aside: Mask) -> StringColumn:
    """ "gpu D stream S" and "host TID"; "host TID ranges" for ranges that do not nest."""
    first, a = np.unique(np.where(on_device, v["deviceId"], v["globalTid"] & 0xFFFFFF), return_inverse=True)
    second, b = np.unique(np.where(on_device, v["streamId"], aside), return_inverse=True)
    distinct, codes = np.unique((a * len(second) + b) * 2 + on_device, return_inverse=True)
    labels = []
    for key in distinct.tolist():
        one, two = first[key // 2 // len(second)], second[key // 2 % len(second)]
        labels.append(f"gpu {one} stream {two}" if key % 2 else f"host {one}" + (" ranges" if two else ""))
    return StringColumn(codes.astype(np.int32), tuple(labels))


def _handed_down(columns: dict[str, Any]) -> dict[str, Any]:
    """Device work has the module and phase of its launch, with or without an operator between."""
    kind: StringColumn = columns["kind"]
    work = np.flatnonzero(kind.isin(DEVICE_WORK) & (columns["correlation"] >= 0))
    calls = np.flatnonzero(kind.isin(["launch", "driver"]))
    launch = lookup(columns["correlation"], calls, columns["correlation"][work])
    for name in ("module", "phase"):
        column: StringColumn = columns[name]
        codes = column.codes.copy()
        codes[work[launch >= 0]] = codes[launch[launch >= 0]]
        columns[name] = StringColumn(codes, column.values)
    return columns
