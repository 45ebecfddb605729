"""Profiled runs of one step → one Trace: averaged, told where in the model each operator ran, and made small."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foretrace.traces import StringColumn, Trace
from foretrace.traces.kinds import DEVICE_WORK
from foretrace.traces.lcs import match_sequences
from foretrace.traces.memory import KEY, thin_memory
from foretrace.traces.nesting import lookup, resolve
from foretrace.traces.repeats import average_similar
from foretrace.traces.strings import aligned_codes

GRID_S = 2.0**-30
"""Times are kept in multiples of this: under a nanosecond, the profiler's own unit, and short in binary."""
KEPT = ("warnings", KEY)
"""What is kept of what the profiler's file says of itself."""
DROPPED = ("python", "span", "annotation", "gpu_annotation")
COMPILED_CALL = "## Call CompiledFxGraph"
"""An annotation around everything compiled, which some runs hold as an operator."""
GRAPH_STREAM = "cuda graph"
MAX_POINTS = 512  # of a memory timeline
LEAST_COMMON = 0.9
"""Share of a run's operators and kernels that the annotated run must have too."""
COUNTED = ("cpu_op", *DEVICE_WORK)
Rows = NDArray[np.int64]


def average_runs(runs: Sequence[Trace]) -> Trace:
    """The mean of several runs; where they differ the median one, each event averaged over the runs that have it."""
    return average_similar(runs)[0]


def with_warnings(trace: Trace, warnings: Sequence[str]) -> Trace:
    """*trace* with more warnings."""
    if not warnings:
        return trace
    return trace.replace(info=trace.info | {"warnings": [*trace.info.get("warnings", []), *warnings]})


def with_structure(timed: Trace, structure: Trace) -> Trace:
    """*timed* with the module paths, phases and shapes of *structure*, operator by operator in order.

    Where the two runs have too little in common the structure run is kept as it is, with a warning.
    """
    rows, theirs = _work_rows(timed), _work_rows(structure)
    names = aligned_codes(timed.name.take(rows), structure.name.take(theirs))
    paired = match_sequences(*(codes.astype(np.int64) for codes in names))
    counted = [t.kind.take(r).isin(COUNTED) for t, r in ((timed, rows), (structure, theirs))]
    alike = int((counted[0][paired[0]] & counted[1][paired[1]]).sum())
    if alike < LEAST_COMMON * max(int(c.sum()) for c in counted):
        warning = "the profiled steps differ in their operators: times are those of the annotated run, which are longer"
        return with_warnings(structure, [warning])
    rows, theirs = rows[paired[0]], theirs[paired[1]]
    changes: dict[str, Any] = {}
    for column in ("module", "shapes", "phase"):
        found: StringColumn = getattr(structure, column)
        codes = np.zeros(len(timed), np.int32)
        codes[rows] = found.codes[theirs] + 1
        changes[column] = StringColumn(codes, ("", *found.values))
    return timed.replace(**changes, info=timed.info | _memory_at(structure, rows, theirs, timed))


def with_captured_operators(graph: Trace, eager: Trace) -> Trace:
    """The kernels of a replayed CUDA *graph* with the operators that issued them when the step ran *eager*.

    Such an operator is a row on the stream ``cuda graph`` that lasts from its first kernel's start to its last one's
    end. Kernels are paired in order; where they differ nothing is added, with a warning.
    """
    mine, theirs = _device_rows(graph), _device_rows(eager)
    if graph.name.take(mine).tolist() != eager.name.take(theirs).tolist():
        warning = f"the CUDA graph ran {len(mine)} kernels, the eager step {len(theirs)} others: no operator is named"
        return with_warnings(graph, [warning])
    is_op = eager.kind.isin(["cpu_op"])
    issuer = lookup(eager.external_id, np.flatnonzero(is_op), eager.external_id[theirs])
    issuer[eager.external_id[theirs] < 0] = -1
    first, last = np.full(len(eager), np.inf), np.full(len(eager), -np.inf)
    outer, above = resolve(eager.parent, is_op, strict=True), issuer
    while (above >= 0).any():
        held = above >= 0
        np.minimum.at(first, above[held], graph.start_s[mine[held]])
        np.maximum.at(last, above[held], graph.end_s[mine[held]])
        above = np.where(held, outer[above], -1)
    rows = np.flatnonzero(np.isfinite(first))
    ops = eager.select(rows).replace(
        stream=GRAPH_STREAM, start_s=first[rows], duration_s=last[rows] - first[rows], external_id=np.arange(len(rows)),
        correlation=-1, spread_s=0.0,
    )  # fmt: skip
    place = np.full(len(eager) + 1, -1, np.int64)
    place[rows] = np.arange(len(rows))
    ids = np.full(len(graph), -1, np.int64)
    ids[mine] = place[issuer]
    columns: dict[str, Any] = {}
    for name, column in graph.replace(external_id=ids).columns().items():
        added = getattr(ops, name)
        if name == "parent":
            added = np.where(added >= 0, added + len(graph), -1)
        if isinstance(column, StringColumn):
            columns[name] = [*column.tolist(), *added.tolist()]
        else:
            columns[name] = np.concatenate([column, added])
    for name in ("module", "phase"):
        for row, value in zip(mine.tolist(), getattr(eager, name).take(theirs).tolist(), strict=True):
            columns[name][row] = value
    return Trace.from_columns(columns, **graph.meta())


