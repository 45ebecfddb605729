"""Rows that measure training steps, replayed under their plans: times, and what else a row reports."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from foretrace.ir import ForetraceError, Graph, parse_dtype
from foretrace.replay.columns import OpColumns
from foretrace.replay.costs import BOUNDS, CostModel, Costs
from foretrace.replay.costs.physics.facts import GENERIC
from foretrace.replay.costs.physics.hosting import Pace
from foretrace.replay.costs.physics.profile import Profile, load_profile
from foretrace.replay.costs.roofline import matrix_rate
from foretrace.replay.lower import Execution, load_execution, lower_training
from foretrace.replay.parallel.policy import MemoryPolicy, Overlap
from foretrace.replay.parallel.prepared import Prepared, prepare
from foretrace.replay.parallel.run import PlanRun, replay_plan
from foretrace.replay.table import OpTable
from foretrace.transforms import apply
from foretrace.transforms.master_weights import MasterWeights
from foretrace.transforms.parallel import parallelise

from .row_values import Captured, Cell, Row, Shape, Verdict, ms, number
from .training_memory import memory_of
from .training_plans import NANOTRON, Run, read_run

if TYPE_CHECKING:
    from foretrace.hardware import System

GIB: Final = 2**30


@dataclass(frozen=True)
class SlowRings:
    """A cost model whose tensor-parallel collectives take *step_s* more at each step of their ring."""

    costs: CostModel
    step_s: float

    @property
    def name(self) -> str:
        """Of the cost model inside."""
        return self.costs.name

    def price(self, columns: OpColumns, system: "System", software: str = "eager") -> Costs:
        """The prices of the model inside, and the steps."""
        priced = self.costs.price(columns, system, software)
        if not isinstance(columns, OpTable):
            return priced
        ops = columns.graph.ops
        inside = np.array([ops[i].attributes.get("group") == "tp" for i in columns.first.tolist()], np.bool_)
        added = self.step_s * inside * (columns.attribute("ranks", 1.0) - 1)
        seconds = {name: getattr(priced, name) + added for name in ("seconds", "low_s", "high_s")}
        return replace(priced, **seconds)


@dataclass
class TrainingReplays:
    """Training steps replayed: graphs captured, divided and fused once each."""

    costs: CostModel
    capture: Callable[[Captured, Shape], Graph]
    _local: dict[Any, Graph] = field(default_factory=dict)
    _prepared: dict[Any, Prepared] = field(default_factory=dict)

    def run(self, run: Run, system: "System", profile: Profile | None = None) -> PlanRun:
        """The replay of *run* on the accelerators of *system*; *profile* (while fitting, so without an interval) stands
        for that of its execution.
        """
        mode = load_execution(run.framework.execution)
        software = load_profile(mode.software) if profile is None else profile
        pace: Pace = software.constants("pace", GENERIC)
        plan, graph = run.plan, self.local(run, mode)
        bindings = graph.bind({"batch": run.at.batch, "seq": run.at.seq})
        ready, costs = self._on(run, system, mode, software)
        key = (id(graph), run.at, system.name, system.count, plan.pp > 1)
        prepared = self._prepared.get(key) if profile is None else None
        if prepared is None:
            prepared = prepare(graph, bindings, system, plan, ready, costs)
            if profile is None:
                self._prepared[key] = prepared
        return replay_plan(
            graph,
            bindings,
            system,
            plan,
            run.micro_batches,
            ready,
            costs,
            policy=MemoryPolicy(gradient=run.framework.gradient),
            overlap=Overlap(bucket=run.framework.bucket, exposed=pace.exposed),
            split=run.split,
            prepared=prepared,
            interval=profile is None,
        )

    def _on(self, run: Run, system: "System", mode: Execution, profile: Profile) -> tuple[Execution, CostModel]:
        """The execution (the graph is already as its passes leave it) and the costs, with what a cluster adds."""
        if not mode.waits:
            return replace(mode, passes=()), self.costs
        plan, hosting = run.plan, profile.constants("hosting", GENERIC)
        across = plan.pp > 1 and plan.ranks > system.node_size
        step_s = hosting.pipeline_step_s if across else 0.0
        lower = partial(lower_training, software=mode.software, hosting=hosting, step_s=step_s)
        slow = plan.tp > system.node_size and hosting.across_step_s > 0
        costs = SlowRings(self.costs, hosting.across_step_s) if slow else self.costs
        return replace(mode, passes=(), lower=lower), costs

    def local(self, run: Run, mode: Execution) -> Graph:
        """The graph of one rank: divided, with the optimizer, fused."""
        plan = run.plan
        ones = tuple(s == 1 for s in run.at)
        key = (run.what, ones, plan.tp, plan.sp, plan.cp, plan.ep, plan.ring, plan.recompute, mode.name)
        if key not in self._local:
            whole = self.capture(run.what, run.at)
            divided = parallelise(whole, plan)
            gradient = run.framework.gradient or run.what.dtype
            self._local[key] = apply((MasterWeights(gradient), *mode.passes), divided)
        return self._local[key]


COMPUTE_BOUND: Final = 0.1
"""Model FLOP utilisation, measured, above which a training row counts as bound by computation."""


def mfu_of(run: Run, replays: TrainingReplays, system: "System", seconds: float) -> float:
    """The share of the accelerators' peak that *run* reached in *seconds*: 6 FLOP a parameter and token, no more."""
    parameters = replays.capture(run.what, run.at).parameter_count
    tokens = run.plan.dp * run.micro_batches * (run.at.batch or 1) * (run.at.seq or 1)
    peak, _ = matrix_rate(system.accelerator, parse_dtype(run.what.dtype))
    return 6 * parameters * tokens / (seconds * peak * run.plan.ranks)


