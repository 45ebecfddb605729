"""A replayed plan as a `Result`: means over ranks, the fullest rank's memory, and an answer for each rank."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from foretrace.ir import UnknownNameError
from foretrace.replay.attribution import BREAKDOWN, PHASES
from foretrace.replay.columns import Floats, Ints
from foretrace.replay.costs.roofline import causal_share, matrix_rate
from foretrace.replay.engine import TICKS_PER_SECOND
from foretrace.replay.footprint import Footprint
from foretrace.transforms.stages import OpPass

from .memory import RankMemory
from .run import PlanRun

if TYPE_CHECKING:
    from foretrace.hardware import System


@dataclass(frozen=True, eq=False)
class RankResult:
    """One rank's part of a step; ranks that are alike share it."""

    rank: int
    """The first rank that it holds for."""
    count: int
    """How many ranks it holds for."""
    pipeline_rank: int
    stages: tuple[int, ...]
    layers: int
    """Over all its stages."""
    parameters: int
    """Elements it holds before anything is divided among replicas."""
    busy_s: float
    """Until its last op ends."""
    breakdown_s: Mapping[str, float]
    phases_s: Mapping[str, float]
    memory: RankMemory

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        memory = self.memory
        return {
            "rank": self.rank,
            "count": self.count,
            "pipeline_rank": self.pipeline_rank,
            "stages": list(self.stages),
            "layers": self.layers,
            "parameters": self.parameters,
            "busy_s": self.busy_s,
            "breakdown_s": dict(self.breakdown_s),
            "phases_s": dict(self.phases_s),
            "memory": {
                "peak_bytes": memory.peak_bytes,
                "by_category_bytes": dict(memory.by_category_bytes),
                "peak_time_s": memory.peak_time_s,
                "peak_op": memory.peak_op,
                "in_flight": memory.in_flight,
            },
        }


