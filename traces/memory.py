"""Allocated memory over the time of a step, as a trace carries it."""

from dataclasses import dataclass

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
    found = trace.info.get(KEY)
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


def thin_memory(time_s: ArrayLike, allocated_bytes: ArrayLike) -> dict[str, list[float]]:
    """What goes into ``info["memory"]``: the points by time, at most `MAX_POINTS` of them, peaks and troughs kept."""
    time, allocated = np.asarray(time_s, np.float64), np.asarray(allocated_bytes, np.float64)
    order = np.argsort(time, kind="stable")
    time, allocated = time[order], allocated[order]
    if len(time) > MAX_POINTS:
        parts = np.array_split(np.arange(len(time)), MAX_POINTS // 2)
        extremes = [p[i] for p in parts for i in (np.argmin(allocated[p]), np.argmax(allocated[p]))]
        rows = np.unique(extremes)
        time, allocated = time[rows], allocated[rows]
    return {"time_s": time.tolist(), "allocated_bytes": allocated.tolist()}
