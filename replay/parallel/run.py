"""`replay_plan`: a captured graph under a plan, on every pipeline rank of a system."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from foretrace.ir import Graph
from foretrace.replay.columns import Floats, Ints, Mask
from foretrace.replay.costs import CostModel
from foretrace.replay.engine import Engine, Timeline, ticks_from_seconds
from foretrace.replay.lower import Execution
from foretrace.replay.table import OpTable
from foretrace.transforms.plan import Plan
from foretrace.transforms.schedules import Pass, PipelineSchedule, load_schedule

from .account import Accounts, account, critical_classes
from .classes import Replicas, find_classes
from .cutting import Cutting
from .extras import ALL_REDUCE, SEND, Extras, Priced, price_all
from .memory import Lives, RankMemory, measure_rank, rank_states
from .pieces import Piece, Pieces, replica_group
from .policy import MemoryPolicy, Overlap
from .prepared import Prepared, prepare
from .segment import Segments, Timings
from .shares import Holdings, find_holdings, optimizer_shares
from .step import OPTIMIZER, Items, Joins, StepGraph, build_step

if TYPE_CHECKING:
    from foretrace.hardware import System


@dataclass(frozen=True, eq=False)
class PlanRun:
    """A replayed plan: pipeline ranks of each class of replicas."""

    plan: Plan
    micro_batches: int
    schedule: PipelineSchedule
    cutting: Cutting
    table: OpTable
    """The local graph that ran, at the sizes of a micro-batch."""
    priced: Priced
    segments: Segments
    timings: Timings
    item_ops: tuple[Ints, ...]
    """[distinct pieces] their op ids, in `priced.graph`."""
    step: StepGraph
    timeline: Timeline
    accounts: Accounts
    replicas: Replicas
    memory: tuple[RankMemory, ...]
    """[simulated ranks]"""
    critical: Mapping[str, int]
    makespans: tuple[int, int]
    """Ticks of the step at both ends of the interval."""
    runs: Floats
    """[ops of `priced`] how often each runs in a pipeline, over its ranks; the optimizer's by the shares of ranks."""
    launches: Floats
    """[ops of `priced`] the same, every start of an op counted as one."""
    holdings: Holdings
    again: Mask
    """[ops of `table`] those that recomputation added."""


