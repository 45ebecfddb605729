"""The events of an Nsight Systems export, table by table, as integers and what they are called."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from foretrace.traces.strings import StringColumn

from .names import SYNC_KINDS, call_name, copy_name, parse_range
from .tables import Database, Ints

KERNELS, COPIES, MEMSETS, SYNCS, GRAPHS, CALLS = (
    f"CUPTI_ACTIVITY_KIND_{name}"
    for name in ("KERNEL", "MEMCPY", "MEMSET", "SYNCHRONIZATION", "GRAPH_TRACE", "RUNTIME")
)
RANGES: Final = "NVTX_EVENTS"
PUSH_POP: Final = (59, 70)  # eventType; 70 and 71 are ranges imported from text
START_END: Final = (60, 71)
_TIMES: Final = ("start", "end", "correlationId", "globalPid", "globalTid", "deviceId", "streamId")


@dataclass(frozen=True)
class Part:
    """Events of one table, or of all: integers, -1 where absent, and what the events are called."""

    values: dict[str, Ints]
    name: StringColumn
    kind: StringColumn
    shapes: StringColumn
    sequence: Ints
    op_id: Ints
    loose: NDArray[np.bool_]  #: ranges that need not nest


def read_parts(database: Database, warnings: list[str]) -> list[Part]:
    """The tables that hold events; what encloses comes before what it encloses. What is missing is a warning."""
    return [part for read in _READERS for part in [read(database, warnings)] if len(part.name)]


def join_parts(parts: list[Part]) -> Part:
    """All events in one; integers that a table lacks are -1."""
    values = {c: np.concatenate([p.values.get(c, np.full(len(p.name), -1)) for p in parts]) for c in (*_TIMES, "bytes")}
    strings: dict[str, Any] = {c: concatenate([getattr(p, c) for p in parts]) for c in ("name", "kind", "shapes")}
    numbers: dict[str, Any] = {
        c: np.concatenate([getattr(p, c) for p in parts]) for c in ("sequence", "op_id", "loose")
    }
    return Part(values, **strings, **numbers)


def _kernels(database: Database, warnings: list[str]) -> Part:
    names = [c for c in ("demangledName", "shortName", "mangledName") if c in database.columns(KERNELS)]
    values, _ = database.read(KERNELS, [*_TIMES, *names])
    called = np.full(len(values["start"]), -1)
    for column in names:
        called = np.where(called < 0, values[column], called)
    return _part(values, _named(database, called), "kernel")


def _copies(database: Database, warnings: list[str]) -> Part:
    values, _ = database.read(COPIES, [*_TIMES, "bytes", "copyKind", "srcKind", "dstKind"])
    kinds = zip(*(values[c].tolist() for c in ("copyKind", "srcKind", "dstKind")), strict=True)
    return _part(values, StringColumn.of(copy_name(*k) for k in kinds), "copy")


def _memsets(database: Database, warnings: list[str]) -> Part:
    values, _ = database.read(MEMSETS, [*_TIMES, "bytes"])
    return _part(values, StringColumn.constant("Memset (Device)", len(values["start"])), "memset")


def _syncs(database: Database, warnings: list[str]) -> Part:
    values, _ = database.read(SYNCS, [*_TIMES, "syncType"])
    return _part(values, StringColumn.of(SYNC_KINDS.get(k, "Sync") for k in values["syncType"].tolist()), "sync")


def _graphs(database: Database, warnings: list[str]) -> Part:
    values, _ = database.read(GRAPHS, [*_TIMES, "graphId"])
    if len(values["start"]):
        warnings.append(
            f"{len(values['start'])} CUDA graphs as one event each; --cuda-graph-trace=node records their kernels"
        )
    return _part(values, StringColumn.of(f"CUDA graph {g}" for g in values["graphId"].tolist()), "kernel")


def _calls(database: Database, warnings: list[str]) -> Part:
    values, _ = database.read(CALLS, [*_TIMES, "nameId"])
    name = _named(database, values["nameId"]).map(call_name)
    part = _part(values, name, "launch")
    if not len(name):
        warnings.append(
            f"no table {CALLS}: kernels have no operator, module or phase; record with nsys profile --trace=cuda,nvtx"
        )
    driver = name.where(lambda n: n.startswith("cu") and not n.startswith("cuda")).astype(np.int32)
    return Part(**{**vars(part), "kind": StringColumn(driver, ("launch", "driver"))})


def _ranges(database: Database, warnings: list[str]) -> Part:
    values, text = database.read(RANGES, [*_TIMES, "textId", "eventType", "endGlobalTid"], "text")
    type_ = values["eventType"]
    loose = np.isin(type_, START_END)
    kept = np.isin(type_, PUSH_POP) | loose if "eventType" in database.columns(RANGES) else values["end"] >= 0
    values = {c: v[kept] for c, v in values.items()}
    loose, text = loose[kept], text.take(kept)
    by_id = _named(database, values["textId"], "")
    bare = np.array([not t for t in text.values], np.bool_)[text.codes] if len(text) else np.zeros(0, np.bool_)
    codes = np.where(bare, by_id.codes + len(text.values), text.codes).astype(np.int32)
    full = StringColumn(codes, text.values + by_id.values)
    parsed = [parse_range(value) for value in full.values]
    values["globalTid"] = np.where(values["globalTid"] < 0, values["endGlobalTid"], values["globalTid"])

    names, kinds, shapes, sequence, op_id = zip(*parsed, strict=True) if parsed else [()] * 5
    name, kind, shape = (StringColumn(codes, texts).map(str) for texts in (names, kinds, shapes))
    order, ids = (np.array(numbers, np.int64)[codes] for numbers in (sequence, op_id))
    return Part(values, name, kind, shape, order, ids, loose)


def _part(values: dict[str, Ints], name: StringColumn, kind: str) -> Part:
    n = len(name)
    none = np.full(n, -1)
    return Part(
        values, name, StringColumn.constant(kind, n), StringColumn.constant("", n), none, none, np.zeros(n, np.bool_)
    )


def _named(database: Database, ids: Ints, unknown: str = "unknown") -> StringColumn:
    """The strings with the *ids*."""
    known = database.strings(ids) if len(ids) else {}
    distinct, codes = np.unique(ids, return_inverse=True)
    values = tuple(known.get(i, unknown) for i in distinct.tolist())
    return StringColumn(codes.astype(np.int32), values).map(str)


def concatenate(columns: list[StringColumn]) -> StringColumn:
    """The rows of all *columns*, one after the other."""
    before = np.cumsum([0, *(len(c.values) for c in columns)]).tolist()
    codes = np.concatenate([c.codes + b for c, b in zip(columns, before, strict=False)]).astype(np.int32)
    return StringColumn(codes, tuple(v for c in columns for v in c.values)).map(str)


def read_devices(database: Database) -> list[dict[str, Any]]:
    """GPUs as TARGET_INFO_GPU has them: id (as CUDA counts), name, and the figures that are there."""
    table = "TARGET_INFO_GPU"
    figures = ("totalMemory", "smCount", "memoryBandwidth", "clockRate")
    values, name = database.read(table, ["cuDevice", "id", *figures], "name")
    found = []
    for row in range(min(len(name), 1024)):
        number = next((int(values[c][row]) for c in ("cuDevice", "id") if values[c][row] >= 0), row)
        known = {c: int(values[c][row]) for c in figures if values[c][row] >= 0}
        found.append({"id": number, "name": name[row], **known})
    return found


_READERS: Final = (_ranges, _calls, _kernels, _copies, _memsets, _syncs, _graphs)
