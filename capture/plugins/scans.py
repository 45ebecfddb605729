"""Scans over a sequence as one operator: state-space models, gated delta rules, RWKV, and their causal convolution.

Transformers has each as a module-level function that a kernel takes the place of where mamba-ssm, causal-conv1d or
flash-linear-attention is installed; the loops in torch that stand there otherwise are thousands of operators a layer.
The work of each is in `foretrace.ir.scans`.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from foretrace.ir import DimLike, OpKind, Tensor

from .base import OpSpec, define, replaced

_conv = define(
    "causal_conv1d",
    "(Tensor x, Tensor weight, Tensor? bias, str activation) -> Tensor",
    lambda x, *_: x.new_empty(x.shape),
)
_conv_update = define(
    "causal_conv1d_update",
    "(Tensor x, Tensor(a!) state, Tensor weight, Tensor? bias, str activation) -> (Tensor, Tensor(a!))",
    lambda x, state, *_: (x.new_empty(x.shape), state),
    differentiable=False,
)
_selective_scan = define(
    "selective_scan",
    "(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? bias) -> (Tensor, Tensor)",
    lambda x, dt, a, *_: (x.new_empty(x.shape), x.new_empty((*x.shape[:-1], a.shape[-1]))),
)
_state_update = define(
    "selective_state_update",
    "(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? bias, Tensor(a!) state) "
    "-> (Tensor, Tensor(a!))",
    lambda x, *rest: (x.new_empty(x.shape), rest[-1]),
    differentiable=False,
)
_ssd = define(
    "ssd",
    "(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? bias, Tensor? state, int chunk) "
    "-> (Tensor, Tensor)",
    lambda x, dt, a, b, *_: (
        x.new_empty(x.shape, dtype=torch.float32),
        x.new_empty((x.shape[0], *x.shape[2:], b.shape[-1]), dtype=torch.float32),
    ),
)
_delta_rule = define(
    "gated_delta_rule",
    "(Tensor q, Tensor k, Tensor v, Tensor g, Tensor beta, Tensor? state, int chunk) -> (Tensor, Tensor)",
    lambda q, k, v, *_: (
        q.new_empty(v.shape),
        q.new_empty((v.shape[0], v.shape[2], k.shape[-1], v.shape[-1]), dtype=torch.float32),
    ),
)
_wkv = define(
    "wkv",
    "(Tensor decay, Tensor first, Tensor k, Tensor v, Tensor[] state) -> (Tensor, Tensor, Tensor, Tensor)",
    lambda decay, first, k, v, state: (
        k.new_empty(k.shape),
        *(k.new_empty(k[:, 0].shape, dtype=torch.float32) for _ in range(3)),
    ),
)

_mlstm = define(
    "mlstm",
    "(Tensor q, Tensor k, Tensor v, Tensor i, Tensor f, Tensor? c, Tensor? n, Tensor? m, int chunk) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    lambda q, k, v, *_: (
        v.new_empty(v.shape),
        v.new_empty((*k.shape[:2], k.shape[-1], v.shape[-1]), dtype=torch.float32),
        k.new_empty((*k.shape[:2], k.shape[-1]), dtype=torch.float32),
        k.new_empty((*k.shape[:2], 1), dtype=torch.float32),
    ),
)


def causal_conv1d_fn(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    **_: Any,
) -> Any:
    """A depthwise convolution that sees no future, and its activation: (batch, channels, length)."""
    return _conv(hidden_states, weight, bias, activation or "")


def causal_conv1d_update(
    hidden_states: torch.Tensor,
    conv_state: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
) -> Any:
    """The same for new tokens, with the last inputs kept in a state."""
    return _conv_update(hidden_states, conv_state, weight, bias, activation or "")[0]


def mamba_selective_scan(
    hidden_states: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,  # noqa: N803 - the names that models call it by
    B: torch.Tensor,  # noqa: N803
    C: torch.Tensor,  # noqa: N803
    D: torch.Tensor | None = None,  # noqa: N803
    z: torch.Tensor | None = None,
    delta_bias: torch.Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    **_: Any,
) -> Any:
    """Mamba: (batch, channels, length) with a diagonal state of A's second size for each channel."""
    out, state = _selective_scan(hidden_states, dt, A, B, C, D, z, delta_bias)
    return (out, state) if return_last_state else out


