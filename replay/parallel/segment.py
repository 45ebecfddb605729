"""Segments: stretches of ops that one rank runs without waiting for another, each distinct one replayed once.

A rank's host and its device are two clocks. A segment that the host begins at h and that finds the device free at d
ends on the device at max(h + lead, d) + device, and on the host at max(h + host, d + block): four numbers, exact
where the kernels of a rank run on one stream (with two they meet at the ends of segments). They come from two replays
by the engine: one with the device free from the start, one with it free when the host has issued everything.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from foretrace.ir import Graph
from foretrace.replay.attribution import break_down
from foretrace.replay.columns import Floats, Ints, Mask
from foretrace.replay.engine import Engine, Timeline
from foretrace.replay.lower import Execution, Program

from .extras import Priced

if TYPE_CHECKING:
    from foretrace.hardware import System


@dataclass(frozen=True, eq=False)
class Timings:
    """The clocks of s segments, ticks."""

    lead: Ints
    """[s] host time before the device begins, where the device would run without a gap from then on."""
    device: Ints
    """[s]"""
    host: Ints
    """[s]"""
    block: Ints
    """[s] device time after which the host goes on, -1: it does not wait for the device."""
    compute: Ints
    """[s] of `device`, the ticks in which a kernel computes."""
    communication: Ints
    """[s] of `device`, the ticks in which only a collective runs; the rest the device waits for the host."""
    alone: tuple[Timeline, ...] = ()
    """[s] replays with the device free from the start."""
    ahead: tuple[tuple[int, Timeline], ...] = ()
    """[s] with the device free from the tick named on."""


class Clock(NamedTuple):
    """One segment's entry in `Timings`."""

    lead: int
    device: int
    host: int
    block: int
    compute: int
    communication: int
    free: int
    alone: Timeline
    ahead: Timeline


@dataclass(eq=False)
class Segments:
    """The distinct segments of a step: two with equal rows and speed are one."""

    priced: Priced
    row: Ints
    """[ops] equal for equal ops, in all plans that share `programs` and `clocks`."""
    system: "System"
    mode: Execution
    engine: Engine
    lowered: dict[bytes, Program] = field(default_factory=dict)
    clocks: dict[Hashable, Clock] = field(default_factory=dict)
    ops: list[Ints] = field(default_factory=list)
    """[s] op ids of the first segment of each sort."""
    scale: list[Floats | float] = field(default_factory=list)
    """[s] what device seconds of ops other than collectives are multiplied with: of all, or of each."""
    links: list[float] = field(default_factory=list)
    """[s] what those of collectives are multiplied with."""
    programs: list[Program] = field(default_factory=list)
    keys: list[tuple[bytes, bytes]] = field(default_factory=list)
    _known: dict[tuple[bytes, bytes], int] = field(default_factory=dict)

    def of(self, ops: Ints, scale: "Floats | float" = 1.0, links: float = 1.0) -> int:
        """The index of the segment of *ops* (ids in program order)."""
        rows = self.row[ops].tobytes()
        key = (rows, np.append(scale, links).tobytes())
        found = self._known.setdefault(key, len(self.ops))
        if found == len(self.ops):
            self.ops.append(ops)
            self.scale.append(scale)
            self.links.append(links)
            self.keys.append(key)
            if rows not in self.lowered:
                self.lowered[rows] = self.mode.lower(self.subgraph(ops), self.system)
            self.programs.append(self.lowered[rows])
        return found

    def subgraph(self, ops: Ints) -> Graph:
        """The graph of *ops* alone."""
        graph = self.priced.graph
        return replace(graph, ops=tuple([graph.ops[i] for i in ops.tolist()]))

    def time(self, seconds: Floats, collective: Mask, host_factor: float | None = None) -> Timings:
        """Replay every segment with device *seconds* [ops]; *collective* [ops] are those that links slow down.

        Without a *host_factor* the seconds are the predicted ones, and replays are shared among plans.
        """
        found: list[Clock] = []
        for s, key in enumerate(self.keys):
            clock = self.clocks.get(key) if host_factor is None else None
            if clock is None:
                clock = self._clock(s, seconds, collective, host_factor or 1.0)
            if host_factor is None:
                self.clocks[key] = clock
            found.append(clock)
        lead, device, host, block, compute, communication = np.array([c[:6] for c in found], np.int64).reshape(-1, 6).T
        alone, ahead = tuple(c.alone for c in found), tuple((c.free, c.ahead) for c in found)
        return Timings(lead, device, host, block, compute, communication, alone, ahead)

    def _clock(self, s: int, seconds: Floats, collective: Mask, host_factor: float) -> Clock:
        ops, program, graph = self.ops[s], self.programs[s], self.priced.extras.graph
        own = seconds[ops] * np.where(collective[ops], self.links[s], self.scale[s])
        first = program.run(graph, own, self.engine, host_factor)
        span = first.makespan
        if program.synchronous:
            parts = break_down(program, first)
            return Clock(0, span, 0, -1, parts["compute"], parts["exposed_communication"], 0, first, first)
        if not program.on_device.any():
            return Clock(0, 0, span, -1, 0, 0, 0, first, first)
        free = span + 1
        second = program.run(graph, own, self.engine, host_factor, free)
        kernels = program.on_device
        device = int(second.end[kernels].max()) - free
        issued = int(first.end[~kernels].max(initial=0))
        waited = int(second.end[~kernels].max(initial=0)) - free
        lead = max(int(first.end[kernels].max()) - device, 0)
        block = device if self.mode.waits else waited if waited > 0 else -1
        parts = break_down(program, second)
        compute, communication = parts["compute"], parts["exposed_communication"]
        return Clock(lead, device, max(issued, lead), block, compute, communication, free, first, second)
