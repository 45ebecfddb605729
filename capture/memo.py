"""What operators gave on meta, by the shapes they were given: torch works many of them out in slow Python."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch


class Memo:
    """Runs operators on meta tensors; one that only makes new tensors runs once for each set of arguments."""

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}

    def run(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The result of *func*, all of whose tensors are on meta."""
        if not _makes_new(func):
            return None if _writes_lists(func) else func(*args, **kwargs)
        key = (func, _key(args), *(_key(item) for item in kwargs.items()))
        try:
            known = self._known.get(key)
        except TypeError:  # an argument that does not hash
            return func(*args, **kwargs)
        if known is not None:
            return _made(known)
        out = func(*args, **kwargs)
        if not _shares_memory(out, (args, tuple(kwargs.values()))):
            self._known[key] = _layout(out)
        return out


@lru_cache(maxsize=4096)
def _makes_new(func: Any) -> bool:
    """Whether the schema says that results are new tensors and no argument is written to."""
    schema = func._schema
    returns = all(str(r.type) in ("Tensor", "List[Tensor]") and r.alias_info is None for r in schema.returns)
    return returns and bool(schema.returns) and all(a.alias_info is None for a in schema.arguments)


@lru_cache(maxsize=4096)
def _writes_lists(func: Any) -> bool:
    """A multi-tensor operator in place: it changes no shape, and gives nothing."""
    return func._schema.name.startswith("aten::_foreach_") and not func._schema.returns


def _key(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return (value.shape, value.stride(), value.dtype)
    if isinstance(value, list | tuple):
        return tuple([_key(v) for v in value])
    return (value.__class__, value)  # 1, 1.0 and True are equal


def _layout(out: Any) -> Any:
    if isinstance(out, torch.Tensor):
        return (tuple(out.shape), out.stride(), out.dtype)
    return [_layout(o) for o in out]


def _made(known: Any) -> Any:
    if isinstance(known, list):
        return [_made(k) for k in known]
    shape, stride, dtype = known
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")


def _leaves(value: Any) -> list[torch.Tensor]:
    if isinstance(value, list | tuple):
        return [t for v in value for t in _leaves(v)]
    return [value] if isinstance(value, torch.Tensor) else []


def _shares_memory(out: Any, given: Any) -> bool:
    """Whether a result is an argument's memory all the same (``_unsafe_view``), or is no plain tensor."""
    outputs = _leaves(out)
    if not outputs or len(outputs) != (1 if isinstance(out, torch.Tensor) else len(out)):
        return True  # an absent result of several
    storages = {t.untyped_storage()._cdata for t in _leaves(given)}
    return any(
        t.layout is not torch.strided or t.device.type != "meta" or t.untyped_storage()._cdata in storages
        for t in outputs
    )
