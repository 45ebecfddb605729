"""The table that a pipeline schedule is: which pass of which micro-batch runs when on which rank, and what it needs."""

from dataclasses import dataclass, field
from enum import IntEnum
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from foretrace.ir import ForetraceError

Ints = NDArray[np.int64]

MAX_ROWS: Final = 2**24
"""Of one schedule: 128 ranks with 40,000 micro-batches in three passes each fit."""


class ScheduleError(ForetraceError):
    """A schedule that cannot run: passes missing or twice, a deadlock, or a plan that it does not fit."""


class Pass(IntEnum):
    """What one row does. A backward is one row, or its two halves (Qi et al. 2023, arXiv:2401.10241)."""

    FORWARD = 0
    BACKWARD = 1
    """Gradients of inputs and weights together."""
    BACKWARD_INPUT = 2
    """Only the gradient that the stage before waits for."""
    BACKWARD_WEIGHT = 3
    """The rest, at any time after it."""

    @property
    def label(self) -> str:
        """The name in files: ``forward``, ``backward``, ``backward-input``, ``backward-weight``."""
        return self.name.lower().replace("_", "-")

    @property
    def letter(self) -> str:
        """One letter for pictures and errors: F, B, I (input gradients), W (weight gradients)."""
        return "FBIW"[self]


@dataclass(frozen=True, eq=False)
class PipelineSchedule:
    """The passes of one training step on *ranks* pipeline ranks: n rows, each rank runs its own in order of slot.

    The arrays are copied, sorted by (rank, slot) and read-only. `ScheduleError` for columns of unequal length and
    for numbers out of range; whether the schedule is complete and can run is what `check` says.
    """

    name: str
    ranks: int
    stages: int
    """Model chunks, in the order that a micro-batch passes them; several a rank where they are interleaved."""
    micro_batches: int
    rank: Ints = field(repr=False)
    """[n]"""
    slot: Ints = field(repr=False)
    """[n] the order on a rank; gaps mean nothing."""
    micro_batch: Ints = field(repr=False)
    """[n]"""
    stage: Ints = field(repr=False)
    """[n]"""
    work: Ints = field(repr=False)
    """[n] codes of `Pass`"""

    def __post_init__(self) -> None:
        stops = {
            "rank": self.ranks,
            "slot": 2**31,
            "micro_batch": self.micro_batches,
            "stage": self.stages,
            "work": len(Pass),
        }
        columns = {name: np.asarray(getattr(self, name)) for name in stops}
        for name, column in columns.items():
            if column.shape != columns["rank"].shape or column.ndim != 1:
                raise ScheduleError(f"{name}: expected {columns['rank'].size} rows like rank, got {column.shape}")
            if column.size and column.dtype.kind not in "iu":
                raise ScheduleError(f"{name}: expected integers, got {column.dtype}")
            outside = (column < 0) | (column >= stops[name])
            if outside.any():
                at = int(outside.argmax())
                raise ScheduleError(f"{name}[{at}]: expected 0 or more and less than {stops[name]}, got {column[at]}")
        order = np.lexsort((columns["slot"], columns["rank"]))
        for name, column in columns.items():
            ordered = column[order].astype(np.int64, copy=False)
            ordered.flags.writeable = False
            object.__setattr__(self, name, ordered)

    @property
    def rows(self) -> int:
        """The number of passes, n."""
        return self.rank.size

    def placement(self) -> Ints:
        """[k, 2] the (rank, stage) pairs that occur, by rank: whose parameters each rank holds.

        A stage with two ranks (DualPipe) has its parameters on both, and their gradients are to be summed.
        """
        pairs = np.unique(self.rank * self.stages + self.stage)
        return np.stack(np.divmod(pairs, max(self.stages, 1)), axis=1)

    def first_rows(self) -> Ints:
        """[ranks + 1] the first row of each rank, and n."""
        return np.searchsorted(self.rank, np.arange(self.ranks + 1))

    def describe(self, row: int) -> str:
        """*row* in words: ``rank 0 slot 3: F stage 0 micro-batch 2``."""
        letter = Pass(int(self.work[row])).letter
        place = f"rank {self.rank[row]} slot {self.slot[row]}"
        return f"{place}: {letter} stage {self.stage[row]} micro-batch {self.micro_batch[row]}"


def dependencies(schedule: PipelineSchedule) -> tuple[Ints, Ints]:
    """[e] and [e] row numbers: ``target[i]`` cannot start before ``source[i]`` has ended.

    Of each micro-batch a forward needs the stage before, a backward (or its input half) the same stage's forward and
    the stage after, a weight half its input half. The order on a rank is not among them. Rows that are missing
    have no edges; of rows that are there twice, the last counts (`check` refuses both).
    """
    forward = _row_of(schedule, schedule.work == Pass.FORWARD)
    whole, half = (schedule.work == work for work in (Pass.BACKWARD, Pass.BACKWARD_INPUT))
    backward = _row_of(schedule, whole | half)
    weight = _row_of(schedule, schedule.work == Pass.BACKWARD_WEIGHT)
    edges = ((forward[:-1], forward[1:]), (forward, backward), (backward[1:], backward[:-1]), (backward, weight))
    source = np.concatenate([before.ravel() for before, _ in edges])
    target = np.concatenate([after.ravel() for _, after in edges])
    there = (source >= 0) & (target >= 0)
    return source[there], target[there]


def _row_of(schedule: PipelineSchedule, chosen: NDArray[np.bool_]) -> Ints:
    """[stages, micro-batches] the *chosen* row of each, -1 where there is none."""
    rows = np.full((schedule.stages, schedule.micro_batches), -1, np.int64)
    rows[schedule.stage[chosen], schedule.micro_batch[chosen]] = np.flatnonzero(chosen)
    return rows


def in_flight(schedule: PipelineSchedule) -> Ints:
    """[ranks] the most activations of one (stage, micro-batch) that a rank holds at a time.

    Held from the forward until the backward, or where that is split until its weight half (which still reads the
    inputs of the stage's products). Depends on the order alone, not on durations.
    """
    change = np.where(schedule.work == Pass.FORWARD, 1, -1)
    change[schedule.work == Pass.BACKWARD_INPUT] = 0
    held = np.concatenate(([0], np.cumsum(change)))
    first = schedule.first_rows()
    most = [held[a : b + 1].max() - held[a] for a, b in pairwise(first.tolist())]
    return np.array(most, np.int64)
