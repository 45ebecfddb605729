"""From a captured graph and a plan to a `Result`."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from foretrace.ir import Graph, without_collector
from foretrace.replay.attribution import BREAKDOWN, PHASES
from foretrace.replay.costs import CostModel
from foretrace.replay.engine import TICKS_PER_SECOND
from foretrace.replay.lower import Execution, Program, Stream
from foretrace.replay.result import Memory, Result, memory_warnings
from foretrace.transforms.plan import Plan, PlanError

from .answer import Parallel
from .policy import MemoryPolicy
from .prepared import Shared
from .run import PlanRun, replay_plan
from .step import Lane

if TYPE_CHECKING:
    from foretrace.hardware import System

_STREAM = {Lane.HOST: Stream.HOST, Lane.BLOCK: Stream.HOST, Lane.DEVICE: Stream.COMPUTE}


@without_collector()
def answer_plan(
    graph: Graph,
    system: "System",
    plan: "Plan | str | Mapping[str, Any]",
    mode: Execution,
    model: CostModel,
    sizes: Mapping[str, int | None],
    shared: Shared | None = None,
    styles: Mapping[str, str] | None = None,
    mixed: bool = False,
    **options: Any,
) -> Result:
    """The step of *graph* under *plan* on all accelerators of *system*.

    *sizes* are those of the whole step: ``batch`` over all replicas and micro-batches (without one: as many
    micro-batches as pipeline ranks), ``seq`` over all context parallel ranks. *shared* keeps what several plans have in
    common; *styles* say how modules are divided (`transforms.shard.seeds`). *mixed* adds
    `MasterWeights` to a graph captured without an optimizer, with float32 gradients. *options* are those of
    `replay_plan`.
    Raises `PlanError` for a plan that does not fit the system, the model or the sizes.
    """
    plan = Plan.of(plan).filled(system.count)
    plan.check(system.count)
    batch = sizes.get("batch") or plan.dp * plan.microbatch * plan.pp
    micro_batches = plan.micro_batches(batch)
    whole = _bind(graph, {**sizes, "batch": plan.microbatch})
    shared = shared or Shared()
    styles_key = tuple((styles or {}).items())
    if mixed:
        options.setdefault("policy", MemoryPolicy(gradient="float32"))
    local = shared.local(graph, plan, partial(_local, styles=styles, mixed=mixed), (mixed, styles_key))
    own = _bind(local, {**sizes, "batch": plan.microbatch, "seq": _own_seq(graph, plan, sizes)})
    if plan.sp:
        _check_tokens(graph, plan, own)
    prepared = shared.prepare(local, own, system, plan, mode, model, options.get("split"))
    run = replay_plan(local, own, system, plan, micro_batches, mode, model, prepared=prepared, **options)
    flops = shared.flops_of(graph, whole) * micro_batches * plan.dp
    parallel = Parallel(run, batch, flops, system)
    memory = _memory(parallel, system)
    breakdown = parallel.mean(BREAKDOWN, run.accounts.breakdown)
    costs = run.priced.main
    unmodelled = tuple(sorted({*costs.unmodelled, *run.priced.added.unmodelled}))
    return Result(
        model=graph.name,
        system=system.name,
        phase=graph.phase,
        dtype=graph.metadata.get("dtype", ""),
        plan=str(plan),
        execution=mode.name,
        costs=model.name,
        bindings=whole | ({"batch": batch} if "batch" in whole else {}),
        time_s=sum(breakdown.values()),
        time_low_s=run.makespans[0] / TICKS_PER_SECOND,
        time_high_s=run.makespans[1] / TICKS_PER_SECOND,
        phases_s=parallel.mean(PHASES, run.accounts.phases),
        breakdown_s=breakdown,
        flops=flops,
        mfu=parallel.utilisation[0],
        memory=memory,
        ops=len(graph.ops),
        unmodelled_ops=unmodelled,
        warnings=_warnings(run, memory, system, unmodelled, sizes.get("batch") is None, batch, _notes(local)),
        table=run.table,
        priced=costs,
        program=_program(run),
        timeline=run.timeline,
        footprint=parallel.footprint,
        parallel=parallel,
    )


def _local(graph: Graph, plan: Plan, styles: Mapping[str, str] | None = None, mixed: bool = False) -> Graph:
    local = graph
    if plan.tp * plan.cp * plan.ep > 1 or plan.recompute != "none":
        from foretrace.transforms.parallel import parallelise

        local = parallelise(graph, plan, styles)
    if mixed:
        from foretrace.transforms.master_weights import MasterWeights

        local = MasterWeights().run(local)
    return local


def _notes(local: Graph) -> Iterable[str]:
    return filter(None, [local.metadata.get("tp_whole")])


def _check_tokens(graph: Graph, plan: Plan, own: Mapping[str, int]) -> None:
    from foretrace.transforms.shard.tensor import check_sizes

    check_sizes(graph, plan.tp, plan.sp, own)


def _bind(graph: Graph, sizes: Mapping[str, int | None]) -> dict[str, int]:
    """*graph*'s symbols at *sizes*; the micro-batch is only asked for where the graph leaves a batch open."""
    leaves_open = "batch" in graph.symbols or "fixed.batch" in graph.metadata
    return graph.bind({name: size for name, size in sizes.items() if name != "batch" or leaves_open})


def _own_seq(graph: Graph, plan: Plan, sizes: Mapping[str, int | None]) -> int | None:
    """The sequence of one context parallel rank. Raises `PlanError` where it does not divide."""
    if plan.cp == 1:
        return sizes.get("seq")
    if "seq" not in graph.symbols:
        raise PlanError(f"plan: cp={plan.cp}: {graph.name} leaves no sequence open to divide; use cp=1")
    seq = sizes.get("seq") or graph.symbols["seq"].default
    if seq % plan.cp:
        near = -(-seq // plan.cp) * plan.cp
        raise PlanError(f"plan: cp={plan.cp} does not divide --seq {seq}: nearest is --seq {near}")
    return seq // plan.cp


def _memory(parallel: Parallel, system: "System") -> Memory:
    memory, found = system.accelerator.memory, parallel.fullest
    return Memory(
        found.peak_bytes,
        int(memory.capacity_bytes),
        found.peak_bytes <= (memory.usable_bytes or memory.capacity_bytes),
        found.by_category_bytes,
        found.peak_time_s,
        found.peak_op,
    )


def _program(run: PlanRun) -> Program:
    step = run.step
    streams = np.array([int(_STREAM.get(lane, Stream.COMMUNICATION)) for lane in Lane], np.int64)
    none = np.full(step.kind.size, -1)
    return Program(none, streams[step.lane], np.zeros(none.size), step.source, step.target, False)


def _warnings(
    run: PlanRun,
    memory: Memory,
    system: "System",
    unmodelled: tuple[str, ...],
    assumed: bool,
    batch: int,
    notes: Iterable[str] = (),
) -> tuple[str, ...]:
    found = list(dict.fromkeys((*run.priced.main.warnings, *run.priced.added.warnings)))
    found += notes
    if unmodelled:
        found.append(f"priced by their bytes alone: {', '.join(unmodelled)}")
    found += memory_warnings(memory, system)
    if assumed and run.plan.ranks > 1:
        found.append(f"no --batch: {batch} samples are assumed, {run.micro_batches} micro-batches a replica")
    return tuple(found)
