"""PyTorch execution traces: structure without times, alone or joined to the Kineto file of the same run."""

from pathlib import Path, PurePath
from typing import Any

import numpy as np

from foretrace.ir import ForetraceError, FormatError
from foretrace.traces.formats.joins import BACKWARD, Raw, join
from foretrace.traces.formats.record_functions import unpack_ids
from foretrace.traces.nesting import lookup
from foretrace.traces.strings import StringColumn, aligned_codes
from foretrace.traces.trace import Trace

from .nodes import BACKWARD_SCOPE, USER_SCOPE, ExecutionNodes, Ints, read_nodes

NO_TIMES = "a PyTorch execution trace has no times: all durations are 0; join it to the Kineto file of the same run"
MIN_SHARE = 0.9  # of Kineto's operators; below it the join is called partial


def read_execution_trace(path: Path) -> Trace:
    """The operators of a PyTorch execution trace (JSON, gzipped or not) in the order in which they began.

    Starts and durations are 0, and a warning in `info` says so. Parents, threads (stream "host N"), shapes, module
    paths and phases are there; bytes are those of the tensors that an operator names, 0 for views. Raises
    FormatError, naming the file, for one without sound nodes or that is no execution trace.
    """
    nodes = read_nodes(path)
    try:
        columns = join(_raw(nodes))
        columns |= {
            "parent": nodes.parent,
            "external_id": nodes.record_function,
            "start_s": np.zeros(len(nodes.name)),
            "duration_s": np.zeros(len(nodes.name)),
        }
        return Trace.from_columns(
            columns,
            title=PurePath(path).name,
            source="foreign",
            info={"warnings": [NO_TIMES, *nodes.warnings], **_said(nodes)},
        )
    except ForetraceError as error:
        raise FormatError(f"{path}: {error}") from None


def join_execution_trace(kineto: Trace, et_path: str | Path) -> Trace:
    """*kineto* with the shapes and tensor bytes that it lacks, from the execution trace of the same run.

    Operators join by record function id where both files say the same name. ``info["execution_trace"]`` states how
    many of Kineto's operators and annotations `joined`, `of` how many, and how many `nodes` there are. Raises
    FormatError, naming the file, where it is unsound or none joins, and for a Kineto trace of several ranks or
    processes: each counts its record functions for itself.
    """
    path = Path(et_path)
    ranks = np.unique(kineto.rank).tolist()
    if len(ranks) > 1:
        raise FormatError(
            f"{path}: the Kineto trace {kineto.title!r} has {len(ranks)} ranks, an execution trace is of one; "
            f"select that rank first: trace.select(trace.rank == {ranks[0]})"
        )
    if (processes := kineto.info.get("processes", 1)) != 1:
        raise FormatError(
            f"{path}: the Kineto trace {kineto.title!r} has {processes} processes that share ids, an execution trace "
            "is of one; give a Kineto file of that process alone"
        )
    nodes = read_nodes(path)
    rows = np.flatnonzero(kineto.kind.isin(["cpu_op", "annotation"]) & (kineto.external_id >= 0))
    wanted = unpack_ids(kineto.external_id[rows], kineto.info.get("record_functions"))
    known = np.flatnonzero(nodes.record_function >= 0)
    node = np.where(wanted >= 0, lookup(nodes.record_function, known, wanted), -1)
    said = aligned_codes(kineto.name.take(rows), nodes.name.take(node))
    met = (node >= 0) & (said[0] == said[1])
    if not met.any():
        raise FormatError(
            f"{path}: none of the {len(rows)} operators of the Kineto trace {kineto.title!r} has its record "
            "function id and name here; expected the two files of one run"
        )
    summary = {"file": path.name, "joined": int(met.sum()), "of": len(rows), "nodes": len(nodes.name), **_said(nodes)}
    warnings = [*kineto.info.get("warnings", []), *nodes.warnings]
    if met.mean() < MIN_SHARE:
        warnings.append(f"{path.name}: only {int(met.sum())} of {len(rows)} operators join by record function id")
    rows, node = rows[met], node[met]
    return kineto.replace(
        shapes=_filled(kineto.shapes, nodes.shapes, rows, node),
        bytes_moved=_with_bytes(kineto, nodes, rows, node),
        info={**kineto.info, "warnings": warnings, "execution_trace": summary},
    )


def _filled(have: StringColumn, other: StringColumn, rows: Ints, node: Ints) -> StringColumn:
    """*have*, with the values of *other* at *node* where *rows* have none."""
    empty = np.array([not v for v in have.values], np.bool_)[have.codes[rows]]
    codes = have.codes.copy()
    codes[rows[empty]] = other.codes[node[empty]] + len(have.values)
    return StringColumn(codes, have.values + other.values).map(str)


def _with_bytes(kineto: Trace, nodes: ExecutionNodes, rows: Ints, node: Ints) -> Any:
    size = kineto.bytes_moved.copy()
    operator = (size[rows] == 0) & kineto.kind.isin(["cpu_op"])[rows]
    size[rows[operator]] = nodes.tensor_bytes[node[operator]]
    return size


def _said(nodes: ExecutionNodes) -> dict[str, Any]:
    schema, started = nodes.head.get("schema"), nodes.head.get("time")
    found = {"schema_version": schema, "time": started}
    return {key: value for key, value in found.items() if isinstance(value, str) and len(value) < 200}


def _raw(nodes: ExecutionNodes) -> Raw:
    """The nodes as a profiler's events: their order is the clock, so that nesting, modules and phases are joined."""
    n = len(nodes.name)
    start = np.arange(n, dtype=np.float64)
    threads = StringColumn.of(f"host {t}" for t in nodes.thread.tolist())
    return Raw(
        name=nodes.name,
        kind=StringColumn((nodes.scope == USER_SCOPE).astype(np.int32), ("cpu_op", "annotation")),
        stream=threads,
        start_s=start,
        duration_s=_ends(nodes.parent, threads.codes) - start,
        tolerance_s=0.0,
        shapes=nodes.shapes,
        hierarchy=StringColumn.constant("", n),
        correlation=np.full(n, -1),
        external_id=nodes.record_function,
        sequence=_sequences(nodes),
        bytes_moved=nodes.tensor_bytes,
    )


def _ends(parent: Ints, thread: Any) -> Any:
    """Each node ends half a tick before the next one on its thread that is not inside it."""
    end = np.full(len(parent), float(len(parent)))
    stacks: dict[int, list[int]] = {}
    for row, (above, on) in enumerate(zip(parent.tolist(), thread.tolist(), strict=True)):
        stack = stacks.setdefault(on, [])
        while stack and stack[-1] != above:
            end[stack.pop()] = row - 0.5
        stack.append(row)
    return end


def _sequences(nodes: ExecutionNodes) -> Ints:
    """Sequence numbers, those of backward functions also at the engine's event around them, as Kineto has them."""
    sequence = nodes.sequence.copy()
    inner = np.flatnonzero((nodes.scope == BACKWARD_SCOPE) & (sequence >= 0) & (nodes.parent >= 0))
    inner = inner[nodes.name.where(lambda n: n.startswith(BACKWARD))[nodes.parent[inner]]]
    outer = nodes.parent[inner]
    bare = sequence[outer] < 0
    sequence[outer[bare]] = sequence[inner[bare]]
    return sequence
