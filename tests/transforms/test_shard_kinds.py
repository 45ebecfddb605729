"""Sharding of what is made another way: caches, fused experts, factored states, halves of a projection.

And what holds of every kind under every plan: a gradient lies as its parameter, a result in memory of its own or of
an operand.
"""

from typing import Any

import pytest

from foretrace.ir import Graph, Op, OpKind, Role, prod, verify
from foretrace.transforms.parallel import parallelise
from foretrace.transforms.plan import Plan, PlanError
from foretrace.transforms.shard import TensorParallel
from foretrace.transforms.shard.placement import shard
from foretrace.transforms.shard.seeds import seeds_of, styles_of
from foretrace.transforms.shard.tensor import check_sizes
from tests.replay.models import BATCH, SEQ, Builder
from tests.transforms.shard_models import CONFIGS, MORE, captured
from tests.transforms.test_shard import collectives, of_name, two_linears

pytestmark = pytest.mark.slow

ROWS = str(BATCH * SEQ * 64 * 4)
"""Bytes of a captured model's residual."""
TWO = Plan(tp=2)
TOKENS = Plan(tp=2, sp=True)


def parameters(graph: Graph) -> dict[str, tuple[Any, ...]]:
    """Name → shape."""
    return {t.name: t.shape for t in graph.with_role(Role.PARAMETER)}


def caches(graph: Graph) -> list[tuple[Any, ...]]:
    return [t.shape for i, t in enumerate(graph.tensors) if t.role is Role.KV_CACHE and len(t.shape) == 4 and i >= 0]


# --- of every kind ----------------------------------------------------------------------------------------------------


def stray_gradients(local: Graph) -> list[str]:
    """Gradients whose memory has not as many elements as their parameter's part."""
    mine = {name: prod(shape) for name, shape in parameters(local).items()}
    made = {t for op in local.ops for t in op.outputs}
    owners = {
        (t.name, t.storage)
        for i, t in enumerate(local.tensors)
        if i in made and t.role is Role.GRADIENT and t.name in mine
    }
    return sorted({name for name, owner in owners if local.tensors[owner].elements != mine[name]})


def stray_results(local: Graph) -> list[Op]:
    """Ops with a result in memory that is neither its own nor an operand's."""
    tensors = local.tensors
    return [
        op
        for op in local.ops
        if any(tensors[t].storage not in (t, *(tensors[i].storage for i in op.inputs)) for t in op.outputs)
    ]


@pytest.mark.parametrize("kind", [*CONFIGS, *MORE])
def test_gradients_lie_as_parameters_and_results_in_operands(kind: str) -> None:
    graph = captured(kind)
    assert not stray_results(graph)
    shared = set(stray_gradients(graph))  # a fused projection's biases, tied weights
    for plan in ("tp=2", "tp=4,sp=1", "cp=2,tp=2,sp=1", "dp=4,ep=4,tp=2", "tp=2,recompute=full"):
        try:
            local = verify(parallelise(graph, Plan.parse(plan)))
        except PlanError:
            assert "cp=" in plan or "ep=" in plan  # attention that cannot be divided, no experts
            continue
        assert set(stray_gradients(local)) <= shared, plan
        assert not stray_results(local), plan


