"""Attention kept as one operator: on meta torch would take `scaled_dot_product_attention` apart."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from foretrace.ir import OpKind, Tensor, prod

from .base import OpSpec, define

_SCHEMA = (
    "(Tensor query, Tensor key, Tensor value, Tensor? attn_mask, float dropout_p, bool is_causal, float? scale, "
    "bool enable_gqa, int window=0, float softcap=0.0, Tensor? sinks=None) -> Tensor"
)


def _shapes(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any) -> torch.Tensor:
    # the layout that flash kernels give back: (batch, seq, heads, head_dim) in memory, heads second in shape
    shape = (*query.shape[:-1], value.shape[-1])
    if query.dim() == 4:
        return query.new_empty((shape[0], shape[2], shape[1], shape[3])).transpose(1, 2)
    return query.new_empty(shape)


_attention = define("attention", _SCHEMA, _shapes)
_SDPA = torch.nn.functional.scaled_dot_product_attention  # context parallel puts its own in this one's place


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


def _of_dtensors(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Attention on DTensors: torch's own flash operator, which DTensor knows how to shard, and context parallel to
    take round a ring."""
    if attn_mask is not None:
        with torch._C.DisableTorchFunctionSubclass():
            return _SDPA(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    flash = torch.ops.aten._scaled_dot_product_flash_attention
    return flash(query, key, value, dropout_p, is_causal, scale=scale)[0]


def _interface(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """A model's call of its attention, as transformers' `AttentionInterface` passes it on."""
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    mask = attention_mask if position_bias is None else position_bias
    gqa = query.shape[1] != key.shape[1]
    causal = causal and mask is None and query.shape[2] > 1
    out = _attention(query, key, value, mask, dropout, causal, scaling, gqa, sliding_window or 0, softcap or 0.0, s_aux)
    return out.transpose(1, 2), None


INTERFACE = "foretrace"
"""The name of our attention among transformers' implementations (`register`)."""


def register() -> None:
    """Make `INTERFACE` an attention implementation that models can be built with.

    It has no entry in transformers' `AttentionMaskInterface`: masks are not built, the kernel knows causality and the
    window by its arguments.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(INTERFACE, _interface)


class _Functions(TorchFunctionMode):
    """Catches calls of scaled-dot-product attention, however the model imported the function."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is _SDPA:
            given = (*args, *(kwargs or {}).values())
            distributed = any(type(value).__module__ == "torch.distributed.tensor" for value in given)
            return (_of_dtensors if distributed else attention_as_one_op)(*args, **(kwargs or {}))
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
        "masked": any(len(t.shape) > 1 for t in ins[3:]),  # sinks are one number a head
    }


OPS = {
    "foretrace::attention": OpSpec(
        OpKind.ATTENTION,
        geometry,
        "aten.scaled_dot_product_attention.default",
        backward="aten._scaled_dot_product_flash_attention_backward.default",
    ),
}
