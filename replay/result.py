"""What a replay gives: times with an interval, where they go, memory, and the trace behind them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from foretrace.ir import VERSION, Graph, UnknownNameError

from .attribution import Share, rank_shares
from .columns import Floats, Ints, Mask
from .costs import Costs
from .engine import TICKS_PER_SECOND, Timeline
from .footprint import Footprint
from .lower import Program
from .table import OpTable

if TYPE_CHECKING:
    from foretrace.hardware import System
    from foretrace.traces import Trace

    from .parallel import Parallel, RankResult

TIGHT: Final = 0.95
"""Share of the capacity above which a fit deserves a word."""


@dataclass(frozen=True, eq=False)
class Memory:
    """The memory of one accelerator over the step."""

    peak_bytes: int
    capacity_bytes: int
    fits: bool
    by_category_bytes: Mapping[str, int]
    """At the peak; keys `footprint.CATEGORIES`."""
    peak_time_s: float
    peak_op: str | None
    """Name and module of the op whose allocation makes the peak."""


@dataclass(frozen=True, eq=False)
class Result:
    """The prediction for one step. Seconds, bytes, FLOP."""

    model: str
    system: str
    phase: str
    dtype: str
    """Of the weights, as captured; empty where the graph does not say."""
    plan: str | None
    execution: str
    costs: str
    """The cost model's name."""
    bindings: Mapping[str, int]
    time_s: float
    time_low_s: float
    time_high_s: float
    phases_s: Mapping[str, float]
    """forward, backward, optimizer; they sum to the whole."""
    breakdown_s: Mapping[str, float]
    """compute, exposed_communication, host, bubble, idle; their sum is `time_s`."""
    flops: int
    """Of matmul-like and attention ops, causal attention in full."""
    mfu: float
    """flops over what the accelerators could do in `time_s` in the format that most of them use."""
    memory: Memory
    ops: int
    """Of the captured graph."""
    unmodelled_ops: tuple[str, ...]
    warnings: tuple[str, ...]
    table: OpTable = field(repr=False)
    """The graph that ran (after fusion), at its sizes."""
    priced: Costs = field(repr=False)
    program: Program = field(repr=False)
    """Under a plan the nodes of the step, which belong to no op (see `parallel.step`)."""
    timeline: Timeline = field(repr=False)
    footprint: Footprint = field(repr=False)
    parallel: "Parallel | None" = field(default=None, repr=False)
    """Where a plan was replayed: its ranks, HFU, the critical path. Times are then means over all ranks, memory that
    of the fullest, `table` the graph of a rank that held every stage."""

    def to_json(self) -> dict[str, Any]:
        """One JSON object: the keys of the command line's contract, and a few more."""
        memory = self.memory
        return {
            "foretrace": VERSION,
            "model": self.model,
            "system": self.system,
            "phase": self.phase,
            "dtype": self.dtype,
            "plan": self.plan,
            "execution": self.execution,
            "costs": self.costs,
            "symbols": dict(self.bindings),
            "time_s": self.time_s,
            "time_low_s": self.time_low_s,
            "time_high_s": self.time_high_s,
            "phases_s": dict(self.phases_s),
            "breakdown_s": dict(self.breakdown_s),
            "flops": self.flops,
            "mfu": self.mfu,
            "memory": {
                "peak_bytes": memory.peak_bytes,
                "capacity_bytes": memory.capacity_bytes,
                "fits": memory.fits,
                "by_category_bytes": dict(memory.by_category_bytes),
                "peak_time_s": memory.peak_time_s,
                "peak_op": memory.peak_op,
                "largest": [a._asdict() for a in self.footprint.largest],
            },
            "ops": self.ops,
            "kernels": self.kernels,
            "unmodelled_ops": list(self.unmodelled_ops),
            "warnings": list(self.warnings),
        } | (self.parallel.to_json() if self.parallel else {})

    def rank(self, rank: int) -> "RankResult":
        """The part of one *rank*: breakdown, phases, memory. Raises `UnknownNameError` for a rank that is not there."""
        if self.parallel is None:
            raise UnknownNameError("rank", str(rank), (), "one accelerator was replayed: give a plan")
        return self.parallel.rank(rank)

    @property
    def kernels(self) -> int:
        """How many kernels run; under a plan on the ranks of one pipeline."""
        if self.parallel is not None:
            return self.parallel.kernels
        return int(self.program.on_device.sum())

    @cached_property
    def device_s(self) -> Floats:
        """[n] Seconds of each op of `table` on the device, 0 for those that start nothing there.

        Under a plan over all micro-batches.
        """
        if self.parallel is not None:
            return np.asarray(self.priced.seconds[self.table.row] * self.parallel.run.runs[: self.table.ops])
        kernels = self.program.on_device
        seconds = np.zeros(self.table.ops)
        seconds[self.program.op[kernels]] = self.timeline.schedule.duration[kernels] / TICKS_PER_SECOND
        return seconds

    def by_module(self, depth: int = 2, fold: bool = False) -> list[Share]:
        """Device time by module path cut to *depth* parts (0: all in one), the most first.

        With *fold* the instances of a repeated module are one line (``model.layers.*``).
        """

        def shown(module: str) -> str:
            parts = module.split(".")[:depth]
            return ".".join("*" if fold and p.isdigit() else p for p in parts)

        cut = {m: shown(m) for m in {op.module for op in self._graph.ops}}
        return self._ranked([cut[op.module] for op in self._graph.ops])

    def top_ops(self, count: int = 10) -> list[Share]:
        """The *count* operators (by the framework's name) with the most device time."""
        return self._ranked([op.name for op in self._graph.ops])[:count]

    @property
    def _graph(self) -> Graph:
        """The graph that rankings are of; a plan's own ops stand behind the others."""
        return self.parallel.run.priced.graph if self.parallel else self.table.graph

    def _ranked(self, names: list[str]) -> list[Share]:
        if self.parallel is not None:
            return rank_shares(names, *self.parallel.ranking())
        bound: Ints = self.priced.bound[self.table.row].astype(np.int64)
        counted: Mask = np.zeros(self.table.ops, np.bool_)
        counted[self.program.op[self.program.on_device]] = True
        return rank_shares(names, self.table.kind[self.table.row].astype(np.int64), bound, self.device_s, counted)

    @cached_property
    def trace(self) -> "Trace":
        """The predicted trace: an event for each kernel on its stream, and for what the host does.

        Its op ids count the ops of `table.graph`, the graph that ran.
        """
        from .events import predicted_trace

        return self.trace_of() if self.parallel else predicted_trace(self)

    def trace_of(self, ranks: Sequence[int] | None = None) -> "Trace":
        """The predicted trace of some *ranks* of a plan, by default one of each pipeline rank."""
        if self.parallel is None:
            raise UnknownNameError("ranks", str(ranks), (), "one accelerator was replayed: give a plan")
        from .parallel.events import plan_trace

        return plan_trace(self, self.parallel, ranks)


def memory_warnings(memory: Memory, system: "System") -> list[str]:
    """What to say where *memory* does not fit, or hardly."""
    if not memory.fits:
        from foretrace.hardware import format_quantity

        peak, capacity = (format_quantity(b, "size") for b in (memory.peak_bytes, memory.capacity_bytes))
        return [f"does not fit: the step needs {peak} and {system.accelerator.name} has {capacity}"]
    if memory.peak_bytes > TIGHT * memory.capacity_bytes:
        return ["fits with less than 5 % to spare: driver, context and fragmentation are not counted"]
    return []
