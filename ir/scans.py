"""FLOPs of scans over a sequence, by algorithm: what one fused kernel of each computes.

A multiply-add is 2 FLOP; matrix FLOPs are those that the chunked algorithms put into matmuls. A backward kernel
recomputes the forward and takes two products for each of its: three times the forward, as the kernels of mamba-ssm
and flash-linear-attention do.

| algorithm | of | sizes beside ``batch length`` |
|---|---|---|
| ``selective_scan`` | Mamba, arXiv:2312.00752, algorithm 2 | ``channels state`` |
| ``ssd`` | Mamba-2, arXiv:2405.21060, section 6; mLSTM, arXiv:2503.14376 | ``heads head_dim groups state chunk`` |
| ``gated_delta`` | Gated DeltaNet, arXiv:2412.06464, section 3.3; Kimi's too | ``heads key_dim value_dim chunk`` |
| ``recurrent_delta`` | the same, one token after another (decode) | ``heads key_dim value_dim`` |
| ``wkv`` | RWKV-4, arXiv:2305.13048, equations 19 to 22 | ``channels`` |
"""

from collections.abc import Callable, Mapping
from typing import Any

from .dim import DimLike, dim_min

Flops = tuple[DimLike, DimLike, DimLike]
"""Matrix, vector and special-function FLOPs."""


def scan_flops(a: Mapping[str, Any]) -> Flops:
    """FLOPs of the scan with attributes *a*; ``algorithm`` names one of the table above."""
    matrix, vector, special = _ALGORITHMS[a["algorithm"]](a, a["batch"] * a["length"])
    times = 3 if a.get("backward") else 1
    return times * matrix, times * vector, times * special


def _selective_scan(a: Mapping[str, Any], tokens: DimLike) -> Flops:
    # a state element: Δ·A, exp, ·B, h·Ā + B̄x (2), C·h (2); a channel: Δ·x, D·x + y, softplus of Δ, silu of the gate
    channels = tokens * a["channels"]
    return 0, channels * (6 * a["state"] + 3), channels * (a["state"] + 2)


def _ssd(a: Mapping[str, Any], tokens: DimLike) -> Flops:
    heads, width, state = a["heads"], a["head_dim"], a["state"]
    chunk = dim_min(a["chunk"], a["length"])
    # C·Bᵀ of each group, (L ∘ C·Bᵀ)·X, then Bᵀ·X into the chunk's state and C·h out of the one before
    matrix = 2 * tokens * (chunk * state * a["groups"] + heads * (chunk * width + 2 * state * width))
    # the decay mask of each head and pair (difference, exp, product); Δ·x, decay of state, D·x + y for each channel
    return matrix, tokens * heads * (2 * chunk + 4 * width), tokens * heads * (chunk + 1)


def _gated_delta(a: Mapping[str, Any], tokens: DimLike) -> Flops:
    heads, key, value, chunk = a["heads"], a["key_dim"], a["value_dim"], dim_min(a["chunk"], a["length"])
    # K·Kᵀ, Q·Kᵀ, T·βK over keys; T·βV, A·V' over values; W·S, Q·S, Kᵀ·V' with the state
    products = chunk * (3 * key + 2 * value) + 3 * key * value
    inverse = 2 * chunk * chunk // 3  # T by forward substitution: C³/3 multiply-adds a chunk
    vector = 4 * chunk + 4 * (key + value)  # decay masks of two C × C products; scales, gates and norms of q, k, v
    return tokens * heads * (2 * products + inverse), tokens * heads * vector, tokens * heads * chunk


def _recurrent_delta(a: Mapping[str, Any], tokens: DimLike) -> Flops:
    # decay of S, S·k (2), S + k·δ (2), S·q (2); δ = β (v - S·k)
    state = a["key_dim"] * a["value_dim"]
    return 0, tokens * a["heads"] * (7 * state + 2 * a["value_dim"]), tokens * a["heads"]


def _wkv(a: Mapping[str, Any], tokens: DimLike) -> Flops:
    # as stabilised by a running maximum: 18 additions, products and maxima, 4 exponentials and a division
    return 0, 18 * tokens * a["channels"], 5 * tokens * a["channels"]


_ALGORITHMS: dict[str, Callable[[Mapping[str, Any], DimLike], Flops]] = {
    "selective_scan": _selective_scan,
    "ssd": _ssd,
    "gated_delta": _gated_delta,
    "recurrent_delta": _recurrent_delta,
    "wkv": _wkv,
}
