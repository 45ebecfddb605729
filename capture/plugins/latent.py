"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434) as engines decode it: with its up-projections absorbed.

The cache holds one latent of `kv_lora_rank` a token. Transformers expands all of it to keys and values of every head
at each step; engines multiply the query by the keys' up-projection and the result by the values' instead (section
2.1.2), so that attention reads the latents themselves, as one key and value head (FlashMLA). Captures show what the
framework runs unless ``attention="absorbed"`` is asked for.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from foretrace.ir import OpKind, Tensor

from .base import OpSpec, define, replaced

INTERFACE = "foretrace_absorbed"
"""The name of absorbed attention among transformers' implementations (`register`)."""

_attention = define(
    "latent_attention",
    "(Tensor query, Tensor query_rope, Tensor latent, Tensor key_rope, Tensor? mask, float? scale) -> Tensor",
    lambda query, *_: query.new_empty(query.shape),
    differentiable=False,
)


_per_head = define(  # a strided bmm: no copy on the way in or out
    "per_head_matmul",
    "(Tensor x, Tensor weight) -> Tensor",
    lambda x, weight: x.new_empty((x.shape[0], x.shape[2], x.shape[1], weight.shape[2])).transpose(1, 2),
    differentiable=False,
)


def _absorbed(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention over latents: *key* (batch, 1, length, rope) and *value* (batch, 1, length, rank), see `_latents`."""
    plain, rope, rank = query.shape[-1] - key.shape[-1], key.shape[-1], value.shape[-1]
    up = module.kv_b_proj.weight.view(query.shape[1], -1, rank)
    keys, values = up.split([plain, module.v_head_dim], dim=1)
    q_plain, q_rope = query.split([plain, rope], dim=-1)
    out = _attention(_per_head(q_plain, keys), q_rope, value, key, attention_mask, scaling)
    return _per_head(out, values.transpose(1, 2)).transpose(1, 2), None


def _latents(module: Any, latent: torch.Tensor, key_rope: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Stands in for ``expand_kv``: nothing is expanded."""
    return key_rope, latent


def register() -> None:
    """Make `INTERFACE` an attention implementation that models can be built with; no mask is built for it."""
    from transformers import AttentionInterface

    AttentionInterface.register(INTERFACE, _absorbed)


def is_latent(root: torch.nn.Module) -> bool:
    """Whether *root* has latent attention that transformers caches compressed."""
    return any(hasattr(m, "expand_kv") and hasattr(m, "kv_b_proj") for m in root.modules())


@contextmanager
def install(root: torch.nn.Module) -> Iterator[None]:
    """Latents stay latents while the context is open, if *root* was built with `INTERFACE`."""
    with ExitStack() as stack:
        if getattr(getattr(root, "config", None), "_attn_implementation", None) == INTERFACE:
            for kind in {type(m) for m in root.modules() if hasattr(type(m), "expand_kv")}:
                stack.enter_context(replaced(kind, "expand_kv", _latents))
        yield


def geometry(ins: Sequence[Tensor], outs: Sequence[Tensor], literals: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of attention in which every head reads the same latents: keys of rank + rope, values of rank."""
    (batch, heads, length, rank), (*_, context, rope) = ins[0].shape, ins[3].shape
    sizes = {"batch": batch, "heads": heads, "kv_heads": 1, "q_len": length, "kv_len": context}
    return sizes | {"head_dim": rank + rope, "v_dim": rank, "causal": True, "masked": len(ins) > 4}


def _per_head_geometry(ins: Sequence[Tensor], outs: Sequence[Tensor], literals: Mapping[str, Any]) -> dict[str, Any]:
    (batch, heads, length, k), (*_, n) = ins[0].shape, outs[0].shape
    return {"b": heads, "m": batch * length, "n": n, "k": k, "bias": False}


OPS = {
    "foretrace::per_head_matmul": OpSpec(OpKind.MATMUL, _per_head_geometry, "aten.bmm.default"),
    "foretrace::latent_attention": OpSpec(OpKind.ATTENTION, geometry, "flash_mla.flash_mla_with_kvcache"),
}
