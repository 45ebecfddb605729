"""The tables of a comparison: per operator, per module, kind or shape, and what has no partner."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foretrace.traces.strings import StringColumn
from foretrace.traces.trace import Trace

from .align import Alignment
from .groups import Groups
from .kernels import named_kinds
from .naming import short_name

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
UNKNOWN = "other"  # the kind of what neither a prediction nor a name tells
_NAMED = 4  # operators of a fused group in its name


def relative_error(predicted_s: float, measured_s: float) -> float:
    """(predicted - measured) / measured; 0 where both are 0, infinite where only the measured time is."""
    if measured_s > 0:
        return (predicted_s - measured_s) / measured_s
    return math.inf if predicted_s > 0 else 0.0


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
    """One comparison: a predicted operator and the measured ones it stands for, or several that ran as one.

    Where several predicted operators ran as one, the name lists them, the longest gives module, kind, shapes and
    op id, and figures are sums. Starts are seconds from each trace's own zero.
    """

    name: str
    module: str
    kind: str
    shapes: str
    op_id: int
    predicted_s: float
    measured_s: float
    confidence: float  #: in (0, 1], of the weakest pair
    phase: str
    predicted_start_s: float
    measured_start_s: float
    flops: float
    bytes_moved: float
    predicted_ops: int
    measured_ops: int  #: measured operators covered
    measured_spread_s: float  #: standard deviation over averaged repeats, 0 for one

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


def matched_ops(predicted: Trace, measured: Trace, groups: Groups) -> list[OpDiff]:
    """One row per group, the longest first."""
    n = len(groups.head)
    a, b = groups.predicted_group, groups.measured_group
    names = StringColumn.of(_group_names(predicted.name.take(groups.predicted).tolist(), a.tolist(), n))
    head = groups.head
    columns = (predicted.module.take(head), row_kinds(predicted, head), predicted.shapes.take(head))
    spread = np.sqrt(np.bincount(b, measured.spread_s[groups.measured] ** 2, minlength=n))
    values = (
        *(c.tolist() for c in (names, *columns)),
        *(x.tolist() for x in (predicted.op_id[head], groups.predicted_s, groups.measured_s, groups.confidence)),
        predicted.phase.take(head).tolist(),
        _earliest(predicted.start_s[groups.predicted], a, n),
        _earliest(measured.start_s[groups.measured], b, n),
        *(np.bincount(a, x[groups.predicted], minlength=n).tolist() for x in (predicted.flops, predicted.bytes_moved)),
        *(np.bincount(x, minlength=n).tolist() for x in (a, b)),
        spread.tolist(),
    )
    ops = [OpDiff(*row) for row in zip(*values, strict=True)]
    return sorted(ops, key=lambda op: (-max(op.predicted_s, op.measured_s), op.op_id, op.module, op.name))


def _earliest(start_s: Floats, group: Ints, n: int) -> list[float]:
    first = np.full(n, np.inf)
    np.minimum.at(first, group, start_s)
    return first.tolist()


def _group_names(names: list[str], group: list[int], n: int) -> list[str]:
    """The operator's name, or "fused(add, mul)" where several are compared as one."""
    members: list[list[str]] = [[] for _ in range(n)]
    for name, at in zip(names, group, strict=True):
        members[at].append(name)
    return [m[0] if len(m) == 1 else _fused_name(m) for m in members]


def _fused_name(names: list[str]) -> str:
    short = list(dict.fromkeys(short_name(n) for n in names))
    return f"fused({', '.join(short[:_NAMED])}{', ...' * (len(short) > _NAMED)})"


def grouped_rows(
    predicted: Trace, measured: Trace, alignment: Alignment, groups: Groups, by: str, depth: int | None = None
) -> list[DiffRow]:
    """Seconds of all operators by *by*, a column or "shape"; a measured one counts where its predicted one does.

    What several predicted operators share is divided as their predicted seconds are. *depth* cuts module paths.
    """
    lonely_a, lonely_b = alignment.unmatched_predicted, alignment.unmatched_measured
    none = np.zeros(0)
    parts = [
        (predicted, groups.predicted, alignment.predicted_seconds[groups.predicted], groups.share_s),
        (predicted, lonely_a, alignment.predicted_seconds[lonely_a], none),
        (measured, lonely_b, none, alignment.measured_seconds[lonely_b]),
    ]
    table: dict[str, list[float]] = {}
    for trace, rows, predicted_s, measured_s in parts:
        named = {"shape": named_shapes, "kind": row_kinds}.get(by)
        column = named(trace, rows) if named else getattr(trace, by).take(rows)
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


def row_kinds(trace: Trace, rows: Ints) -> StringColumn:
    """The kinds of operators that *rows* are: as a prediction states them, as names tell where a profiler does not."""
    kinds, names = trace.kind.take(rows), trace.name.take(rows)
    pairs, place = np.unique(kinds.codes.astype(np.int64) << 32 | names.codes, return_inverse=True)
    named = named_kinds(
        StringColumn((pairs >> 32).astype(np.int32), kinds.values),
        StringColumn((pairs & 0xFFFFFFFF).astype(np.int32), names.values),
    )
    return named.map(lambda kind: kind or UNKNOWN).take(place)


def named_shapes(trace: Trace, rows: Ints) -> StringColumn:
    """Operator and input shapes as one string, "addmm [768][128,768][768,2304]"."""
    names, shapes = trace.name.take(rows).map(short_name), trace.shapes.take(rows)
    pairs, place = np.unique(names.codes.astype(np.int64) << 32 | shapes.codes, return_inverse=True)
    texts = [f"{names.values[p >> 32]} {shapes.values[p & 0xFFFFFFFF]}".rstrip() for p in pairs.tolist()]
    return StringColumn(place.astype(np.int32), tuple(texts)).map(str)


def unmatched_rows(trace: Trace, rows: Ints, seconds: Floats) -> list[Unmatched]:
    """*rows* of one name, module and kind as one, the longest first."""
    table: dict[tuple[str, str, str], list[float]] = {}
    texts = (c.tolist() for c in (trace.name.take(rows), trace.module.take(rows), row_kinds(trace, rows)))
    for name, module, kind, s in zip(*texts, seconds[rows].tolist(), strict=True):
        entry = table.setdefault((name, module, kind), [0.0, 0])
        entry[0] += s
        entry[1] += 1
    found = [Unmatched(*key, s, int(n)) for key, (s, n) in table.items()]
    return sorted(found, key=lambda u: (-u.seconds, u.name, u.module, u.kind))