# --- serving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "attention", "phase"),
    [
        ("llama", "sdpa", "prefill"),
        ("llama", "eager", "decode"),
        ("bloom", "sdpa", "decode"),
        ("falcon", "sdpa", "prefill"),
        ("falcon", "sdpa", "decode"),
    ],
)
def test_caches_are_divided_with_their_heads_and_logits_are_whole(kind: str, attention: str, phase: str) -> None:
    graph = captured(kind, attention, phase)
    local = verify(parallelise(graph, TWO))
    whole = {s[1] for s in caches(graph)} - {0}
    assert {s[1] for s in caches(local)} == {n // 2 for n in whole}
    assert "tp_gathered" not in local.metadata
    logits = [t for t in local.tensors if t.role is Role.OUTPUT]
    assert [t.shape for t in logits] == [t.shape for t in graph.tensors if t.role is Role.OUTPUT]
    assert len(of_name(local, "all_gather")) == 1  # of the logits


def test_a_decode_step_has_no_sequence_to_divide() -> None:
    with pytest.raises(PlanError, match=r"decode step has one token.*use sp=0"):
        parallelise(captured("llama", "eager", "decode"), TOKENS)


def test_outputs_that_are_sums_are_completed() -> None:
    b = Builder()
    x = b.tensor("x", BATCH * SEQ, 16, role=Role.INPUT)
    up = b.matmul(x, b.weight("m.fc1.weight", 16, 64), module="m.fc1")
    b.matmul(up, b.weight("m.fc2.weight", 64, 16), module="m.fc2", role=Role.OUTPUT)
    local = verify(TensorParallel(2).run(b.graph()))
    assert "all_reduce" in local.ops[-1].name
    assert [t for t, tensor in enumerate(local.tensors) if tensor.role is Role.OUTPUT] == list(local.ops[-1].outputs)


# --- parameters and states --------------------------------------------------------------------------------------------


def test_factored_states_are_divided_where_their_parameter_is() -> None:
    local = verify(parallelise(captured("llama", optimizer="adafactor"), TWO))
    of = {t.name.split(".", 1)[1]: t.shape for t in local.with_role(Role.OPTIMIZER_STATE)}
    name = "model.layers.0.self_attn.q_proj.weight"  # [64, 64], colwise
    assert (of[f"row_var.{name}"], of[f"col_var.{name}"]) == ((32, 1), (1, 64))
    large = [op for op in of_name(local, "all_gather") if op.phase == "optimizer"]
    assert not large


def test_experts_divide_as_their_own_plan_says_of_the_parameter() -> None:
    """Llama 4 names the parameters and means their dims: gate and up [experts, h, 2n] by 2n, down [experts, n, h] by n.

    It says "rowwise" of the one that gives columns.
    """
    local = parallelise(captured("llama4_text"), TWO)
    of = parameters(local)
    assert of["model.layers.0.feed_forward.experts.gate_up_proj"] == (8, 64, 128)
    assert of["model.layers.0.feed_forward.experts.down_proj"] == (8, 64, 64)
    assert not of_name(local, "all_gather")
    for phase in ("forward", "backward"):
        assert collectives(local, phase)["all_reduce", ROWS] == 3


def test_what_is_only_read_in_parts_is_divided() -> None:
    assert parameters(parallelise(captured("gpt_oss"), TWO))["model.layers.0.self_attn.sinks"] == (4,)
    norms = parameters(parallelise(captured("olmo2"), TWO))
    assert norms["model.layers.0.self_attn.q_norm.weight"] == (32,)
    assert norms["model.layers.0.self_attn.k_norm.weight"] == (16,)
    assert norms["model.layers.0.post_attention_layernorm.weight"] == (64,)


@pytest.mark.parametrize(
    ("name", "style"),
    [
        ("distilbert.transformer.layer.0.attention.q_lin", "colwise"),
        ("distilbert.transformer.layer.0.attention.out_lin", "rowwise"),
        ("distilbert.transformer.layer.0.ffn.lin1", "colwise"),
        ("distilbert.transformer.layer.0.ffn.lin2", "rowwise"),
        ("vocab_projector", "colwise"),
        ("model.layers.0.self_attn.dense", "rowwise"),
        ("shared", "vocabulary"),
        ("backbone.embeddings", "vocabulary"),
    ],
)
def test_usual_names(name: str, style: str) -> None:
    b = Builder()
    x = b.tensor("x", BATCH * SEQ, 16, role=Role.INPUT)
    b.matmul(x, b.weight(f"{name}.weight", 16, 64), module=name)
    [place] = seeds_of(graph := b.graph(), styles_of(graph)).places.values()
    assert place == {"colwise": shard(1), "rowwise": shard(0), "vocabulary": shard(0)}[style]


def test_an_embedding_module_with_other_parameters_is_left_whole() -> None:
    b = Builder()
    b.weight("vit.embeddings.cls_token", 1, 1, 16)
    x = b.tensor("x", BATCH * SEQ, 16, role=Role.INPUT)
    b.matmul(x, b.weight("vit.fc1.weight", 16, 64), module="vit.fc1")
    graph = b.graph()
    assert len(seeds_of(graph, styles_of(graph)).places) == 1


# --- products and sums ------------------------------------------------------------------------------------------------


def test_halves_of_a_projection_are_gathered_apart() -> None:
    b = Builder()
    x = b.tensor("x", BATCH * SEQ, 16, role=Role.INPUT)
    up = b.matmul(x, b.weight("m.fc1.weight", 16, 64), module="m.fc1")
    first, second = (b.tensor("", BATCH * SEQ, 32, storage=up) for _ in range(2))
    b.op(OpKind.VIEW, "aten.split.Tensor", [up], [first, second], "m", dim=1)
    for half in (first, second, first):
        b.op(OpKind.SCAN, "made.scan.default", [half], [b.tensor("", BATCH * SEQ, 32)], "m")
    local = verify(TensorParallel(2).run(b.graph()))
    first_read, second_read, third_read = (op.inputs[0] for op in of_name(local, "scan"))
    assert first_read == third_read != second_read
    assert len(of_name(local, "all_gather")) == 2


def test_statistics_of_divided_features_are_summed_where_they_are_small() -> None:
    graph = captured("olmo2")  # queries and keys are normed over all heads: two sums a layer each way, one value a row
    value = str(BATCH * SEQ * 4)
    local = parallelise(graph, TWO)
    for phase, losses in (("forward", 3), ("backward", 0)):
        assert collectives(local, phase)["all_reduce", value] == 4 + losses
    assert not of_name(local, "reduce_scatter")
    spread = parallelise(graph, TOKENS)
    for phase in ("forward", "backward"):  # gradients of queries, keys and values meet before they join the residual's
        assert collectives(spread, phase)["reduce_scatter", ROWS] == 5
    assert not of_name(spread, "all_to_all")


def test_constants_are_made_again_and_gradients_gathered_before_they_are_repeated() -> None:
    local = verify(parallelise(captured("mixtral"), TOKENS))
    by_id = {t: op for op in local.ops for t in op.outputs}
    for op in of_name(local, "all_gather"):
        assert str(op.attributes["bytes"]) in (ROWS, str(BATCH * SEQ * 8 * 4), str(BATCH * SEQ * 2 * 4))
        assert "new_" not in by_id[op.inputs[0]].name


def test_biases_of_experts_are_divided_and_added_once() -> None:
    local = parallelise(captured("gpt_oss"), TWO)
    of = parameters(local)
    assert of["model.layers.0.mlp.experts.gate_up_proj_bias"] == (8, 128)
    assert of["model.layers.0.mlp.experts.down_proj_bias"] == (8, 64)
    layers = sum(name.endswith("sinks") for name in of)
    for phase in ("forward", "backward"):
        assert collectives(local, phase)["all_reduce", ROWS] == 1 + 2 * layers
    assert not of_name(local, "all_gather")
    assert "tp_gathered" not in local.metadata


def test_experts_and_the_shared_expert_are_summed_together() -> None:
    local = parallelise(captured("qwen2_moe"), TWO)
    for phase in ("forward", "backward"):
        assert collectives(local, phase)["all_reduce", ROWS] == 3


def test_stacked_rotations_stay_divided() -> None:
    local = parallelise(captured("gptj"), TWO)
    assert not of_name(local, "all_gather")
    assert "tp_gathered" not in local.metadata


def test_a_style_may_gather_behind_its_module() -> None:
    local = verify(TensorParallel(2, styles={"*.fc1": "colwise_gathered", "*.fc2": "rowwise"}).run(two_linears()))
    [gather] = of_name(local, "all_gather")
    assert gather.module == "mlp.fc1"
    [gelu] = of_name(local, "gelu")
    assert local.tensors[gelu.outputs[0]].shape == (BATCH * SEQ, 64)


def test_the_residual_keeps_its_placement() -> None:
    local = verify(TensorParallel(2, styles={"*.fc1": "replicate", "*.fc2": "colwise"}).run(two_linears()))
    [add] = of_name(local, "add")
    assert local.tensors[add.outputs[0]].shape == (BATCH, SEQ, 16)
    assert len(of_name(local, "all_gather")) == 1


def test_equal_ops_of_two_phases_are_decided_apart() -> None:
    """A sum meets what is whole: forward it is completed first, in the backward the gradients meet."""
    b = Builder()
    x = b.tensor("x", BATCH * SEQ, 64, role=Role.INPUT)
    weight = b.weight("m.fc2.weight", 64, 64)
    for phase in ("forward", "backward"):
        part = b.matmul(x, weight, module="m.fc2", phase=phase)
        total = b.tensor("", BATCH * SEQ, 64)
        b.op(OpKind.ELEMENTWISE, "aten.add.Tensor", [x, part], [total], "m", phase)
        b.op(OpKind.ELEMENTWISE, "aten.exp.default", [total], [b.tensor("", BATCH * SEQ, 64)], "m", phase)
    local = verify(TensorParallel(2).run(b.graph()))
    order = [op.name.split(".")[1] for op in local.ops if op.kind is not OpKind.VIEW]
    assert order == ["mm", "all_reduce", "add", "exp", "mm", "add", "all_reduce", "exp"]


# --- what is said -----------------------------------------------------------------------------------------------------


def test_what_stays_whole_is_noted_and_nothing_divided_is_refused() -> None:
    graph = two_linears("alpha", "fc2")
    assert "leaves each rank 75%" in TensorParallel(2).run(graph).metadata["tp_whole"]
    assert "tp_whole" not in TensorParallel(2).run(two_linears()).metadata
    b = Builder()
    x = b.tensor("x", BATCH * SEQ, 16, role=Role.INPUT)
    b.weight("unread.fc1.weight", 16, 64)
    b.matmul(x, b.weight("m.alpha.weight", 16, 64), module="m.alpha")
    with pytest.raises(PlanError, match=r"no product of .* reads a parameter that is divided"):
        TensorParallel(2).run(b.graph())


def test_the_nearest_number_of_ranks_divides_all_sizes() -> None:
    b = Builder()
    x = b.tensor("x", BATCH * SEQ, 12, role=Role.INPUT)
    up = b.matmul(x, b.weight("m.fc1.weight", 12, 40), module="m.fc1")
    b.matmul(b.matmul(up, b.weight("m.fc2.weight", 40, 12), "m.fc2"), b.weight("n.fc1.weight", 12, 6), "n.fc1")
    with pytest.raises(PlanError, match="nearest is tp=2"):
        TensorParallel(4).run(b.graph())  # 40 divides among 4, 6 does not


def test_a_sequence_that_does_not_divide_is_refused() -> None:
    graph = captured("llama")
    check_sizes(graph, 4, True, {"batch": 2, "seq": 68})
    check_sizes(graph, 4, False, {"batch": 2, "seq": 67})
    with pytest.raises(PlanError, match=r"tp=4,sp=1 does not divide the 67 tokens.*nearest is 68"):
        check_sizes(graph, 4, True, {"batch": 2, "seq": 67})
