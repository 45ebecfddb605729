"""Loops over a batch: what a model does image by image, once, with how often.

Vision–language models number and attend to the images of a batch one after the other, in Python. Such a recording has
as many copies of the loop's body as the batch has images; `roll` leaves one, whose operators say how often they run
(`RawOp.times`), so that recordings of different batches have one structure.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from .recorder import RawOp, Recording
from .rejoin import PUT_TOGETHER, TAKE_APART, drop_tensors


def roll(recording: Recording, batch: int) -> Recording:
    """*recording* with one body of each loop over the *batch*, known by the concatenation of what its rounds gave.

    The rounds are alike: operators, arguments and sizes, what they read from each other, and from outside either the
    same tensor or one piece each of a tensor taken apart.
    """
    if batch < 2:
        return recording
    makers = {t: i for i, op in enumerate(recording.ops) for t in op.outputs}
    reads = Counter(t for op in recording.ops for t in op.inputs)
    reads.update(list(recording.results))
    ops: list[RawOp | None] = list(recording.ops)
    gone: set[int] = set()
    for end, op in enumerate(recording.ops):
        if op.function not in PUT_TOGETHER or len(op.inputs) != batch or not all(t in makers for t in op.inputs):
            continue
        last = [makers[t] for t in op.inputs]
        length = last[1] - last[0]
        rounds = [range(i - length + 1, i + 1) for i in last]
        if length < 1 or last[0] < length - 1 or any(b - a != length for a, b in pairwise(last)):
            continue
        pieces = _pieces(recording, rounds, makers)
        if pieces is None or not _is_closed(recording, rounds, op, reads):
            continue
        for i in rounds[0]:
            ops[i] = replace(recording.ops[i], times=batch)
        ops[end] = replace(op, inputs=op.inputs[:1], pieces=batch)
        for i in (i for r in rounds[1:] for i in r):
            ops[i] = None
            gone.update(recording.ops[i].outputs)
        for i in pieces:
            ops[i] = replace(recording.ops[i], outputs=recording.ops[i].outputs[:1])
            gone.update(recording.ops[i].outputs[1:])
    return drop_tensors(recording, [op for op in ops if op is not None], gone) if gone else recording


def _pieces(recording: Recording, rounds: Sequence[range], makers: dict[int, int]) -> set[int] | None:
    """The ops that take apart what each of *rounds* reads a piece of; None where the rounds are not alike."""
    start = rounds[0].start
    if start < 0:
        return None
    found: set[int] = set()
    for n, here in enumerate(rounds):
        for offset, i in enumerate(here):
            mine, first = recording.ops[i], recording.ops[start + offset]
            if _what(recording, mine) != _what(recording, first):
                return None
            for t, t0 in zip(mine.inputs, first.inputs, strict=True):
                source, source0 = makers.get(t), makers.get(t0)
                if t == t0 and (n == 0 or source not in rounds[0]):
                    continue
                if source is None or source0 is None:
                    return None
                place = recording.ops[source].outputs.index(t)
                if source in here:  # from inside: from the same place of the first round
                    if source - here.start != source0 - start or place != recording.ops[source0].outputs.index(t0):
                        return None
                elif source == source0 and recording.ops[source].function in TAKE_APART:
                    outputs = recording.ops[source].outputs
                    if place != n or t0 != outputs[0] or len(outputs) != len(rounds):
                        return None
                    found.add(source)
                else:
                    return None
    return found


def _what(recording: Recording, op: RawOp) -> Any:
    sizes = [(recording.tensors[t].shape, recording.tensors[t].dtype) for t in (*op.inputs, *op.outputs)]
    return op.function, op.module, op.phase, len(op.inputs), sizes, repr(op.literals)


def _is_closed(recording: Recording, rounds: Sequence[range], end: RawOp, reads: Counter[int]) -> bool:
    """Whether nobody reads what the rounds make but they themselves, and *end* their last results."""
    inside = Counter(end.inputs)
    inside.update(t for r in rounds for i in r for t in recording.ops[i].inputs)
    return all(reads[t] == inside[t] for r in rounds for i in r for t in recording.ops[i].outputs)
