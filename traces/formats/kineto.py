"""Kineto and Chrome trace JSON, of any version and vendor: what is sound is read, the rest is counted."""

import gc
import json
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import repeat
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foretrace.ir import ForetraceError, FormatError
from foretrace.traces.kinds import DEVICE_KINDS, HOST_KINDS
from foretrace.traces.strings import StringColumn
from foretrace.traces.trace import MAX_TIME_S, Trace

from .joins import Raw, join

KINDS = {
    "cpu_op": "cpu_op",
    "operator": "cpu_op",
    "kernel": "kernel",
    "gpu_memcpy": "copy",
    "memcpy": "copy",
    "gpu_memset": "memset",
    "memset": "memset",
    "runtime": "launch",
    "cuda_sync": "sync",
    "user_annotation": "annotation",
    "gpu_user_annotation": "gpu_annotation",
    "python_function": "python",
    "trace": "span",
}
MAX_INFO = 1 << 20  # characters of JSON kept of one top-level entry
_KEYS = ("name", "cat", "pid", "tid", "ts", "dur")
_ARGS = ("device", "stream", "Input Dims", "Input dims", "Module Hierarchy")
_INTEGER_ARGS = ("correlation", "External id", "external id", "Sequence number", "bytes", "Bytes")
_NO_ARGS: dict[str, Any] = {}
Floats = NDArray[np.float64]


def read_json(data: bytes, label: str) -> Trace:
    """A Trace from the bytes of Kineto or Chrome JSON, our own Chrome files included.

    Kinds: cpu_op, annotation, launch, driver, kernel, copy, memset, sync, python, and other categories as they
    stand. Times start at the first event. ``info`` keeps devices, threads, counts of events that are no slices,
    and "warnings": what was unsound and left out. Raises FormatError, naming *label*, where nothing is sound.
    """
    collecting = gc.isenabled()
    gc.disable()  # a million dicts without a cycle: collecting while they appear doubles the time
    try:
        document = _parse(data, label)
        if isinstance(document, dict) and "foretrace" in document:
            from .chrome import decode_chrome

            return decode_chrome(document, label)
        head, events = _events(document, label)
        return _read(head, events, label)
    except RecursionError:
        raise FormatError(f"{label}: JSON nested too deep") from None
    finally:
        if collecting:
            gc.enable()


def _parse(data: bytes, label: str) -> Any:
    import orjson

    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as first:
        try:  # some exporters write NaN, raw control characters or broken UTF-8
            return json.loads(data.decode("utf-8-sig", errors="replace"), strict=False)
        except (ValueError, RecursionError):
            raise FormatError(f"{label}: not valid JSON (cut off?): {first}") from None


def _events(document: Any, label: str) -> tuple[dict[str, Any], list[Any]]:
    """The top level and the list of events."""
    head = document if isinstance(document, dict) else {}
    events = head.get("traceEvents") if isinstance(document, dict) else document
    if not isinstance(events, list):
        hint = "; a PyTorch execution trace has no kernel times: give the Kineto file" if "nodes" in head else ""
        keys = ", ".join(list(head)[:8]) or "none"
        raise FormatError(f"{label}: no list of traceEvents (top-level keys: {keys}){hint}")
    return head, events


def _read(head: dict[str, Any], events: list[Any], label: str) -> Trace:
    unsound: Counter[str] = Counter()
    rows = [e for e in events if type(e) is dict and e.get("ph") == "X"]
    rest = [e for e in events if type(e) is not dict or e.get("ph") != "X"] if len(rows) < len(events) else []
    other = _not_slices(rest, unsound)
    rows += _pairs(rest, unsound)
    found = _gather(rows)
    start, duration = _floats(found["ts"]), _floats(found["dur"])
    finite = start[np.isfinite(start)]
    near = finite[np.abs(finite - np.median(finite)) <= MAX_TIME_S * 1e6] if len(finite) else finite
    base = float(np.min(near, initial=np.inf))  # one absurd time is not what all others count from
    keep = _sound(start, duration, base, [d is None for d in found["dur"]], unsound)
    if not keep.any():
        reasons = "".join(f"; {w}" for w in _counted(unsound))
        raise FormatError(f"{label}: no sound event among {len(events)}{reasons}")
    whole = bool((start[keep] % 1 == 0).all())
    columns: dict[str, Any] = {
        c: v.take(keep) if isinstance(v, StringColumn) else v[keep] for c, v in _columns(found, rest).items()
    }
    raw = Raw(
        **columns,
        start_s=(start[keep] - base) * 1e-6,
        duration_s=duration[keep] * 1e-6,
        tolerance_s=1e-6 if whole else 1e-9,
    )
    info = _info(head, base, other, _counted(unsound))
    devices = info.get("devices")
    device = devices[0] if isinstance(devices, list) and devices else None
    name = device.get("name") if isinstance(device, dict) else None
    distributed = head.get("distributedInfo")
    rank = distributed.get("rank", 0) if isinstance(distributed, dict) else 0
    try:
        return Trace.from_columns(
            {**join(raw), "rank": rank if isinstance(rank, int) and 0 <= rank < 1 << 31 else 0},
            title=PurePath(label).name,
            source="foreign",
            system=name if isinstance(name, str) else "",
            info=info,
        )
    except ForetraceError as error:
        raise FormatError(f"{label}: {error}") from None


