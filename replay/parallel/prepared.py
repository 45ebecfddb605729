"""A local graph tabulated and priced once, for all plans that run it: what does not depend on pipeline or replicas."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from foretrace.ir import Graph, verify
from foretrace.replay.columns import Floats, Ints
from foretrace.replay.costs import CostModel, Costs
from foretrace.replay.lower import Execution
from foretrace.replay.table import OpTable, tabulate
from foretrace.transforms import apply
from foretrace.transforms.stages import cut

from .flow import Flow
from .memory import Life
from .outline import Outline
from .segment import Clock

if TYPE_CHECKING:
    from foretrace.hardware import System
    from foretrace.transforms.plan import Plan


@dataclass(frozen=True, eq=False)
class Prepared:
    """The graph that runs, after the execution's passes, at the sizes of a micro-batch. Plans may share it."""

    table: OpTable
    costs: Costs
    outline: Outline
    split: tuple[int, ...] | None = None
    """Layers of each stage, where the graph was fused for them."""
    clocks: dict[bytes, dict[Hashable, Clock]] = field(default_factory=dict)
    """Replayed segments by the seconds of the rows, then by their own rows and scale."""
    lives: dict[Hashable, dict[int, Life]] = field(default_factory=dict)
    """What passes take of memory (`memory.Lives.measured`)."""
    _stages: dict[Hashable, Ints] = field(default_factory=dict)

    @property
    def graph(self) -> Graph:
        """The graph of `table`."""
        return self.table.graph

    def common_rows(self, row: Ints, names: Sequence[str], seconds: Floats) -> Ints:
        """*row* [ops] with rows behind the table's replaced by what stands for them: *names* and *seconds* [added]."""
        rows, known = self.table.rows, self.outline.added_rows
        added = [known.setdefault((name, s), -1 - len(known)) for name, s in zip(names, seconds.tolist(), strict=True)]
        return np.concatenate([np.arange(rows), np.array(added, np.int64)])[row]

    def stages(self, plan: "Plan", system: "System", split: Sequence[int] | None) -> Ints:
        """[ops] the stage of each op under *plan*."""
        key = (plan.stages, plan.pp, None if split is None else tuple(split))
        if key not in self._stages:
            weights = _weights(self.costs.seconds[self.table.row], self.outline.flow, system)
            self._stages[key] = cut(self.graph, plan.stages, weights, split, self.outline.layers, plan.pp)
        return self._stages[key]


@dataclass(eq=False)
class Shared:
    """What replays of several plans have in common, made once each: give one to all of one graph and system.

    Local graphs, what follows from them, and their prices at a micro-batch size. Holds them all: make a new one when a
    search moves on.
    """

    locals: dict[Hashable, Graph] = field(default_factory=dict)
    prepared: dict[Hashable, Prepared] = field(default_factory=dict)
    outlines: dict[Hashable, Outline] = field(default_factory=dict)
    """Graphs as executions run them, whatever the micro-batch."""
    flops: dict[Hashable, int] = field(default_factory=dict)
    """Of whole graphs by their sizes."""

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
            self.prepared[key] = prepare(local, bindings, system, plan, mode, model, split, self.outlines)
        return self.prepared[key]

    def flops_of(self, graph: Graph, bindings: Mapping[str, int]) -> int:
        """`Graph.flops` of *graph* at *bindings*."""
        key = (id(graph), tuple(bindings.items()))
        if key not in self.flops:
            self.flops[key] = graph.flops(bindings)
        return self.flops[key]


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
    outlines: dict[Hashable, Outline] | None = None,
) -> Prepared:
    """*local* as *mode* runs it, priced. Nothing is fused across the cuts between *plan*'s stages.

    *outlines* keeps what does not depend on sizes, for the next.
    """
    known = {} if outlines is None else outlines

    def outlined(how: Hashable, make: Callable[[], Graph]) -> Outline:
        key = (id(local), system.name, mode.name, how)
        if key not in known:
            known[key] = Outline(make())
        return known[key]

    def priced(outline: Outline, cuts: tuple[int, ...] | None = None) -> Prepared:
        table = tabulate(outline.graph, bindings)
        return Prepared(table, model.price(table, system, mode.software), outline, cuts)

    if plan.stages == 1 or not mode.passes:
        return priced(outlined("whole", lambda: apply(mode.passes, local)), tuple(split) if split else None)
    before = priced(outlined("unfused", lambda: local))
    stage = before.stages(plan, system, split)
    layers = before.outline.layers
    of_layer = np.zeros(layers.count, np.int64)
    inside = (layers.place >= 0) & (layers.place < layers.count) & (stage >= 0)
    of_layer[layers.place[inside]] = stage[inside]
    cuts = tuple(np.bincount(of_layer, minlength=plan.stages).tolist())
    return priced(outlined(stage.tobytes(), lambda: _passed(local, mode, stage)), cuts)


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
