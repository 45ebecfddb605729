"""The schedules with names, each in closed form: the slot of a pass is the number of passes before it on its rank."""

from collections.abc import Callable
from typing import Final

import numpy as np

from .table import MAX_ROWS, Ints, Pass, PipelineSchedule, ScheduleError


def gpipe(ranks: int, micro_batches: int) -> PipelineSchedule:
    """All forwards, then all backwards (GPipe, Huang et al. 2019, arXiv:1811.06965).

    Backwards in the order of the forwards, as PyTorch runs them. Bubble (ranks - 1)(F + B); holds every micro-batch.
    """
    _limit("gpipe", 2 * ranks * micro_batches)
    i = np.arange(micro_batches)[None, :]
    rank = np.arange(ranks)[:, None]
    parts = [(i, i, rank, Pass.FORWARD), (micro_batches + i, i, rank, Pass.BACKWARD)]
    return _schedule("gpipe", ranks, 1, micro_batches, parts)


def one_f_one_b(ranks: int, micro_batches: int) -> PipelineSchedule:
    """One forward, one backward, after a warm-up of ranks - 1 - r forwards (PipeDream-Flush, arXiv:2006.09503).

    Bubble (ranks - 1)(F + B), as GPipe; rank r holds min(ranks - r, micro_batches).
    """
    _limit("1f1b", 2 * ranks * micro_batches)
    rank, i = np.arange(ranks)[:, None], np.arange(micro_batches)[None, :]
    forward, backward = _alternate(ranks - 1 - rank, i, micro_batches)
    parts = [(forward, i, rank, Pass.FORWARD), (backward, i, rank, Pass.BACKWARD)]
    return _schedule("1f1b", ranks, 1, micro_batches, parts)


