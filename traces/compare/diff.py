"""Predicted against measured: totals, per module, per kind and per operator, and what found no partner."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foretrace.traces.kinds import NOT_WORK
from foretrace.traces.repeats import one_step
from foretrace.traces.strings import StringColumn
from foretrace.traces.trace import Trace

from .align import Alignment, align_traces

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class DiffRow:
    """Seconds on both sides of what shares a *label*, summed over *count* operators."""

    label: str
    predicted_s: float
    measured_s: float
    count: int

    @property
    def error(self) -> float:
        """Signed, (predicted - measured) / measured; infinite where only the prediction takes time."""
        return relative_error(self.predicted_s, self.measured_s)


@dataclass(frozen=True)
class OpDiff:
    """One matched operator instance; several measured ones summed where the predicted one stands for them all."""

    name: str
    module: str
    kind: str
    shapes: str
    op_id: int
    predicted_s: float
    measured_s: float
    confidence: float

    @property
    def error(self) -> float:
        """Signed, (predicted - measured) / measured; infinite where only the prediction takes time."""
        return relative_error(self.predicted_s, self.measured_s)


@dataclass(frozen=True)
class Unmatched:
    """Operators of one name in one module that have no partner: their seconds on their own side, their number."""

    name: str
    module: str
    kind: str
    seconds: float
    count: int


@dataclass(frozen=True, eq=False)
class Diff:
    """What `diff_traces` found. Seconds; errors are signed fractions of the measured time; largest first."""

    predicted: Trace
    measured: Trace  #: one step: repeats averaged
    alignment: Alignment
    predicted_s: float
    measured_s: float
    matched_share: float
    mape_ops: float | None  #: sum of absolute errors of matched operators over their measured time; None: no match
    by_module: list[DiffRow]
    by_kind: list[DiffRow]
    by_op: list[OpDiff]
    unmatched_predicted: list[Unmatched]
    unmatched_measured: list[Unmatched]

    @property
    def error(self) -> float:
        """Of the whole step, signed: (predicted - measured) / measured."""
        return relative_error(self.predicted_s, self.measured_s)

    def modules(self, depth: int | None) -> list[DiffRow]:
        """Rows per module path cut after *depth* names (None: whole paths), what has no partner included."""
        return _grouped(self.predicted, self.measured, self.alignment, "module", depth)

    def to_json(self) -> dict[str, Any]:
        """What ``foretrace diff --json`` prints; an error over no measured time is null."""

        def rows(table: list[DiffRow], key: str) -> list[dict[str, Any]]:
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

        return {
            "predicted_s": self.predicted_s,
            "measured_s": self.measured_s,
            "error": _finite(self.error),
            "matched_share": self.matched_share,
            "mape_ops": self.mape_ops if self.mape_ops is not None and math.isfinite(self.mape_ops) else None,
            "by_module": rows(self.by_module, "module"),
            "by_kind": rows(self.by_kind, "kind"),
            "unmatched_predicted": [vars(u) for u in self.unmatched_predicted],
            "unmatched_measured": [vars(u) for u in self.unmatched_measured],
        }


def relative_error(predicted_s: float, measured_s: float) -> float:
    """(predicted - measured) / measured; 0 where both are 0, infinite where only the measured time is."""
    if measured_s > 0:
        return (predicted_s - measured_s) / measured_s
    return math.inf if predicted_s > 0 else 0.0


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def diff_traces(predicted: Trace, measured: Trace, module_depth: int | None = None) -> Diff:
    """Align the operators of two traces and compare them, instance by instance.

    Steps that profiler markers separate are averaged first. Step totals are ``step_s`` where given, else the
    time from the first to the last piece of work. *module_depth* cuts the paths of ``by_module``.
    """
    predicted, measured = one_step(predicted), one_step(measured)
    alignment = align_traces(predicted, measured)
    ops = _matched_ops(predicted, alignment)
    matched_s = sum(op.measured_s for op in ops)
    wrong_s = sum(abs(op.predicted_s - op.measured_s) for op in ops)
    lonely = alignment.unmatched_predicted, alignment.unmatched_measured
    return Diff(
        predicted=predicted,
        measured=measured,
        alignment=alignment,
        predicted_s=step_seconds(predicted),
        measured_s=step_seconds(measured),
        matched_share=alignment.matched_share,
        mape_ops=wrong_s / matched_s if matched_s > 0 else None,
        by_module=_grouped(predicted, measured, alignment, "module", module_depth),
        by_kind=_grouped(predicted, measured, alignment, "kind", None),
        by_op=ops,
        unmatched_predicted=_unmatched(predicted, lonely[0], alignment.predicted_seconds),
        unmatched_measured=_unmatched(measured, lonely[1], alignment.measured_seconds),
    )


def step_seconds(trace: Trace) -> float:
    """The step's own length if the trace knows it, else from the first to the last piece of work."""
    if trace.step_s is not None:
        return trace.step_s
    work = ~trace.kind.isin(NOT_WORK)
    return float(trace.end_s[work].max() - trace.start_s[work].min()) if work.any() else 0.0