def compact(trace: Trace) -> Trace:
    """*trace* with what a reader needs: operators, launches, device work; starts from 0; times on a grid."""
    trace = trace.select(~(trace.kind.isin(DROPPED) | trace.name.where(lambda n: n.startswith(COMPILED_CALL))))
    base = trace.start_s.min(initial=np.inf) if len(trace) else 0.0
    start, end = (np.round((t - base) / GRID_S) * GRID_S for t in (trace.start_s, trace.end_s))
    changes: dict[str, Any] = {"start_s": start, "duration_s": np.maximum(end - start, 0.0)}
    changes["spread_s"] = np.round(trace.spread_s / GRID_S) * GRID_S
    if not trace.kind.isin(DEVICE_WORK).any():  # nothing to join
        changes |= {"external_id": -1, "correlation": -1}
    info = {key: trace.info[key] for key in KEPT if key in trace.info}
    if KEY in info:
        info[KEY] = _thin(info[KEY], base)
    return trace.replace(**changes, info=info)


def memory_above(trace: Trace, resident_bytes: int) -> Trace:
    """*trace* with a memory timeline that counts from what was there before: a CPU's allocator knows only what came."""
    memory = trace.info.get(KEY)
    if not memory or not memory["allocated_bytes"]:
        return trace
    least = min(memory["allocated_bytes"])  # blocks of earlier profiles that were freed unseen
    held = [b - least + resident_bytes for b in memory["allocated_bytes"]]
    return trace.replace(info=trace.info | {KEY: {**memory, "allocated_bytes": held}})


def peak_bytes(trace: Trace) -> int | None:
    """The most that the allocator held while *trace* was recorded; None where it was not watched."""
    held = trace.info.get(KEY, {}).get("allocated_bytes", [])
    return int(max(held)) if len(held) else None


def _thin(memory: dict[str, Any], base: float) -> dict[str, Any]:
    """At most `MAX_POINTS` points from *base* on, short to write."""
    thin = thin_memory(memory["time_s"], memory["allocated_bytes"], MAX_POINTS)
    times, held = thin["time_s"], thin["allocated_bytes"]
    return {**memory, "time_s": [round(t - base, 7) for t in times], "allocated_bytes": [int(b) for b in held]}


def _memory_at(structure: Trace, rows: Rows, theirs: Rows, timed: Trace) -> dict[str, Any]:
    """The memory timeline of *structure* at the times that *timed* reached the same operators."""
    memory = structure.info.get(KEY)
    host = np.flatnonzero(timed.kind.isin(["cpu_op"])[rows])
    if not memory or not len(host):
        return {}
    known, wanted = structure.start_s[theirs[host]], timed.start_s[rows[host]]
    order = np.lexsort((wanted, known))
    times = np.interp(np.asarray(memory["time_s"], np.float64), known[order], np.maximum.accumulate(wanted[order]))
    return {KEY: {**memory, "time_s": times.tolist()}}


def _device_rows(trace: Trace) -> Rows:
    rows = np.flatnonzero(trace.kind.isin(DEVICE_WORK))
    return rows[np.argsort(trace.start_s[rows], kind="stable")]


def _work_rows(trace: Trace) -> Rows:
    """Rows that are operators, launches or kernels, stream by stream in order of start."""
    rows = np.flatnonzero(~trace.kind.isin(("annotation", "gpu_annotation", "span")))
    names = sorted(trace.stream.used())
    place = np.array([names.index(s) for s in trace.stream.take(rows).tolist()], np.int64)
    return rows[np.lexsort((rows, trace.start_s[rows], place))]
