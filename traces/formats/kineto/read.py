"""One Kineto or Chrome JSON file as a Trace: what is sound is read, the rest is counted."""

import io
from collections import Counter
from collections.abc import Callable
from operator import attrgetter
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foretrace.ir import ForetraceError, FormatError, without_collector
from foretrace.traces.formats.joins import Raw, join
from foretrace.traces.formats.record_functions import pack_ids
from foretrace.traces.formats.shapes import shape_text
from foretrace.traces.formats.unpack import Source
from foretrace.traces.memory import KEY
from foretrace.traces.trace import MAX_RANKS, Trace

from .allocations import Allocations
from .columns import Columns
from .document import Document
from .events import Event
from .processes import Flows, apart, shared, sole_process
from .sound import sound_times

OURS = "foretrace"  # the top-level key of the Chrome files that we write
_HEAD = (
    ("deviceProperties", "devices"),
    ("distributedInfo", "distributed"),
    ("schemaVersion", "schema_version"),
    ("baseTimeNanoseconds", "base_time_ns"),
)
MAX_OPEN = 100_000  # begin events of one thread that wait for their end
_FLOWS = frozenset(["s", "t", "f"])
_phase = attrgetter("ph")


class NoEventsError(FormatError):
    """A JSON document without traceEvents; `keys` are its top-level entries."""

    def __init__(self, label: str, keys: list[str]) -> None:
        self.keys = keys
        hint = "; a PyTorch execution trace has no kernel times: give the Kineto file" if "nodes" in keys else ""
        super().__init__(f"{label}: no list of traceEvents (top-level keys: {', '.join(keys[:8]) or 'none'}){hint}")


def read_json(data: bytes, label: str) -> Trace:
    """`read_source` of bytes in memory."""
    return read_source(lambda: Source(io.BytesIO(data), label))


def read_source(open_source: Callable[[], Source]) -> Trace:
    """A Trace from Kineto or Chrome JSON, our own Chrome files included, read in blocks.

    Kinds: cpu_op, annotation, launch, driver, kernel, copy, memset, sync, python, and other categories as they
    stand. Times start at the first event. ``info`` keeps devices, threads, counts of events that are no slices,
    allocated memory, and "warnings": what was unsound and left out, and where the file was cut off. *open_source* is
    called again for a file of ours, which is read whole and only whole. Raises FormatError, naming the file, where
    nothing is sound, `NoEventsError` where the document has no traceEvents.
    """
    with without_collector():
        source = open_source()
        if b'"foretrace"' in source.start[:64]:
            return _read_ours(source)
        document = Document(source)
        reader = _Reader(source.label)
        for block in document.blocks():
            if OURS in document.head:
                return _read_ours(open_source())
            reader.add(block)
        if OURS in document.keys:
            return _read_ours(open_source())
        if not document.found:
            raise NoEventsError(source.label, document.keys)
        for _ in source:  # what follows the document
            pass
        if source.damage and not document.warnings:
            document.warnings.append(source.damage)
        return reader.trace(document, open_source)


def _read_ours(source: Source) -> Trace:
    import orjson

    from foretrace.traces.formats.chrome import decode_chrome

    try:
        document = orjson.loads(source.read_all())
    except orjson.JSONDecodeError as error:
        raise FormatError(f"{source.label}: not valid JSON (cut off?): {error}") from None
    return decode_chrome(document, source.label)


