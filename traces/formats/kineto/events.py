"""One entry of traceEvents: the fields that are read, typed, whatever the file has in their place."""

import json
import math
from typing import Any

import msgspec
from msgspec import Raw

MISSING = -math.inf  # a duration that the file does not give; an unreadable one is NaN
Place = int | float | str | None
NO_DIMS = Raw(b"")


class Args(
    msgspec.Struct,
    frozen=True,
    gc=False,
    rename={
        "external": "External id",
        "external_old": "external id",
        "sequence": "Sequence number",
        "record_function": "Record function id",
        "moved": "bytes",
        "moved_old": "Bytes",
        "dims": "Input Dims",
        "dims_old": "Input dims",
        "hierarchy": "Module Hierarchy",
        "elements_in": "In msg nelems",
        "elements_out": "Out msg nelems",
        "allocated": "Total Allocated",
        "device_type": "Device Type",
        "device_id": "Device Id",
    },
):
    """What is read of an event's args; integers are -1 where absent."""

    correlation: int = -1
    external: int = -1
    external_old: int = -1
    sequence: int = -1
    record_function: int = -1
    moved: int = -1
    moved_old: int = -1
    device: Place = None
    stream: Place = None
    dims: Raw = NO_DIMS
    dims_old: Raw = NO_DIMS
    hierarchy: str = ""
    elements_in: Any = None
    elements_out: Any = None
    dtype: Any = None
    allocated: Any = None
    device_type: Any = None
    device_id: Any = None
    name: Any = None


NO_ARGS = Args()


class Event(msgspec.Struct, gc=False):
    """What is read of an entry; times in µs, NaN where unreadable."""

    ph: str = "None"
    cat: str = ""
    name: str = ""
    pid: Place = None
    tid: Place = None
    ts: float = math.nan
    dur: float = MISSING
    id: Place = None
    args: Args = NO_ARGS


decode_events = msgspec.json.Decoder(list[Event]).decode
decode_event = msgspec.json.Decoder(Event).decode
DecodeErrors = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def read_entry(text: bytes) -> Event | None:
    """The entry that strict decoding refuses (NaN, control characters, other types); None where it is no object.

    Raises ValueError or RecursionError where it is no JSON at all.
    """
    entry = json.loads(text.decode("utf-8", "replace"), strict=False)
    if not isinstance(entry, dict):
        return None
    args = entry.get("args")
    return Event(
        ph=str(entry.get("ph")),
        cat=_text(entry.get("cat")),
        name=_text(entry.get("name")),
        pid=_place(entry.get("pid")),
        tid=_place(entry.get("tid")),
        ts=as_float(entry.get("ts")),
        dur=MISSING if entry.get("dur") is None else as_float(entry["dur"]),
        id=_place(entry.get("id")),
        args=_args(args) if isinstance(args, dict) else NO_ARGS,
    )


def _args(args: dict[str, Any]) -> Args:
    get = args.get
    return Args(
        correlation=as_integer(get("correlation")),
        external=as_integer(get("External id")),
        external_old=as_integer(get("external id")),
        sequence=as_integer(get("Sequence number")),
        record_function=as_integer(get("Record function id")),
        moved=as_integer(get("bytes")),
        moved_old=as_integer(get("Bytes")),
        device=_place(get("device")),
        stream=_place(get("stream")),
        dims=_raw(get("Input Dims")),
        dims_old=_raw(get("Input dims")),
        hierarchy=_text(get("Module Hierarchy")),
        elements_in=get("In msg nelems"),
        elements_out=get("Out msg nelems"),
        dtype=get("dtype"),
        allocated=get("Total Allocated"),
        device_type=get("Device Type"),
        device_id=get("Device Id"),
        name=get("name"),
    )


def as_float(value: Any) -> float:
    """A finite number, or a string of one; NaN for anything else."""
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def as_integer(value: Any) -> int:
    """An integer that is not negative, or a string of one; -1 for anything else."""
    try:
        number = int(value) if isinstance(value, int | float | str) else -1
    except (ValueError, OverflowError):
        return -1
    return number if 0 <= number < 1 << 62 else -1


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)[:1000]


def _place(value: Any) -> Place:
    return value if isinstance(value, int | float | str | None) else str(value)[:1000]


def _raw(value: Any) -> Raw:
    return Raw(json.dumps(value).encode()) if value else NO_DIMS
