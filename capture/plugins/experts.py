"""Mixture-of-experts layers as grouped matmuls: one operator a projection, each expert over the rows routed to it.

Transformers' `ExpertsInterface` has an eager loop over experts, a batched form that gathers a copy of the weights for
every row, and a grouped one, which engines run: all models take the grouped one. Classes that bypass the interface
have a few lines each in `LEAVES`. The routing is the recorder's even one (`capture.unknown`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import torch

from foretrace.ir import OpKind, Tensor, prod

from .base import OpSpec, define, replaced


def _grouped_shape(x: torch.Tensor, weight: torch.Tensor, offsets: torch.Tensor, *_: Any) -> torch.Tensor:
    if weight.dim() == 3:
        return x.new_empty((x.shape[0], weight.shape[2]))
    return x.new_empty((offsets.shape[0], x.shape[0], weight.shape[1]))


_grouped = define(
    "grouped_mm",
    "(Tensor x, Tensor weight, Tensor offsets, int topk, int experts) -> Tensor",
    _grouped_shape,
    differentiable=False,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.routing = inputs[3:]


def _gradients(ctx: Any, gradient: torch.Tensor) -> Any:
    x, weight, offsets = ctx.saved_tensors
    of_x = _grouped(gradient, weight.transpose(1, 2), offsets, *ctx.routing) if ctx.needs_input_grad[0] else None
    of_weight = _grouped(x.t(), gradient, offsets, *ctx.routing) if ctx.needs_input_grad[1] else None
    return of_x, of_weight, None, None, None


torch.library.register_autograd("foretrace::grouped_mm", _gradients, setup_context=_save)

_stacked = define(
    "stacked",
    "(Tensor[] weights) -> Tensor",
    lambda weights: weights[0].new_empty((len(weights), *weights[0].shape)),
    differentiable=False,
)
torch.library.register_autograd("foretrace::stacked", lambda ctx, gradient: (list(gradient.unbind(0)),))


_beside = define(
    "beside",
    "(Tensor left, Tensor right) -> Tensor",
    lambda left, right: left.new_empty((left.shape[0], left.shape[1] + right.shape[1], *left.shape[2:])),
    differentiable=False,
)
torch.library.register_autograd("foretrace::beside", lambda ctx, gradient: tuple(gradient.chunk(2, dim=1)))


def geometry(ins: Sequence[Tensor], outs: Sequence[Tensor], literals: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of a grouped matmul; also of torch's own, which says neither top-k nor experts.

    Rows × experts' weights (2-D by 3-D): ``m`` rows in all, ``m = tokens * topk`` where every expert is here. The
    gradient of the weights (2-D by 2-D, over the rows) has ``k`` rows. Where only ``groups`` of all ``experts`` have
    weights (the rest return their rows as they are), that share of the rows is multiplied.
    """
    left, right, out = ins[0].shape, ins[1].shape, outs[0].shape
    groups = right[0] if len(right) == 3 else left[0] if len(left) == 3 else out[0]
    of_weight = len(left) == len(right) == 2
    rows = left[1] if of_weight else prod(out[:-1])
    topk = literals.get("topk", 1)
    active = rows * groups // literals.get("experts", groups)
    m, k = (left[0], active) if of_weight else (active, left[-1])
    sizes = {"b": 1, "m": m, "n": out[-1], "k": k, "groups": groups}
    return sizes | {"tokens": rows // topk, "topk": topk}


def _experts_forward(self: Any, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Transformers' grouped experts, its grouped matmul replaced by ours, which knows the routing."""
    from transformers.integrations import moe

    def grouped(x: torch.Tensor, weight: torch.Tensor, offs: torch.Tensor) -> Any:
        experts = getattr(self, "total_experts", weight.shape[0])
        return _grouped(x.to(weight.dtype), weight, offs, index.shape[-1], experts)

    with replaced(moe, "_grouped_mm", grouped):
        out: torch.Tensor = moe.grouped_mm_experts_forward(self, hidden, index, weights)
    return out


def _experts(apply_gate: Callable[..., Any], up: torch.Tensor, down: torch.Tensor, **flags: Any) -> SimpleNamespace:
    """What transformers' grouped forward reads of an Experts class."""
    defaults = {"has_gate": True, "has_bias": False, "has_post_expert_norm": False, "is_transposed": False}
    more = {"_is_expert_parallel": False, "num_experts": down.shape[0], "gate_up_proj": up, "up_proj": up}
    return SimpleNamespace(**defaults | more | flags, down_proj=down, _apply_gate=apply_gate, act_fn=apply_gate)


def _gated(act: Callable[..., Any]) -> Callable[..., Any]:
    def gate(x: torch.Tensor) -> Any:
        left, right = x.chunk(2, dim=-1)
        return act(left) * right

    return gate


def _weights(experts: Any, name: str) -> Any:
    """The weights called *name* of every expert in a module dict, as one tensor."""
    return _stacked([getattr(experts[f"expert_{i}"], name).weight for i in range(experts.num_experts)])


def _dbrx(self: Any, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    w1, v1, w2 = (w.view(self.num_experts, -1, self.hidden_size) for w in (self.mlp.w1, self.mlp.v1, self.mlp.w2))
    experts = _experts(_gated(self.mlp.activation_fn), _beside(w1, v1), w2.transpose(1, 2))
    return _experts_forward(experts, hidden.reshape(-1, self.hidden_size), index, weights).view(hidden.shape)


def _jetmoe(self: Any, inputs: torch.Tensor, expert_size: Any) -> Any:
    offsets = torch.zeros(self.num_experts, dtype=torch.int32)
    return _grouped(inputs, self.weight.transpose(1, 2), offsets, 1, self.num_experts)


def _llama4(self: Any, hidden: torch.Tensor) -> Any:
    hidden = hidden.reshape(-1, self.hidden_dim)
    scores, logits = self.router(hidden)
    weights, index = scores.topk(self.top_k, dim=-1)
    own = self.experts
    experts = _experts(_gated(own.act_fn), own.gate_up_proj, own.down_proj, is_transposed=True)
    return self.shared_expert(hidden).add_(_experts_forward(experts, hidden, index, weights)), logits


def _longcat(self: Any, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    up = self.gate_up_proj[: self.num_routed_experts]
    experts = _experts(_gated(self.act_fn), up, self.down_proj, total_experts=self.total_experts)
    return _experts_forward(experts, hidden, index, weights)


def _step3p7(self: Any, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return _experts_forward(_experts(self._apply_gate, self.gate_up_proj, self.down_proj), hidden, index, weights)


def _nllb(self: Any, hidden: torch.Tensor, mask: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
    weights, index = probabilities.topk(2, dim=-1)
    up, down = _weights(self, "fc1"), _weights(self, "fc2")
    return _experts_forward(_experts(self["expert_0"].act, up, down, has_gate=False), hidden, index, weights)


def _switch(self: Any, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    index = chosen.argmax(-1).view(-1, 1)
    up, down = _weights(self, "wi"), _weights(self, "wo")
    return _experts_forward(_experts(self["expert_0"].act, up, down, has_gate=False), hidden, index, weights)


LEAVES: dict[str, Callable[..., Any]] = {
    "DbrxExperts": _dbrx,
    "JetMoeParallelExperts": _jetmoe,
    "Llama4TextMoe": _llama4,
    "LongcatFlashExperts": _longcat,
    "NllbMoeExperts": _nllb,
    "Step3p7Experts": _step3p7,
    "SwitchTransformersExperts": _switch,
}
"""Classes that bypass the interface → the forward that stands in for theirs."""


@contextmanager
def install(root: torch.nn.Module) -> Iterator[None]:
    """Experts run grouped while the context is open."""
    from transformers.integrations.moe import ExpertsInterface

    with ExitStack() as stack:
        stack.enter_context(replaced(ExpertsInterface, "get_interface", lambda *_: _experts_forward))
        for kind in {type(m) for m in root.modules() if type(m).__name__ in LEAVES}:
            stack.enter_context(replaced(kind, "forward", LEAVES[kind.__name__]))
        yield


def _nothing(*_: Any) -> dict[str, Any]:
    return {}


OPS = {
    "foretrace::grouped_mm": OpSpec(OpKind.GROUPED_MATMUL, geometry, "aten._grouped_mm.default"),
    "foretrace::stacked": OpSpec(OpKind.VIEW, _nothing, "foretrace.stacked.default"),
    "foretrace::beside": OpSpec(OpKind.VIEW, _nothing, "foretrace.beside.default"),
}
