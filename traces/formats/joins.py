"""What a profiler leaves to be joined: nesting, kernels to operators, module paths and phases to both."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foretrace.traces.kinds import DEVICE_WORK
from foretrace.traces.nesting import compute_parents, lookup, resolve
from foretrace.traces.strings import StringColumn

BACKWARD = "autograd::engine::evaluate_function"
MAX_DEPTH = 256  # of phases in phases
Rows = NDArray[np.int64]
Seconds = NDArray[np.float64]


@dataclass(frozen=True)
class Raw:
    """Columns as a profiler's file has them; integers are -1 where absent."""

    name: StringColumn
    kind: StringColumn
    stream: StringColumn
    start_s: NDArray[np.float64]
    duration_s: NDArray[np.float64]
    tolerance_s: float
    shapes: StringColumn
    hierarchy: StringColumn
    correlation: Rows
    external_id: Rows
    sequence: Rows
    bytes_moved: NDArray[np.float64]


def join(raw: Raw) -> dict[str, Any]:
    """The columns of a Trace: parents by time, each kernel with its operator's external id, module and phase.

    A kernel whose launch no operator encloses (a CUDA graph's, replayed) has the launch's module and phase; one
    without a launch has no phase: devices run late, so the moment at which it ran tells none.
    Module paths come from annotations ``module:PATH`` around an operator, else from the file's Module Hierarchy,
    else from nn.Module frames; backward operators take that of the forward one with their sequence number.
    """
    work = raw.kind.isin(DEVICE_WORK)
    parent = _parents(raw, work)
    operator = _operators(raw, parent, work)
    module = _modules(raw, parent)
    phase = _phases(raw, parent)
    issuer = np.where(operator >= 0, operator, _launches(raw, work))
    rows = np.flatnonzero(work & (issuer >= 0))
    phase.codes[work & (issuer < 0)] = 0
    for codes in (module.codes, phase.codes):
        codes[rows] = codes[issuer[rows]]
    return {
        "name": raw.name,
        "kind": raw.kind,
        "module": module,
        "phase": phase,
        "stream": raw.stream,
        "shapes": raw.shapes,
        "parent": parent,
        "correlation": raw.correlation,
        "external_id": _external_ids(raw, operator),
        "start_s": raw.start_s,
        "duration_s": raw.duration_s,
        "bytes_moved": raw.bytes_moved,
    }


def _parents(raw: Raw, work: NDArray[np.bool_]) -> Rows:
    """What encloses each event on its stream; kernels never do: they follow each other, whatever rounding says."""
    nested = np.zeros(len(raw.stream.values), np.bool_)  # streams that have more than device work
    nested[raw.stream.codes[~work]] = True
    rows = np.flatnonzero(nested[raw.stream.codes])
    group = raw.stream.codes[rows].astype(np.int64)
    above = compute_parents(raw.start_s[rows], raw.duration_s[rows], group, raw.tolerance_s)
    parent = np.full(len(work), -1, np.int64)
    parent[rows] = np.where(above >= 0, rows[above], -1)
    return resolve(parent, ~work, strict=True) if work[rows].any() else parent


def _launches(raw: Raw, work: NDArray[np.bool_]) -> Rows:
    """Per piece of device work the call that launched it, -1 where unknown; one graph launch starts many kernels."""
    started = np.full(len(work), -1, np.int64)
    rows = np.flatnonzero(work & (raw.correlation >= 0))
    launch = np.flatnonzero(raw.kind.isin(["launch", "driver"]) & (raw.correlation >= 0))
    started[rows] = lookup(raw.correlation, launch, raw.correlation[rows])
    return started


def _operators(raw: Raw, parent: Rows, work: NDArray[np.bool_]) -> Rows:
    """Per launch and per piece of device work the operator that issued it, -1 where unknown.

    By correlation to the launch and from there to the operator around it; else by external id, which old
    versions fill with the correlation itself: equal ones say nothing.
    """
    is_op = raw.kind.isin(["cpu_op"])
    launch = raw.kind.isin(["launch", "driver"])
    around = np.where(launch, resolve(parent, is_op, strict=True), -1)
    rows = np.flatnonzero(work & (raw.correlation >= 0))
    started = lookup(raw.correlation, np.flatnonzero(launch & (around >= 0)), raw.correlation[rows])
    around[rows] = np.where(started >= 0, around[started], -1)
    named = (work | launch) & (around < 0) & (raw.external_id >= 0) & (raw.external_id != raw.correlation)
    rows = np.flatnonzero(named)
    around[rows] = lookup(raw.external_id, np.flatnonzero(is_op), raw.external_id[rows])
    return around


MAX_ID = 1 << 62  # ids that operators lack are counted on from the largest


