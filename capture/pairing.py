"""Pairing recordings: which operator of a run at one size is which operator of a run at another."""

from collections.abc import Mapping, Sequence

import torch

from foretrace.ir import OpKind

from .aten import full_name, kind_of
from .recorder import RawOp, Recording
from .symbolic import SymbolicError

Correspondence = Mapping[int, int]
"""Op id of the full recording → op id of a partial one that stands for it."""
CLONE = torch.ops.aten.clone.default


def correspond(full: Recording, other: Recording, keep: Sequence[int] | None = None) -> dict[int, int]:
    """Pair the ops of *full* (all, or those in *keep*) with those of *other*, in order.

    A view that only one of them takes is passed over (expanding a batch of one is no operation), and so are copies:
    `merge` takes those of floats only where the batch explains them. An optimizer's ops are left out: their sizes are
    the parameters', and only *full* needs to have them.
    Raises `SymbolicError` at the first other op that differs in operator, place or arity.
    """
    wanted = [i for i in keep or range(len(full.ops)) if full.ops[i].phase != "optimizer"]
    if len(wanted) == len(other.ops) and all(_same(full.ops[i], op) for i, op in zip(wanted, other.ops, strict=True)):
        return dict(zip(wanted, range(len(wanted)), strict=True))
    mine_from, theirs_from = _Sources(full), _Sources(other)
    pairs: dict[int, int] = {}
    n = j = 0
    while n < len(wanted) and j < len(other.ops):
        mine, theirs = full.ops[wanted[n]], other.ops[j]
        if _same(mine, theirs) and (not _may_lack(mine) or _show_the_same(mine_from(wanted[n]), theirs_from(j), pairs)):
            pairs[wanted[n]] = j
            n, j = n + 1, j + 1
        elif _may_lack(mine):
            n += 1
        elif _may_lack(theirs):
            j += 1
        else:
            raise SymbolicError(
                f"the model runs {full_name(mine.function)} in {mine.module or 'its body'} at one shape and "
                f"{full_name(theirs.function)} in {theirs.module or 'its body'} at another"
            )
    if not all(_may_lack(op) for op in [*(full.ops[i] for i in wanted[n:]), *other.ops[j:]]):
        raise SymbolicError(f"the model runs {len(wanted)} operators at one shape and {len(other.ops)} at another")
    return pairs


class _Sources:
    """Where a recording's tensors come from, seen through views and copies."""

    def __init__(self, run: Recording) -> None:
        self._ops = run.ops
        self._known: dict[int, tuple[int, int] | None] = {}
        self._done = 0

    def __call__(self, op: int) -> tuple[int, int] | None:
        """What *op*, a view or a copy, shows: the op that computed it, and which of its results it was."""
        while self._done < op:
            maker = self._ops[self._done]
            through = bool(maker.inputs) and _may_lack(maker)
            for n, tensor in enumerate(maker.outputs):
                self._known[tensor] = self._known.get(maker.inputs[0]) if through else (self._done, n)
            self._done += 1
        inputs = self._ops[op].inputs
        return self._known.get(inputs[0]) if inputs else None


def _may_lack(op: RawOp) -> bool:
    """Whether *op* may be there at one point and not at another: a view, or something made contiguous."""
    return op.function is CLONE or kind_of(op.function) is OpKind.VIEW


def _show_the_same(a: tuple[int, int] | None, b: tuple[int, int] | None, pairs: Correspondence) -> bool:
    """Whether sources *a* and *b* are a pair, so far as is known: of three copies one run may leave out any."""
    if a is None or b is None or a[0] not in pairs:
        return (a is None) == (b is None)
    return (pairs[a[0]], a[1]) == b


def _same(a: RawOp, b: RawOp) -> bool:
    arity = len(a.inputs) == len(b.inputs) and len(a.outputs) == len(b.outputs)
    return arity and a.function is b.function and a.module == b.module and a.phase == b.phase
