"""`replay_graph`: the whole way from a captured graph and a system to a `Result`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from foretrace.ir import Graph
from foretrace.transforms import apply

from .attribution import break_down, split_phases
from .columns import Ints
from .costs import CostModel, Costs, load_costs
from .costs.interval import narrowed, step_power
from .costs.roofline import causal_share, matrix_rate
from .engine import TICKS_PER_SECOND, Engine, Timeline
from .footprint import Footprint, measure_footprint
from .lower import Program, load_execution
from .result import Memory, Result, memory_warnings
from .table import OpTable, tabulate

if TYPE_CHECKING:
    from foretrace.hardware import System
    from foretrace.transforms.plan import Plan

HOST_FACTOR: Final = 2.0
"""Host seconds over and under the given ones at the ends of the interval: measured eager timings have a host floor of
25 to 90 us (our prototypes), a factor of 1.9 to either side of its geometric mean."""


def replay_graph(
    graph: Graph,
    system: "System | str",
    *,
    plan: "Plan | str | Mapping[str, Any] | None" = None,
    execution: str = "eager",
    costs: str | CostModel = "physics",
    engine: Engine = "auto",
    batch: int | None = None,
    seq: int | None = None,
    context: int | None = None,
    dims: Mapping[str, int] | None = None,
    **options: Any,
) -> Result:
    """Predict one step of *graph* on one accelerator of *system* (a `System`, a shipped name, or a YAML path).

    Symbols take *batch*, *seq*, *context* and *dims* (any other), else their defaults. *execution* is eager,
    compiled, cudagraph or serving. Identical arguments give an identical result.

    With a *plan* (``tp=8,pp=4,dp=2``, a `Plan`, or its keys) the step is that of all accelerators it takes, and *batch*
    the samples of all of them; *options* are those of `parallel.replay_plan` (``policy``, ``overlap``, ``speeds``,
    ``links``, ``split``, ``interval``), ``shared`` (`parallel.Shared`), and ``styles``: module pattern → how tensor
    parallel divides it (`transforms.shard.seeds`).

    Raises `UnknownNameError` for a name that does not exist, `GraphError` for sizes the graph was not captured for,
    `PlanError` for a plan that the system, the model or the sizes do not allow.
    """
    if isinstance(system, str):
        from foretrace.hardware import load_system

        system = load_system(system)
    model = load_costs(costs) if isinstance(costs, str) else costs
    mode = load_execution(execution)
    sizes = {"batch": batch, "seq": seq, "context": context} | dict(dims or {})
    if plan:
        from .parallel import answer_plan

        return answer_plan(graph, system, plan, mode, model, sizes, engine=engine, host_factor=HOST_FACTOR, **options)
    if options:
        raise TypeError(f"replay_graph: {', '.join(sorted(options))}: only with a plan")
    bindings = graph.bind(sizes)
    table = tabulate(apply(mode.passes, graph), bindings)
    priced = model.price(table, system, mode.software)
    program = mode.lower(table.graph, system)
    times = np.bincount(table.row, minlength=table.rows)
    power = step_power(priced.seconds * times, priced.correlation)  # equal ops err alike
    timeline, low, high = (
        program.run(table.graph, seconds[table.row], engine, factor)
        for seconds, factor in (
            (priced.seconds, 1.0),
            (narrowed(priced.seconds, priced.low_s, power), 1 / HOST_FACTOR),
            (narrowed(priced.seconds, priced.high_s, power), HOST_FACTOR),
        )
    )
    footprint = measure_footprint(table, *_op_ticks(table, program, timeline))
    memory = _memory(table, footprint, system)
    breakdown = _seconds(break_down(program, timeline))
    time_s = sum(breakdown.values())
    flops = graph.flops(bindings)
    return Result(
        model=graph.name,
        system=system.name,
        phase=graph.phase,
        dtype=graph.metadata.get("dtype", ""),
        plan=None,
        execution=mode.name,
        costs=model.name,
        bindings=bindings,
        time_s=time_s,
        time_low_s=low.makespan / TICKS_PER_SECOND,
        time_high_s=high.makespan / TICKS_PER_SECOND,
        phases_s=_seconds(split_phases(table.graph, program, timeline)),
        breakdown_s=breakdown,
        flops=flops,
        mfu=_mfu(time_s, table, system),
        memory=memory,
        ops=len(graph.ops),
        unmodelled_ops=priced.unmodelled,
        warnings=_warnings(priced, memory, system),
        table=table,
        priced=priced,
        program=program,
        timeline=timeline,
        footprint=footprint,
    )


def _op_ticks(table: OpTable, program: Program, timeline: Timeline) -> tuple[Ints, Ints]:
    """Start and end of each op [n]; one that runs nothing stands at the latest end of those before it."""
    kernels = program.on_device
    start, end = np.full((2, table.ops), -1)
    start[program.op[kernels]], end[program.op[kernels]] = timeline.start[kernels], timeline.end[kernels]
    reached = np.maximum.accumulate(np.maximum(end, 0))
    return np.where(start < 0, reached, start), np.where(end < 0, reached, end)


def _seconds(ticks: Mapping[str, int]) -> dict[str, float]:
    return {name: t / TICKS_PER_SECOND for name, t in ticks.items()}


def _memory(table: OpTable, footprint: Footprint, system: "System") -> Memory:
    memory = system.accelerator.memory
    op = None if footprint.peak_op is None else table.graph.ops[footprint.peak_op]
    return Memory(
        footprint.peak_bytes,
        int(memory.capacity_bytes),
        footprint.peak_bytes <= (memory.usable_bytes or memory.capacity_bytes),
        footprint.by_category_bytes,
        footprint.peak_tick / TICKS_PER_SECOND,
        None if op is None else f"{op.name} in {op.module}" if op.module else op.name,
    )


def _mfu(time_s: float, table: OpTable, system: "System") -> float:
    """Model FLOP utilisation (Chowdhery et al. 2022, PaLM): 0 where there is no matrix work.

    Causal attention counts the half that kernels work through, so that it stays a share of the peak.
    """
    done = table.matrix_flops * causal_share(table) * np.bincount(table.row, minlength=table.rows)
    if not done.any() or not time_s:
        return 0.0
    peak, _ = matrix_rate(system.accelerator, table.dtypes[int(np.bincount(table.dtype, done).argmax())])
    return float(done.sum()) / (time_s * peak)


def _warnings(priced: Costs, memory: Memory, system: "System") -> tuple[str, ...]:
    found = list(priced.warnings)
    if priced.unmodelled:
        found.append(f"priced by their bytes alone: {', '.join(priced.unmodelled)}")
    found += memory_warnings(memory, system)
    if system.count > 1:
        found.append(f"no plan: 1 of the {system.count} accelerators is replayed, the other {system.count - 1} idle")
    return tuple(found)