class _Reader:
    """Collects the complete events of a document, the pairs of begin and end events, and what metadata says."""

    def __init__(self, label: str) -> None:
        self._columns = Columns(label)
        self._label = label
        self._other: Counter[str] = Counter()
        self._open: dict[tuple[Any, Any], list[Event]] = {}
        self._beginnings = self._ends = 0  # that have no other half
        self._threads: dict[tuple[str, Any, Any], str] = {}
        self._allocations = Allocations()
        self._processes = 0  # that share ids

    def add(self, events: list[Event]) -> None:
        rows = [e for e in events if e.ph == "X"]
        if len(rows) < len(events):
            rest = [e for e in events if e.ph != "X"]
            phases = Counter(map(_phase, rest))
            self._other.update(phases)
            if "B" in phases or "E" in phases:
                rows = [row for event in events for row in self._complete(event)]
            for event in rest if phases.keys() - _FLOWS else ():
                if event.ph == "M":
                    self._name_thread(event)
                elif event.name == "[memory]":
                    self._allocations.add(event)
        if rows:
            self._columns.add(rows)

    def _complete(self, event: Event) -> list[Event]:
        """The complete event that *event* is, or ends."""
        if event.ph not in ("B", "E"):
            return [event] if event.ph == "X" else []
        stack = self._open.setdefault((event.pid, event.tid), [])
        if event.ph == "B":
            if len(stack) < MAX_OPEN:
                stack.append(event)
            else:
                self._beginnings += 1
        elif not stack:
            self._ends += 1
        else:
            begin = stack.pop()
            begin.dur = event.ts - begin.ts
            return [begin]
        return []

    def _name_thread(self, event: Event) -> None:
        text = event.args.name
        if event.name in ("process_name", "thread_name") and isinstance(text, str):
            self._threads[event.name, event.pid, None if event.name == "process_name" else event.tid] = text

    def trace(self, document: Document, open_source: Callable[[], Source]) -> Trace:
        """What was read; a file whose processes share ids is opened again for its arrows."""
        unsound = document.unsound
        unsound["beginnings without an end: left out"] += self._beginnings + sum(map(len, self._open.values()))
        unsound["ends without a beginning: left out"] += self._ends
        raw, base, function = self._raw(document.count, unsound, lambda: Flows(Document(open_source()).blocks()))
        info = _info(document.head, base, {p: c for p, c in sorted(self._other.items()) if p not in ("B", "E")})
        info["warnings"] = [*document.warnings, *_counted(unsound)]
        if self._processes:
            info["processes"] = self._processes
        if self._allocations:
            info[KEY] = self._allocations.line(base)
        return _trace(raw, function, info, document.head, self._label)

    def _raw(
        self, total: int, unsound: Counter[str], find_flows: Callable[[], Flows]
    ) -> tuple[Raw, float, NDArray[np.int64]]:
        """The columns, joined by nothing yet, of what is sound; when the first event starts, µs; function ids."""
        columns = self._columns
        empty = not columns.count
        start, duration = (np.zeros(0), np.zeros(0)) if empty else (columns.take("start"), columns.take("duration"))
        keep = sound_times(start, duration, unsound)
        if not keep.any():
            reasons = "".join(f"; {w}" for w in _counted(unsound))
            raise FormatError(f"{self._label}: no sound event among {total}{reasons}")
        base = float(start[keep].min())
        rows: Any = slice(None) if keep.all() else np.flatnonzero(keep)
        ids = self._ids(rows if isinstance(rows, np.ndarray) else np.arange(len(start)), start, unsound, find_flows)
        start, duration = start[rows], duration[rows]
        whole = bool((start % 1 == 0).all())
        kind, stream = columns.take_places(self._threads)
        raw = Raw(
            name=columns.take_strings("name", columns.names).take(rows),
            kind=kind.take(rows),
            stream=stream.take(rows),
            start_s=(start - base) * 1e-6,
            duration_s=duration * 1e-6,
            tolerance_s=1e-6 if whole else 1e-9,
            shapes=columns.take_strings("dims", columns.dims, _shapes).take(rows),
            hierarchy=columns.take_strings("hierarchy", columns.hierarchies).take(rows),
            correlation=ids["correlation"],
            external_id=ids["external"],
            sequence=ids["sequence"],
            bytes_moved=np.maximum(columns.take("moved")[rows], 0).astype(np.float64),
        )
        return raw, base, columns.take("record_function")[rows]

    def _ids(
        self,
        rows: NDArray[np.int64],
        start: NDArray[np.float64],
        unsound: Counter[str],
        find_flows: Callable[[], Flows],
    ) -> dict[str, NDArray[np.int64]]:
        """The ids that join the *rows*; where processes share correlations those of each are ids of their own.

        A kernel's process is the one that alone launched its correlation, else the one that its arrow comes from.
        """
        columns = self._columns
        ids = {key: columns.take(key)[rows] for key in ("correlation", "external", "sequence")}
        if columns.launching() < 2:
            return ids
        process, pids = columns.hosts()
        process, correlation = process[rows], ids["correlation"]
        launch = columns.launches()[rows]
        if not shared(correlation, process, launch):
            return ids
        self._processes = len(np.unique(process[launch]))
        device = process < 0
        process[device] = sole_process(correlation, process, launch)[device]
        unclear = np.flatnonzero(device & (process < 0) & np.isin(correlation, correlation[launch]))
        if len(unclear):
            flows, number = find_flows(), {pid: i for i, pid in enumerate(pids)}
            places = columns.threads(rows[unclear])
            found = [flows.process(*place, ts) for place, ts in zip(places, start[rows[unclear]].tolist(), strict=True)]
            process[unclear] = [-1 if pid is None else number.get(pid, -1) for pid in found]
            unsound["events on a device whose process is unclear (several have their correlation): not joined"] = int(
                (process[unclear] < 0).sum()
            )
        return apart(ids, process)


def _trace(raw: Raw, function: NDArray[np.int64], info: dict[str, Any], head: dict[str, Any], label: str) -> Trace:
    devices = info.get("devices")
    device = devices[0] if isinstance(devices, list) and devices else None
    name = device.get("name") if isinstance(device, dict) else None
    distributed = head.get("distributedInfo")
    rank = distributed.get("rank", 0) if isinstance(distributed, dict) else 0
    try:
        columns = join(raw)
        if (function >= 0).any():
            info["record_functions"] = pack_ids(columns["external_id"], function)
        return Trace.from_columns(
            {**columns, "rank": rank if isinstance(rank, int) and 0 <= rank < MAX_RANKS else 0},
            title=PurePath(label).name,
            source="foreign",
            system=name if isinstance(name, str) else "",
            info=info,
        )
    except ForetraceError as error:
        raise FormatError(f"{label}: {error}") from None


def _shapes(dims: bytes) -> str:
    import orjson

    try:
        return shape_text(orjson.loads(dims)) if dims else ""
    except orjson.JSONDecodeError:  # a number beyond 64 bits, or NaN
        return ""


def _info(head: dict[str, Any], base_us: float, other: dict[str, int]) -> dict[str, Any]:
    """What is worth keeping of the top level, as plain JSON."""
    import orjson

    info: dict[str, Any] = {"warnings": [], "start_us": base_us, "other_events": other}
    for key, name in _HEAD:
        if key in head:
            try:
                info[name] = orjson.loads(orjson.dumps(head[key]))  # NaN becomes null
            except (TypeError, ValueError):  # a number beyond 64 bits, a lone surrogate
                continue
    return info


def _counted(unsound: Counter[str]) -> list[str]:
    return [f"{count} {reason}" for reason, count in sorted(unsound.items()) if count]
