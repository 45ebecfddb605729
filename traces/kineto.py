"""Kineto and Chrome trace JSON, of any version and vendor: what is sound is read, the rest is counted."""

import gc
import json
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foretrace.ir import ForetraceError, FormatError

from .joins import DEVICE_KINDS, Raw, join
from .strings import StringColumn
from .trace import MAX_TIME_S, Trace

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
_HOST_KINDS = ("cpu_op", "launch", "driver", "annotation", "python")
MAX_INFO = 1 << 20  # characters of JSON kept of one top-level entry
_NO_ARGS: dict[str, Any] = {}


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
    rows, other = _slices(events, unsound)
    start = _floats([e.get("ts") for e in rows])
    duration = _floats([e.get("dur") for e in rows])
    no_duration = np.array([e.get("dur") is None for e in rows], np.bool_)
    duration[no_duration] = 0.0
    base = float(np.min(start[np.isfinite(start)], initial=np.inf))
    with np.errstate(over="ignore", invalid="ignore"):
        start_s, duration_s = (start - base) * 1e-6, duration * 1e-6
        tests = {
            "without a readable start": ~np.isfinite(start),
            "without a readable duration": ~np.isfinite(duration),
            "with a negative duration": duration < 0,
            f"more than {MAX_TIME_S:g} s long or late": (np.abs(start_s) > MAX_TIME_S) | (duration_s > MAX_TIME_S),
        }
    keep = np.ones(len(rows), np.bool_)
    for reason, wrong in tests.items():
        unsound[f"events {reason}: left out"] += int((wrong & keep).sum())
        keep &= ~wrong
    unsound["events without a duration: taken as 0"] = int((no_duration & keep).sum())
    if not keep.any():
        raise FormatError(f"{label}: no sound event among {len(events)}" + "".join(f"; {w}" for w in _counted(unsound)))
    if not keep.all():
        rows = [rows[i] for i in np.flatnonzero(keep).tolist()]
    whole = bool((start[keep] % 1 == 0).all())
    raw = _raw(rows, start_s[keep], duration_s[keep], 1e-6 if whole else 1e-9, _thread_names(events))
    columns = join(raw)
    info = _info(head, base, other, _counted(unsound))
    devices = info.get("devices")
    device = devices[0] if isinstance(devices, list) and devices else None
    name = device.get("name") if isinstance(device, dict) else None
    distributed = head.get("distributedInfo")
    rank = distributed.get("rank", 0) if isinstance(distributed, dict) else 0
    try:
        return Trace.from_columns(
            {**columns, "rank": rank if isinstance(rank, int) and 0 <= rank < 1 << 31 else 0},
            title=PurePath(label).name,
            source="foreign",
            system=name if isinstance(name, str) else "",
            info=info,
        )
    except ForetraceError as error:
        raise FormatError(f"{label}: {error}") from None


def _slices(events: list[Any], unsound: Counter[str]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Complete events, begin/end pairs joined to such, and counts of the other phases."""
    rows = [e for e in events if type(e) is dict and e.get("ph") == "X"]
    if len(rows) == len(events):
        return rows, {}
    unsound["entries that are not objects: left out"] = sum(type(e) is not dict for e in events)
    phases = Counter(str(e.get("ph")) for e in events if type(e) is dict)
    if phases["B"]:
        rows += _pairs(events, unsound)
    return rows, {p: c for p, c in sorted(phases.items()) if p not in ("X", "B", "E")}


def _pairs(events: list[Any], unsound: Counter[str]) -> Iterable[dict[str, Any]]:
    """One complete event per begin/end pair of a thread."""
    stacks: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for event in events:
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


def _raw(
    rows: list[dict[str, Any]],
    start_s: NDArray[np.float64],
    duration_s: NDArray[np.float64],
    tolerance_s: float,
    threads: dict[tuple[str, Any, Any], str],
) -> Raw:
    """The columns as the file has them, before any join."""
    args = [e.get("args") or _NO_ARGS for e in rows]
    if any(type(a) is not dict for a in args):
        args = [a if type(a) is dict else _NO_ARGS for a in args]
    kind = _texts([e.get("cat") for e in rows]).map(_kind)

    def integers(*keys: str) -> NDArray[np.int64]:
        found = _integers([a.get(keys[0], -1) for a in args])
        for key in keys[1:]:
            if (found < 0).all():
                found = _integers([a.get(key, -1) for a in args])
        return found

    return Raw(
        name=_texts([e.get("name") for e in rows]),
        kind=kind,
        stream=_streams(rows, args, kind, threads),
        start_s=start_s,
        duration_s=duration_s,
        tolerance_s=tolerance_s,
        shapes=_shapes([a.get("Input Dims") or a.get("Input dims") for a in args]),
        hierarchy=_texts([a.get("Module Hierarchy") for a in args]),
        correlation=integers("correlation"),
        external_id=integers("External id", "external id"),
        sequence=integers("Sequence number"),
        bytes_moved=np.maximum(integers("bytes", "Bytes"), 0).astype(np.float64),
    )


def _kind(category: str) -> str:
    low = category.lower()
    for ending, kind in (("_runtime", "launch"), ("_driver", "driver")):
        if low.endswith(ending):
            return kind
    return KINDS.get(low, low or "event")


def _streams(
    rows: list[dict[str, Any]], args: list[dict[str, Any]], kind: StringColumn, threads: dict[tuple[str, Any, Any], str]
) -> StringColumn:
    """ "gpu D stream S" for device work, "host TID" for host work, names from the file's metadata elsewhere."""
    device, host = kind.isin(DEVICE_KINDS).tolist(), kind.isin(_HOST_KINDS).tolist()
    keys: list[Any] = [
        ("gpu", a.get("device", e.get("pid")), a.get("stream", e.get("tid"))) if d else (h, e.get("pid"), e.get("tid"))
        for e, a, d, h in zip(rows, args, device, host, strict=True)
    ]
    table: dict[Any, int] = {}
    try:
        codes = [table.setdefault(k, len(table)) for k in keys]
    except TypeError:  # a list or an object where an id should stand
        table.clear()
        codes = [table.setdefault((k[0], str(k[1]), str(k[2])), len(table)) for k in keys]
    many = len({k[1] for k in table if k[0] is True}) > 1

    def label(key: Any) -> str:
        where, pid, tid = key
        if where == "gpu":
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
