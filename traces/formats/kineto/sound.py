"""Which events have times that hold."""

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from foretrace.traces.trace import MAX_TIME_S

from .events import MISSING

JUMP_S = 86_400.0  # between events of one trace: no profiler runs for a day
MAX_FAR = 0.1  # share of the events that a clock jump may set apart; more are a part of the run
Floats = NDArray[np.float64]


def sound_times(start: Floats, duration: Floats, unsound: Counter[str]) -> NDArray[np.bool_]:
    """Mask of the events whose times hold, the others counted in *unsound*; µs; a missing duration becomes 0."""
    finite = start[np.isfinite(start)]
    limit = MAX_TIME_S * 1e6
    near = finite[np.abs(finite - np.median(finite)) <= limit] if len(finite) else finite
    base = float(np.min(near, initial=np.inf))  # one absurd time is not what all others count from
    missing = duration == MISSING
    duration[missing] = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        tests = {
            "without a readable start": ~np.isfinite(start),
            "without a readable duration": ~np.isfinite(duration),
            "with a negative duration": duration < 0,
            f"more than {MAX_TIME_S:g} s long or late": (np.abs(start - base) > limit) | (duration > limit),
        }
    keep = np.ones(len(start), np.bool_)
    for reason, wrong in tests.items():
        unsound[f"events {reason}: left out"] += int((wrong & keep).sum())
        keep &= ~wrong
    rows = np.flatnonzero(keep)
    far = rows[_far(start[rows])]
    keep[far] = False
    unsound[f"events more than {JUMP_S / 3600:g} hours from all others (the clock jumped): left out"] = len(far)
    unsound["events without a duration: taken as 0"] = int((missing & keep).sum())
    return keep


def _far(start_us: Floats) -> NDArray[np.bool_]:
    """Mask of the few events that a gap of more than `JUMP_S` parts from the many."""
    far = np.zeros(len(start_us), np.bool_)
    if np.ptp(start_us) > JUMP_S * 1e6 if len(start_us) else False:
        order = np.argsort(start_us, kind="stable")
        runs = np.split(order, np.flatnonzero(np.diff(start_us[order]) > JUMP_S * 1e6) + 1)
        most = max(runs, key=len)
        if len(start_us) - len(most) <= MAX_FAR * len(start_us):
            far[:] = True
            far[most] = False
    return far