def _matched_ops(predicted: Trace, alignment: Alignment) -> list[OpDiff]:
    heads, first, place = np.unique(alignment.pairs[:, 0], return_index=True, return_inverse=True)
    measured_s = np.bincount(place, alignment.measured_seconds[alignment.pairs[:, 1]], minlength=len(heads))
    texts = [c.take(heads).tolist() for c in (predicted.name, predicted.module, predicted.kind, predicted.shapes)]
    numbers = (predicted.op_id[heads], alignment.predicted_seconds[heads], measured_s, alignment.confidence[first])
    ops = [OpDiff(*row) for row in zip(*texts, *(n.tolist() for n in numbers), strict=True)]
    return sorted(ops, key=lambda op: (-max(op.predicted_s, op.measured_s), op.op_id, op.module, op.name))


def _grouped(predicted: Trace, measured: Trace, alignment: Alignment, by: str, depth: int | None) -> list[DiffRow]:
    """Seconds of all operators by the column *by*; a measured one counts where its predicted partner does."""
    heads, place = np.unique(alignment.pairs[:, 0], return_inverse=True)
    lonely_a, lonely_b = alignment.unmatched_predicted, alignment.unmatched_measured
    matched_s = np.bincount(place, alignment.measured_seconds[alignment.pairs[:, 1]], minlength=len(heads))
    none = np.zeros(0)
    parts = [
        (predicted, heads, alignment.predicted_seconds[heads], matched_s),
        (predicted, lonely_a, alignment.predicted_seconds[lonely_a], none),
        (measured, lonely_b, none, alignment.measured_seconds[lonely_b]),
    ]
    table: dict[str, list[float]] = {}
    for trace, rows, predicted_s, measured_s in parts:
        column: StringColumn = getattr(trace, by).take(rows)
        if depth is not None:
            column = column.map(lambda path: ".".join(path.split(".")[:depth]))
        size = len(column.values)
        sums = [np.bincount(column.codes, w, size) if len(w) else np.zeros(size) for w in (predicted_s, measured_s)]
        sums.append(np.bincount(column.codes, minlength=size))
        for label, *values in zip(column.values, *(s.tolist() for s in sums), strict=True):
            if values[2]:
                table[label] = [x + y for x, y in zip(table.get(label, [0.0, 0.0, 0]), values, strict=True)]
    found = [DiffRow(label, p, m, int(n)) for label, (p, m, n) in table.items()]
    return sorted(found, key=lambda row: (-max(row.predicted_s, row.measured_s), row.label))


def _unmatched(trace: Trace, rows: NDArray[np.int64], seconds: Floats) -> list[Unmatched]:
    table: dict[tuple[str, str, str], list[float]] = {}
    texts = (c.take(rows).tolist() for c in (trace.name, trace.module, trace.kind))
    for name, module, kind, s in zip(*texts, seconds[rows].tolist(), strict=True):
        entry = table.setdefault((name, module, kind), [0.0, 0])
        entry[0] += s
        entry[1] += 1
    found = [Unmatched(*key, s, int(n)) for key, (s, n) in table.items()]
    return sorted(found, key=lambda u: (-u.seconds, u.name, u.module, u.kind))
