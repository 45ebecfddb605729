"""A schedule as a text picture: a line a rank, time to the right."""

from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from foretrace.ir import ForetraceError

from .check import start_times
from .table import Pass, PipelineSchedule

PASS_DURATIONS: Final = (1, 2, 1, 1)
"""Of F, B, I and W in the pictures: the textbook's, where a backward is two forwards."""


def render(schedule: PipelineSchedule, durations: ArrayLike = PASS_DURATIONS, columns: int = 160) -> str:
    """*schedule* drawn with *durations* (one a `Pass`, in units of time of one cell each), free communication.

    A cell is the letter of the pass and the micro-batch; behind it, where a rank holds several, ``/`` and the stage.
    ``-`` continues a pass, ``.`` is idle. What lies beyond *columns* characters is left out, ``>`` at the end.
    Raises `ScheduleError` for a deadlock::

        rank 0  F0 F1 .  .  B0 -- B1 --
        rank 1  .  F0 B0 -- F1 B1 --
    """
    each = np.asarray(durations, np.int64)
    if each.shape != (len(Pass),) or (each < 0).any():
        raise ForetraceError(f"durations: expected {len(Pass)} integers of 0 or more (F, B, I, W), got {each.tolist()}")
    start = start_times(schedule, each[schedule.work]).tolist()
    several = schedule.placement().shape[0] > schedule.ranks
    work, micro_batch, stage = (x.tolist() for x in (schedule.work, schedule.micro_batch, schedule.stage))
    digits = len(str(max(schedule.micro_batches - 1, 0))) + (1 + len(str(schedule.stages - 1)) if several else 0)
    width = 1 + digits
    head = len(f"rank {schedule.ranks - 1}") + 2
    fit = max(1, (columns - head) // (width + 1))
    lines, first = [], schedule.first_rows().tolist()
    for rank in range(schedule.ranks):
        cells: list[str] = []
        for row in range(first[rank], first[rank + 1]):
            length = min(int(each[work[row]]), fit + 1)
            if start[row] >= fit or not length:
                continue
            label = f"{Pass(work[row]).letter}{micro_batch[row]}" + (f"/{stage[row]}" if several else "")
            cells += ["."] * (start[row] - len(cells)) + [label] + ["-" * width] * (length - 1)
        shown = " ".join(f"{cell:{width}}" for cell in cells[:fit]).rstrip()
        cut = len(cells) > fit or (first[rank + 1] > first[rank] and start[first[rank + 1] - 1] >= fit)
        lines.append(f"{f'rank {rank}':{head}}{shown}" + (" >" if cut else ""))
    return "\n".join(lines) + "\n"
