"""Placements of matrix products, attention and grouped products."""

from collections.abc import Mapping
from typing import Final

from foretrace.ir import OpKind

from .call import Call, Decision, Rule, settled
from .placement import PARTIAL, REPLICATE, Placement, shard

_BIASED: Final = frozenset({"addmm", "baddbmm", "addbmm"})


def _matmul(call: Call) -> Decision | None:
    """C[b, m, n] = A[b, m, k] · B[b, k, n] (+ bias): at most one of b, m, n, k is divided.

    Where both operands are divided and do not meet in k or b, tokens are gathered before features, and the operand
    that is larger by rule stays: weights are never gathered.
    """
    first = 1 if call.function in _BIASED else 0
    if len(call.ins) < first + 2 or len(call.outs) != 1:
        return None
    a_t, b_t = call.ins[first], call.ins[first + 1]
    rank = len(a_t.shape)
    if call.function == "linear" or len(b_t.shape) != rank or rank not in (2, 3):
        return _linear(call) if call.function == "linear" else None
    a, b = settled(call.places[first], call), settled(call.places[first + 1], call)
    batched = rank == 3
    row, inner_a, inner_b, column = rank - 2, rank - 1, rank - 2, rank - 1

    def chosen(a: Placement, b: Placement, out: Placement, divided: str) -> Decision:
        bias: tuple[Placement, ...] = ()
        if first:
            width = len(call.ins[0].shape)
            one = REPLICATE
            if out.shards and out.dim - rank + width >= 0 and call.ins[0].shape[out.dim - rank + width] != 1:
                one = out.at(out.dim - rank + width)
            bias = (one,)
        return Decision((*bias, a, b, *call.places[first + 2 :]), (out,), (divided,) if divided else ())

    if not a.shards and not b.shards and call.gradient.shards:  # each rank makes the part of its own parameter
        by_row = call.gradient.dim == row
        a, b = (call.gradient, b) if by_row else (a, call.gradient)
        return chosen(a, b, call.gradient, "m" if by_row else "n")
    if a.shards and b.shards:
        if batched and a.dim == 0 and b.dim == 0:
            return chosen(a, b, a.at(0), "b")
        if a.dim == inner_a and b.dim == inner_b and not (a.tokens ^ b.tokens):
            return chosen(a, b, PARTIAL, "k")
        if a.tokens and not b.tokens:
            a = REPLICATE
        elif b.tokens and not a.tokens:
            b = REPLICATE
        else:
            a = REPLICATE
    if a.shards:
        if batched and a.dim == 0:
            return chosen(a, b.at(0) if b.shards else shard(0, a.tokens), a, "b")
        if a.dim == row:
            return chosen(a, b, a, "m")
        return chosen(a, a.at(inner_b), PARTIAL, "k")
    if b.shards:
        if batched and b.dim == 0:
            return chosen(shard(0, b.tokens), b, b, "b")
        if b.dim == column:
            return chosen(a, b, b, "n")
        return chosen(b.at(inner_a), b, PARTIAL, "k")
    return chosen(a, b, REPLICATE, "")


def _linear(call: Call) -> Decision | None:
    """A[..., k] · W[n, k]ᵀ (+ bias)."""
    a, w = settled(call.places[0], call), call.places[1]
    last = len(call.ins[0].shape) - 1
    biases = call.places[2:]
    if w.shards and w.dim == 0:
        return Decision((REPLICATE, w, *(shard(0) for _ in biases)), (shard(last),), ("n",))
    if w.shards:
        return Decision((shard(last), w, *(REPLICATE for _ in biases)), (PARTIAL,), ("k",))
    if a.shards and a.dim == last:
        return Decision((a, shard(1), *(REPLICATE for _ in biases)), (PARTIAL,), ("k",))
    return Decision((a, REPLICATE, *(REPLICATE for _ in biases)), (a,), ("m",) if a.shards else ())


def _attention(call: Call) -> Decision | None:
    """Heads [batch, heads, tokens, width] are divided; queries and keys need all tokens."""
    heads, kv_heads = call.op.attributes.get("heads"), call.op.attributes.get("kv_heads")
    on_heads = [p.shards and not p.tokens and p.dim == 1 for p in call.places]
    if not any(on_heads):
        if any(p.shards and p.dim == 0 and not p.tokens for p in call.places):
            return None
        return Decision((REPLICATE,) * len(call.ins), (REPLICATE,) * len(call.outs))

    def of(shape: tuple[object, ...]) -> Placement:
        if len(shape) >= 3 and shape[1] in (heads, kv_heads):
            return shard(1)
        return shard(0) if len(shape) == 1 and shape[0] == heads else REPLICATE

    needs = tuple(of(t.shape) for t in call.ins)
    return Decision(needs, tuple(of(o.shape) for o in call.outs), ("heads", "kv_heads"))


def _grouped(call: Call) -> Decision | None:
    """Rows [rows, k] · weights [experts, k, n], or the gradient of the weights [m, rows] · [rows, n]."""
    if len(call.ins) < 2 or len(call.outs) != 1:
        return None
    a, b = settled(call.places[0], call), settled(call.places[1], call)
    rest = (REPLICATE,) * (len(call.ins) - 2)
    if len(call.ins[1].shape) == 3:  # rows · weights
        a = REPLICATE if a.tokens or (a.shards and a.dim == 0) else a
        if b.shards and b.dim == 2:
            return Decision((REPLICATE, b, *rest), (shard(1),), ("n",))
        if b.shards and b.dim == 1:
            return Decision((shard(1), b, *rest), (PARTIAL,), ("k",))
        if b.shards:
            return None
        if a.shards:
            return Decision((a, shard(1), *rest), (PARTIAL,), ("k",))
        return Decision((REPLICATE, REPLICATE, *rest), (REPLICATE,))
    a = REPLICATE if a.tokens or (a.shards and a.dim == 1) else a
    b = REPLICATE if b.tokens or (b.shards and b.dim == 0) else b
    if call.gradient.shards and call.gradient.dim and a.shards == b.shards:  # as the parameter lies
        a, b = (shard(0), REPLICATE) if call.gradient.dim == 1 else (REPLICATE, shard(1))
    elif a.shards and b.shards:
        b = REPLICATE
    if a.shards:
        return Decision((a, REPLICATE, *rest), (shard(1),), ("m",))
    if b.shards:
        return Decision((REPLICATE, b, *rest), (shard(2),), ("n",))
    return Decision((REPLICATE, REPLICATE, *rest), (REPLICATE,))


MATRIX_RULES: Final[Mapping[OpKind, Rule]] = {
    OpKind.MATMUL: _matmul,
    OpKind.ATTENTION: _attention,
    OpKind.GROUPED_MATMUL: _grouped,
}
