"""The steps that a profiler marks in a trace: when each begins and ends on every rank, and which events are its own."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from .kinds import DEVICE_WORK
from .memory import KEY, cut_memory
from .nesting import lookup
from .trace import Trace

Ints = NDArray[np.int64]
Window = Mapping[int, tuple[float, float]]  # of one step: each rank's begin and end, in seconds on the trace's clock
MARKER = "ProfilerStep"


def split_steps(trace: Trace) -> list[Trace]:
    """One trace per ``ProfilerStep#N`` marker, in order; the trace itself where it has none.

    Steps of one number on several ranks are one, as long as the longest of them. Host events belong to the step in
    which they start, device work to that of the operator, else of the launch, that issued it. What a trace knows of
    memory is cut to the step.
    """
    return [part for part, _ in split_windows(trace)] or [trace]


def split_windows(trace: Trace) -> list[tuple[Trace, Window]]:
    """The steps of `split_steps`, each with its window; none where the trace has no markers."""
    windows = marked_windows(trace)
    step = _step_of(trace, windows)
    parts = [(trace.select(step == i), window) for i, window in enumerate(windows)]
    return [(_of_window(part, window), window) for part, window in parts if len(part)]


def marked_windows(trace: Trace) -> list[Window]:
    """The window of each marked step, in order of their numbers; a rank without markers has the lowest other one's."""
    marks = np.flatnonzero(_is_marker(trace))
    marks = marks[np.lexsort((trace.start_s[marks], trace.rank[marks]))]
    windows: dict[int, dict[int, tuple[float, float]]] = {}
    ranks, begins, ends = (x[marks].tolist() for x in (trace.rank, trace.start_s, trace.end_s))
    for number, rank, begin, end in zip(_numbers(trace, marks), ranks, begins, ends, strict=True):
        windows.setdefault(number, {})[rank] = (begin, end)
    bare = np.setdiff1d(trace.rank, trace.rank[marks]).tolist()
    return [window | dict.fromkeys(bare, window[min(window)]) for _, window in sorted(windows.items())]


def _is_marker(trace: Trace) -> NDArray[np.bool_]:
    return trace.name.where(lambda n: n.startswith(MARKER)) & trace.kind.isin(["annotation"])


def _numbers(trace: Trace, marks: Ints) -> list[int]:
    """The number of each of the *marks*, which come rank by rank in order; their order where the names have none."""
    ranks = trace.rank[marks].tolist()
    said = [name.rpartition("#")[2] for name in trace.name.take(marks).tolist()]
    if all(s.isdecimal() and len(s) < 19 for s in said):
        numbers = [int(s) for s in said]
        if len(set(zip(ranks, numbers, strict=True))) == len(marks):
            return numbers
    return [i - ranks.index(rank) for i, rank in enumerate(ranks)]


def _step_of(trace: Trace, windows: list[Window]) -> Ints:
    """The index of the window that each event belongs to, -1 for none."""
    step = np.full(len(trace), -1, np.int64)
    if not windows:
        return step
    for rank in np.unique(trace.rank).tolist():
        rows = np.flatnonzero(trace.rank == rank)
        mine = sorted((*window[rank], i) for i, window in enumerate(windows) if rank in window)
        if not mine:
            continue
        begin, end, number = (np.array(column) for column in zip(*mine, strict=True))
        at = np.maximum(np.searchsorted(begin, trace.start_s[rows], side="right") - 1, 0)
        held = (begin[at] <= trace.start_s[rows]) & (trace.start_s[rows] <= end[at])
        step[rows] = np.where(held, number[at], -1)
        _follow_issuers(trace, rows, step)
    step[_is_marker(trace)] = -1
    return step


def _follow_issuers(trace: Trace, rows: Ints, step: Ints) -> None:
    """Give device work among *rows* the step of its operator, and where none is known that of its launch."""
    kind = trace.kind.take(rows)
    work = rows[kind.isin(DEVICE_WORK)]
    issuer = _issuers(trace.external_id, rows[kind.isin(["cpu_op"])], work)
    call = _issuers(trace.correlation, rows[kind.isin(["launch", "driver"])], work)
    issuer = np.where(issuer >= 0, issuer, call)
    step[work] = np.where(issuer >= 0, step[issuer], step[work])


def _issuers(keys: Ints, issuers: Ints, work: Ints) -> Ints:
    return np.where(keys[work] >= 0, lookup(keys, issuers, keys[work]), -1)


def _of_window(part: Trace, window: Window) -> Trace:
    if part.step_s is None:
        part = part.replace(step_s=max(end - begin for begin, end in window.values()))
    if KEY not in part.info:
        return part
    begin, end = min(begin for begin, _ in window.values()), max(end for _, end in window.values())
    return part.replace(info=cut_memory(part.info, begin, end))
