"""The Trace: what happened when, in columns. A predicted and a measured step have this one type."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self, cast

import numpy as np
from numpy.typing import NDArray

from foretrace.ir import ForetraceError, UnknownNameError

from .nesting import compute_parents, resolve
from .strings import StringColumn

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Source = Literal["predicted", "measured", "foreign"]

STRING_COLUMNS = ("name", "kind", "module", "phase", "stream", "shapes")
INT_COLUMNS = {"op_id": -1, "rank": 0, "parent": -1, "correlation": -1, "external_id": -1}
FLOAT_COLUMNS = ("start_s", "duration_s", "bytes_moved", "flops", "spread_s")
COLUMNS = (*STRING_COLUMNS, *INT_COLUMNS, *FLOAT_COLUMNS)
MAX_EVENTS = 50_000_000
MAX_RANKS = 1 << 30
MAX_TIME_S = 4e9  # beyond it nanoseconds leave 64 bits; epoch seconds fit


@dataclass(frozen=True, eq=False, kw_only=True)
class Trace:
    """Events in columns of equal length, and what is known of the run they come from.

    Build one with `from_columns` or `from_rows`; construction raises ForetraceError where columns disagree
    in length, a number is not finite, or a duration, byte or FLOP count is negative.
    """

    name: StringColumn  #: the framework's own name: "aten.addmm.default" predicted, "aten::addmm" measured
    kind: StringColumn  #: operator kind (matmul, attention...), or cpu_op, kernel, launch, copy, annotation...
    module: StringColumn  #: module path, "" unknown
    phase: StringColumn  #: forward, backward, optimizer or "" unknown
    stream: StringColumn  #: "host", "compute", "gpu 0 stream 7"...
    shapes: StringColumn  #: input shapes, "[1,16,768][768,2304]"; 0-dim inputs left out, "" unknown
    op_id: Ints  #: index of the Graph's op, -1 unknown
    rank: NDArray[np.int32]
    parent: Ints  #: index of the enclosing event on the same stream, -1 none
    correlation: Ints  #: joins a launch to what it started on the device, -1 none
    external_id: Ints  #: a host operator's id, which its kernels carry too, -1 none
    start_s: Floats
    duration_s: Floats
    bytes_moved: Floats
    flops: Floats
    spread_s: Floats  #: standard deviation of the duration over averaged repeats, 0 for one

    title: str = ""
    source: Source = "predicted"
    system: str = ""
    model: str = ""
    step_s: float | None = None  #: seconds of the whole step; measured: median of unprofiled repeats if known
    info: dict[str, Any] = field(default_factory=dict)  #: JSON values: environment, versions, "warnings"

    def __post_init__(self) -> None:
        """Check every column against the others."""
        n = len(self.start_s)
        for column in COLUMNS:
            values = getattr(self, column)
            if len(values) != n:
                raise ForetraceError(f"trace column {column}: expected {n} rows as in start_s, got {len(values)}")
            if isinstance(values, StringColumn):
                values.check(f"trace column {column}")
        if n > MAX_EVENTS:
            raise ForetraceError(f"trace: expected at most {MAX_EVENTS} events, got {n}")
        for column in FLOAT_COLUMNS:
            values = getattr(self, column)
            _refuse(~np.isfinite(values), column, "a finite number", values)
            if column != "start_s":
                _refuse(values < 0, column, "a number that is not negative", values)
        for column in ("start_s", "duration_s"):
            values = getattr(self, column)
            _refuse(np.abs(values) > MAX_TIME_S, column, f"at most {MAX_TIME_S:g} seconds", values)
        outside = (self.parent < -1) | (self.parent >= n) | ((self.parent == np.arange(n)) & (n > 0))
        _refuse(outside, "parent", f"-1 or the row of another of the {n} events", self.parent)
        _refuse((self.rank < 0) | (self.rank >= MAX_RANKS), "rank", f"0 to {MAX_RANKS - 1}", self.rank)
        for text in ("title", "system", "model"):  # a file's name may be no UTF-8
            object.__setattr__(self, text, getattr(self, text).encode(errors="replace").decode())
        if self.source not in ("predicted", "measured", "foreign"):
            raise ForetraceError(f"trace source: expected predicted, measured or foreign, got {self.source!r}")
        if self.step_s is not None and not (np.isfinite(self.step_s) and self.step_s >= 0):
            raise ForetraceError(f"trace step_s: expected seconds, got {self.step_s!r}")
        warnings = self.info.get("warnings", [])
        if not isinstance(warnings, list) or not all(isinstance(w, str) for w in warnings):
            raise ForetraceError(f"trace info warnings: expected a list of texts, got {warnings!r:.60}")

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any], **meta: Any) -> Self:
        """A trace from *columns* by name; name, start_s and duration_s must be there, the rest has defaults.

        A column is a sequence (strings: also a StringColumn) or one value for every row. *meta*: title,
        source, system, model, step_s, info. Raises ForetraceError for an unknown column or a wrong type.
        """
        for column in columns:
            if column not in COLUMNS:
                raise UnknownNameError("trace column", column, COLUMNS)
        for column in ("name", "start_s", "duration_s"):
            if column not in columns:
                raise ForetraceError(f"trace column {column}: expected, and not given")
        start = columns["start_s"]
        n = len(start) if np.ndim(start) else len(columns["name"])
        built: dict[str, Any] = {c: _strings(columns.get(c, ""), n) for c in STRING_COLUMNS}
        numbers = {**INT_COLUMNS, **dict.fromkeys(FLOAT_COLUMNS, 0.0)}
        built |= {c: _numbers(c, columns.get(c, default), n) for c, default in numbers.items()}
        return cls(**built, **meta)

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]], **meta: Any) -> Self:
        """A trace from one mapping of column names per event; what a row leaves out gets the default."""
        rows = list(rows)
        defaults = {**dict.fromkeys(STRING_COLUMNS, ""), **INT_COLUMNS, **dict.fromkeys(FLOAT_COLUMNS, 0.0)}
        unknown = {key for row in rows for key in row} - defaults.keys()
        if unknown:
            raise UnknownNameError("trace column", min(unknown), COLUMNS)
        return cls.from_columns({c: [row.get(c, d) for row in rows] for c, d in defaults.items()}, **meta)

    def __len__(self) -> int:
        return len(self.start_s)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Trace):
            return NotImplemented
        if len(self) != len(other) or self.meta() != other.meta():
            return False
        pairs = ((getattr(self, c), getattr(other, c)) for c in COLUMNS)
        return all(a == b if isinstance(a, StringColumn) else np.array_equal(a, b) for a, b in pairs)

    __hash__ = None  # type: ignore[assignment]

    def meta(self) -> dict[str, Any]:
        """What is known of the run: title, source, system, model, step_s, info."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in COLUMNS}

    def columns(self) -> dict[str, Any]:
        """The columns by name, in a fixed order."""
        return {c: getattr(self, c) for c in COLUMNS}

    def replace(self, **changes: Any) -> Self:
        """A copy with columns or meta fields changed; columns as `from_columns` takes them."""
        for column in changes.keys() & set(COLUMNS):
            make = _strings if column in STRING_COLUMNS else lambda v, n, c=column: _numbers(c, v, n)
            changes[column] = make(changes[column], len(self))
        return replace(self, **changes)

    def select(self, rows: NDArray[Any]) -> Self:
        """The *rows* (a boolean mask, or indices in a new order); parents go to the nearest one kept."""
        rows = np.asarray(rows)
        index = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows.astype(np.int64)
        place = np.full(len(self) + 1, -1, np.int64)  # the last row answers for "no parent"
        place[index] = np.arange(len(index))
        parent = place[resolve(self.parent, place[:-1] >= 0, strict=True)[index]]
        changed: dict[str, Any] = {
            c: v.take(index) if isinstance(v, StringColumn) else v[index] for c, v in self.columns().items()
        }
        changed["parent"] = parent
        return replace(self, **changed)

    @property
    def end_s(self) -> Floats:
        """When each event ends."""
        return self.start_s + self.duration_s

    @property
    def total_s(self) -> float:
        """Sum of all durations: nested and parallel events count each time."""
        return float(self.duration_s.sum())

    @property
    def span_s(self) -> float:
        """From the first start to the last end; 0 for an empty trace."""
        return float(self.end_s.max() - self.start_s.min()) if len(self) else 0.0

    @property
    def self_s(self) -> Floats:
        """Each duration less that of the events directly inside it, never below 0."""
        inner = np.flatnonzero(self.parent >= 0)
        children = np.bincount(self.parent[inner], self.duration_s[inner], minlength=len(self))
        return cast(Floats, np.maximum(self.duration_s - children, 0.0))

    def group_seconds(self, by: str = "kind") -> dict[str, float]:
        """Self seconds per value of the string column *by*, largest first, then by name."""
        if by not in STRING_COLUMNS:
            raise UnknownNameError("trace column to group by", by, STRING_COLUMNS)
        column: StringColumn = getattr(self, by)
        seconds = np.bincount(column.codes, self.self_s, minlength=len(column.values)).tolist()
        used = np.bincount(column.codes, minlength=len(column.values)).tolist()
        table: dict[str, float] = {}
        for value, s, count in zip(column.values, seconds, used, strict=True):
            if count:
                table[value] = table.get(value, 0.0) + s
        return dict(sorted(table.items(), key=lambda item: (-item[1], item[0])))

    def with_parents(self, tolerance_s: float = 1e-9) -> Self:
        """A copy whose parents come from the nesting of the events on each (rank, stream)."""
        group = self.rank.astype(np.int64) * max(len(self.stream.values), 1) + self.stream.codes
        return self.replace(parent=compute_parents(self.start_s, self.duration_s, group, tolerance_s))


def _refuse(wrong: NDArray[np.bool_], column: str, expected: str, values: NDArray[Any]) -> None:
    if wrong.any():
        row = int(wrong.argmax())
        raise ForetraceError(f"trace column {column}, row {row}: expected {expected}, got {values[row]}")


def _strings(values: Any, n: int) -> StringColumn:
    if isinstance(values, StringColumn):
        return values
    return StringColumn.constant(values, n) if isinstance(values, str) else StringColumn.of(values)


def _numbers(column: str, values: Any, n: int) -> NDArray[Any]:
    dtype = np.float64 if column in FLOAT_COLUMNS else np.int32 if column == "rank" else np.int64
    try:
        array = np.asarray(values)
        if array.dtype != dtype:
            array = array.astype(dtype, casting="unsafe" if array.size == 0 else "same_kind")
    except (TypeError, ValueError, OverflowError) as error:
        raise ForetraceError(f"trace column {column}: expected {np.dtype(dtype)}, got {error}") from None
    if array.ndim > 1:
        raise ForetraceError(f"trace column {column}: expected one number per event, got {array.ndim} dimensions")
    return np.full(n, array, dtype) if array.ndim == 0 else array
