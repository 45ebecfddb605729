"""Blocks of different kinds share what is equal in them: what stands twice is counted once, what differs is not."""

from dataclasses import replace

from transformers import AutoConfig

from foretrace.capture import capture_graph
from foretrace.capture.models import PretrainedModel
from foretrace.ir import Graph, find_blocks, folded_size
from foretrace.ir.blocks import find_parts

MOE = {
    "hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 32, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 4, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 2,
    "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8, "v_head_dim": 16, "vocab_size": 120,
}  # fmt: skip


def mixed() -> Graph:
    """One dense layer, three of experts; their attention and norms are the same."""
    return capture_graph(PretrainedModel("m", AutoConfig.for_model("deepseek_v3", **MOE), "float32"))


def test_layers_of_two_kinds_have_their_attention_in_common() -> None:
    graph = mixed()
    blocks = find_blocks(graph)
    assert [b.repeats for b in blocks] == [1, 3]
    parts = {p.path: p for p in find_parts(graph, blocks)}
    names = {"input_layernorm", "self_attn", "post_attention_layernorm"}
    assert parts.keys() == {f"model.layers.*.{n}" for n in names}
    assert {(p.stated, p.repeats) for p in parts.values()} == {(2, 4)}
    each_block_once = len(graph.ops) - sum(len(ops) for b in blocks for ops in b.ops[1:])
    assert folded_size(graph) == each_block_once - sum(len(p.ops) for p in parts.values())


def test_a_literal_that_differs_keeps_a_part_apart() -> None:
    graph = mixed()
    (norm,) = (p for p in find_parts(graph, find_blocks(graph)) if p.path.endswith("input_layernorm"))
    changed = replace(graph.ops[norm.ops[2]], attributes={"another": 1})
    other = replace(graph, ops=(*graph.ops[: norm.ops[2]], changed, *graph.ops[norm.ops[2] + 1 :]))
    assert not any(p.path.endswith("input_layernorm") for p in find_parts(other, find_blocks(other)))
    assert folded_size(other) == folded_size(graph) + len(norm.ops)


def test_blocks_inside_stages_fold_too() -> None:
    config = AutoConfig.for_model("convnext", hidden_sizes=[8, 16], depths=[3, 2], num_stages=2, image_size=32)
    graph = capture_graph(PretrainedModel("m", config, "float32"))
    repeated = [(p.path, p.stated) for p in find_parts(graph, find_blocks(graph))]
    assert repeated == [("convnext.encoder.stages.*.layers.*", 3), ("convnext.encoder.stages.*.layers.*", 2)]


def test_one_kind_of_layer_shares_with_nobody() -> None:
    config = AutoConfig.for_model("gpt2", n_embd=64, n_head=4, n_layer=3, vocab_size=100)
    graph = capture_graph(PretrainedModel("m", config, "float32"))
    assert find_parts(graph, find_blocks(graph)) == []
