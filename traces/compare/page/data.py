"""What the page draws, as plain JSON values: tables of rows, and the matched operators in coded columns."""

from dataclasses import asdict, dataclass, field
from typing import Any, Final

from foretrace.traces.compare.causes import Cause
from foretrace.traces.compare.diff import Diff
from foretrace.traces.compare.naming import short_name
from foretrace.traces.compare.tables import DiffRow, OpDiff, Unmatched
from foretrace.traces.memory import MemoryLine
from foretrace.traces.trace import Trace

MOST_OPERATORS: Final = 8000
"""Matched operators that the page lists, the longest first; the rest are summed in a line of text."""
MOST_POINTS: Final = 3000
MOST_ROWS: Final = 2000
CODED: Final = ("name", "module", "kind", "shapes", "phase")
_NUMBERS: Final = (
    "op_id", "predicted_s", "measured_s", "measured_spread_s", "flops", "bytes_moved", "confidence", "measured_ops",
)  # fmt: skip


@dataclass(frozen=True)
class Roofs:
    """The ceilings of a device for the roofline: *bytes_per_s* of its memory, FLOP/s by the name of the unit."""

    bytes_per_s: float = 0.0
    flop_per_s: dict[str, float] = field(default_factory=dict)


def page_data(diff: Diff, roofs: Roofs | None = None) -> dict[str, Any]:
    """Everything that the page shows, from *diff*; no number in it is infinite."""
    roofs = roofs or Roofs()
    shown = diff.by_op[:MOST_OPERATORS]
    rest = diff.by_op[MOST_OPERATORS:]
    operators, strings = _coded(shown)
    labels = side_labels(diff)
    return {
        "sides": [_side(*s) for s in zip(labels, (diff.predicted, diff.measured), _steps(diff), strict=True)],
        "matched_share": diff.matched_share,
        "mape_ops": diff.to_json()["mape_ops"],
        "waterfall": [asdict(step) for step in diff.waterfall],
        "causes": [_cause(cause) for cause in diff.causes[:MOST_ROWS]],
        "by_kind": [_row(row) for row in diff.by_kind],
        "by_module": [_row(row) for row in diff.by_module],
        "by_shape": [_row(row) for row in diff.by_shape[:MOST_ROWS]],
        "activity": [asdict(side) for side in diff.activity],
        "memory": [_memory(line) for line in diff.memory],
        "strings": strings,
        "coded": list(CODED),
        "ops": operators,
        "left_out": {
            "ops": len(rest),
            "predicted_s": sum(op.predicted_s for op in rest),
            "measured_s": sum(op.measured_s for op in rest),
        },
        "unmatched": [_unmatched(side) for side in (diff.unmatched_predicted, diff.unmatched_measured)],
        "roofs": {
            "bytes_per_s": roofs.bytes_per_s,
            "flop_per_s": [{"label": name, "value": value} for name, value in roofs.flop_per_s.items()],
        },
        "most_points": MOST_POINTS,
    }


def side_labels(diff: Diff) -> tuple[str, str]:
    """What the two sides are called: predicted and measured, else first and second."""
    if diff.predicted.source == "predicted" and diff.measured.source != "predicted":
        return "predicted", "measured"
    return "first", "second"


def _steps(diff: Diff) -> tuple[float, float]:
    return diff.predicted_s, diff.measured_s


def _side(label: str, trace: Trace, step_s: float) -> dict[str, Any]:
    warnings = trace.info.get("warnings", [])
    return {
        "label": label,
        "title": trace.title or trace.model or trace.source,
        "system": trace.system,
        "step_s": step_s,
        "events": len(trace),
        "warnings": [str(w) for w in warnings] if isinstance(warnings, list) else [],
    }


def _row(row: DiffRow) -> dict[str, Any]:
    return {"label": row.label, "predicted_s": row.predicted_s, "measured_s": row.measured_s, "count": row.count}


def _cause(cause: Cause) -> dict[str, Any]:
    return asdict(cause) | {"name": short_name(cause.name)}


def _unmatched(rows: list[Unmatched]) -> list[dict[str, Any]]:
    return [asdict(row) | {"name": short_name(row.name)} for row in rows[:MOST_ROWS]]


def _memory(line: MemoryLine | None) -> dict[str, Any] | None:
    if line is None or not len(line.time_s):
        return None
    return {"time_s": line.time_s.tolist(), "bytes": line.allocated_bytes.tolist()}


def _coded(ops: list[OpDiff]) -> tuple[dict[str, list[Any]], list[str]]:
    """The operators as columns, texts as places in one table of strings."""
    table: dict[str, int] = {}
    columns: dict[str, list[Any]] = {}
    for name in CODED:
        change = short_name if name == "name" else str
        columns[name] = [table.setdefault(change(getattr(op, name)), len(table)) for op in ops]
    for name in _NUMBERS:
        columns[name] = [getattr(op, name) for op in ops]
    return columns, list(table)