def replay_plan(
    local: Graph,
    bindings: Mapping[str, int],
    system: "System",
    plan: Plan,
    micro_batches: int,
    mode: Execution,
    model: CostModel,
    *,
    engine: Engine = "auto",
    host_factor: float = 2.0,
    policy: MemoryPolicy | None = None,
    overlap: Overlap | None = None,
    speeds: Mapping[int, float] | None = None,
    links: Mapping[int, float] | None = None,
    split: Sequence[int] | None = None,
    prepared: Prepared | None = None,
    interval: bool = True,
) -> PlanRun:
    """Replay *local*, the graph of a rank that held every stage, at *bindings* (of a micro-batch).

    *speeds* gives ranks a speed relative to the others, *links* a bandwidth. *split* the layers of each stage.
    *prepared* is what `prepare` made of the same graph, sizes, system, mode and costs (and stages, where the mode
    fuses): a search prepares once. Without *interval* both its ends are the prediction: a third of the work.
    Raises `PlanError` and `ScheduleError` for plans that the model or the schedule does not allow.
    """
    policy, overlap = policy or MemoryPolicy(), overlap or Overlap()
    prepared = prepared or prepare(local, bindings, system, plan, mode, model, split)
    outline, table, main = prepared.outline, prepared.table, prepared.costs
    schedule = schedule_of(plan, outline.trains, micro_batches)
    halves = bool((schedule.work == Pass.BACKWARD_INPUT).any())
    cutting = cut_graph(prepared, plan, system, split, halves)
    of_row, pieces, keys = _pieces(cutting, plan, schedule, policy, overlap)
    stages_of = [np.unique(schedule.stage[schedule.rank == r]).tolist() for r in range(plan.pp)]
    holdings = find_holdings(cutting, stages_of, plan)
    joins = _joins(cutting, table.tensor_bytes, plan, pieces, holdings, stages_of, keys.made)
    priced = price_all(table, outline.collective, main, pieces.extras, model, system, mode.software)
    priced = priced.exposing(overlap.exposed)
    replicas = find_classes(plan, speeds or {}, links or {})
    segments = _segments(prepared, priced, system, mode, engine)
    items = _items(schedule, keys, of_row, segments, replicas, optimizer_shares(cutting, holdings), plan)
    seconds = priced.seconds[priced.row]
    runs, launches = _runs(items, keys.made, segments, priced.row.size)
    low, high = priced.narrowed(runs)
    timings = segments.time(seconds, priced.collective)
    step = build_step(items, timings.block >= 0, joins, np.array(replicas.links), mode.waits)
    timeline = step.run(timings, ticks_from_seconds(seconds), overlap.slowdown, engine)

    def end(device_s: Floats, factor: float) -> int:
        if not interval:
            return timeline.makespan
        there = segments.time(device_s, priced.collective, factor)
        return step.run(there, ticks_from_seconds(device_s), overlap.slowdown, engine).makespan

    added = step.slowed(timings, ticks_from_seconds(seconds), overlap.slowdown)
    simulated = plan.pp * replicas.count
    between = np.bincount(step.op[step.op >= 0], minlength=runs.size)
    accounts = account(step, timeline, timings, added, simulated, plan.pp > 1)
    memory = _memory(cutting, prepared, plan, items, step, timeline, holdings, policy, micro_batches, stages_of)
    return PlanRun(
        plan,
        micro_batches,
        schedule,
        cutting,
        table,
        priced,
        segments,
        timings,
        tuple(p.ops for p in keys.made),
        step,
        timeline,
        accounts,
        replicas,
        memory,
        critical_classes(step, timeline),
        (end(low, 1 / host_factor), end(high, host_factor)),
        (runs + between) / replicas.count,
        (launches + between) / replicas.count,
        holdings,
        outline.again,
    )


def _segments(prepared: Prepared, priced: Priced, system: "System", mode: Execution, engine: Engine) -> Segments:
    """No segments yet; what other plans made of them at the same seconds is at hand."""
    rows = prepared.table.rows
    common = prepared.common_rows(priced.row, priced.added_table.names, priced.seconds[rows:])
    clocks = prepared.clocks.setdefault(priced.seconds[:rows].tobytes(), {})
    return Segments(priced, common, system, mode, engine, prepared.outline.programs, clocks)


def schedule_of(plan: Plan, trains: bool, micro_batches: int) -> PipelineSchedule:
    """The pipeline schedule of *plan*; of a graph without a backward (that does not train) its forwards."""
    if plan.pp == 1:
        m = np.repeat(np.arange(micro_batches), 2)
        work = np.tile([Pass.FORWARD, Pass.BACKWARD], micro_batches).astype(np.int64)
        whole = PipelineSchedule("sequence", 1, 1, micro_batches, 0 * m, np.arange(m.size), m, 0 * m, work)
    else:
        name = plan.schedule or ("interleaved" if plan.interleave > 1 else "1f1b")
        whole = load_schedule(name, plan.pp, plan.interleave, micro_batches)
    if trains:
        return whole
    kept = whole.work == Pass.FORWARD
    columns = (column[kept] for column in (whole.rank, whole.slot, whole.micro_batch, whole.stage, whole.work))
    return PipelineSchedule(whole.name, whole.ranks, whole.stages, micro_batches, *columns)


def cut_graph(prepared: Prepared, plan: Plan, system: "System", split: Sequence[int] | None, halves: bool) -> Cutting:
    """The graph cut into the plan's stages; *halves*: backwards come in two."""
    stage = prepared.stages(plan, system, split or prepared.split)
    return prepared.outline.cutting(stage, halves, prepared.table.tensor_bytes)


@dataclass(frozen=True, eq=False)
class Keys:
    """The distinct pieces of a step, and which of them each row of the schedule is."""

    made: list[Piece]
    of_key: list[list[int]]
    """[keys] indices into `made`."""


