"""Allocated memory over the time of a step, as a trace carries it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foretrace.ir import ForetraceError

from .trace import Trace

MAX_POINTS = 4096
KEY = "memory"


@dataclass(frozen=True, eq=False)
class MemoryLine:
    """Bytes allocated from each moment on until the next; times in the order and on the clock of the trace."""

    time_s: NDArray[np.float64]
    allocated_bytes: NDArray[np.float64]

    @property
    def peak(self) -> float:
        """The most bytes allocated at any moment."""
        return float(self.allocated_bytes.max(initial=0.0))


def memory_line(trace: Trace) -> MemoryLine | None:
    """The memory that *trace* carries in ``info["memory"]``, None where it carries none.

    Raises ForetraceError where that is not two lists of numbers of equal length.
    """
    return line_of(trace.info)


def line_of(info: Mapping[str, Any]) -> MemoryLine | None:
    """The same from the *info* of a trace."""
    found = info.get(KEY)
    if found is None:
        return None
    try:
        time, allocated = (np.asarray(found[key], np.float64) for key in ("time_s", "allocated_bytes"))
    except (TypeError, KeyError, IndexError, ValueError, OverflowError):
        time, allocated = np.zeros(0), np.zeros(1)
    if time.ndim != 1 or time.shape != allocated.shape or not np.isfinite([time, allocated]).all():
        raise ForetraceError(
            "trace info memory: expected time_s and allocated_bytes, two lists of numbers of equal length"
        )
    return MemoryLine(time, allocated)


def cut_memory(info: Mapping[str, Any], begin_s: float, end_s: float) -> dict[str, Any]:
    """*info* with its memory from *begin_s*, as it then stood, to *end_s*; without any where it knows none of then."""
    line = line_of(info)
    if line is None:
        return dict(info)
    rest = {key: value for key, value in info.items() if key != KEY}
    order = np.argsort(line.time_s, kind="stable")
    time, allocated = line.time_s[order], line.allocated_bytes[order]
    first, last = np.searchsorted(time, [begin_s, end_s], side="right").tolist()
    rows = np.arange(max(first - 1, 0), last)
    if not len(rows):
        return rest
    cut = {"time_s": np.maximum(time[rows], begin_s).tolist(), "allocated_bytes": allocated[rows].tolist()}
    return rest | {KEY: {**info[KEY], **cut}}


def shift_memory(info: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """*info* with the times of its memory later by *seconds*, as a trace's whose events are moved."""
    line = line_of(info)
    return dict(info) if line is None else {**info, KEY: {**info[KEY], "time_s": (line.time_s + seconds).tolist()}}


def thin_memory(time_s: ArrayLike, allocated_bytes: ArrayLike, most: int = MAX_POINTS) -> dict[str, list[float]]:
    """What goes into ``info["memory"]``: the points by time, at most *most* of them, peaks and troughs kept."""
    time, allocated = np.asarray(time_s, np.float64), np.asarray(allocated_bytes, np.float64)
    order = np.argsort(time, kind="stable")
    time, allocated = time[order], allocated[order]
    if len(time) > most:
        parts = np.array_split(np.arange(len(time)), max(most // 2, 1))
        extremes = [p[i] for p in parts for i in (np.argmin(allocated[p]), np.argmax(allocated[p]))]
        rows = np.unique(extremes)
        time, allocated = time[rows], allocated[rows]
    return {"time_s": time.tolist(), "allocated_bytes": allocated.tolist()}
