"""Several runs of one step, in a trace or in several, averaged instance by instance."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from foretrace.ir import ForetraceError

from .kinds import DEVICE_WORK
from .lcs import match_sequences
from .memory import shift_memory
from .steps import Window, split_steps, split_windows
from .strings import aligned_codes
from .trace import Trace

__all__ = ["average_repeats", "average_similar", "one_step", "split_steps"]

Ints = NDArray[np.int64]
_COUNTED = ("cpu_op", *DEVICE_WORK)  # what must be alike in every repeat; launches and frames may differ
LEAST_ALIKE = 0.9  # share of the operators' and kernels' time that a step must have in common with the median one


def average_repeats(traces: Sequence[Trace]) -> Trace:
    """The mean of several runs of the same operators: starts (from each run's first event) and durations.

    ``spread_s`` is the sample standard deviation of each duration. Where runs differ in launches, frames or
    annotations, these are the median run's, each averaged over the runs that have it. Raises ForetraceError where
    operators or kernels differ, and for no trace.
    """
    if not traces:
        raise ForetraceError("average_repeats: expected at least one trace, got none")
    if len(traces) == 1:
        return traces[0]
    difference = _difference([_ordered(trace.select(trace.kind.isin(_COUNTED))) for trace in traces])
    if difference:
        raise ForetraceError(f"average_repeats: the runs differ: {difference}")
    return average_similar(traces)[0]


def average_similar(traces: Sequence[Trace]) -> tuple[Trace, list[int]]:
    """The mean of several runs that may differ, and the places of those that are in it.

    Where they differ, the one of median length is kept, each of its events averaged over the runs that have it too;
    runs that share too little with it are left out, with a warning.
    """
    if len(traces) == 1:
        return traces[0], [0]
    runs = [_ordered(trace) for trace in traces]
    if not _difference(runs):
        return _mean(runs), list(range(len(runs)))
    order = sorted(range(len(runs)), key=lambda i: (runs[i].step_s or runs[i].span_s, i))
    return _average_common(runs, order[len(runs) // 2])


def one_step(trace: Trace) -> tuple[Trace, list[Window]]:
    """The average of the steps that *trace* holds, as of `average_similar`, and the windows of those that are in it.

    Where nothing marks steps it is the trace itself, without windows.
    """
    parts = split_windows(trace)
    if not parts:
        return trace, []
    mean, used = average_similar([part for part, _ in parts])
    return mean, [parts[i][1] for i in used]


def _mean(runs: list[Trace]) -> Trace:
    durations = np.stack([run.duration_s for run in runs])
    starts = np.stack([_from_zero(run) for run in runs])
    return runs[0].replace(
        start_s=starts.mean(axis=0),
        duration_s=durations.mean(axis=0),
        spread_s=durations.std(axis=0, ddof=1),
        step_s=_mean_step(runs),
        info={**shift_memory(runs[0].info, -_first_s(runs[0])), "repeats": len(runs)},
    )


def _average_common(runs: list[Trace], at: int) -> tuple[Trace, list[int]]:
    """The run *at* with each event averaged over the others that have it: by rank, stream, name and order."""
    middle = runs[at]
    counted = middle.kind.isin(_COUNTED)
    total = float(middle.duration_s[counted].sum())
    durations, starts, used = [middle.duration_s], [_from_zero(middle)], [at]
    for place, run in enumerate(runs):
        if place == at:
            continue
        i, j = _same_events(middle, run)
        if float(middle.duration_s[i][counted[i]].sum()) < LEAST_ALIKE * total:
            continue
        duration, start = np.full((2, len(middle)), np.nan)
        duration[i], start[i] = run.duration_s[j], _from_zero(run)[j]
        durations.append(duration)
        starts.append(start)
        used.append(place)
    left = len(runs) - len(used)
    warnings = [f"{left} of {len(runs)} steps differ from the others and are left out"] * (left > 0)
    known = middle.info.get("warnings", [])
    info = {**middle.info, "warnings": [*(known if isinstance(known, list) else []), *warnings], "repeats": len(used)}
    if len(used) == 1:
        return middle.replace(info=info), used
    everywhere = ~np.isnan(np.stack(durations)).any(axis=0)
    own, mean = starts[0], np.nanmean(np.stack(starts), axis=0)
    averaged = middle.replace(
        start_s=np.where(everywhere, mean, _moved(own, own[everywhere], mean[everywhere])),
        duration_s=np.nanmean(np.stack(durations), axis=0),
        spread_s=_spread(np.stack(durations)),
        step_s=_mean_step([runs[i] for i in used]),
        info=shift_memory(info, -_first_s(middle)),
    )
    return averaged, sorted(used)


def _same_events(a: Trace, b: Trace) -> tuple[Ints, Ints]:
    """Rows of *a* and *b*, both ordered, that are one event: a common subsequence of names on each rank's streams."""
    name, stream = aligned_codes(a.name, b.name), aligned_codes(a.stream, b.stream)
    dense = np.concatenate(name).astype(np.int64)
    for column in (np.concatenate(stream), np.concatenate([a.rank, b.rank])):
        dense = np.unique((dense << 32) + column, return_inverse=True)[1]
    return match_sequences(dense[: len(a)], dense[len(a) :])


def _moved(times: NDArray[np.float64], own: NDArray[np.float64], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """*times* shifted as the nearest of the *own* times before them are, which become *mean*."""
    if not len(own):
        return times
    order = np.argsort(own, kind="stable")
    at = np.maximum(np.searchsorted(own[order], times, side="right") - 1, 0)
    return times + (mean - own)[order][at]


def _spread(durations: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sample standard deviation down each column over what is known, 0 for one value."""
    known = (~np.isnan(durations)).sum(axis=0)
    squares = np.nansum((durations - np.nanmean(durations, axis=0)) ** 2, axis=0)
    spread: NDArray[np.float64] = np.sqrt(squares / np.maximum(known - 1, 1))
    return spread


def _first_s(run: Trace) -> float:
    return float(run.start_s.min()) if len(run) else 0.0


def _from_zero(run: Trace) -> NDArray[np.float64]:
    return run.start_s - _first_s(run)


def _mean_step(runs: list[Trace]) -> float | None:
    steps = [run.step_s for run in runs if run.step_s is not None]
    return float(np.mean(steps)) if steps else None


def _ordered(trace: Trace) -> Trace:
    names = sorted(trace.stream.used())
    rank = {name: i for i, name in enumerate(names)}
    place = np.array([rank.get(v, -1) for v in trace.stream.values], np.int64)
    stream: Ints = place[trace.stream.codes] if len(trace) else np.zeros(0, np.int64)
    return trace.select(np.lexsort((trace.start_s, stream, trace.rank)))


def _difference(runs: list[Trace]) -> str:
    """What keeps the runs from being the same sequence of events, "" if nothing does."""
    first = runs[0]
    labels = {"name": "names", "stream": "streams", "shapes": "shapes"}
    for number, run in enumerate(runs[1:], 2):
        if len(run) != len(first):
            return f"run 1 has {len(first)} events, run {number} has {len(run)}"
        for column, label in labels.items():
            if getattr(run, column) != getattr(first, column):
                return f"run {number} has other {label} than run 1"
    return ""
