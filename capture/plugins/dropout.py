"""Dropout as accelerators run it: one kernel that also keeps a byte-sized mask, not torch's four operators on meta."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .base import OpSpec

OPS: dict[str, OpSpec] = {}


class _Functions(TorchFunctionMode):
    """Catches calls of dropout while training."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.dropout:
            return _dropout(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    if not training or p == 0.0 or inplace or not input.is_floating_point():
        return torch.nn.functional.dropout(input, p, training, inplace)
    return torch.native_dropout(input, p, True)[0]


def install(root: torch.nn.Module) -> AbstractContextManager[Any]:
    """Dropout stays whole while the context is open, where *root* is in training."""
    return _Functions() if root.training else nullcontext()
