"""Several runs of one step in a trace, or in several: taken apart and averaged, instance by instance."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from foretrace.ir import ForetraceError

from .kinds import DEVICE_WORK
from .nesting import lookup
from .strings import aligned_codes
from .trace import Trace

Ints = NDArray[np.int64]
_COUNTED = ("cpu_op", *DEVICE_WORK)  # what must be alike in every repeat; launches and frames may differ
LEAST_ALIKE = 0.9  # share of the operators' and kernels' time that a step must have in common with the median one


def split_steps(trace: Trace) -> list[Trace]:
    """One trace per ``ProfilerStep#N`` marker, in order; the trace itself where it has none.

    Host events belong to the step in which they start, device work to that of the operator that issued it.
    """
    marker = trace.name.where(lambda n: n.startswith("ProfilerStep")) & trace.kind.isin(["annotation"])
    marks = np.flatnonzero(marker)
    marks = marks[np.argsort(trace.start_s[marks], kind="stable")]
    if not len(marks):
        return [trace]
    at = np.searchsorted(trace.start_s[marks], trace.start_s, side="right") - 1
    step = np.where((at >= 0) & (trace.start_s <= trace.end_s[marks][at]), at, -1)
    work = np.flatnonzero(trace.kind.isin(DEVICE_WORK) & (trace.external_id >= 0))
    issuer = lookup(trace.external_id, np.flatnonzero(trace.kind.isin(["cpu_op"])), trace.external_id[work])
    step[work] = np.where(issuer >= 0, step[issuer], step[work])
    parts = [trace.select((step == i) & ~marker) for i in range(len(marks))]
    if trace.step_s is None:
        seconds = trace.duration_s[marks].tolist()
        parts = [part.replace(step_s=s) for part, s in zip(parts, seconds, strict=True)]
    return [part for part in parts if len(part)] or [trace]


def average_repeats(traces: Sequence[Trace]) -> Trace:
    """The mean of several runs of the same operators: starts (from each run's first event) and durations.

    ``spread_s`` is the sample standard deviation of each duration. Where runs differ in launches, frames or
    annotations, these are left out. Raises ForetraceError where operators or kernels differ, and for no trace.
    """
    if not traces:
        raise ForetraceError("average_repeats: expected at least one trace, got none")
    if len(traces) == 1:
        return traces[0]
    runs = [_ordered(trace) for trace in traces]
    difference = _difference(runs)
    if difference:
        runs = [_ordered(trace.select(trace.kind.isin(_COUNTED))) for trace in traces]
        difference = _difference(runs)
    if difference:
        raise ForetraceError(f"average_repeats: the runs differ: {difference}")
    durations = np.stack([run.duration_s for run in runs])
    starts = np.stack([_from_zero(run) for run in runs])
    return runs[0].replace(
        start_s=starts.mean(axis=0),
        duration_s=durations.mean(axis=0),
        spread_s=durations.std(axis=0, ddof=1),
        step_s=_mean_step(runs),
        info={**runs[0].info, "repeats": len(runs)},
    )


def one_step(trace: Trace) -> Trace:
    """The average of the steps that *trace* holds.

    Where they differ, the one of median length is kept, each of its events averaged over the steps that have it too;
    steps that share too little with it are left out, with a warning.
    """
    steps = split_steps(trace)
    if len(steps) == 1:
        return steps[0]
    runs = [_ordered(step) for step in steps]
    if not _difference(runs):
        return average_repeats(runs)
    order = sorted(range(len(runs)), key=lambda i: (runs[i].step_s or runs[i].span_s, i))
    middle = runs[order[len(runs) // 2]]
    return _average_common(middle, [run for run in runs if run is not middle])


def _average_common(middle: Trace, others: list[Trace]) -> Trace:
    """*middle* with each event averaged over the *others* that have it: by stream, name and order."""
    counted = middle.kind.isin(_COUNTED)
    total = float(middle.duration_s[counted].sum())
    durations, starts, used = [middle.duration_s], [_from_zero(middle)], [middle]
    for run in others:
        i, j = _same_events(middle, run)
        if float(middle.duration_s[i][counted[i]].sum()) < LEAST_ALIKE * total:
            continue
        duration, start = np.full((2, len(middle)), np.nan)
        duration[i], start[i] = run.duration_s[j], _from_zero(run)[j]
        durations.append(duration)
        starts.append(start)
        used.append(run)
    left = 1 + len(others) - len(used)
    warnings = [f"{left} of {1 + len(others)} steps differ from the others and are left out"] * (left > 0)
    known = middle.info.get("warnings", [])
    info = {**middle.info, "warnings": [*(known if isinstance(known, list) else []), *warnings], "repeats": len(used)}
    if len(used) == 1:
        return middle.replace(info=info)
    everywhere = ~np.isnan(np.stack(durations)).any(axis=0)
    own, mean = starts[0], np.nanmean(np.stack(starts), axis=0)
    return middle.replace(
        start_s=np.where(everywhere, mean, _moved(own, own[everywhere], mean[everywhere])),
        duration_s=np.nanmean(np.stack(durations), axis=0),
        spread_s=_spread(np.stack(durations)),
        step_s=_mean_step(used),
        info=info,
    )


def _same_events(a: Trace, b: Trace) -> tuple[Ints, Ints]:
    """Rows of *a* and *b*, both ordered, that are one event: a common subsequence of names on each stream."""
    from .compare.lcs import match_sequences  # here: comparing imports this module

    name, stream = aligned_codes(a.name, b.name), aligned_codes(a.stream, b.stream)
    keys = [n.astype(np.int64) << 32 | s for n, s in zip(name, stream, strict=True)]
    dense = np.unique(np.concatenate(keys), return_inverse=True)[1]
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


def _from_zero(run: Trace) -> NDArray[np.float64]:
    return run.start_s - run.start_s.min(initial=np.inf) if len(run) else run.start_s


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