def interleaved(ranks: int, interleave: int, micro_batches: int) -> PipelineSchedule:
    """1F1B over *interleave* chunks a rank: chunk c of rank r is stage c · ranks + r (Megatron, arXiv:2104.04473).

    Micro-batches pass in groups of *ranks*, each group through all chunks; the warm-up is 2(ranks - 1 - r) +
    (interleave - 1) ranks forwards. Bubble (ranks - 1)(F + B) with F and B of one chunk. `ScheduleError` where
    *micro_batches* is no multiple of *ranks*, or *interleave* is 1.
    """
    if interleave < 2:
        raise ScheduleError(
            f"schedule=interleaved: expected interleave of 2 or more, got {interleave}; nearest valid: interleave=2, "
            "or schedule=1f1b"
        )
    if micro_batches % ranks:
        near = max(ranks, (micro_batches + ranks // 2) // ranks * ranks)
        raise ScheduleError(
            f"schedule=interleaved: expected a number of micro-batches that is a multiple of pp={ranks}, "
            f"got {micro_batches}; nearest valid: {near}"
        )
    chunks = micro_batches * interleave
    _limit("interleaved", 2 * ranks * chunks)
    rank, k = np.arange(ranks)[:, None], np.arange(chunks)[None, :]
    forward, backward = _alternate(2 * (ranks - 1 - rank) + (interleave - 1) * ranks, k, chunks)
    micro_batch, chunk = k // (ranks * interleave) * ranks + k % ranks, k // ranks % interleave
    parts = [
        (forward, micro_batch, chunk * ranks + rank, Pass.FORWARD),
        (backward, micro_batch, (interleave - 1 - chunk) * ranks + rank, Pass.BACKWARD),
    ]
    return _schedule("interleaved", ranks, interleave, micro_batches, parts)


def zb_h1(ranks: int, micro_batches: int) -> PipelineSchedule:
    """1F1B with split backwards whose weight halves come r micro-batches late on rank r (arXiv:2401.10241, ZB-H1).

    Bubble (ranks - 1)(F + I - W) where W is the shortest of the three, (ranks - 1) max(F, I, F + I - W) in general,
    from as many micro-batches as ranks on; every rank holds min(ranks, micro_batches), as the first of 1F1B.
    """
    _limit("zb-h1", 3 * ranks * micro_batches)
    rank, i = np.arange(ranks)[:, None], np.arange(micro_batches)[None, :]
    warm_up = np.minimum(ranks - 1 - rank, micro_batches)
    late = np.maximum(i - rank, 0)  # weight halves before input half i
    forward = i + np.maximum(i - warm_up, 0) + np.maximum(i - warm_up - rank, 0)
    on_input = i + np.minimum(warm_up + i + 1, micro_batches) + late
    on_weight = i + np.minimum(warm_up + i + rank + 1, micro_batches) + np.minimum(i + rank + 1, micro_batches)
    parts = [
        (forward, i, rank, Pass.FORWARD),
        (on_input, i, rank, Pass.BACKWARD_INPUT),
        (on_weight, i, rank, Pass.BACKWARD_WEIGHT),
    ]
    return _schedule("zb-h1", ranks, 1, micro_batches, parts)


def dualpipe(ranks: int, micro_batches: int) -> PipelineSchedule:
    """Micro-batches from both ends at once (DualPipe, DeepSeek-V3 report, arXiv:2412.19437, and its published code).

    The first half of the micro-batches runs stage s on rank s, the second half on rank ranks - 1 - s: **every rank
    holds two stages, the parameters are held twice**, and their gradients are summed over both. Bubble
    (ranks / 2 - 1)(F&B + B - 3W) where F and W ≤ I, with B the whole backward and F&B one forward and one backward
    that overlap. Here such a pair is two rows, the backward behind the forward on their rank: F&B is F + B, less
    whatever communication the replay hides behind them; as the forward's result leaves before the backward ends,
    the bubble is at most the formula's. A rank holds up to ranks + 1 activations. `ScheduleError` unless *ranks* is
    even and *micro_batches* even and at least 2 ranks.
    """
    if ranks % 2:
        raise ScheduleError(f"schedule=dualpipe: expected an even pp, got {ranks}; nearest valid: pp={ranks + 1}")
    if micro_batches % 2 or micro_batches < 2 * ranks:
        raise ScheduleError(
            f"schedule=dualpipe: expected an even number of micro-batches of at least 2 pp = {2 * ranks}, "
            f"got {micro_batches}; nearest valid: {max(2 * ranks, micro_batches + micro_batches % 2)}"
        )
    _limit("dualpipe", 3 * ranks * micro_batches)
    columns = [_dualpipe_rank(rank, ranks, micro_batches // 2) for rank in range(ranks)]
    rank = np.repeat(np.arange(ranks), [column.shape[1] for column in columns])
    slot, micro_batch, stage, work = np.concatenate(columns, axis=1)
    return PipelineSchedule("dualpipe", ranks, ranks, micro_batches, rank, slot, micro_batch, stage, work)


# DualPipe's alphabet: passes of the direction in which the rank is near the start (0), and of the other (1).
_F0, _F1, _B0, _B1, _I0, _I1, _W = range(7)
_WORK: Final = np.array([Pass.FORWARD] * 2 + [Pass.BACKWARD] * 2 + [Pass.BACKWARD_INPUT] * 2 + [Pass.BACKWARD_WEIGHT])


def _dualpipe_rank(rank: int, ranks: int, half: int) -> Ints:
    """[4, n] slot, micro-batch, stage and work of one rank: the eight steps of the published code, for *half* a way."""
    edge = min(rank, ranks - 1 - rank)  # from the nearer end of the pipeline
    inner = ranks // 2 - edge - 1
    # The later half of step 6 is split, W to follow in steps 7 and 8.
    last = [_B1, _B0] * (edge + 1)
    last[edge + 1 :] = [{_B1: _I1, _B0: _I0}[code] for code in last[edge + 1 :]]
    steps: tuple[tuple[list[int], int], ...] = (
        ([_F0], 2 * inner),
        ([_F0, _F1], edge + 1),
        ([_I1, _W, _F1], inner),
        ([_F0, _B1, _F1, _B0], half - ranks + edge + 1),
        ([_B1, _F1, _B0], inner),
        (last, 1),
        ([_W, _I0], inner),
        ([_W], edge + 1),
    )
    codes = np.concatenate([np.tile(np.array(pattern, np.int64), times) for pattern, times in steps])
    micro_batch, direction = np.empty_like(codes), np.empty_like(codes)
    for way in (0, 1):
        for members in ((_F0 + way,), (_B0 + way, _I0 + way)):
            here = np.isin(codes, members)
            micro_batch[here], direction[here] = np.arange(half), way
    split, weight = np.isin(codes, (_I0, _I1)), codes == _W  # a queue: the first split is the first to be finished
    micro_batch[weight], direction[weight] = micro_batch[split], direction[split]
    down = direction ^ (rank >= ranks // 2)  # 0: from rank 0 to the last
    stage = np.where(down == 0, rank, ranks - 1 - rank)
    return np.stack([np.arange(codes.size), micro_batch + down * half, stage, _WORK[codes]])


def _alternate(warm_up: Ints, i: Ints, count: int) -> tuple[Ints, Ints]:
    """Slots of forward and backward *i* where they take turns after *warm_up* forwards, *count* of each."""
    warm_up = np.minimum(warm_up, count)
    return np.maximum(i, 2 * i - warm_up), np.minimum(warm_up + 2 * i + 1, count + i)


def _schedule(
    name: str, ranks: int, interleave: int, micro_batches: int, parts: list[tuple[Ints, Ints, Ints, Pass]]
) -> PipelineSchedule:
    """Rows from *parts*: slot, micro-batch and stage, each broadcast to [ranks, …], of one pass."""
    shape = (ranks, micro_batches * interleave)

    def column(at: int) -> Ints:
        return np.concatenate([np.broadcast_to(part[at], shape).ravel() for part in parts])

    rank = np.tile(np.repeat(np.arange(ranks), shape[1]), len(parts))
    work = np.repeat([part[3] for part in parts], shape[0] * shape[1])
    return PipelineSchedule(name, ranks, ranks * interleave, micro_batches, rank, column(0), column(1), column(2), work)


def _limit(name: str, rows: int) -> None:
    if rows > MAX_ROWS:
        raise ScheduleError(
            f"schedule={name}: {rows} passes are more than the {MAX_ROWS} that a schedule may have; "
            "expected fewer micro-batches (a larger microbatch)"
        )


NAMED: Final[dict[str, Callable[[int, int, int], PipelineSchedule]]] = {
    "gpipe": lambda ranks, _, micro_batches: gpipe(ranks, micro_batches),
    "1f1b": lambda ranks, _, micro_batches: one_f_one_b(ranks, micro_batches),
    "interleaved": interleaved,
    "zb-h1": lambda ranks, _, micro_batches: zb_h1(ranks, micro_batches),
    "dualpipe": lambda ranks, _, micro_batches: dualpipe(ranks, micro_batches),
}
"""Name to generator of (ranks, interleave, micro_batches)."""
