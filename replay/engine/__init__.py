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
"""Nodes from which ``auto`` compiles."""


def run(schedule: Schedule, engine: Engine = "auto", label: Callable[[int], str] = str) -> Timeline:
    """Replay *schedule*; ``auto`` compiles from `COMPILED_FROM` nodes, below it needs no clock on in-order resources.

    Raises `GraphError` where nodes wait on each other for ever (a cycle, or in-order queues in deadlock) and
    names them with *label*; `UnknownNameError` for an engine that does not exist.
    """
    if engine == "auto":
        engine = (
            "compiled" if schedule.nodes >= COMPILED_FROM else "in_order" if schedule.in_order.all() else "reference"
        )
    if engine == "reference":
        from .reference import replay
    elif engine == "in_order" and schedule.in_order.all():
        from .in_order import replay
    elif engine == "compiled":
        from .compiled import replay
    else:
        raise UnknownNameError("engine", engine, ("auto", "reference", "compiled"))
    start, previous = replay(schedule)
    if (start < 0).any():
        raise blocked(schedule, start, label)
    return Timeline(schedule, start, previous)
