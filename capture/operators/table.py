"""`measure_operators`: the distinct operators of a captured graph timed one by one, as a table of measured rows.

`calls` makes an operator of a graph a call again, `timing` times it, `rows` says what the
table holds of it. The tables are those of ``foretrace validate`` and ``calibrate`` (docs/tables.md).
"""

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch

from foretrace.ir import FREE_KINDS, ForetraceError, Graph, UnknownNameError, evaluate_dim
from foretrace.ir.files import write_atomically

from .calls import NotCallable, call_of
from .rows import COLUMNS, NoRow, Row, row_of
from .timing import Bench

SOURCE: Final = "foretrace_operators"
"""Begins what a row says of where it comes from."""
THIS_MACHINE: Final = "this-machine"
DEVICES: Final = ("cpu", "cuda")
LEAST_S: Final = 5e-7
"""What a call takes at least beyond its dispatch to say anything."""
_FLOPS, _BANDWIDTH, _START_S = 1e12, 1e11, 1e-6
"""Of no device: they only order operators by the share of the step that they may have."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class NotTimed:
    """An operator without a row, and why."""

    op: str
    shapes: str
    count: int
    """How often the step runs it."""
    reason: str


@dataclass(frozen=True, eq=False)
class OperatorTable:
    """Rows of measured operators, those of one table together, and the operators that have none."""

    rows: list[Row]
    not_timed: list[NotTimed]
    info: dict[str, Any] = field(default_factory=dict)
    """The device, the versions, the graph and its sizes."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def skipped(self) -> dict[str, int]:
        """Reason → distinct operators that have no row."""
        return dict(Counter(n.reason for n in self.not_timed).most_common())

    def on(self, gpu: str) -> "OperatorTable":
        """The same rows measured on *gpu*: a name of the hardware library, or a YAML file beside the table."""
        return replace(self, rows=[row | {"gpu": gpu} for row in self.rows])

    def save(self, path: str | Path) -> None:
        """Write one file, ``.parquet`` or ``.csv``, that `validate` and `calibrate` read: all of it or nothing.

        Raises `ForetraceError` for another ending, and where there is no row to write.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq
        from pyarrow import csv

        suffix = Path(path).suffix.lower()
        if suffix not in (".parquet", ".csv"):
            raise ForetraceError(f"{path}: expected a table ending in .parquet or .csv")
        if not self.rows:
            reasons = "; ".join(f"{reason} ({count})" for reason, count in self.skipped.items()) or "no operators"
            raise ForetraceError(f"{path}: nothing was timed: {reasons}")
        columns = {c: [row.get(c) for row in self.rows] for c in COLUMNS if any(c in row for row in self.rows)}
        about = {"info": self.info, "not_timed": [vars(n) for n in self.not_timed]}
        table = pa.table(columns).replace_schema_metadata({"foretrace": json.dumps(about)})
        out = io.BytesIO()
        if suffix == ".csv":
            csv.write_csv(table, out)
        else:
            pq.write_table(table, out, compression="zstd")
        write_atomically(path, out.getvalue())


def measure_operators(
    graph: Graph,
    *,
    device: str = "cpu",
    dims: Mapping[str, int] | None = None,
    repeats: int = 5,
    limit: int | None = None,
    progress: Progress = lambda _: None,
) -> OperatorTable:
    """Time the distinct operators of *graph*, its symbols at *dims*, one by one on *device* (cpu or cuda).

    *limit* takes so many, those that may have the largest share of the step. Each row is the median of *repeats*
    samples, in microseconds; weights and caches are cold (`timing`). Operators that cannot be timed are in
    `OperatorTable.not_timed` with a reason. Raises `ForetraceError` for a device that is not there, and for sizes that
    the graph was not captured for.
    """
    if device not in DEVICES:
        raise UnknownNameError("device", device, DEVICES)
    if device == "cuda" and not torch.cuda.is_available():
        raise ForetraceError("--device cuda: torch sees no CUDA device here; measure with --device cpu")
    if repeats < 1 or (limit is not None and limit < 1):
        raise ForetraceError(f"expected --repeats and --limit of at least 1, got {repeats} and {limit}")
    bindings = graph.bind(dict(dims or {}))
    rows: list[Row] = []
    not_timed: list[NotTimed] = []
    bench = Bench(device, repeats)
    with torch.no_grad():
        for at, count, row, reason in _distinct(graph, bindings, limit):
            op = graph.ops[at]
            shown = "".join(str(list(_shape(graph, t, bindings))) for t in op.inputs).replace(" ", "")[:200]
            if reason:
                not_timed.append(NotTimed(op.name, shown, count, reason))
                continue
            progress(f"{len(rows) + 1}: {op.name} {shown[:60]}")
            try:
                timing = bench.time(call_of(op, graph, bindings, device))
                if timing.median_s < LEAST_S:
                    raise NotCallable("takes less than its own dispatch")
            except Exception as e:  # one operator that fails must not cost the rest
                not_timed.append(NotTimed(op.name, shown, count, _why(e)))
                continue
            rows.append(row | {"count": count, "latency_us": timing.median_s * 1e6, "spread_us": timing.spread_s * 1e6})
    name = torch.cuda.get_device_name() if device == "cuda" else THIS_MACHINE
    common = {
        "gpu": name,
        "timing": bench.timing,
        "software": "eager",
        "source": f"{SOURCE}: {graph.name} {graph.phase}",
        "quality": "ok",
    }
    rows = sorted((row | common for row in rows), key=lambda row: str(row["table"]))  # stable: by share within a table
    info = {
        "device": name,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "graph": graph.name,
        "phase": graph.phase,
        "sizes": bindings,
        "dispatch_s": bench.dispatch_s,
    }
    return OperatorTable(rows, not_timed, info)


def _distinct(graph: Graph, bindings: Mapping[str, int], limit: int | None) -> Iterator[tuple[int, int, Row, str]]:
    """(first op, how often, its row, why not) of each distinct operator, by the share of the step it may have."""
    first: dict[Any, int] = {}
    count: Counter[Any] = Counter()
    rows: dict[Any, tuple[Row, str]] = {}
    for at, (op, code) in enumerate(zip(graph.ops, graph.op_codes, strict=True)):
        if op.kind in FREE_KINDS:
            continue
        key: Any = code
        if code not in rows:
            try:
                rows[code] = row_of(op, graph, bindings), ""
            except NoRow as e:
                rows[code] = {}, str(e)
        if rows[code][0]:
            key = tuple(rows[code][0].items())
            rows.setdefault(key, rows[code])
        first.setdefault(key, at)
        count[key] += 1
    ranked = sorted(first, key=lambda key: -count[key] * _guess_s(graph, first[key], bindings))
    taken = 0
    for key in ranked:
        row, reason = rows[key]
        taken += not reason
        left_out = limit is not None and taken > limit and not reason
        yield first[key], count[key], row, f"beyond --limit {limit}" if left_out else reason


def _guess_s(graph: Graph, at: int, bindings: Mapping[str, int]) -> float:
    work = graph.ops[at].work
    flops, moved = evaluate_dim(work.matrix_flops, bindings), evaluate_dim(work.bytes, bindings)
    return float(_START_S + flops / _FLOPS + moved / _BANDWIDTH)


def _shape(graph: Graph, tensor: int, bindings: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(int(evaluate_dim(d, bindings)) for d in graph.tensors[tensor].shape)


def _why(error: Exception) -> str:
    if isinstance(error, NotCallable):
        return str(error)
    return f"fails by itself: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
