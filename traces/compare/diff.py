"""Predicted against measured, or any two traces: where the time differs, and what to fix first."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foretrace.traces.kinds import is_work
from foretrace.traces.memory import MemoryLine, memory_line
from foretrace.traces.repeats import one_step
from foretrace.traces.trace import Trace

from .activity import Activity, measure_activity
from .align import Alignment, align_traces
from .causes import Cause, Part, find_causes
from .groups import Groups, find_groups
from .tables import DiffRow, OpDiff, Unmatched, grouped_rows, matched_ops, relative_error, row_kinds, unmatched_rows
from .waterfall import WaterfallStep, make_waterfall

__all__ = ["Diff", "DiffRow", "OpDiff", "Unmatched", "diff_traces", "relative_error", "step_seconds"]


@dataclass(frozen=True, eq=False)
class Diff:
    """What `diff_traces` found. Seconds; errors are signed fractions of the measured time; largest first."""

    predicted: Trace
    measured: Trace  #: one step: repeats averaged
    alignment: Alignment
    groups: Groups
    predicted_s: float
    measured_s: float
    matched_share: float
    mape_ops: float | None  #: sum of absolute errors of matched operators over their measured time; None: no match
    by_module: list[DiffRow]
    by_kind: list[DiffRow]
    by_shape: list[DiffRow]
    by_op: list[OpDiff]
    unmatched_predicted: list[Unmatched]
    unmatched_measured: list[Unmatched]
    waterfall: list[WaterfallStep]  #: from the predicted to the measured step; what lies between adds up exactly
    causes: list[Cause]  #: what to fix first
    activity: tuple[Activity, Activity]
    memory: tuple[MemoryLine | None, MemoryLine | None]

    @property
    def error(self) -> float:
        """Of the whole step, signed: (predicted - measured) / measured."""
        return relative_error(self.predicted_s, self.measured_s)

    def modules(self, depth: int | None) -> list[DiffRow]:
        """Rows per module path cut after *depth* names (None: whole paths), what has no partner included."""
        return grouped_rows(self.predicted, self.measured, self.alignment, self.groups, "module", depth)

    def to_json(self) -> dict[str, Any]:
        """What ``foretrace diff --json`` prints; an error over no measured time is null."""
        return {
            "predicted_s": self.predicted_s,
            "measured_s": self.measured_s,
            "error": _finite(self.error),
            "matched_share": self.matched_share,
            "mape_ops": self.mape_ops if self.mape_ops is not None and math.isfinite(self.mape_ops) else None,
            "by_module": _json_rows(self.by_module, "module"),
            "by_kind": _json_rows(self.by_kind, "kind"),
            "unmatched_predicted": [vars(u) for u in self.unmatched_predicted],
            "unmatched_measured": [vars(u) for u in self.unmatched_measured],
            "waterfall": [vars(step) for step in self.waterfall],
            "causes": [vars(c) | {"difference_s": c.difference_s} for c in self.causes],
            "by_shape": _json_rows(self.by_shape, "shape"),
            "activity": dict(zip(("predicted", "measured"), map(asdict, self.activity), strict=True)),
            "memory": {
                f"{side}_peak_bytes": None if line is None else line.peak
                for side, line in zip(("predicted", "measured"), self.memory, strict=True)
            },
        }


def _json_rows(table: list[DiffRow], key: str) -> list[dict[str, Any]]:
    return [
        {
            key: row.label,
            "predicted_s": row.predicted_s,
            "measured_s": row.measured_s,
            "error": _finite(row.error),
            "ops": row.count,
        }
        for row in table
    ]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def diff_traces(predicted: Trace, measured: Trace, module_depth: int | None = None) -> Diff:
    """Align the operators of two traces and compare them, instance by instance.

    Steps that profiler markers separate are averaged first; activity is the mean over their windows, in which what the
    host issued in the step before may still run. Step totals are ``step_s`` where given, else the time from the first
    to the last piece of work. *module_depth* cuts the paths of ``by_module``.
    """
    runs = predicted, measured
    (predicted, windows_a), (measured, windows_b) = map(one_step, runs)
    alignment = align_traces(predicted, measured)
    groups = find_groups(alignment)
    ops = matched_ops(predicted, measured, groups)
    matched_s = float(groups.measured_s.sum())
    wrong_s = float(np.abs(groups.predicted_s - groups.measured_s).sum())
    lonely = alignment.unmatched_predicted, alignment.unmatched_measured
    totals_s = step_seconds(predicted), step_seconds(measured)
    whole = [_of_ranks(run, ranks) for run, ranks in zip(runs, alignment.ranks.T, strict=True)]
    activity = measure_activity(whole[0], windows_a), measure_activity(whole[1], windows_b)
    sides = predicted, measured, alignment, groups
    return Diff(
        predicted=predicted,
        measured=measured,
        alignment=alignment,
        groups=groups,
        predicted_s=totals_s[0],
        measured_s=totals_s[1],
        matched_share=alignment.matched_share,
        mape_ops=wrong_s / matched_s if matched_s > 0 else None,
        by_module=grouped_rows(*sides, "module", module_depth),
        by_kind=grouped_rows(*sides, "kind"),
        by_shape=grouped_rows(*sides, "shape"),
        by_op=ops,
        unmatched_predicted=unmatched_rows(predicted, lonely[0], alignment.predicted_seconds),
        unmatched_measured=unmatched_rows(measured, lonely[1], alignment.measured_seconds),
        waterfall=make_waterfall((predicted, measured), totals_s, alignment, groups, activity),
        causes=find_causes([*map(_part, ops), *_lonely_parts(predicted, measured, alignment)]),
        activity=activity,
        memory=(memory_line(predicted), memory_line(measured)),
    )


def step_seconds(trace: Trace) -> float:
    """The step's own length if the trace knows it, else from the first to the last piece of work of a rank.

    Of several ranks the longest: their clocks need not agree.
    """
    if trace.step_s is not None:
        return trace.step_s
    work = is_work(trace.kind)
    ranks, place = np.unique(trace.rank[work], return_inverse=True)
    first, last = np.full(len(ranks), np.inf), np.full(len(ranks), -np.inf)
    np.minimum.at(first, place, trace.start_s[work])
    np.maximum.at(last, place, trace.end_s[work])
    return float((last - first).max(initial=0.0))


def _of_ranks(trace: Trace, ranks: NDArray[np.int64]) -> Trace:
    kept = np.isin(trace.rank, ranks)
    return trace if kept.all() else trace.select(kept)


def _part(op: OpDiff) -> Part:
    return Part(op.name, op.module, op.kind, op.shapes, op.predicted_s, op.measured_s)


def _lonely_parts(predicted: Trace, measured: Trace, alignment: Alignment) -> list[Part]:
    parts = []
    for trace, rows, seconds in (
        (predicted, alignment.unmatched_predicted, alignment.predicted_seconds),
        (measured, alignment.unmatched_measured, alignment.measured_seconds),
    ):
        texts = (c.take(rows).tolist() for c in (trace.name, trace.module, trace.shapes))
        kinds = row_kinds(trace, rows).tolist()
        for kind, name, module, shapes, s in zip(kinds, *texts, seconds[rows].tolist(), strict=True):
            missing = trace is predicted
            times = (s, 0.0, "missing") if missing else (0.0, s, "extra")
            parts.append(Part(name, module, kind, shapes, *times))
    return parts