def _not_slices(rest: list[Any], unsound: Counter[str]) -> dict[str, int]:
    """Counts by phase of what is neither a complete event nor the begin or end of one."""
    unsound["entries that are not objects: left out"] = sum(type(e) is not dict for e in rest)
    phases = Counter(str(e.get("ph")) for e in rest if type(e) is dict)
    return {p: c for p, c in sorted(phases.items()) if p not in ("B", "E")}


def _pairs(rest: list[Any], unsound: Counter[str]) -> Iterable[dict[str, Any]]:
    """One complete event per begin/end pair of a thread."""
    stacks: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for event in rest:
        if type(event) is not dict or event.get("ph") not in ("B", "E"):
            continue
        stack = stacks.setdefault((str(event.get("pid")), str(event.get("tid"))), [])
        if event["ph"] == "B":
            stack.append(event)
        elif stack:
            begin = stack.pop()
            duration = _floats([event.get("ts"), begin.get("ts")])
            yield {**begin, "dur": float(duration[0] - duration[1])}
        else:
            unsound["ends without a beginning: left out"] += 1
    unsound["beginnings without an end: left out"] += sum(map(len, stacks.values()))


def _gather(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The values of each key that is read, event by event; a piece of the rows at a time, for the cache's sake."""
    found: dict[str, list[Any]] = {key: [] for key in (*_KEYS, *_ARGS, *_INTEGER_ARGS)}
    for at in range(0, len(rows), 512):
        part = rows[at : at + 512]
        args = [a if type(a := e.get("args")) is dict else _NO_ARGS for e in part]
        for key in _KEYS:
            found[key] += map(dict.get, part, repeat(key))
        for key in _ARGS:
            found[key] += map(dict.get, args, repeat(key))
        for key in _INTEGER_ARGS:
            found[key] += map(dict.get, args, repeat(key), repeat(-1))
    return found


def _sound(
    start: Floats, duration: Floats, base: float, no_duration: list[bool], unsound: Counter[str]
) -> NDArray[np.bool_]:
    """Mask of the events whose times hold, the others counted in *unsound*; µs; a missing duration becomes 0."""
    missing = np.array(no_duration, np.bool_)
    duration[missing] = 0.0
    limit = MAX_TIME_S * 1e6
    with np.errstate(over="ignore", invalid="ignore"):
        tests = {
            "without a readable start": ~np.isfinite(start),
            "without a readable duration": ~np.isfinite(duration),
            "with a negative duration": duration < 0,
            f"more than {MAX_TIME_S:g} s long or late": (np.abs(start - base) > limit) | (duration > limit),
        }
    keep = np.ones(len(start), np.bool_)
    for reason, wrong in tests.items():
        unsound[f"events {reason}: left out"] += int((wrong & keep).sum())
        keep &= ~wrong
    unsound["events without a duration: taken as 0"] = int((missing & keep).sum())
    return keep


def _columns(found: dict[str, list[Any]], rest: list[Any]) -> dict[str, Any]:
    """The columns as the file has them, before any join."""
    kind = _texts(found["cat"]).map(_kind)

    def integers(key: str, other: str) -> NDArray[np.int64]:
        values = _integers(found[key])
        return values if (values >= 0).any() else _integers(found[other])

    return {
        "name": _texts(found["name"]),
        "kind": kind,
        "stream": _streams(found, kind, _thread_names(rest)),
        "shapes": _shapes([a or b for a, b in zip(found["Input Dims"], found["Input dims"], strict=True)]),
        "hierarchy": _texts(found["Module Hierarchy"]),
        "correlation": _integers(found["correlation"]),
        "external_id": integers("External id", "external id"),
        "sequence": _integers(found["Sequence number"]),
        "bytes_moved": np.maximum(integers("bytes", "Bytes"), 0).astype(np.float64),
    }


def _kind(category: str) -> str:
    low = category.lower()
    for ending, kind in (("_runtime", "launch"), ("_driver", "driver")):
        if low.endswith(ending):
            return kind
    return KINDS.get(low, low or "event")


def _streams(found: dict[str, list[Any]], kind: StringColumn, threads: dict[tuple[str, Any, Any], str]) -> StringColumn:
    """ "gpu D stream S" for device work, "host TID" for host work, names from the file's metadata elsewhere."""
    where = np.where(kind.isin(DEVICE_KINDS), 2, kind.isin(HOST_KINDS)).tolist()
    places = (found["pid"], found["tid"], found["device"], found["stream"])
    keys: list[Any] = [
        (w, p if d is None else d, t if s is None else s) if w == 2 else (w, p, t)
        for w, p, t, d, s in zip(where, *places, strict=True)
    ]
    table: dict[Any, int] = {}
    try:
        codes = [table.setdefault(k, len(table)) for k in keys]
    except TypeError:  # a list or an object where an id should stand
        table.clear()
        codes = [table.setdefault((k[0], str(k[1]), str(k[2])), len(table)) for k in keys]
    many = len({k[1] for k in table if k[0] == 1}) > 1

    def label(key: Any) -> str:
        where, pid, tid = key
        if where == 2:
            return f"gpu {pid} stream {tid}"
        if where:
            return f"host {pid}/{tid}" if many else f"host {tid}"
        return f"{threads.get(('process_name', pid, None), pid)} {threads.get(('thread_name', pid, tid), tid)}".strip()

    names = StringColumn.of(map(label, table))
    return StringColumn(names.codes[np.array(codes, np.int32)], names.values)


def _thread_names(events: list[Any]) -> dict[tuple[str, Any, Any], str]:
    """What metadata events call processes and threads."""
    names: dict[tuple[str, Any, Any], str] = {}
    for e in events:
        if type(e) is dict and e.get("ph") == "M" and e.get("name") in ("process_name", "thread_name"):
            args, pid, tid = e.get("args"), e.get("pid"), e.get("tid")
            text = args.get("name") if isinstance(args, dict) else None
            if isinstance(text, str) and isinstance(pid, int | str) and isinstance(tid, int | str | None):
                names[e["name"], pid, None if e["name"] == "process_name" else tid] = text
    return names


def _info(head: dict[str, Any], base_us: float, other: dict[str, int], warnings: list[str]) -> dict[str, Any]:
    """What is worth keeping of the top level, as plain JSON."""
    info: dict[str, Any] = {"warnings": warnings, "start_us": base_us, "other_events": other}
    for key, name in (
        ("deviceProperties", "devices"),
        ("distributedInfo", "distributed"),
        ("schemaVersion", "schema_version"),
        ("baseTimeNanoseconds", "base_time_ns"),
    ):
        with suppress(ValueError):  # NaN, which our own files do not hold
            if key in head and len(json.dumps(head[key], allow_nan=False)) < MAX_INFO:
                info[name] = head[key]
    return info


def _counted(unsound: Counter[str]) -> list[str]:
    return [f"{count} {reason}" for reason, count in sorted(unsound.items()) if count]


def _texts(values: list[Any]) -> StringColumn:
    try:
        return StringColumn.of(["" if v is None else v for v in values])
    except ForetraceError:
        return StringColumn.of(["" if v is None else str(v)[:1000] for v in values])


def _floats(values: list[Any]) -> NDArray[np.float64]:
    """Numbers, and strings of numbers; NaN for anything else."""
    return _numbers(values, np.float64, float, np.nan)


def _integers(values: list[Any]) -> NDArray[np.int64]:
    """Integers, and strings of them; -1 for anything else."""
    return _numbers(values, np.int64, lambda v: max(int(v), -1) if abs(int(v)) < 1 << 62 else -1, -1)


def _numbers(values: list[Any], dtype: type, convert: Callable[[Any], Any], missing: Any) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.array(values, dtype)
        if array.ndim == 1:
            return array
    except (TypeError, ValueError, OverflowError):
        pass

    def one(value: Any) -> Any:
        try:
            return convert(value) if isinstance(value, int | float | str) else missing
        except (ValueError, OverflowError):
            return missing

    return np.fromiter(map(one, values), dtype, len(values))


def _shapes(dims: list[Any]) -> StringColumn:
    """Input Dims as "[1,16,768][768,2304]", made once per distinct value."""
    import orjson

    table: dict[bytes, int] = {b"[]": 0}
    try:
        codes = [table.setdefault(orjson.dumps(d), len(table)) if d else 0 for d in dims]
    except TypeError:  # a size beyond 64 bits, which only the fallback parser lets through
        codes = [0] * len(dims)
    texts = StringColumn.of(_shape_text(orjson.loads(key)) for key in table)
    return StringColumn(texts.codes[np.array(codes, np.int32)], texts.values)


def _shape_text(dims: Any) -> str:
    if not isinstance(dims, list) or not dims:
        return ""
    if all(isinstance(d, int) for d in dims):
        return "[" + ",".join(map(str, dims)) + "]"
    return "".join(map(_shape_text, dims))
