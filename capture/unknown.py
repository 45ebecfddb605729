"""What is assumed where a model looks inside a tensor whose values nobody knows (a float, or made from floats).

Each assumption is the one under which a healthy model runs on: values are finite, nothing is masked, a router spreads
its tokens evenly. Whatever was assumed is said in the graph's notes.
"""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten
MAX_REAL_ELEMENTS = 1 << 26  # integer tensors larger than this stay on meta: their content is not worth 512 MiB

EVEN = "router choices are unknown: row r of a top-k takes the indices (r*k + j) mod n, equally many of each"
FINITE = "unknown values are taken to be finite: all() of a test on them holds, any() does not"
SCALAR = "an unknown value that steers the code is taken to be 1 (a number) or false (a test)"
FULL = "an unknown mask is taken to select everything"
ABOVE = "unknown values are taken to be greater than and unequal to what they are compared with"
MAX_COMPARED = 1 << 20  # larger comparisons stay unknown: they are activations, which no index code looks into

UNASSUMED = object()
"""`assume` has nothing to say: the operator runs on meta as it is."""


def assume(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], notes: set[str]) -> Any:
    """The result of *func* on unknown values where shapes alone do not give it; else `UNASSUMED`."""
    rule = _RULES.get(func.overloadpacket)
    if rule is None:
        return UNASSUMED
    note, answer = rule
    result = answer(func, *args, **kwargs)
    if result is not UNASSUMED:
        notes.add(note)
    return result


def full_masks(indices: Any, notes: set[str]) -> list[Any]:
    """Among indices, an unknown mask is replaced by one that is true everywhere."""
    known: list[Any] = []
    for index in indices:
        if isinstance(index, torch.Tensor) and index.dtype is torch.bool and index.device.type == "meta":
            notes.add(FULL)
            index = torch.ones(index.shape, dtype=torch.bool)
        known.append(index)
    return known


class UnknownLists(TorchFunctionMode):
    """``tolist()`` of integers that are not known: what `assume` takes each of them to be."""

    def __init__(self, notes: set[str]) -> None:
        super().__init__()
        self.notes = notes

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.tolist and args[0].device.type == "meta":
            self.notes.add(SCALAR)
            return torch.full(args[0].shape, _scalar(func, args[0])).tolist()
        return func(*args, **(kwargs or {}))


def _even(shape: tuple[int, ...], n: int, dim: int) -> torch.Tensor:
    """Integers below *n* in *shape*: along *dim* consecutive, each row going on where the one before it ended."""
    moved = list(shape)
    k = moved.pop(dim) if shape else 1
    spread = torch.arange(prod(moved) * k) % max(n, 1)
    return spread.view(*moved, k).movedim(-1, dim).contiguous() if shape else spread.view(())


def _chosen(func: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """topk, sort, argsort, max and min along a dim, argmax: values on meta, indices real and evenly spread."""
    out = func(x, *args, **kwargs)
    indices = out if isinstance(out, torch.Tensor) else out[1] if len(out) > 1 else None
    if indices is None or indices.is_floating_point() or indices.numel() > MAX_REAL_ELEMENTS or not x.dim():
        return UNASSUMED
    names = [a.name for a in func._schema.arguments]
    dim = kwargs.get("dim", args[names.index("dim") - 1] if len(args) >= names.index("dim") else -1)
    dim = x.dim() - 1 if dim is None else dim % x.dim()
    if indices.dim() == x.dim():
        real = _even(tuple(indices.shape), x.shape[dim], dim)
    else:
        real = torch.arange(indices.numel()).view(indices.shape) % max(x.shape[dim], 1)
    return real if out is indices else (out[0], real)


def _nonzero(func: Any, x: torch.Tensor) -> Any:
    return torch.ones(x.shape, dtype=torch.bool).nonzero() if x.numel() <= MAX_REAL_ELEMENTS else UNASSUMED


def _selected(func: Any, x: torch.Tensor, mask: torch.Tensor) -> Any:
    return x.new_empty(torch.broadcast_shapes(x.shape, mask.shape).numel())


def _scalar(func: Any, x: torch.Tensor) -> Any:
    return 1.0 if x.is_floating_point() else False if x.dtype is torch.bool else 1


def _test(value: bool) -> Callable[..., Any]:
    def answer(func: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if func._schema.returns[0].type.kind() == "BoolType":
            return value
        out = func(x, *args, **kwargs)
        return torch.full(out.shape, value) if out.numel() <= MAX_REAL_ELEMENTS else UNASSUMED

    return answer


def _comparison(value: bool) -> Callable[..., Any]:
    def answer(func: Any, x: torch.Tensor, other: Any) -> Any:
        shape = torch.broadcast_shapes(x.shape, other.shape) if isinstance(other, torch.Tensor) else x.shape
        if shape.numel() > MAX_COMPARED:
            return UNASSUMED
        same = x is other and func.overloadpacket in (aten.eq, aten.ne)  # how torch asks for NaN
        return torch.full(shape, value != same)

    return answer


_RULES: dict[Any, tuple[str, Callable[..., Any]]] = {
    **dict.fromkeys((aten.all, aten.equal, aten._is_all_true, aten.allclose), (FINITE, _test(True))),
    **dict.fromkeys((aten.any, aten._is_any_true), (FINITE, _test(False))),
    **dict.fromkeys((aten.topk, aten.sort, aten.argsort, aten.argmax, aten.argmin), (EVEN, _chosen)),
    **dict.fromkeys((aten.gt, aten.ge, aten.ne), (ABOVE, _comparison(True))),
    **dict.fromkeys((aten.lt, aten.le, aten.eq), (ABOVE, _comparison(False))),
    aten._local_scalar_dense: (SCALAR, _scalar),
    aten.nonzero: (FULL, _nonzero),
    aten.masked_select: (FULL, _selected),
}
