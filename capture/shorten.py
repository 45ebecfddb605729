"""Deep models at a shallow price: after one recording at full depth, one layer of each kind is enough.

A model of 126 equal layers runs 126 times the same operators. `plan_cut` finds, in the full recording, the instances
of a module list that repeat an earlier one operator by operator; `cut` takes their modules out while the other points
are recorded.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from foretrace.ir import split_index

from .recorder import RawOp, Recording

MIN_OPS = 1500  # below this the full model is recorded at every point: it costs less than half a second


@dataclass(frozen=True, slots=True)
class Cut:
    """Ops to keep, for each dropped op the kept one it repeats, and the instances to keep of each module list."""

    kept: tuple[int, ...]
    stands_for: dict[int, int]
    lists: dict[str, tuple[int, ...]]


def plan_cut(recording: Recording, root: torch.nn.Module) -> Cut | None:
    """What to leave out of *root* at the other points; None where the model is small or nothing repeats."""
    if len(recording.ops) < MIN_OPS:
        return None
    instances: dict[tuple[str, int], list[int]] = {}
    for i, op in enumerate(recording.ops):
        if (place := split_index(op.module)) is not None:
            instances.setdefault(place[:2], []).append(i)
    first: dict[tuple[str, Any], list[int]] = {}
    lists: dict[str, list[int]] = {}
    stands_for: dict[int, int] = {}
    for (container, index), ops in instances.items():
        if not isinstance(_submodule(root, container), torch.nn.ModuleList):
            return None
        signature = tuple(_signature(recording, recording.ops[i]) for i in ops)
        twins = first.setdefault((container, signature), ops)
        if twins is ops:
            lists.setdefault(container, []).append(index)
        else:
            stands_for.update(zip(ops, twins, strict=True))
    if not stands_for:
        return None
    kept = tuple(i for i in range(len(recording.ops)) if i not in stands_for)
    return Cut(kept, stands_for, {c: tuple(indices) for c, indices in lists.items()})


@contextmanager
def cut(root: torch.nn.Module, lists: dict[str, Sequence[int]]) -> Iterator[None]:
    """*root* with only the given instances of its module lists, while the context is open."""
    whole: list[tuple[Any, Any]] = []
    try:
        for container, indices in lists.items():
            module: Any = _submodule(root, container)
            whole.append((module, module._modules))
            module._modules = {str(i): module._modules[str(i)] for i in indices}  # under the names they have
        yield
    finally:
        for module, modules in reversed(whole):
            module._modules = modules


def _submodule(root: torch.nn.Module, path: str) -> torch.nn.Module | None:
    try:
        return root.get_submodule(path)
    except AttributeError:
        return None


def _signature(recording: Recording, op: RawOp) -> Any:
    place = split_index(op.module)
    return (
        op.function,
        place[2] if place else "",
        tuple(recording.tensors[t].shape for t in op.inputs),
        tuple(recording.tensors[t].shape for t in op.outputs),
        repr(op.literals),
    )