def _pieces(
    cutting: Cutting, plan: Plan, schedule: PipelineSchedule, policy: MemoryPolicy, overlap: Overlap
) -> tuple[Ints, Pieces, Keys]:
    """[rows] the key of each row of the schedule; equal rows (stage, pass, first, last) share theirs."""
    places = schedule.rank * schedule.stages + schedule.stage
    first, last = np.zeros((2, schedule.rows), np.bool_)
    for work in (Pass.BACKWARD, Pass.BACKWARD_INPUT, Pass.BACKWARD_WEIGHT):
        some = np.flatnonzero(schedule.work == work)
        _, at = np.unique(places[some], return_index=True)
        first[some[at]] = True
        _, at = np.unique(places[some][::-1], return_index=True)
        last[some[::-1][at]] = True
    code = ((schedule.stage * 4 + schedule.work) * 2 + first) * 2 + last
    codes, rows = np.unique(code, return_inverse=True)
    several = schedule.micro_batches > 1
    groups = tuple(replica_group(plan, expert) for expert in (False, True))
    key = ("pieces", plan.zero, groups, plan.ep > 1, policy.gradient, overlap.bucket, several, codes.tobytes())
    pieces, keys = cutting.once(
        key, lambda: _cut_rows(Pieces(cutting, plan, Extras(cutting.graph), policy, overlap, several), codes)
    )
    return rows.astype(np.int64), replace(pieces, plan=plan, extras=pieces.extras.copied()), keys


def _cut_rows(pieces: Pieces, codes: Ints) -> tuple[Pieces, Keys]:
    """The pieces of each distinct row."""
    made: list[Piece] = []
    of_key = []
    for c in codes.tolist():
        rest, is_last = divmod(c, 2)
        rest, is_first = divmod(rest, 2)
        stage, work = divmod(rest, 4)
        found = pieces.of(stage, work, bool(is_first), bool(is_last))
        of_key.append(list(range(len(made), len(made) + len(found))))
        made += found
    return pieces, Keys(made, of_key)


