"""The predicted trace of some ranks of a plan: segments expanded into their ops, collectives and sends beside them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from foretrace.replay.columns import KINDS, Floats, Ints, Mask
from foretrace.replay.engine import TICKS_PER_SECOND
from foretrace.replay.events import HOST_KIND, ONCE, description, input_shapes
from foretrace.traces import Trace
from foretrace.traces.strings import StringColumn

from .run import PlanRun
from .step import Lane, Node

if TYPE_CHECKING:
    from foretrace.replay.result import Result

    from .answer import Parallel

STREAMS = ("host", "compute", "communication", "replicas", "send on", "send back")
"""Of a rank: the first three as without a plan, collectives among replicas, sends to the next stage and back."""
_LANE_STREAM = {Lane.COLLECTIVE: 3, Lane.SEND_ON: 4, Lane.SEND_BACK: 5}


def plan_trace(result: "Result", parallel: "Parallel", ranks: Sequence[int] | None = None) -> Trace:
    """The trace of global *ranks*, by default of the first of each simulated one, by rank and start.

    An op starts when its host reaches it and its stream is free, exact where kernels run on one stream. Raises
    `UnknownNameError` for a rank that the plan has not.
    """
    run = parallel.run
    chosen = [r.rank for r in parallel.ranks] if ranks is None else list(ranks)
    blocks = []
    for rank in chosen:
        parallel.rank(rank)  # checks it
        q = run.replicas.simulated(run.plan.place(rank), run.plan.pp)
        part = np.concatenate([_segments(run, q), _communication(run, q)], axis=1)
        part = part[:, np.argsort(part[0], kind="stable")]
        blocks.append(np.concatenate([np.full((1, part.shape[1]), rank), part]))
    rank, start, duration, op, stream, kernel, instance = np.concatenate(blocks, axis=1)
    columns = _columns(run, op, stream, kernel == 1)
    columns |= {
        "rank": rank,
        "correlation": np.where(op >= 0, instance * (len(run.priced.graph.ops) + 1) + op, -1),
        "start_s": start / TICKS_PER_SECOND,
        "duration_s": duration / TICKS_PER_SECOND,
    }
    return Trace.from_columns(columns, **description(result))


def _segments(run: PlanRun, q: int) -> Ints:
    """[6, events] start, duration, op, stream, whether it is a kernel, and the item, of the ops of rank *q*."""
    step, items = run.step, run.step.items
    own = np.flatnonzero(items.rank == q)
    device = run.timeline.end[step.run_of] - run.timeline.start[step.run_of]
    host_at = run.timeline.start[: items.rank.size]  # lead nodes come first, one an item
    parts = [np.zeros((6, 0), np.int64)]
    for s in np.unique(items.segment[own]).tolist():
        program, (free, ahead) = run.segments.programs[s], run.timings.ahead[s]
        alone = run.timings.alone[s]
        used = own[items.segment[own] == s]
        stretch = np.maximum(device[used] / max(int(run.timings.device[s]), 1), 1.0)[:, None]
        kernels = program.on_device
        late = np.rint((ahead.start - free)[None, :] * stretch).astype(np.int64)
        if program.synchronous:
            start = run.accounts.free[used][:, None] + alone.start[None, :]
        else:
            start = np.maximum(host_at[used][:, None] + alone.start, run.accounts.free[used][:, None] + late)
        length = np.where(kernels[None, :], np.rint(alone.schedule.duration * stretch), alone.schedule.duration)
        ops = _op_ids(run, used, program.op)
        flat = [start, length, ops, np.broadcast_to(program.stream, start.shape)]
        flat += [np.broadcast_to(kernels, start.shape), np.broadcast_to(used[:, None], start.shape)]
        parts.append(np.stack([np.asarray(f, np.int64).ravel() for f in flat]))
    return np.concatenate(parts, axis=1)


def _op_ids(run: PlanRun, used: Ints, local: Ints) -> Ints:
    """[items, nodes] the ops of the pieces that items of one segment are; -1 for what belongs to none."""
    items = run.step.items
    found = np.empty((used.size, local.size), np.int64)
    for piece in np.unique(items.piece[used]).tolist():
        ops = run.item_ops[piece] if piece >= 0 else run.segments.ops[int(items.segment[used[0]])]
        found[items.piece[used] == piece] = np.where(local >= 0, ops[local], -1)
    return found


def _communication(run: PlanRun, q: int) -> Ints:
    """[6, events] of the collectives and sends of rank *q*."""
    step = run.step
    nodes = np.flatnonzero((step.rank == q) & (step.kind >= Node.SEND))
    streams = np.array([_LANE_STREAM.get(lane, 0) for lane in Lane], np.int64)
    one = np.ones(nodes.size, np.int64)
    duration = run.timeline.schedule.duration[nodes]
    return np.stack([run.timeline.start[nodes], duration, step.op[nodes], streams[step.lane[nodes]], one, nodes])


def _columns(run: PlanRun, op: Ints, stream: Ints, kernel: Mask) -> dict[str, Any]:
    """The columns that ops determine."""
    graph, priced = run.priced.graph, run.priced
    tables = (run.table, priced.added_table)
    row = priced.row[op]
    kinds = [*map(str, KINDS), HOST_KIND]
    kind_of_row = np.concatenate([t.kind for t in tables]).astype(np.int32)

    def by_row(column: str) -> Floats:
        values = np.concatenate([getattr(t, column) for t in tables])
        return np.asarray(np.where(kernel, values[row], 0.0))

    shapes = StringColumn.of([s for t in tables for s in input_shapes(t)] + [""])
    none = len(graph.ops)
    at = np.where(op >= 0, op, none)
    return {
        "name": _picked([o.name for o in graph.ops] + [ONCE], at),
        "kind": StringColumn(np.where(kernel, kind_of_row[row], len(kinds) - 1).astype(np.int32), tuple(kinds)),
        "module": _picked([o.module for o in graph.ops] + [""], at),
        "phase": _picked([o.phase for o in graph.ops] + [""], at),
        "stream": StringColumn(stream.astype(np.int32), STREAMS),
        "shapes": StringColumn(shapes.codes[np.where(op >= 0, row, len(shapes) - 1)], shapes.values),
        "op_id": op,
        "bytes_moved": by_row("bytes"),
        "flops": by_row("matrix_flops") + by_row("vector_flops") + by_row("special_flops"),
    }


def _picked(names: list[str], at: Ints) -> StringColumn:
    column = StringColumn.of(names)
    return StringColumn(column.codes[at], column.values)
