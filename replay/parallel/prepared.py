"""A local graph tabulated and priced once, for all plans that run it: what does not depend on pipeline or replicas."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from foretrace.ir import Graph, verify
from foretrace.replay.columns import Floats, Ints, Mask
from foretrace.replay.costs import CostModel, Costs
from foretrace.replay.lower import Execution, Program
from foretrace.replay.table import OpTable, tabulate
from foretrace.transforms import apply
from foretrace.transforms.stages import Layers, cut, find_layers, pass_of, phase_of

from .flow import Flow, derived_ops, trace_flow
from .segment import Clock

if TYPE_CHECKING:
    from foretrace.hardware import System
    from foretrace.transforms.plan import Plan


@dataclass(frozen=True, eq=False)
class Prepared:
    """The graph that runs, after the execution's passes, at the sizes of a micro-batch. Plans may share it."""

    table: OpTable
    costs: Costs
    split: tuple[int, ...] | None = None
    """Layers of each stage, where the graph was fused for them."""
    programs: dict[bytes, Program] = field(default_factory=dict)
    """Lowered segments by their rows: what plans have made so far."""
    clocks: dict[bytes, dict[Hashable, Clock]] = field(default_factory=dict)
    """Replayed segments by the seconds of the rows, then by their own rows and scale."""
    added_rows: dict[tuple[str, float], int] = field(default_factory=dict)
    """The number below 0 that stands in both for an op that a plan adds, by its name and seconds."""

    @property
    def graph(self) -> Graph:
        """The graph of `table`."""
        return self.table.graph

    @cached_property
    def layers(self) -> Layers:
        """Its layers."""
        return find_layers(self.graph)

    @cached_property
    def flow(self) -> Flow:
        """Who reads what."""
        return trace_flow(self.graph)

    @cached_property
    def phases(self) -> Ints:
        """[ops] an `OpPass`, backwards whole."""
        return phase_of(self.graph)

    @cached_property
    def halves(self) -> Ints:
        """[ops] an `OpPass`, backwards in two."""
        return pass_of(self.graph, self.layers)

    @cached_property
    def derived(self) -> Mask:
        """[ops] what every stage makes for itself."""
        return derived_ops(self.graph, self.layers.place)

    def common_rows(self, row: Ints, names: Sequence[str], seconds: Floats) -> Ints:
        """*row* [ops] with rows behind the table's replaced by what stands for them: *names* and *seconds* [added]."""
        rows = self.table.rows
        added = [
            self.added_rows.setdefault((name, s), -1 - len(self.added_rows))
            for name, s in zip(names, seconds.tolist(), strict=True)
        ]
        return np.concatenate([np.arange(rows), np.array(added, np.int64)])[row]

    def stages(self, plan: "Plan", system: "System", split: Sequence[int] | None) -> Ints:
        """[ops] the stage of each op under *plan*."""
        seconds = self.costs.seconds[self.table.row]
        return cut(self.graph, plan.stages, _weights(seconds, self.flow, system), split, self.layers, plan.pp)


@dataclass(eq=False)
class Shared:
    """What replays of several plans have in common, made once each: give one to all of one graph and system.

    Local graphs, and their prices at a micro-batch size. Holds them all: make a new one when a search moves on.
    """

    locals: dict[Hashable, Graph] = field(default_factory=dict)
    prepared: dict[Hashable, Prepared] = field(default_factory=dict)
    lowered: dict[Hashable, tuple[dict[bytes, Program], dict[tuple[str, float], int]]] = field(default_factory=dict)
    """`Prepared.programs` and the numbers of added rows in them, whatever the micro-batch."""

    def local(self, graph: Graph, plan: "Plan", make: Callable[[Graph, "Plan"], Graph], more: Hashable = None) -> Graph:
        """The local graph of *plan*, that *make* makes; *more* is what else decides it."""
        key = (id(graph), *local_key(plan), more)
        if key not in self.locals:
            self.locals[key] = make(graph, plan)
        return self.locals[key]

    def prepare(
        self,
        local: Graph,
        bindings: Mapping[str, int],
        system: "System",
        plan: "Plan",
        mode: Execution,
        model: CostModel,
        split: Sequence[int] | None = None,
    ) -> Prepared:
        """`prepare`, where no plan before asked for the same."""
        fused = (plan.pp, plan.stages, tuple(split or ())) if mode.passes else ()
        key = (id(local), tuple(bindings.items()), system.name, system.count, mode.name, model.name, fused)
        if key not in self.prepared:
            made = prepare(local, bindings, system, plan, mode, model, split)
            sizes_left_open = (id(local), system.name, mode.name, fused)
            programs, added = self.lowered.setdefault(sizes_left_open, (made.programs, made.added_rows))
            self.prepared[key] = replace(made, programs=programs, added_rows=added)
        return self.prepared[key]


def local_key(plan: "Plan") -> tuple[Hashable, ...]:
    """What of *plan* decides the local graph."""
    return plan.tp, plan.sp, plan.cp, plan.ring, plan.ep, plan.stride("ep"), plan.skew, plan.recompute


def prepare(
    local: Graph,
    bindings: Mapping[str, int],
    system: "System",
    plan: "Plan",
    mode: Execution,
    model: CostModel,
    split: Sequence[int] | None = None,
) -> Prepared:
    """*local* as *mode* runs it, priced. Nothing is fused across the cuts between *plan*'s stages."""

    def priced(graph: Graph, cuts: tuple[int, ...] | None = None) -> Prepared:
        table = tabulate(graph, bindings)
        return Prepared(table, model.price(table, system, mode.software), cuts)

    if plan.stages == 1 or not mode.passes:
        return priced(apply(mode.passes, local), tuple(split) if split else None)
    before = priced(local)
    stage = before.stages(plan, system, split)
    place, count = before.layers.place, before.layers.count
    of_layer = np.zeros(count, np.int64)
    inside = (place >= 0) & (place < count) & (stage >= 0)
    of_layer[place[inside]] = stage[inside]
    cuts = tuple(np.bincount(of_layer, minlength=plan.stages).tolist())
    return priced(_passed(local, mode, stage), cuts)


def _passed(local: Graph, mode: Execution, stage: Ints) -> Graph:
    """*local* after *mode*'s passes, which keep to one phase: for them a phase is that of one stage."""
    marked = [replace(op, phase=f"{op.phase} {s}") for op, s in zip(local.ops, stage.tolist(), strict=True)]
    graph = replace(local, ops=tuple(marked))
    for step in mode.passes:
        graph = step.run(graph)
    return verify(replace(graph, ops=tuple([replace(op, phase=op.phase.split()[0]) for op in graph.ops])))


def _weights(seconds: Floats, flow: Flow, system: "System") -> Floats:
    """[ops] what an op takes of its stage: its device time, or where that is longer its dispatch."""
    issue_s = 0.0 if system.accelerator.synchronous else system.host.dispatch_s
    return np.asarray(np.maximum(seconds, issue_s * flow.launching))
