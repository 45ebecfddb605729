"""The discrete-event core: when each node of a graph runs, on serial resources, in integer ticks.

At a time t all completions and releases drain first; then every free resource dispatches its next node by
(priority, node id): an in-order resource only its queue's head, any other the least of its ready nodes. A
node of zero duration completes at the same t, so draining and dispatching repeat, in rounds, until nothing
changes; then time moves on. A resource runs one node at a time, without pre-emption: a better node that
becomes ready in a later round of the same t waits. There are no floats and no global state: the outcome
depends on the schedule alone, and both engines give the same one.

This package imports numba only when the compiled engine runs.
"""

from collections.abc import Callable
from typing import Literal

from foretrace.ir import UnknownNameError

from .schedule import TICKS_PER_SECOND, Schedule, Timeline, blocked, seconds_from_ticks, ticks_from_seconds

__all__ = [
    "COMPILED_AFTER",
    "COMPILED_FROM",
    "TICKS_PER_SECOND",
    "Engine",
    "Schedule",
    "Timeline",
    "run",
    "seconds_from_ticks",
    "ticks_from_seconds",
]

Engine = Literal["auto", "reference", "in_order", "compiled"]

COMPILED_FROM = 100_000
"""Nodes from which ``auto`` compiles a schedule."""

COMPILED_AFTER = 300_000
"""Nodes that this process has replayed uncompiled, from which ``auto`` compiles in-order schedules of any size: by then
plain Python has taken as long as numba takes to load."""

_uncompiled = [0]


def run(schedule: Schedule, engine: Engine = "auto", label: Callable[[int], str] = str) -> Timeline:
    """Replay *schedule*; ``auto`` compiles where that pays, and needs no clock on in-order resources.

    Raises `GraphError` where nodes wait on each other for ever (a cycle, or in-order queues in deadlock) and
    names them with *label*; `UnknownNameError` for an engine that does not exist.
    """
    in_order = bool(schedule.in_order.all())
    compiled = engine == "auto" and schedule.nodes >= COMPILED_FROM
    if engine == "auto":
        engine = "in_order" if in_order else "compiled" if compiled else "reference"
    if engine == "in_order" and in_order:
        from .in_order import replay as replay_in_order

        compiled = compiled or _uncompiled[0] >= COMPILED_AFTER
        _uncompiled[0] += 0 if compiled else schedule.nodes
        start, previous = replay_in_order(schedule, compiled)
    elif engine == "reference":
        from .reference import replay

        start, previous = replay(schedule)
    elif engine == "compiled":
        from .compiled import replay

        start, previous = replay(schedule)
    else:
        raise UnknownNameError("engine", engine, ("auto", "reference", "compiled"))
    if (start < 0).any():
        raise blocked(schedule, start, label)
    return Timeline(schedule, start, previous)
