"""Attention kept as one operator: on meta torch would take `scaled_dot_product_attention` apart."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from foretrace.ir import OpKind, Tensor, prod

from .base import OpSpec


@torch.library.custom_op("foretrace::attention", mutates_args=())
def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> torch.Tensor:
    raise NotImplementedError("foretrace::attention has shapes only: it is recorded, never computed")


@_attention.register_fake
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> torch.Tensor:
    # the layout that flash kernels give back: (batch, seq, heads, head_dim) in memory, heads second in shape
    shape = (*query.shape[:-1], value.shape[-1])
    if query.dim() == 4:
        return query.new_empty((shape[0], shape[2], shape[1], shape[3])).transpose(1, 2)
    return query.new_empty(shape)


def attention_as_one_op(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Stand in for `torch.nn.functional.scaled_dot_product_attention`: same arguments, one dispatched operator."""
    return _attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)


class _Functions(TorchFunctionMode):
    """Catches calls of scaled-dot-product attention, however the model imported the function."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            return attention_as_one_op(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def install(root: torch.nn.Module) -> AbstractContextManager[Any]:
    """Attention stays whole while the context is open."""
    return _Functions()


def geometry(ins: Sequence[Tensor], outs: Sequence[Tensor], literals: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of an attention call from query, key and value, each (..., heads, length, head_dim)."""
    query, key, value = (t.shape for t in ins[:3])
    return {
        "batch": prod(query[:-3]),
        "heads": query[-3] if len(query) >= 3 else 1,
        "kv_heads": key[-3] if len(key) >= 3 else 1,
        "q_len": query[-2],
        "kv_len": key[-2],
        "head_dim": query[-1],
        "v_dim": value[-1],
        "causal": bool(literals.get("is_causal", False)),
        "masked": len(ins) > 3,
    }


OPS = {
    "foretrace::attention": OpSpec(OpKind.ATTENTION, geometry, "aten.scaled_dot_product_attention.default"),
}
