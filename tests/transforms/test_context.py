"""Context parallel: what travels in each direction, what is left whole, and what is refused."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from foretrace.ir import DimLike, Graph, OpKind, Role, symbol, verify
from foretrace.transforms.plan import PlanError
from foretrace.transforms.shard import ContextParallel
from tests.replay.models import BATCH, SEQ, Builder
from tests.transforms.shard_models import captured

pytestmark = pytest.mark.slow

HEADS, KV_HEADS, WIDTH = 4, 2, 8
KEYS = 2 * 2 * KV_HEADS * WIDTH * BATCH * SEQ
"""Bytes of a rank's keys and values."""


def attention(*operands: tuple[DimLike, ...], causal: bool = True, target: DimLike = SEQ) -> Graph:
    """One attention and its backward, with more *operands* of some shapes."""
    b = Builder()
    q = b.tensor("q", BATCH, HEADS, SEQ, WIDTH, role=Role.INPUT)
    keys = [b.tensor(name, BATCH, KV_HEADS, target, WIDTH, role=Role.INPUT) for name in "kv"]
    more = [b.tensor("operand", *shape, role=Role.INPUT) for shape in operands]
    sizes: dict[str, Any] = {"batch": BATCH, "heads": HEADS, "kv_heads": KV_HEADS, "q_len": SEQ, "kv_len": target}
    sizes |= {"head_dim": WIDTH, "v_dim": WIDTH, "causal": causal}
    out = b.tensor("out", BATCH, HEADS, SEQ, WIDTH)
    b.op(OpKind.ATTENTION, "aten.scaled_dot_product_attention.default", [q, *keys, *more], [out], "attn", **sizes)
    grads = [b.tensor(f"grad.{name}", *b.tensors[t].shape) for name, t in zip("qkv", (q, *keys), strict=True)]
    name = "aten._scaled_dot_product_flash_attention_backward.default"
    b.op(OpKind.ATTENTION, name, [q, *keys, *more, out, out], grads, "attn", "backward", backward=True, **sizes)
    b.pointwise("neg", *grads[1:], phase="backward")
    return b.graph(phase="train")


def travels(graph: Graph) -> Counter[tuple[str, str, str]]:
    return Counter(
        (op.phase, op.name.split(".")[1], str(op.attributes["bytes"]))
        for op in graph.ops
        if op.kind is OpKind.COLLECTIVE
    )


def test_a_ring_passes_keys_on_and_brings_their_gradients_home() -> None:
    """Ranks minus one hops of the keys in each direction, and as many hops as ranks of their gradients."""
    local = verify(ContextParallel(4, ring=True).run(attention()))
    assert travels(local) == {
        ("forward", "send_recv", str(KEYS)): 3,
        ("backward", "send_recv", str(KEYS)): 3 + 4,
    }
    steps = [op for op in local.ops if op.kind is OpKind.ATTENTION]
    assert Counter(op.phase for op in steps) == {"forward": 4, "backward": 4}
    sizes = {"batch": 2, "seq": 4}
    assert local.flops(sizes) * 4 == attention().flops({"batch": 2, "seq": 16})


def test_gradients_leave_after_the_step_that_makes_them() -> None:
    local = ContextParallel(3, ring=True).run(attention())
    made = local.producers
    last = local.ops[made[next(iter(local.ops[-1].inputs))]]
    assert (last.name, last.attributes["ranks"]) == ("c10d.send_recv", 2)
    found, hops = last, 0
    while found.name == "c10d.send_recv":  # home, to the step that added its part, to the hop before
        hops += 1
        found = local.ops[made[found.inputs[0]]]
        if found.kind is OpKind.ELEMENTWISE:
            assert local.ops[made[found.inputs[0]]].kind is OpKind.ATTENTION
            found = local.ops[made[found.inputs[1]]]
    assert hops == 3
    assert found.kind is OpKind.ATTENTION


def test_gathering() -> None:
    local = verify(ContextParallel(4).run(attention()))
    part = str(KEYS // 2 * 4)
    assert travels(local) == {
        ("forward", "all_gather_into_tensor", part): 2,
        ("backward", "all_gather_into_tensor", part): 2,
        ("backward", "reduce_scatter_tensor", part): 2,
    }


def test_keys_of_a_fixed_length_are_on_every_rank() -> None:
    """An image's tokens do not grow with the sequence."""
    graph = attention(causal=False, target=64)
    for ring in (False, True):
        assert ContextParallel(4, ring=ring).run(graph).ops == graph.ops


def test_a_mask_of_queries_by_keys_is_refused() -> None:
    masked = attention((1, HEADS, SEQ, SEQ), causal=False)
    with pytest.raises(PlanError, match="attn of hand-made reads a mask or bias of queries by keys"):
        ContextParallel(2).run(masked)
    ContextParallel(2).run(attention((HEADS,)))  # sinks


def test_a_second_sequence_is_refused() -> None:
    graph = attention(causal=False)
    second = [replace(op, attributes={**op.attributes, "kv_len": symbol("target")}) for op in graph.ops]
    with pytest.raises(PlanError, match="attends over target beside seq"):
        ContextParallel(2).run(replace(graph, ops=tuple(second)))


def test_a_rank_without_operators_of_attention_is_refused() -> None:
    with pytest.raises(PlanError, match="capture it with --attention sdpa"):
        ContextParallel(2).run(captured("llama", "eager"))