def system_of(run: Run, system: "System") -> "System":
    """*system*, as many accelerators as *run* takes."""
    from foretrace.hardware import load_system

    ranks = run.plan.ranks
    return system if ranks == system.count else load_system(f"{system.name}:{ranks}")


def training_cells(row: Row, system: "System", replays: TrainingReplays) -> Iterator[Cell | Verdict]:
    """The time of a step (again where computation bounds it), the memory reported, and whether it ran out of that."""
    run = read_run(row)
    system = system_of(run, system)
    result = replays.run(run, system)
    ran_out = str(row.get("status", "")) == "OOM"
    if run.framework is NANOTRON:
        memory = memory_of(run, result)
        yield Verdict("train_out_of_memory", ran_out, not memory.fits(system))
        reported = {"mem_alloc_gb": memory.allocated, "mem_reserved_gb": memory.reserved}
        for column, predicted in reported.items() if not ran_out else ():
            if (measured := number(row, column, 0.0) * GIB) > 0:
                kind = f"train_memory_{'allocated' if 'alloc' in column else 'reserved'}"
                yield Cell(kind, measured, predicted, predicted, predicted, aside=True)
    elif ran_out:
        raise ForetraceError("ran out of memory: has no step time, and of its framework no formats of memory are known")
    if ran_out:
        return
    measured_s = ms(row, "step_ms")
    seconds, low, high = (ticks / 1e12 for ticks in (result.timeline.makespan, *result.makespans))
    whole = Cell("train_step", measured_s, seconds, low, high, _bound(result))
    yield whole
    if mfu_of(run, replays, system, measured_s) > COMPUTE_BOUND:
        yield whole._replace(kind="train_step_compute_bound", aside=True)


def _bound(result: PlanRun) -> str:
    """What limits most of the time of the kernels of a micro-batch."""
    priced, row = result.priced.main, result.table.row
    by_bound = np.bincount(priced.bound[row], priced.seconds[row], minlength=len(BOUNDS))
    return BOUNDS[int(by_bound.argmax())]