def _joins(
    cutting: Cutting,
    size: Floats,
    plan: Plan,
    pieces: Pieces,
    holdings: Holdings,
    stages_of: list[list[int]],
    made: list[Piece],
) -> Joins:
    """What happens once a step: gradients on several ranks, updated parameters, and the sends of a micro-batch.

    *size* [tensors] bytes.
    """
    extras, cuts = pieces.extras, plan.stages - 1
    crossing = cutting.crossing(size, plan.stages)
    sends = np.array(
        [
            [extras.collective(SEND, b, 2, plan.stride("pp"), pieces.parameter_dtype, phase) for b in row]
            for row, phase in zip(crossing.tolist(), ("forward", "backward"), strict=True)
        ],
        np.int64,
    ).reshape(2, cuts)
    shared: dict[tuple[int, ...], float] = {}
    size = holdings.elements * (holdings.gradient_bytes > 0) * pieces.gradient_dtype.bits / 8
    for p in np.flatnonzero(holdings.held.sum(axis=0) > 1).tolist():
        members = tuple(np.flatnonzero(holdings.held[:, p]).tolist())
        shared[members] = shared.get(members, 0.0) + float(size[p])
    sums = []
    for members, total in shared.items():
        apart = (members[-1] - members[0]) // (len(members) - 1)
        stride = plan.stride("pp") * max(min(apart, plan.pp // len(members)), 1)  # as groups that fill the pipeline
        op = extras.collective(ALL_REDUCE, total, len(members), stride, pieces.gradient_dtype, "backward")
        if op >= 0:
            sums.append((op, members))
    updates = [pieces.gathers(s) if (cutting.stage < 0).any() else [] for s in stages_of]
    return Joins([p.gathers for p in made], [p.reduces for p in made], sums, updates, sends)


def _items(
    schedule: PipelineSchedule,
    keys: Keys,
    rows: Ints,
    segments: Segments,
    replicas: Replicas,
    optimizer: tuple[Ints, Floats],
    plan: Plan,
) -> Items:
    """The pieces of all classes, in order on each rank, the optimizer last."""
    ops, shares = optimizer
    counts = np.array([len(k) for k in keys.of_key], np.int64)
    flat = np.concatenate([np.array(k, np.int64) for k in keys.of_key]) if keys.of_key else np.zeros(0, np.int64)
    starts = np.cumsum(counts) - counts
    row = np.repeat(np.arange(rows.size), counts[rows])
    within = np.arange(row.size) - np.repeat(np.cumsum(counts[rows]) - counts[rows], counts[rows])
    piece = flat[starts[rows[row]] + within]
    none = len(keys.made)
    bounds = np.searchsorted(schedule.rank[row], np.arange(plan.pp + 1))  # a schedule is sorted by rank
    parts = []
    for c, (speeds, links) in enumerate(zip(replicas.speeds, replicas.links, strict=True)):
        scale, slower = 1.0 / np.asarray(speeds), 1.0 / np.asarray(links)
        for r in range(plan.pp):
            own = np.arange(bounds[r], bounds[r + 1])
            used = np.flatnonzero(np.bincount(piece[own], minlength=none))
            table = np.zeros(none + 1, np.int64)
            for p in used.tolist():
                table[p] = segments.of(keys.made[p].ops, float(scale[r]), float(slower[r]))
            columns = [
                np.full(own.size, c * plan.pp + r),
                row[own],
                schedule.micro_batch[row[own]],
                schedule.stage[row[own]],
                schedule.work[row[own]],
                table[piece[own]],
                piece[own],
            ]
            parts.append(columns)
            mine = np.flatnonzero(shares[r] > 0)
            if mine.size:
                update = segments.of(ops[mine], shares[r, mine] * scale[r])
                parts.append([np.array([v]) for v in (c * plan.pp + r, -1, -1, -1, OPTIMIZER, update, -1)])
    joined = [np.concatenate(column).astype(np.int64) for column in zip(*parts, strict=True)]
    return Items(*joined)


def _runs(items: Items, made: list[Piece], segments: Segments, ops: int) -> tuple[Floats, Floats]:
    """[ops] how often each op runs, over all simulated ranks, the optimizer's by their shares; and how often any."""
    runs = np.zeros(ops)
    passes = items.piece >= 0
    for p, n in enumerate(np.bincount(items.piece[passes], minlength=len(made)).tolist()):
        runs[made[p].ops] += n
    launches = runs.copy()
    for s in items.segment[~passes].tolist():
        runs[segments.ops[s]] += segments.scale[s]
        launches[segments.ops[s]] += 1
    return runs, launches


def _memory(
    cutting: Cutting,
    prepared: Prepared,
    plan: Plan,
    items: Items,
    step: StepGraph,
    timeline: Timeline,
    holdings: Holdings,
    policy: MemoryPolicy,
    micro_batches: int,
    stages_of: list[list[int]],
) -> tuple[RankMemory, ...]:
    size = prepared.table.tensor_bytes
    lives = Lives(cutting, prepared.table.row, size, prepared.lives)
    key = ("units", tuple(map(tuple, stages_of)))
    units = cutting.once(key, lambda: _largest_units(cutting, stages_of)) if plan.zero >= 2 else np.zeros(plan.pp)
    states = rank_states(cutting, size, holdings, plan, policy, micro_batches, stages_of, units)
    start = timeline.start[step.run_of] / 1e12
    ranks = int(items.rank.max(initial=-1)) + 1
    return tuple(
        measure_rank(r, items, lives, states[r % plan.pp], start, policy, plan.zero >= 2) for r in range(ranks)
    )


def _largest_units(cutting: Cutting, stages_of: list[list[int]]) -> Floats:
    """[k] bytes of parameters of the largest FSDP unit of each rank."""
    ops, parameters = cutting.parameters
    found = np.zeros(len(stages_of))
    for k, stages in enumerate(stages_of):
        own = np.isin(cutting.stage[ops], stages)
        pairs = np.unique(np.stack([cutting.place[ops[own]] + 1, parameters[own]], axis=1), axis=0)
        found[k] = np.bincount(pairs[:, 0], cutting.size[pairs[:, 1]]).max(initial=0.0)
    return found
