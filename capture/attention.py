"""Attention kept as one operator: on meta torch would take `scaled_dot_product_attention` apart."""

from typing import Any

import torch

SDPA_NAME = "aten.scaled_dot_product_attention.default"


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
