"""From the predicted step to the measured one: signed steps that add up exactly."""

from dataclasses import dataclass
from math import fsum

import numpy as np

from foretrace.traces.trace import Trace

from .activity import Activity
from .align import Alignment
from .groups import Groups
from .kernels import is_communication
from .tables import row_kinds


@dataclass(frozen=True)
class WaterfallStep:
    """A total (the first and the last step), or what is added to the running sum, in seconds."""

    label: str
    seconds: float


def make_waterfall(
    traces: tuple[Trace, Trace],
    totals_s: tuple[float, float],
    alignment: Alignment,
    groups: Groups,
    activity: tuple[Activity, Activity],
) -> list[WaterfallStep]:
    """From the first total to the second, in seconds; those between are signed and add up to the difference.

    Seconds are means over the ranks aligned, of *activity* too; communication counts where no compute hides it.
    "other" is what operators and gaps leave: kernels that run side by side, ranks that wait, and the difference
    between a step that was timed and the profiled one.
    """
    ranks = len(alignment.ranks)
    steps = [WaterfallStep("predicted step", totals_s[0])]
    remote = [is_communication(t) for t in traces]
    local = ~remote[0][groups.predicted]
    rows = groups.predicted[local]
    kind = row_kinds(traces[0], rows)
    delta = (groups.share_s - alignment.predicted_seconds[groups.predicted])[local]
    sums = np.bincount(kind.codes, delta, minlength=len(kind.values))
    used = np.bincount(kind.codes, minlength=len(kind.values))
    named = [(v, float(s)) for v, s, n in zip(kind.values, sums.tolist(), used.tolist(), strict=True) if n]
    steps += [WaterfallStep(f"kernels: {v}", s / ranks) for v, s in sorted(named, key=lambda x: -abs(x[1]))]
    for label, sign, seconds, rows, far in (
        ("only predicted", -1, alignment.predicted_seconds, alignment.unmatched_predicted, remote[0]),
        ("only measured", 1, alignment.measured_seconds, alignment.unmatched_measured, remote[1]),
    ):
        steps.append(WaterfallStep(label, sign * float(seconds[rows[~far[rows]]].sum()) / ranks))
    before, after = activity
    steps += [
        WaterfallStep("launch gaps", after.launch_idle_s - before.launch_idle_s),
        WaterfallStep("exposed communication", after.exposed_communication_s - before.exposed_communication_s),
        WaterfallStep("idle", after.other_idle_s - before.other_idle_s),
    ]
    steps.append(WaterfallStep("other", totals_s[1] - fsum(step.seconds for step in steps)))
    return [*steps, WaterfallStep("measured step", totals_s[1])]
