"""Whether a schedule is complete and can run, and when its passes start; a deadlock is named with its cycle."""

import numpy as np
from numpy.typing import ArrayLike

from .table import Ints, Pass, PipelineSchedule, ScheduleError, dependencies


def check(schedule: PipelineSchedule) -> None:
    """Raise `ScheduleError` unless *schedule* is complete and runs to its end.

    Complete: each (stage, micro-batch) has one forward and either one backward or one of each of its halves, all on
    one rank; no rank is without passes, and no two passes of a rank share a slot. It runs to its end if the passes,
    in order on each rank, never wait for each other in a circle; the error prints the circle.
    """
    _check_slots(schedule)
    _check_complete(schedule)
    _check_places(schedule)
    _check_ranks(schedule)
    source, target = dependencies(schedule)
    start = _play(schedule, np.ones(schedule.rows, np.int64), source, target)
    if (start < 0).any():
        raise _deadlock(schedule, start, source, target)


def start_times(schedule: PipelineSchedule, duration: ArrayLike) -> Ints:
    """[n] when each pass starts, where each starts as soon as it can and communication is free.

    *duration*: [n] integers of any unit. Raises `ScheduleError` for a deadlock. The replay engine gives the same
    times, and is the one for real durations and communication.
    """
    source, target = dependencies(schedule)
    start = _play(schedule, np.broadcast_to(np.asarray(duration, np.int64), schedule.rows), source, target)
    if (start < 0).any():
        raise _deadlock(schedule, start, source, target)
    return start


def _play(schedule: PipelineSchedule, duration: Ints, source: Ints, target: Ints) -> Ints:
    """[n] the longest path to each row over *source* → *target* and each rank's order; -1: it never starts."""
    n = schedule.rows
    queued = np.flatnonzero(schedule.rank[1:] == schedule.rank[:-1])
    source, target = np.concatenate((source, queued)), np.concatenate((target, queued + 1))
    waiting = np.bincount(target, minlength=n).tolist()
    first = np.concatenate(([0], np.cumsum(np.bincount(source, minlength=n)))).tolist()
    after, length = target[np.argsort(source, kind="stable")].tolist(), duration.tolist()
    ready, start = [0] * n, [-1] * n
    free = [row for row, count in enumerate(waiting) if not count]
    while free:
        row = free.pop()
        start[row] = ready[row]
        end = ready[row] + length[row]
        for other in after[first[row] : first[row + 1]]:
            if ready[other] < end:
                ready[other] = end
            waiting[other] -= 1
            if not waiting[other]:
                free.append(other)
    return np.array(start, np.int64)


def _deadlock(schedule: PipelineSchedule, start: Ints, source: Ints, target: Ints) -> ScheduleError:
    """The error for rows that never start: from one rank's next pass to what it needs, to that rank's next, and on."""
    stuck = start < 0
    needs = np.full(schedule.rows, -1, np.int64)
    open_edge = stuck[source]
    needs[target[open_edge]] = source[open_edge]
    _, first = np.unique(schedule.rank[stuck], return_index=True)
    heads = np.flatnonzero(stuck)[first]
    head_of = dict(zip(schedule.rank[heads].tolist(), heads.tolist(), strict=True))

    walk: dict[int, int] = {}  # the next pass of a rank, to its place in the walk
    head = int(heads[0])
    while head not in walk:
        walk[head] = len(walk)
        head = head_of[int(schedule.rank[needs[head]])]
    lines = [schedule.describe(head)]
    for member in list(walk)[walk[head] :]:
        wanted = int(needs[member])
        lines.append(f"-> needs {schedule.describe(wanted)}")
        following = head_of[int(schedule.rank[wanted])]
        if following != wanted:
            lines.append(f"-> queued behind {schedule.describe(following)}")
    return ScheduleError(f"schedule {schedule.name} deadlocks: " + "\n  ".join(lines))


def _check_slots(schedule: PipelineSchedule) -> None:
    same = (schedule.rank[1:] == schedule.rank[:-1]) & (schedule.slot[1:] == schedule.slot[:-1])
    if same.any():
        at = int(same.argmax())
        one, other = (schedule.describe(row) for row in (at, at + 1))
        raise ScheduleError(f"schedule {schedule.name}: two passes share a slot: {one}; {other}")


def _check_complete(schedule: PipelineSchedule) -> None:
    cells = schedule.stages * schedule.micro_batches
    cell = schedule.stage * schedule.micro_batches + schedule.micro_batch
    present = np.unique(cell[schedule.work == Pass.FORWARD])
    if present.size < cells:  # before anything of the size of *cells* is made: a stranger's file may claim a lot
        gaps = np.append(present, cells) != np.arange(present.size + 1)
        raise _count_error(schedule, int(gaps.argmax()), "one forward", (Pass.FORWARD,))
    count = [np.bincount(cell[schedule.work == work], minlength=cells) for work in Pass]
    rules = (
        ("one forward", (Pass.FORWARD,), count[Pass.FORWARD] == 1),
        (
            "one backward or one backward-input",
            (Pass.BACKWARD, Pass.BACKWARD_INPUT),
            count[Pass.BACKWARD] + count[Pass.BACKWARD_INPUT] == 1,
        ),
        (
            "one backward-weight with each backward-input, none with a backward",
            (Pass.BACKWARD_WEIGHT,),
            count[Pass.BACKWARD_WEIGHT] == count[Pass.BACKWARD_INPUT],
        ),
    )
    for wanted, passes, holds in rules:
        if not holds.all():
            raise _count_error(schedule, int(holds.argmin()), wanted, passes)


def _count_error(schedule: PipelineSchedule, cell: int, wanted: str, passes: tuple[Pass, ...]) -> ScheduleError:
    """The error for one (stage, micro-batch) that has not what is *wanted*, with the rows that it has."""
    stage, micro_batch = divmod(cell, schedule.micro_batches)
    here = (schedule.stage == stage) & (schedule.micro_batch == micro_batch) & np.isin(schedule.work, passes)
    rows = np.flatnonzero(here)
    places = [f"rank {schedule.rank[row]} slot {schedule.slot[row]}" for row in rows[:5]]
    came = f"{rows.size}: {', '.join(places)}" if rows.size else "none"
    place = f"schedule {schedule.name}: stage {stage} micro-batch {micro_batch}"
    return ScheduleError(f"{place}: expected {wanted}, got {came}")


def _check_places(schedule: PipelineSchedule) -> None:
    """Each (stage, micro-batch) on one rank: what a backward reads lies where its forward ran."""
    cell = schedule.stage * schedule.micro_batches + schedule.micro_batch
    order = np.argsort(cell, kind="stable")
    moved = (cell[order][1:] == cell[order][:-1]) & (schedule.rank[order][1:] != schedule.rank[order][:-1])
    if moved.any():
        at = int(moved.argmax())
        one, other = (schedule.describe(int(row)) for row in order[at : at + 2])
        raise ScheduleError(f"schedule {schedule.name}: a backward runs where its forward ran: {one}; {other}")


def _check_ranks(schedule: PipelineSchedule) -> None:
    used = np.unique(schedule.rank)
    if used.size < schedule.ranks:
        idle = int((np.append(used, schedule.ranks) != np.arange(used.size + 1)).argmax())
        raise ScheduleError(
            f"schedule {schedule.name}: expected passes on each of {schedule.ranks} ranks, got none on rank {idle}"
        )
