"""Tensors taken apart and put together again: one copy, however many pieces a batch makes.

Vision–language models hand the features of a batch of images around as a list, one tensor an image, and concatenate
it. That is a view and a copy, but both have as many tensors as the batch has images; a graph for every batch has none
of the pieces, and the copy reads the whole.
"""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import replace

import torch

from .recorder import RawOp, Recording

_aten = torch.ops.aten
TAKE_APART = frozenset({_aten.unbind.int, _aten.split.Tensor, _aten.split_with_sizes.default})
PUT_TOGETHER = frozenset({_aten.cat.default, _aten.stack.default})


def rejoin(recording: Recording) -> Recording:
    """*recording* with every concatenation of all the pieces of one tensor, which nobody else reads, as one copy."""
    apart = {op.outputs[0]: op for op in recording.ops if op.function in TAKE_APART}
    if not apart:
        return recording
    reads = Counter(t for op in recording.ops for t in op.inputs)
    whole: dict[int, int] = {}  # the first piece → the tensor that the pieces are of
    for op in recording.ops:
        source = apart.get(op.inputs[0]) if op.function in PUT_TOGETHER else None
        if source is None or source.outputs != op.inputs or recording.results.keys() & set(op.inputs):
            continue
        if all(reads[t] == 1 for t in op.inputs):
            whole[op.inputs[0]] = source.inputs[0]
    return _without_pieces(recording, whole) if whole else recording


def _without_pieces(recording: Recording, whole: dict[int, int]) -> Recording:
    ops = []
    gone: set[int] = set()
    for op in recording.ops:
        if op.function in TAKE_APART and op.outputs[0] in whole:
            gone.update(op.outputs)
        elif op.function in PUT_TOGETHER and op.inputs[0] in whole:
            ops.append(replace(op, inputs=[whole[op.inputs[0]]], literals={}))
        else:
            ops.append(op)
    return drop_tensors(recording, ops, gone)


def drop_tensors(recording: Recording, ops: Iterable[RawOp], gone: Collection[int]) -> Recording:
    """*recording* with these *ops*, which no longer touch the tensors *gone*: those that are left move up."""
    kept = [t for t in range(len(recording.tensors)) if t not in gone]
    new = {t: n for n, t in enumerate(kept)}
    owners: dict[int, int] = {}  # a storage goes by the first tensor left of it
    for t in kept:
        owners.setdefault(recording.tensors[t].storage, new[t])
    tensors = [replace(recording.tensors[t], storage=owners[recording.tensors[t].storage]) for t in kept]
    moved = [replace(op, inputs=[new[t] for t in op.inputs], outputs=[new[t] for t in op.outputs]) for op in ops]
    return Recording(tensors, moved, {new[t]: name for t, name in recording.results.items()}, recording.notes)
