"""What a device does over a step, and why it idles: compute, communication, copies and their overlap."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from foretrace.traces.kinds import DEVICE_WORK, is_work
from foretrace.traces.nesting import lookup
from foretrace.traces.steps import Window
from foretrace.traces.trace import Trace

from .kernels import is_communication

Floats = NDArray[np.float64]
NOISE = 1e-9  # share of a span that is the rounding of its sums
_ISSUING = ("launch", "driver")


@dataclass(frozen=True)
class Activity:
    """Seconds of one step by what goes on, the mean over ranks. Where nothing ran on a device the host is it."""

    span_s: float  #: of the marked step, else from the first to the last piece of work, the host's included
    busy_s: float  #: any work on the device
    compute_s: float
    communication_s: float
    copy_s: float
    exposed_communication_s: float  #: communication while no compute runs
    overlapped_communication_s: float
    idle_s: float  #: span less busy
    launch_idle_s: float  #: idle that ends with work whose launch ended after the device had run dry
    other_idle_s: float  #: idle for other reasons: dependencies, synchronisation, the end of the step
    host_s: float  #: the host busy with operators or launches
    kernels: int  #: pieces of work on the device, summed over ranks


def measure_activity(trace: Trace, windows: Sequence[Window] = ()) -> Activity:
    """The activity of *trace*, one step of one or several ranks.

    With the *windows* of steps it is their mean, of all that goes on in each: where the host runs ahead a step begins
    with the device busy on what the step before issued.
    """
    ranks = np.unique(trace.rank).tolist()
    parts = [
        _one_rank(
            trace.select(trace.rank == rank) if len(ranks) > 1 else trace, [w[rank] for w in windows if rank in w]
        )
        for rank in ranks
    ]
    sums = {f.name: sum(getattr(part, f.name) for part in parts) for f in fields(Activity)}
    kernels = sums.pop("kernels")
    return Activity(**{name: s / max(len(parts), 1) for name, s in sums.items()}, kernels=int(kernels))


def device_work(trace: Trace) -> NDArray[np.bool_]:
    """Mask of the rows that ran on a device: by kind where a profiler says so, else by stream."""
    listed = trace.kind.isin(DEVICE_WORK)
    if trace.kind.isin(["cpu_op"]).any() or (listed.any() and not (trace.op_id >= 0).any()):
        return listed
    return is_work(trace.kind) & ~trace.stream.isin(["host"])


def host_work(trace: Trace) -> NDArray[np.bool_]:
    """Mask of the operators and launches that ran on the host: on its streams where any is called so."""
    rows = ~device_work(trace) & (is_work(trace.kind) | trace.kind.isin(_ISSUING))
    named = trace.stream.where(lambda s: s.startswith("host"))
    return rows & named if named.any() else rows


def _one_rank(trace: Trace, spans: Sequence[tuple[float, float]]) -> Activity:
    """The mean over the *spans* (begin and end); without any, of the time from the first to the last work."""
    device, host = device_work(trace), host_work(trace)
    if not device.any():
        device = is_work(trace.kind)
    used = device | host
    if not spans:
        spans = [(float(trace.start_s[used].min()), float(trace.end_s[used].max()))] if used.any() else [(0.0, 0.0)]
    begin, end = np.array(spans, np.float64).T

    def mean(rows: NDArray[np.bool_]) -> float:
        return float(_covered(trace.start_s[rows], trace.end_s[rows], begin, end).mean())

    communication = device & is_communication(trace)
    copy = device & ~communication & trace.kind.isin(["copy", "memset"])
    compute = device & ~communication & ~copy
    busy = _covered(trace.start_s[device], trace.end_s[device], begin, end)
    idle = np.where(end - begin - busy > NOISE * (end - begin), end - begin - busy, 0.0)
    launch_idle = np.minimum(_covered(*_launch_gaps(trace, device, float(begin.min())), begin, end), idle)
    starts = np.sort(trace.start_s[device])
    kernels = np.searchsorted(starts, end, side="right") - np.searchsorted(starts, begin)
    compute_s, communication_s = mean(compute), mean(communication)
    exposed = max(mean(communication | compute) - compute_s, 0.0)
    return Activity(
        span_s=float((end - begin).mean()),
        busy_s=float(busy.mean()),
        compute_s=compute_s,
        communication_s=communication_s,
        copy_s=mean(copy),
        exposed_communication_s=exposed,
        overlapped_communication_s=max(communication_s - exposed, 0.0),
        idle_s=float(idle.mean()),
        launch_idle_s=float(launch_idle.mean()),
        other_idle_s=float((idle - launch_idle).mean()),
        host_s=mean(host),
        kernels=round(float(kernels.mean())),
    )


def _covered(start: Floats, end: Floats, first: Floats, last: Floats) -> Floats:
    """Seconds from each *first* to its *last* in which at least one of the intervals from *start* to *end* runs."""
    if not len(start):
        return np.zeros(len(first))
    order = np.argsort(start, kind="stable")
    start, reached = start[order], np.maximum.accumulate(end[order])
    start[1:] = np.maximum(start[1:], reached[:-1])
    length = np.maximum(reached - start, 0.0)
    before = np.concatenate([[0.0], np.cumsum(length)])

    def until(moment: Floats) -> Floats:
        at = np.searchsorted(start, moment, side="right") - 1
        inside = np.clip(moment - start[at], 0.0, length[at])
        covered: Floats = np.where(at >= 0, before[at] + inside, 0.0)
        return covered

    return np.maximum(until(last) - until(first), 0.0)


def _launch_gaps(trace: Trace, device: NDArray[np.bool_], begin: float) -> tuple[Floats, Floats]:
    """Starts and ends of the gaps before work that had not been issued when the device ran dry, or at *begin*."""
    rows = np.flatnonzero(device)
    rows = rows[np.argsort(trace.start_s[rows], kind="stable")]
    launches = np.flatnonzero(trace.kind.isin(_ISSUING) & (trace.correlation >= 0))
    if not len(rows) or not len(launches):
        return np.zeros(0), np.zeros(0)
    dry = np.concatenate([[begin], np.maximum.accumulate(trace.end_s[rows])[:-1]])
    launch = lookup(trace.correlation, launches, trace.correlation[rows])
    late = (trace.start_s[rows] > dry) & (launch >= 0) & (trace.correlation[rows] >= 0)
    late[late] = trace.end_s[launch[late]] > dry[late]
    return dry[late], trace.start_s[rows[late]]
