"""What a device does over a step, and why it idles: compute, communication, copies and their overlap."""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from foretrace.traces.kinds import DEVICE_WORK, NOT_WORK
from foretrace.traces.nesting import lookup
from foretrace.traces.trace import Trace

from .kernels import is_communication

Floats = NDArray[np.float64]
NOISE = 1e-9  # share of a span that is the rounding of its sums


@dataclass(frozen=True)
class Activity:
    """Seconds of one step by what goes on, the mean over ranks. Where nothing ran on a device the host is it."""

    span_s: float  #: from the first to the last piece of work, the host's included
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


def measure_activity(trace: Trace) -> Activity:
    """The activity of *trace*, one step of one or several ranks."""
    ranks = np.unique(trace.rank).tolist()
    parts = [_one_rank(trace.select(trace.rank == rank) if len(ranks) > 1 else trace) for rank in ranks]
    sums = {f.name: sum(getattr(part, f.name) for part in parts) for f in fields(Activity)}
    kernels = sums.pop("kernels")
    return Activity(**{name: s / max(len(parts), 1) for name, s in sums.items()}, kernels=int(kernels))


def device_work(trace: Trace) -> NDArray[np.bool_]:
    """Mask of the rows that ran on a device: by kind where a profiler says so, else by stream."""
    listed = trace.kind.isin(DEVICE_WORK)
    if trace.kind.isin(["cpu_op"]).any() or (listed.any() and not (trace.op_id >= 0).any()):
        return listed
    return ~trace.kind.isin(NOT_WORK) & ~trace.stream.isin(["host"])


def _one_rank(trace: Trace) -> Activity:
    device = device_work(trace)
    issuing = trace.kind.isin(["launch", "driver"])
    host = ~device & (~trace.kind.isin(NOT_WORK) | issuing)
    host_s = covered(trace, host)
    if not device.any():
        device = ~trace.kind.isin(NOT_WORK)
    used = device | host
    communication = device & is_communication(trace)
    copy = device & ~communication & trace.kind.isin(["copy", "memset"])
    compute = device & ~communication & ~copy
    first, last = (trace.start_s[used].min(initial=np.inf), trace.end_s[used].max(initial=-np.inf))
    span = max(float(last - first), 0.0)
    busy, compute_s = covered(trace, device), covered(trace, compute)
    communication_s = covered(trace, communication)
    exposed = max(covered(trace, communication | compute) - compute_s, 0.0)
    idle = span - busy if span - busy > NOISE * span else 0.0
    launch_idle = min(_launch_idle(trace, device, issuing, float(first)), idle)
    return Activity(
        span_s=span,
        busy_s=busy,
        compute_s=compute_s,
        communication_s=communication_s,
        copy_s=covered(trace, copy),
        exposed_communication_s=exposed,
        overlapped_communication_s=max(communication_s - exposed, 0.0),
        idle_s=idle,
        launch_idle_s=launch_idle,
        other_idle_s=idle - launch_idle,
        host_s=host_s,
        kernels=int(device.sum()),
    )


def covered(trace: Trace, rows: NDArray[np.bool_]) -> float:
    """Seconds in which at least one of the *rows* runs."""
    start, end = trace.start_s[rows], trace.end_s[rows]
    order = np.argsort(start, kind="stable")
    start, end = start[order], end[order]
    reached = np.concatenate([start[:1], np.maximum.accumulate(end)[:-1]])
    return float(np.maximum(end - np.maximum(start, reached), 0.0).sum())


def _launch_idle(trace: Trace, device: NDArray[np.bool_], issuing: NDArray[np.bool_], begin: float) -> float:
    """Seconds of gaps before work that had not been issued when the device ran dry; 0 where launches are unknown."""
    rows = np.flatnonzero(device)
    rows = rows[np.argsort(trace.start_s[rows], kind="stable")]
    launches = np.flatnonzero(issuing & (trace.correlation >= 0))
    if not len(rows) or not len(launches):
        return 0.0
    dry = np.concatenate([[begin], np.maximum.accumulate(trace.end_s[rows])[:-1]])
    gap = trace.start_s[rows] - dry
    launch = lookup(trace.correlation, launches, trace.correlation[rows])
    late = (gap > 0) & (launch >= 0) & (trace.correlation[rows] >= 0)
    late[late] = trace.end_s[launch[late]] > dry[late]
    return float(gap[late].sum())
