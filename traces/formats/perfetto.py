"""Perfetto timelines: written for ui.perfetto.dev by an encoder of our own, with our table inside for reading back.

A file is a `perfetto.protos.Trace`: per (rank, stream) a track, per event a slice with the columns as debug
annotations. Its second packet has a private field (TABLE_FIELD, in TracePacket's extension range, which other
readers skip) that holds the trace as Parquet: what `load_trace` reads, exact to the bit. The last packet is a mark,
so that a file cut off anywhere shows it.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from foretrace.ir import FormatError
from foretrace.traces.nesting import nesting_order, stack_pass
from foretrace.traces.trace import Trace

MAGIC = b"\n\x0f\x50\x01\xca\x3e\x0aForetrace1"  # the first packet: sequence id 1 and a mark in field 1001
LAST = MAGIC[:-10] + b"Foretrace0"
TABLE_FIELD = 1990
MAX_LANES = 8  # tracks that one stream's partly overlapping events are spread over; further ones are clipped
ANNOTATIONS = ("module", "phase", "shapes", "op_id", "bytes", "flops", "correlation", "external_id")
_TABLE_PREFIX = b"\x50\x01\xb2\x7c"  # sequence id 1, then the tag of TABLE_FIELD


def encode_perfetto(
    trace: Trace, processes: Mapping[int, str] | None = None, flows: NDArray[np.int64] | None = None
) -> bytes:
    """The trace as a Perfetto file; slices in integer ns from min(0, first start), the table exact.

    *processes* names ranks otherwise than by their number; events of one number above 0 in *flows* (one an event)
    are joined by arrows.
    """
    from .parquet import encode_table
    from .perfetto_slices import SLICE_BYTES, encode_slices  # imports numba

    origin = min(0.0, float(trace.start_s.min())) if len(trace) else 0.0
    begin = np.rint((trace.start_s - origin) * 1e9).astype(np.int64)
    end = np.rint((trace.end_s - origin) * 1e9).astype(np.int64)
    track, descriptors = _tracks(trace, begin, end, processes or {})
    interned, texts = _interned(trace)
    numbers = [trace.op_id + 1, trace.bytes_moved, trace.flops, trace.correlation + 1, trace.external_id + 1]
    buffer = np.empty(SLICE_BYTES * len(trace), np.uint8)
    size = encode_slices(
        buffer,
        nesting_order(track, begin, end),
        track,
        begin,
        end,
        np.stack(texts, axis=1),
        np.stack([np.clip(c, 0, 9e18).astype(np.int64) for c in numbers], axis=1),
        np.zeros(len(trace), np.int64) if flows is None else flows,
    )
    first = _packet(_number(10, 1) + _number(13, 1) + _field(12, interned))
    table = _packet(_number(10, 1) + _field(TABLE_FIELD, encode_table(trace)))
    return b"".join([MAGIC, table, first, *descriptors, buffer[:size].tobytes(), LAST])


def table_bytes(data: bytes, label: str) -> bytes:
    """The Parquet table inside a file of ours. Raises FormatError, naming *label*, where it is cut off."""
    if not data.endswith(LAST):
        raise FormatError(f"{label}: the Perfetto file is cut off")
    try:
        _, body = _read_varint(data, len(MAGIC) + 1)
        size, start = _read_varint(data, body + len(_TABLE_PREFIX))
    except IndexError:
        raise FormatError(f"{label}: the Perfetto file is cut off") from None
    if not data.startswith(_TABLE_PREFIX, body):
        raise FormatError(f"{label}: corrupt Perfetto file: its table of events is missing")
    return data[start : start + size]


def _interned(trace: Trace) -> tuple[bytes, list[NDArray[np.int64]]]:
    """The InternedData message, and per text annotation the interned id of each event's, 0 for none."""
    texts = [trace.module, trace.phase, trace.shapes]
    tables = [(2, trace.name.values), (1, trace.kind.values), (3, ANNOTATIONS)]
    tables.append((29, tuple(value for column in texts for value in column.values)))
    message = b"".join(
        _field(number, _number(1, iid) + _field(2, value.encode()))
        for number, values in tables
        for iid, value in enumerate(values, 1)
    )
    ids = [trace.name.codes.astype(np.int64) + 1, trace.kind.codes.astype(np.int64) + 1]
    before = 1
    for column in texts:
        ids.append(np.where(column.where(bool), column.codes.astype(np.int64) + before, 0))
        before += len(column.values)
    return message, ids


def _tracks(
    trace: Trace, begin: NDArray[np.int64], end: NDArray[np.int64], processes: Mapping[int, str]
) -> tuple[NDArray[np.int64], list[bytes]]:
    """A track number per event, and the packets that name the tracks: one process per rank, lanes below it."""
    width = max(len(trace.stream.values), 1)
    stream = trace.rank.astype(np.int64) * width + trace.stream.codes
    lane = np.zeros(len(trace), np.int64)
    rows = nesting_order(stream, begin, end)
    for number in range(1, MAX_LANES):
        clash = stack_pass(rows, stream, begin, end, set_aside=True)[1]
        if not clash.any():
            break
        lane[clash] = number
        rows = rows[clash[rows]]
    keys, track = np.unique(stream * MAX_LANES + lane, return_inverse=True)
    ranks = np.unique(trace.rank).tolist()
    process = {rank: i + 1 for i, rank in enumerate(ranks)}
    title = f"{trace.title} " if trace.title else ""
    called = {r: processes.get(r, f"{title}rank {r}").encode() for r in ranks}
    packets = [_track(process[r], b"", _field(3, _number(1, r + 1) + _field(6, called[r]))) for r in ranks]
    for i, key in enumerate(keys.tolist()):
        rank, code = divmod(key // MAX_LANES, width)
        name = _field(2, trace.stream.values[code].encode())
        packets.append(_track(len(ranks) + 1 + i, name, _number(5, process[rank]) + _number(12, i)))
    return track.astype(np.int64) + 1 + len(ranks), packets


def _track(uuid: int, name: bytes, rest: bytes) -> bytes:
    return _packet(_number(10, 1) + _field(60, _number(1, uuid) + name + rest))


def _packet(body: bytes) -> bytes:
    return _field(1, body)


def _field(number: int, body: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(body)) + body


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """The number at *position* and where the next byte stands; IndexError past the end."""
    value = shift = 0
    while shift < 64:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            break
    return value, position
