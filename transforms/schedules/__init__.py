"""Pipeline schedules as data: a table of (rank, slot, micro-batch, stage, pass).

`table` the table, its dependencies and what it holds in flight · `named` GPipe, 1F1B, interleaved, ZB-H1, DualPipe ·
`check` completeness and deadlocks · `file` CSV and YAML · `picture` a schedule in text.
"""

import os
from pathlib import Path

from foretrace.ir import UnknownNameError

from .check import check, start_times
from .file import SUFFIXES, read_schedule, write_schedule
from .named import NAMED, dualpipe, gpipe, interleaved, one_f_one_b, zb_h1
from .picture import render
from .table import Pass, PipelineSchedule, ScheduleError, dependencies, in_flight

__all__ = [
    "NAMED",
    "Pass",
    "PipelineSchedule",
    "ScheduleError",
    "check",
    "dependencies",
    "dualpipe",
    "gpipe",
    "in_flight",
    "interleaved",
    "load_schedule",
    "one_f_one_b",
    "read_schedule",
    "render",
    "start_times",
    "write_schedule",
    "zb_h1",
]


def load_schedule(
    name_or_path: str | os.PathLike[str], ranks: int, interleave: int = 1, micro_batches: int = 1
) -> PipelineSchedule:
    """The schedule of a name in `NAMED`, or of a file, for *ranks* pipeline ranks with *interleave* stages each.

    Raises `UnknownNameError` for a name that is none, and `ScheduleError` naming the factor and its nearest valid
    value where the schedule does not exist for them; a file must hold exactly these. Files also raise as
    `read_schedule`.
    """
    for factor, value in (("pp", ranks), ("interleave", interleave), ("the number of micro-batches", micro_batches)):
        if value < 1:
            raise ScheduleError(f"{factor}: expected 1 or more, got {value}; nearest valid: 1")
    text = os.fspath(name_or_path)
    if Path(text).suffix.lower() in SUFFIXES or os.sep in text or "/" in text:
        return _fitting(read_schedule(text), text, ranks, interleave, micro_batches)
    name = text.strip().lower()
    if name not in NAMED:
        raise UnknownNameError("schedule", text, NAMED, f"one of {', '.join(NAMED)}, or a .csv or .yaml file")
    if interleave > 1 and name != "interleaved":
        raise ScheduleError(
            f"interleave: schedule={name} has one stage a rank, got interleave={interleave}; nearest valid: "
            f"interleave=1, or schedule=interleaved"
        )
    return NAMED[name](ranks, interleave, micro_batches)


def _fitting(
    schedule: PipelineSchedule, shown: str, ranks: int, interleave: int, micro_batches: int
) -> PipelineSchedule:
    """*schedule*, read from the file *shown*, where it is of the sizes that the plan asks for."""
    if schedule.ranks != ranks:
        raise ScheduleError(
            f"pp: schedule={shown} is for {schedule.ranks} ranks, got pp={ranks}; nearest valid: pp={schedule.ranks}"
        )
    chunks, rest = divmod(schedule.stages, ranks)
    if rest:
        raise ScheduleError(
            f"interleave: schedule={shown} has {schedule.stages} stages, expected a multiple of pp={ranks}; "
            f"nearest valid: {max(ranks, round(schedule.stages / ranks) * ranks)} stages"
        )
    if chunks != interleave:
        raise ScheduleError(
            f"interleave: schedule={shown} has {schedule.stages} stages on {ranks} ranks, got "
            f"interleave={interleave}; nearest valid: interleave={chunks}"
        )
    if schedule.micro_batches != micro_batches:
        raise ScheduleError(
            f"the number of micro-batches: schedule={shown} is for {schedule.micro_batches}, got {micro_batches}; "
            f"nearest valid: {schedule.micro_batches}"
        )
    return schedule
