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
    batch, heads, length, _width = query.shape
    plain, rope, rank = query.shape[-1] - key.shape[-1], key.shape[-1], value.shape[-1]
    keys, values = module.kv_b_proj.weight.view(heads, -1, rank).split([plain, module.v_head_dim], dim=1)
    q_plain, q_rope = query.split([plain, rope], dim=-1)
    latent = torch.bmm(q_plain.transpose(0, 1).reshape(heads, batch * length, plain), keys)
    latent = latent.view(heads, batch, length, rank).transpose(0, 1)
    out = _attention(latent, q_rope, value, key, attention_mask, scaling)
    out = torch.bmm(out.transpose(0, 1).reshape(heads, batch * length, rank), values.transpose(1, 2))
    return out.view(heads, batch, length, -1).permute(1, 2, 0, 3), None


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


OPS = {
    "foretrace::latent_attention": OpSpec(OpKind.ATTENTION, geometry, "flash_mla.flash_mla_with_kvcache"),
}
