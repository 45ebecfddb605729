"""The inner loop of the Perfetto writer, compiled by numba; imported only when such a file is written.

Tags below are protobuf wire tags (field number << 3 | wire type) of TracePacket, TrackEvent, DebugAnnotation.
"""

import numpy as np
from numpy.typing import NDArray

from foretrace.ir import compiled

SLICE_BYTES = 192  # upper bound of one slice: 158 for its begin packet and 26 for its end, numbers at their widest
_BEGIN, _END = 1, 2


@compiled
def _put(out: NDArray[np.uint8], at: int, tag: int, value: int) -> int:
    """A one-byte *tag* and a varint; returns the next free place."""
    out[at] = tag
    at += 1
    while value > 0x7F:
        out[at] = value & 0x7F | 0x80
        value >>= 7
        at += 1
    out[at] = value
    return at + 1


@compiled
def _annotate(out: NDArray[np.uint8], at: int, label: int, value: int, is_text: bool) -> int:
    """One DebugAnnotation: its interned *label* and an interned text or an integer."""
    body = _put(out, at + 2, 0x08, label)
    if is_text:
        out[body] = 0x88  # string_value_iid is field 17: its tag takes two bytes
        body = _put(out, body + 1, 0x01, value)
    else:
        body = _put(out, body, 0x20, value)
    out[at], out[at + 1] = 0x22, body - at - 2
    return body


@compiled
def _packet(
    out: NDArray[np.uint8],
    at: int,
    time: int,
    kind: int,
    track: int,
    texts: NDArray[np.int64],
    numbers: NDArray[np.int64],
    flow: int,
) -> int:
    """One TracePacket with a TrackEvent of *kind*; a begin carries name, category and annotations.

    The two lengths are written as two-byte varints, the higher one possibly 0, so that they can be filled in after.
    """
    body = _put(out, at + 3, 0x40, time)
    body = _put(out, body, 0x50, 1)
    if kind == _BEGIN:
        body = _put(out, body, 0x68, 2)
    event = body + 3
    end = _put(out, _put(out, event, 0x48, kind), 0x58, track)
    if kind == _BEGIN:
        end = _put(out, _put(out, end, 0x50, texts[0]), 0x18, texts[1])
        for i in range(2, len(texts)):
            if texts[i]:
                end = _annotate(out, end, i - 1, texts[i], True)
        for i in range(len(numbers)):
            if numbers[i]:
                is_id = i == 0 or i >= 3  # ids come one higher, so that 0 is none everywhere
                end = _annotate(out, end, len(texts) - 1 + i, numbers[i] - is_id, False)
        if flow:
            out[end], out[end + 1] = 0xF9, 0x02  # flow_ids is field 47, eight bytes wide
            for i in range(8):
                out[end + 2 + i] = flow >> 8 * i & 0xFF
            end += 10
    out[body], out[body + 1], out[body + 2] = 0x5A, (end - event) & 0x7F | 0x80, (end - event) >> 7
    out[at], out[at + 1], out[at + 2] = 0x0A, (end - at - 3) & 0x7F | 0x80, (end - at - 3) >> 7
    return end


@compiled
def encode_slices(
    out: NDArray[np.uint8],
    order: NDArray[np.int64],
    track: NDArray[np.int64],
    begin: NDArray[np.int64],
    end: NDArray[np.int64],
    texts: NDArray[np.int64],
    numbers: NDArray[np.int64],
    flows: NDArray[np.int64],
) -> int:
    """Write a begin and an end packet per event into *out*, in *order*; returns the bytes used.

    *texts* (n, 5): interned ids of name, category, module, phase, shapes. *numbers* (n, 5): op id + 1, bytes,
    FLOPs, correlation + 1, external id + 1. *flows* (n,): slices of one number above 0 are joined by an arrow.
    A slice that would outlast the one around it is clipped.
    """
    at, depth = 0, 0
    stack = np.empty(len(order) + 1, np.int64)
    stop = np.empty(len(order) + 1, np.int64)
    for step in range(len(order) + 1):
        row = order[step] if step < len(order) else -1
        while depth:
            top = stack[depth - 1]
            if row >= 0 and track[top] == track[row] and stop[depth - 1] > begin[row]:
                break
            depth -= 1
            at = _packet(out, at, stop[depth], _END, track[top], texts[top], numbers[top], 0)
        if row >= 0:
            at = _packet(out, at, begin[row], _BEGIN, track[row], texts[row], numbers[row], flows[row])
            stack[depth] = row
            stop[depth] = min(end[row], stop[depth - 1]) if depth else end[row]
            depth += 1
    return at
