"""Chrome trace JSON: what we write for viewers that know no Perfetto, our columns in each event's args."""

from typing import Any

import numpy as np

from foretrace.ir import ForetraceError, FormatError
from foretrace.traces.strings import StringColumn
from foretrace.traces.trace import COLUMNS, FLOAT_COLUMNS, INT_COLUMNS, STRING_COLUMNS, Trace

from .parquet import decode_meta, encode_meta

META = "foretrace"
_ARGS = [c for c in COLUMNS if c not in ("name", "kind", "rank", "stream", "start_s", "duration_s")]
_DEFAULTS = {**dict.fromkeys(STRING_COLUMNS, ""), **INT_COLUMNS, **dict.fromkeys(FLOAT_COLUMNS, 0.0)}


def encode_chrome(trace: Trace) -> bytes:
    """The trace as Chrome JSON: a process per rank, a thread per stream, complete events with times in µs.

    Args hold the columns that differ from their default; start_s and duration_s too where µs would lose a bit.
    """
    import orjson

    streams = trace.stream.values
    threads = np.unique(trace.rank.astype(np.int64) * (len(streams) + 1) + trace.stream.codes).tolist()
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": rank, "tid": 0, "args": {"name": f"rank {rank}"}}
        for rank in np.unique(trace.rank).tolist()
    ]
    events += [
        {"ph": "M", "name": "thread_name", "pid": rank, "tid": code, "args": {"name": streams[code]}}
        for rank, code in (divmod(key, len(streams) + 1) for key in threads)
    ]
    args: list[dict[str, Any]] = [{} for _ in range(len(trace))]
    times = {"start_s": trace.start_s * 1e6, "duration_s": trace.duration_s * 1e6}
    for column in [*_ARGS, *times]:
        values = getattr(trace, column)
        if column in times:
            rows = np.flatnonzero(times[column] * 1e-6 != values)
        elif isinstance(values, StringColumn):
            rows = np.flatnonzero(values.where(bool))
        else:
            rows = np.flatnonzero(values != _DEFAULTS[column])
        kept = values.take(rows) if isinstance(values, StringColumn) else values[rows]
        for row, value in zip(rows.tolist(), kept.tolist(), strict=True):
            args[row][column] = value
    start, duration = times["start_s"].tolist(), times["duration_s"].tolist()
    rank, tid = trace.rank.tolist(), trace.stream.codes.tolist()
    events += [
        {"ph": "X", "name": n, "cat": k, "pid": r, "tid": t, "ts": s, "dur": d, "args": a}
        for n, k, r, t, s, d, a in zip(
            trace.name.tolist(), trace.kind.tolist(), rank, tid, start, duration, args, strict=True
        )
    ]
    head = {META: orjson.loads(encode_meta(trace)), "streams": streams, "displayTimeUnit": "ns"}
    return orjson.dumps({**head, "traceEvents": events})


def decode_chrome(document: dict[str, Any], label: str) -> Trace:
    """A trace from the parsed JSON that `encode_chrome` wrote; raises FormatError, naming *label*."""
    meta = decode_meta(document.get(META), label)
    try:
        streams = document["streams"]
        events = [e for e in document["traceEvents"] if e["ph"] == "X"]
        columns = {c: [e["args"].get(c, _DEFAULTS[c]) for e in events] for c in _ARGS}
        for column, key in (("start_s", "ts"), ("duration_s", "dur")):
            columns[column] = [e["args"].get(column, e[key] * 1e-6) for e in events]
        columns |= {c: [e[key] for e in events] for c, key in (("name", "name"), ("kind", "cat"), ("rank", "pid"))}
        columns["stream"] = [streams[e["tid"]] for e in events]
        return Trace.from_columns(columns, **meta)
    except (TypeError, KeyError, IndexError, AttributeError, ValueError) as error:
        raise FormatError(f"{label}: a Foretrace Chrome trace, but corrupt: {error!r}") from None
    except ForetraceError as error:
        raise FormatError(f"{label}: {error}") from None