def selective_state_update(
    state: torch.Tensor,
    hidden_states: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,  # noqa: N803
    B: torch.Tensor,  # noqa: N803
    C: torch.Tensor,  # noqa: N803
    D: torch.Tensor | None = None,  # noqa: N803
    dt_bias: torch.Tensor | None = None,
    dt_softplus: bool = False,
    z: torch.Tensor | None = None,
    **_: Any,
) -> Any:
    """One token of Mamba (batch, channels) or Mamba-2 (batch, heads, head_dim); the state is written in place."""
    return _state_update(hidden_states, dt, A, B, C, D, z, dt_bias, state)[0]


def mamba2_chunk_scan(
    hidden_states: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,  # noqa: N803
    B: torch.Tensor,  # noqa: N803
    C: torch.Tensor,  # noqa: N803
    chunk_size: int,
    D: torch.Tensor | None = None,  # noqa: N803
    dt_bias: torch.Tensor | None = None,
    initial_states: torch.Tensor | None = None,
    return_final_states: bool = False,
    **_: Any,
) -> Any:
    """Mamba-2's state-space dual: (batch, length, heads, head_dim), B and C (batch, length, groups, state)."""
    out, state = _ssd(hidden_states, dt, A, B, C, D, dt_bias, initial_states, chunk_size)
    return (out, state) if return_final_states else out


def chunked_delta_rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    chunk_size: int = 64,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    **_: Any,
) -> Any:
    """The gated delta rule over chunks: (batch, length, heads, head_dim); decay g a head, or (Kimi) a channel."""
    out, state = _delta_rule(query, key, value, g, beta, initial_state, chunk_size)
    return out, state if output_final_state else None


def recurrent_delta_rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    **_: Any,
) -> Any:
    """The same, token by token: a chunk of 1."""
    return chunked_delta_rule(query, key, value, g, beta, 1, initial_state, output_final_state)


def rwkv_linear_attention(
    time_decay: torch.Tensor,
    time_first: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    state: Sequence[torch.Tensor] | None = None,
    return_state: bool = False,
) -> Any:
    """RWKV-4's wkv: (batch, length, channels), a state of numerator, denominator and maximum."""
    out, *new = _wkv(time_decay, time_first, key, value, list(state or ()))
    return out, new if return_state or state is not None else state


def mlstm_backend(
    self: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    igate: torch.Tensor,
    fgate: torch.Tensor,
    c_initial: torch.Tensor | None = None,
    n_initial: torch.Tensor | None = None,
    m_initial: torch.Tensor | None = None,
    return_last_states: bool | None = None,
    mode: str | None = None,
) -> Any:
    """The matrix-memory cell of xLSTM: (batch, heads, length, head_dim)."""
    chunk = self.config.chunk_size
    out, *state = _mlstm(query, key, value, igate, fgate, c_initial, n_initial, m_initial, chunk)
    last = self.config.return_last_states if return_last_states is None else return_last_states
    return (out, tuple(state)) if last or "inference" in (mode or self.config.mode) else out


FUNCTIONS: dict[str, Any] = {
    "causal_conv1d_fn": causal_conv1d_fn,
    "causal_conv1d_update": causal_conv1d_update,
    "mamba_selective_scan": mamba_selective_scan,
    "mamba_selective_state_update": selective_state_update,
    "mamba2_selective_state_update": selective_state_update,
    "mamba2_chunk_scan": mamba2_chunk_scan,
    "torch_chunk_gated_delta_rule": chunked_delta_rule,
    "torch_recurrent_gated_delta_rule": recurrent_delta_rule,
    "chunk_kimi_delta_attention": chunked_delta_rule,
    "recurrent_kimi_delta_attention": recurrent_delta_rule,
    "rwkv_linear_attention": rwkv_linear_attention,
}
"""Module-level functions of transformers' models → what stands in for them."""


@contextmanager
def install(root: torch.nn.Module) -> Iterator[None]:
    """The functions of the files that *root*'s modules come from are ours while the context is open."""
    with ExitStack() as stack:
        for file in {type(m).__module__ for m in root.modules() if type(m).__module__.startswith("transformers.")}:
            for name in FUNCTIONS.keys() & vars(sys.modules[file]).keys():
                stack.enter_context(replaced(sys.modules[file], name, FUNCTIONS[name]))
        for kind in {type(m) for m in root.modules() if type(m).__name__ == "xLSTMBackend"}:
            stack.enter_context(replaced(kind, "forward", mlstm_backend))
        yield