@dataclass(frozen=True, eq=False)
class Parallel:
    """What a `Result` has besides where a plan was replayed."""

    run: PlanRun
    batch: int
    """Samples of the global step."""
    useful_flops: int
    system: "System"

    @cached_property
    def ranks(self) -> tuple[RankResult, ...]:
        """Every simulated rank: pipeline ranks of each class of replicas."""
        return tuple(self._rank(q) for q in range(len(self.run.memory)))

    def rank(self, rank: int) -> RankResult:
        """The answer for global *rank*. Raises `UnknownNameError` for one that the plan has not."""
        plan = self.run.plan
        if not 0 <= rank < plan.ranks:
            raise UnknownNameError("rank", str(rank), (), f"the plan has ranks 0 to {plan.ranks - 1}")
        return self.ranks[self.run.replicas.simulated(plan.place(rank), plan.pp)]

    def _rank(self, q: int) -> RankResult:
        run, plan = self.run, self.run.plan
        c, p = divmod(q, plan.pp)
        replica = run.replicas.of_replica.index(c) if run.replicas.of_replica else 0
        stages = np.unique(run.schedule.stage[run.schedule.rank == p])
        place, stage = run.cutting.place, run.cutting.stage
        inside = np.isin(stage, stages) & (run.cutting.passes == OpPass.FORWARD)
        inside &= (place >= 0) & (place < run.cutting.layers)
        items = np.flatnonzero(run.step.items.rank == q)
        last = run.timeline.end[run.step.run_of[items]].max(initial=0)
        return RankResult(
            replica * plan.stride("dp") + p * plan.stride("pp"),
            plan.tp * plan.cp * run.replicas.sizes(plan.dp)[c],
            p,
            tuple(stages.tolist()),
            np.unique(place[inside]).size,
            round(float(run.holdings.sums(run.holdings.elements)[p])),
            float(last) / TICKS_PER_SECOND,
            _seconds(BREAKDOWN, run.accounts.breakdown[q]),
            _seconds(PHASES, run.accounts.phases[q]),
            run.memory[q],
        )

    @cached_property
    def launches(self) -> Floats:
        """[ops of the priced graph] how often each starts a kernel, on the ranks of one pipeline."""
        own = self.run.cutting.flow.launching
        added = np.ones(self.run.runs.size - own.size, np.bool_)
        return np.asarray(np.rint(np.where(np.concatenate([own, added]), self.run.launches, 0.0)))

    def ranking(self) -> tuple[Ints, Ints, Floats, Floats]:
        """[ops of the priced graph] kind, bound, device seconds over all micro-batches, and how often each runs."""
        priced, tables = self.run.priced, (self.run.table, self.run.priced.added_table)
        kind = np.concatenate([t.kind for t in tables]).astype(np.int64)[priced.row]
        bound = np.concatenate([c.bound for c in (priced.main, priced.added)]).astype(np.int64)[priced.row]
        seconds = np.asarray(priced.seconds[priced.row] * self.run.runs)
        return kind, bound, seconds, self.launches

    @property
    def kernels(self) -> int:
        """How many kernels the ranks of one pipeline run."""
        return int(self.launches.sum())

    @cached_property
    def weights(self) -> Floats:
        """[simulated ranks] the share of all ranks that each stands for."""
        plan = self.run.plan
        sizes = np.array(self.run.replicas.sizes(plan.dp), np.float64)
        return np.repeat(sizes / plan.dp, plan.pp) / plan.pp

    def mean(self, names: tuple[str, ...], ticks: Ints) -> dict[str, float]:
        """The mean over all ranks of *ticks* [simulated ranks, names], seconds."""
        return _seconds(names, self.weights @ ticks)

    @cached_property
    def fullest(self) -> RankMemory:
        """The memory of the rank with the highest peak."""
        return max(self.run.memory, key=lambda memory: memory.peak_bytes)

    @cached_property
    def footprint(self) -> Footprint:
        """The peak of the fullest rank."""
        memory = self.fullest
        tick = round(memory.peak_time_s * TICKS_PER_SECOND)
        peak = np.array([memory.peak_bytes], np.int64)
        return Footprint(
            np.zeros(1, np.int64), peak, memory.peak_bytes, tick, None, memory.by_category_bytes, memory.largest
        )

    @cached_property
    def utilisation(self) -> tuple[float, float]:
        """MFU and HFU: useful FLOPs, and all that ran with recomputation, over what the accelerators could do.

        Causal attention counts the half that kernels work through. HFU: Korthikanti et al. 2022, arXiv:2205.05198.
        """
        run, table = self.run, self.run.table
        time_s = run.timeline.makespan / TICKS_PER_SECOND
        counts_causal = table.matrix_flops * causal_share(table)
        runs = run.runs[: table.ops]
        done = np.bincount(table.row, runs, minlength=table.rows)
        useful = np.bincount(table.row, np.where(run.again, 0.0, runs), minlength=table.rows)
        if not (counts_causal * done).any() or not time_s:
            return 0.0, 0.0
        dtype = table.dtypes[int(np.bincount(table.dtype, counts_causal * done).argmax())]
        peak = matrix_rate(self.system.accelerator, dtype)[0] * time_s * run.plan.ranks
        share = float((counts_causal * useful).sum() / max(float((table.matrix_flops * useful).sum()), 1.0))
        mfu = self.useful_flops * share / peak
        return mfu, mfu * float((counts_causal * done).sum() / (counts_causal * useful).sum())

    def to_json(self) -> dict[str, Any]:
        """What ``--json`` shows besides."""
        run = self.run
        return {
            "hfu": self.utilisation[1],
            "batch": self.batch,
            "micro_batches": run.micro_batches,
            "schedule": run.schedule.name,
            "critical_path": {name: ticks / TICKS_PER_SECOND for name, ticks in run.critical.items()},
            "ranks": [rank.to_json() for rank in self.ranks],
        }


def _seconds(names: tuple[str, ...], ticks: "Ints | Floats") -> dict[str, float]:
    return {name: float(t) / TICKS_PER_SECOND for name, t in zip(names, ticks, strict=True)}
