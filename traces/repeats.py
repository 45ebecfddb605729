"""Several runs of one step in a trace, or in several: taken apart and averaged, instance by instance."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from foretrace.ir import ForetraceError

from .kinds import DEVICE_WORK
from .nesting import lookup
from .trace import Trace

_COUNTED = ("cpu_op", *DEVICE_WORK)  # what must be alike in every repeat; launches and frames may differ


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
    starts = np.stack([run.start_s - run.start_s.min(initial=np.inf) if len(run) else run.start_s for run in runs])
    steps = [run.step_s for run in runs if run.step_s is not None]
    return runs[0].replace(
        start_s=starts.mean(axis=0),
        duration_s=durations.mean(axis=0),
        spread_s=durations.std(axis=0, ddof=1),
        step_s=float(np.mean(steps)) if steps else None,
        info={**runs[0].info, "repeats": len(runs)},
    )


def one_step(trace: Trace) -> Trace:
    """The average of the steps that *trace* holds; where they differ in operators, the one of median length."""
    steps = split_steps(trace)
    try:
        return average_repeats(steps)
    except ForetraceError as error:
        median = sorted(steps, key=lambda t: t.step_s if t.step_s is not None else t.span_s)[len(steps) // 2]
        known = median.info.get("warnings", [])
        warnings = [*(known if isinstance(known, list) else []), f"{len(steps)} steps not averaged: {error}"]
        return median.replace(info={**median.info, "warnings": warnings})


def _ordered(trace: Trace) -> Trace:
    names = sorted(trace.stream.used())
    rank = {name: i for i, name in enumerate(names)}
    place = np.array([rank.get(v, -1) for v in trace.stream.values], np.int64)
    stream: NDArray[np.int64] = place[trace.stream.codes] if len(trace) else np.zeros(0, np.int64)
    return trace.select(np.lexsort((trace.start_s, stream, trace.rank)))


def _difference(runs: list[Trace]) -> str:
    """What keeps the runs from being the same sequence of events, "" if nothing does."""
    first = runs[0]
    for number, run in enumerate(runs[1:], 2):
        if len(run) != len(first):
            return f"run 1 has {len(first)} events, run {number} has {len(run)}"
        for column in ("name", "stream", "shapes"):
            if getattr(run, column) != getattr(first, column):
                return f"run {number} has other {column}s than run 1"
    return ""