def _conv_sizes(ins: Sequence[Tensor], outs: Sequence[Tensor], literals: Mapping[str, Any]) -> dict[str, Any]:
    (batch, channels, length), weight = ins[0].shape, next(t.shape for t in ins[1:] if len(t.shape) == 2)
    sizes = {"batch": batch, "in_channels": channels, "out_channels": channels, "groups": channels}
    return sizes | {"kernel": weight[-1:], "out_size": (length,), "k": weight[-1], "bias": False}


def _selective_sizes(ins: Sequence[Tensor], outs: Sequence[Tensor], literals: Mapping[str, Any]) -> dict[str, Any]:
    x, state = ins[0].shape, outs[1].shape
    length: DimLike = x[-1] if len(x) == 3 and len(state) == 3 else 1
    channels = state[1] if len(state) == 3 else state[1] * state[2]
    sizes = {"batch": x[0], "length": length, "channels": channels, "state": state[-1]}
    return {"algorithm": "selective_scan"} | sizes


def _ssd_sizes(ins: Sequence[Tensor], outs: Sequence[Tensor], literals: Mapping[str, Any]) -> dict[str, Any]:
    (batch, length, heads, width), (*_, groups, state) = ins[0].shape, ins[3].shape
    sizes = {"batch": batch, "length": length, "heads": heads, "head_dim": width, "groups": groups, "state": state}
    return {"algorithm": "ssd", "chunk": literals["chunk"]} | sizes


def _mlstm_sizes(ins: Sequence[Tensor], outs: Sequence[Tensor], literals: Mapping[str, Any]) -> dict[str, Any]:
    (batch, heads, length, state), width = ins[0].shape, ins[2].shape[-1]
    sizes = {"batch": batch, "length": length, "heads": heads, "head_dim": width, "groups": heads, "state": state}
    return {"algorithm": "ssd", "chunk": literals["chunk"]} | sizes  # its matmuls are those of Mamba-2's dual


def _delta_sizes(ins: Sequence[Tensor], outs: Sequence[Tensor], literals: Mapping[str, Any]) -> dict[str, Any]:
    batch, length, heads, value = ins[2].shape
    sizes = {"batch": batch, "length": length, "heads": heads, "key_dim": ins[1].shape[-1], "value_dim": value}
    return {"algorithm": "recurrent_delta" if literals["chunk"] == 1 else "gated_delta"} | sizes


def _wkv_sizes(ins: Sequence[Tensor], outs: Sequence[Tensor], literals: Mapping[str, Any]) -> dict[str, Any]:
    batch, length, channels = ins[2].shape
    return {"algorithm": "wkv", "batch": batch, "length": length, "channels": channels}


def _scan(geometry: Any, name: str, outputs: int = 2) -> OpSpec:
    return OpSpec(OpKind.SCAN, geometry, name, f"{name}_backward", outputs)


OPS = {
    "foretrace::causal_conv1d": OpSpec(
        OpKind.CONVOLUTION, _conv_sizes, "causal_conv1d.causal_conv1d_fn", "causal_conv1d.causal_conv1d_bwd"
    ),
    "foretrace::causal_conv1d_update": OpSpec(
        OpKind.CONVOLUTION, _conv_sizes, "causal_conv1d.causal_conv1d_update", outputs=2
    ),
    "foretrace::selective_scan": _scan(_selective_sizes, "mamba_ssm.selective_scan_fn"),
    "foretrace::selective_state_update": OpSpec(
        OpKind.SCAN, _selective_sizes, "mamba_ssm.selective_state_update", outputs=2
    ),
    "foretrace::ssd": _scan(_ssd_sizes, "mamba_ssm.mamba_chunk_scan_combined"),
    "foretrace::gated_delta_rule": _scan(_delta_sizes, "fla.chunk_gated_delta_rule"),
    "foretrace::wkv": _scan(_wkv_sizes, "rwkv.wkv", outputs=4),
    "foretrace::mlstm": _scan(_mlstm_sizes, "mlstm_kernels.mlstm_chunkwise", outputs=4),
}