def _external_ids(raw: Raw, operator: Rows) -> Rows:
    """External ids such that the operators that issued device work have one each, carried by that work."""
    ids = np.where(raw.external_id > MAX_ID, -1, raw.external_id)
    issued = np.zeros(len(operator), np.bool_)
    issued[operator[operator >= 0]] = True
    issuers = np.flatnonzero(issued)
    is_op = np.flatnonzero(raw.kind.isin(["cpu_op"]))
    unclear = issuers[(ids[issuers] < 0) | (lookup(ids, is_op, ids[issuers]) != issuers)]
    ids[unclear] = max(int(ids.max(initial=0)), 0) + 1 + np.arange(len(unclear))
    joined = operator >= 0
    ids[joined] = ids[operator[joined]]
    ids[raw.kind.isin(DEVICE_WORK) & ~joined] = -1
    return ids


def _modules(raw: Raw, parent: Rows) -> StringColumn:
    annotated = raw.name.where(lambda n: n.startswith("module:")) & raw.kind.isin(["annotation"])
    if annotated.any():
        path, known = raw.name.map(lambda n: n.removeprefix("module:")), annotated
    elif raw.hierarchy.where(bool).any():
        path, known = raw.hierarchy, raw.hierarchy.where(bool)
    else:
        known = raw.name.where(lambda n: n.startswith("nn.Module: ")) & raw.kind.isin(["python"])
        path = _frame_paths(raw.name, resolve(parent, known, strict=True), known)
    source = resolve(parent, known)
    codes = np.where(source >= 0, path.codes[source] + 1, 0).astype(np.int32)
    backward = np.flatnonzero(raw.name.where(lambda n: n.startswith(BACKWARD)) & (raw.sequence >= 0) & (codes == 0))
    if len(backward):
        forward = np.flatnonzero((codes > 0) & (raw.sequence >= 0))
        forward = forward[np.argsort(raw.start_s[forward], kind="stable")][::-1]
        origin = lookup(raw.sequence, forward, raw.sequence[backward])
        codes[backward] = np.where(origin >= 0, codes[origin], 0)
        found = np.zeros(len(codes), np.bool_)
        found[backward] = True
        above = resolve(parent, found)
        codes = np.where((codes == 0) & (above >= 0), codes[above], codes)
    return StringColumn(codes, ("", *path.values))


def _frame_paths(name: StringColumn, outer: Rows, known: NDArray[np.bool_]) -> StringColumn:
    """Paths like ``Model_0.Linear_1`` from frames named ``nn.Module: Linear_1``; *outer* is the next frame out."""
    paths: dict[int, str] = {}

    def path(row: int) -> str:
        chain: list[int] = []
        while row >= 0 and row not in paths and len(chain) < 256:
            chain.append(row)
            row = int(outer[row])
        text = paths.get(row, "")
        for inner in reversed(chain):
            text = paths[inner] = f"{text}.{name[inner][11:]}".lstrip(".")
        return text

    found = np.flatnonzero(known)
    texts = StringColumn.of(map(path, found.tolist()))
    codes = np.zeros(len(name), np.int32)
    codes[found] = texts.codes + 1
    return StringColumn(codes, ("", *texts.values))


def _phases(raw: Raw, parent: Rows) -> StringColumn:
    """By annotations ``phase:NAME``, which hold for every thread while they last, the innermost first; else backward
    and optimizer by what the framework calls their outermost events."""
    values = ["", "forward", "backward", "optimizer"]
    codes = np.zeros(len(parent), np.int32)
    spans = np.flatnonzero(raw.name.where(lambda n: n.startswith("phase:")) & raw.kind.isin(["annotation"]))
    if len(spans):
        found = _innermost(raw.start_s[spans], (raw.start_s + raw.duration_s)[spans], raw.start_s)
        names = StringColumn.of(raw.name[i].removeprefix("phase:") for i in spans.tolist())
        return StringColumn(np.where(found >= 0, names.codes[found] + 1, 0).astype(np.int32), ("", *names.values))
    for code, start in ((2, BACKWARD), (3, "Optimizer.")):
        codes[resolve(parent, raw.name.where(lambda n, s=start: n.startswith(s))) >= 0] = code  # type: ignore[misc]
    return StringColumn(codes, tuple(values))


def _innermost(start: Seconds, end: Seconds, at: Seconds) -> Rows:
    """Which of the spans from *start* to *end* that are open at each moment of *at* began last, -1 where none is."""
    order = np.lexsort((-end, start))
    ends = end[order]
    outer = np.full(len(order), -1, np.int64)  # the last span before that ends later
    stack: list[int] = []
    for i, e in enumerate(ends.tolist()):
        while stack and ends[stack[-1]] <= e:
            stack.pop()
        outer[i] = stack[-1] if stack else -1
        stack.append(i)
    found = np.searchsorted(start[order], at, side="right") - 1
    for _ in range(MAX_DEPTH):
        over = np.flatnonzero((found >= 0) & (ends[found] < at))
        if not len(over):
            return np.where(found >= 0, order[found], -1)
        found[over] = outer[found[over]]
    return np.where((found >= 0) & (ends[found] >= at), order[found], -1)
