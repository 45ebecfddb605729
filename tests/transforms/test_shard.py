"""Sharding: by hand on small graphs, on captured models by what the ranks add up to, and what is refused."""

from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from foretrace.ir import Graph, Op, OpKind, Role, evaluate_dim, verify
from foretrace.transforms.parallel import parallelise
from foretrace.transforms.plan import Plan, PlanError
from foretrace.transforms.shard import TensorParallel
from foretrace.transforms.shard.seeds import load_styles, styles_of
from tests.replay.models import BATCH, SEQ, Builder
from tests.transforms.shard_models import CONFIGS, captured

pytestmark = pytest.mark.slow

SIZES = {"batch": 2, "seq": 64}


def collectives(graph: Graph, phase: str = "") -> Counter[tuple[str, str]]:
    """(name, bytes as an expression) → how many, of a phase, small exchanges of one value a row left out."""
    found: Counter[tuple[str, str]] = Counter()
    for op in graph.ops:
        if op.kind is OpKind.COLLECTIVE and phase in ("", op.phase):
            name = op.name.split(".")[1].removesuffix("_tensor").removesuffix("_into")
            found[name, str(op.attributes["bytes"])] += 1
    return found


def two_linears(first: str = "fc1", second: str = "fc2") -> Graph:
    """x → first → gelu → second → add."""
    b = Builder()
    x = b.tensor("x", BATCH, SEQ, 16, role=Role.INPUT)
    h = b.pointwise("native_layer_norm", x, module="norm", kind=OpKind.NORM)
    rows = b.view(h, BATCH * SEQ, 16, module=f"mlp.{first}")
    up = b.matmul(rows, b.weight(f"mlp.{first}.weight", 16, 64), module=f"mlp.{first}")
    act = b.pointwise("gelu", up, module="mlp.act")
    down = b.matmul(act, b.weight(f"mlp.{second}.weight", 64, 16), module=f"mlp.{second}")
    back = b.view(down, BATCH, SEQ, 16, module="mlp")
    b.pointwise("add", x, back, role=Role.OUTPUT)
    return b.graph()


def of_name(graph: Graph, part: str) -> list[Op]:
    return [op for op in graph.ops if part in op.name]


def test_two_linears_by_hand() -> None:
    local = verify(TensorParallel(4).run(two_linears()))
    first, second = of_name(local, "mm")
    assert (first.attributes["n"], first.attributes["k"]) == (16, 16)
    assert (second.attributes["n"], second.attributes["k"]) == (16, 16)
    assert first.work.matrix_flops == 2 * BATCH * SEQ * 16 * 16
    [reduce] = of_name(local, "all_reduce")
    assert (reduce.attributes["bytes"], reduce.attributes["ranks"], reduce.module) == (
        BATCH * SEQ * 16 * 2,
        4,
        "mlp.fc2",
    )
    [add] = of_name(local, "add")
    assert reduce.outputs[0] in add.inputs


def test_sequence_parallel_by_hand() -> None:
    graph = two_linears()
    b = Builder()
    ids = b.tensor("ids", BATCH, SEQ, role=Role.INPUT, dtype="int64")
    table = b.weight("embed_tokens.weight", 128, 16)
    x = b.tensor("x", BATCH, SEQ, 16)
    b.op(OpKind.EMBEDDING, "aten.embedding.default", [table, ids], [x], "embed_tokens")
    h = b.pointwise("native_layer_norm", x, module="norm", kind=OpKind.NORM)
    rows = b.view(h, BATCH * SEQ, 16, module="mlp.fc1")
    up = b.matmul(rows, b.weight("mlp.fc1.weight", 16, 64), module="mlp.fc1")
    down = b.matmul(up, b.weight("mlp.fc2.weight", 64, 16), module="mlp.fc2")
    b.pointwise("add", x, b.view(down, BATCH, SEQ, 16, module="mlp"), role=Role.OUTPUT)
    local = verify(TensorParallel(2, True).run(b.graph()))
    whole = str(BATCH * SEQ * 16 * 2)
    assert collectives(local) == {("reduce_scatter", whole): 2, ("all_gather", whole): 1}
    [norm] = of_name(local, "native_layer_norm")
    assert local.tensors[norm.outputs[0]].shape == (BATCH, SEQ // 2, 16)
    assert graph.name == local.name


def test_sequence_parallel_without_a_sequence_is_refused() -> None:
    b = Builder()
    b.matmul(b.tensor("x", BATCH, 16, role=Role.INPUT), b.weight("fc1.weight", 16, 64), module="fc1")
    with pytest.raises(PlanError, match="takes no token ids"):
        TensorParallel(2, True).run(b.graph())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "phi3", "bloom"])
def test_a_layer_sums_twice_in_each_direction(kind: str) -> None:
    """Megatron-LM's count (arXiv:1909.08053, figure 4): two all-reduces a layer forward, two backward.

    One more forward is the embedding's, one more backward the head's.
    """
    graph = captured(kind)
    element = 2 if graph.metadata["dtype"] == "bfloat16" else 4
    activation = str(BATCH * SEQ * 64 * element)
    local = parallelise(graph, Plan(tp=2))
    for phase in ("forward", "backward"):
        assert collectives(local, phase)["all_reduce", activation] == 5
    spread = parallelise(graph, Plan(tp=2, sp=True))
    assert collectives(spread, "forward")["reduce_scatter", activation] == 5
    assert collectives(spread, "forward")["all_gather", activation] == 5
    assert collectives(spread, "backward")["reduce_scatter", activation] == 5
    assert collectives(spread, "backward")["all_gather", activation] == 10  # gradients, and inputs gathered again


def test_parallel_branches_sum_once() -> None:
    """Attention and MLP of Phi run side by side: their sums meet before they are reduced."""
    graph = captured("phi")
    element = 2 if graph.metadata["dtype"] == "bfloat16" else 4
    local = parallelise(graph, Plan(tp=2))
    assert collectives(local, "forward")["all_reduce", str(BATCH * SEQ * 64 * element)] == 3


def test_experts_exchange_rows_twice_in_each_direction() -> None:
    graph = captured("mixtral")
    local = parallelise(graph, Plan(dp=4, ep=4))
    for phase in ("forward", "backward"):
        found = [op for op in local.ops if "all_to_all" in op.name and op.phase == phase]
        assert len(found) == 4  # two layers
        assert {op.attributes["ranks"] for op in found} == {4}
    skewed = parallelise(graph, Plan(dp=4, ep=4, skew=1.5))
    assert skewed.flops(SIZES, {OpKind.GROUPED_MATMUL}) == 1.5 * local.flops(SIZES, {OpKind.GROUPED_MATMUL})


def test_context_parallel_gathers_keys_and_scatters_their_gradients() -> None:
    graph = captured("llama")
    element = 2 if graph.metadata["dtype"] == "bfloat16" else 4
    keys = str(2 * BATCH * SEQ * 32 * element)
    local = parallelise(graph, Plan(cp=2))
    assert collectives(local, "forward") == {("all_gather", keys): 4}
    assert collectives(local, "backward") == {("all_gather", keys): 4, ("reduce_scatter", keys): 4}
    ring = parallelise(graph, Plan(cp=4, ring=True))
    steps = [op for op in ring.ops if op.kind is OpKind.ATTENTION and op.phase == "forward"]
    sends = [op for op in ring.ops if "send_recv" in op.name and op.phase == "forward"]
    assert (len(steps), len(sends)) == (2 * 4, 2 * 3)


plans = st.fixed_dictionaries(
    {
        "tp": st.sampled_from([1, 2, 4]),
        "sp": st.booleans(),
        "cp": st.sampled_from([1, 2]),
        "recompute": st.sampled_from(["none", "none", "selective", "full"]),
    }
).map(lambda d: Plan(**(d | {"sp": d["sp"] and d["tp"] > 1})))


@settings(max_examples=30)
@given(st.sampled_from(sorted(CONFIGS)), plans)
def test_ranks_add_up_to_the_whole(kind: str, plan: Plan) -> None:
    assume(kind != "bloom" or plan.cp == 1)  # its attention is no operator of its own
    graph = captured(kind)
    local = verify(parallelise(graph, plan))
    ranks = plan.tp * plan.cp
    mine = {**SIZES, "seq": SIZES["seq"] // plan.cp}
    again = {OpKind.MATMUL, OpKind.ATTENTION, OpKind.GROUPED_MATMUL}
    done = sum(
        evaluate_dim(op.work.matrix_flops, mine)
        for op in local.ops
        if op.kind in again and not op.attributes.get("recomputed") and not op.attributes.get("router")
    )
    routers = sum(  # routers are computed by every tensor parallel rank
        evaluate_dim(op.work.matrix_flops, SIZES)
        for op in graph.ops
        if op.kind is OpKind.MATMUL and op.module.endswith("mlp.gate")
    )
    slack = 0 if plan.sp else routers * (plan.tp - 1)
    assert graph.flops(SIZES) <= done * ranks <= graph.flops(SIZES) + slack
    whole = sum(t.elements for t in graph.with_role(Role.PARAMETER) if len(t.shape) > 1 and "gate.weight" not in t.name)
    part = sum(t.elements for t in local.with_role(Role.PARAMETER) if len(t.shape) > 1 and "gate.weight" not in t.name)
    positions = sum(t.elements for t in graph.with_role(Role.PARAMETER) if "wpe" in t.name)
    assert part * plan.tp == whole + positions * (plan.tp - 1)
    _check_traffic(graph, local, plan)


def _check_traffic(graph: Graph, local: Graph, plan: Plan) -> None:
    """Matmuls write, over all ranks, what the whole writes, times tp where the sums are partial."""
    mine = {**SIZES, "seq": SIZES["seq"] // plan.cp}

    def written(g: Graph, sizes: dict[str, int]) -> int:
        return sum(
            evaluate_dim(op.work.bytes_written, sizes)
            for op in g.ops
            if op.kind is OpKind.MATMUL and not op.attributes.get("recomputed")
        )

    ranks = plan.tp * plan.cp
    assert written(graph, SIZES) <= written(local, mine) * ranks <= written(graph, SIZES) * ranks


def test_states_and_gradients_are_divided_as_their_parameters() -> None:
    graph = captured("llama")
    local = parallelise(graph, Plan(tp=2))
    parameters = {t.name: t.shape for t in local.with_role(Role.PARAMETER)}
    for tensor in local.with_role(Role.OPTIMIZER_STATE):
        if tensor.name.startswith("optimizer_state.exp_avg"):
            assert tensor.shape == parameters[tensor.name.split(".", 2)[-1]]
    gradients = {t.name: t.shape for t in local.tensors if t.role is Role.GRADIENT and len(t.shape) == 2}
    assert gradients
    assert all(shape == parameters[name] for name, shape in gradients.items())


def test_recomputed_operators_stand_in_the_backward_and_make_what_it_reads() -> None:
    graph = captured("llama")
    full = verify(parallelise(graph, Plan(recompute="full")))
    again = [op for op in full.ops if op.attributes.get("recomputed")]
    assert all(op.phase == "backward" for op in again)
    forward = [op for op in graph.ops if op.phase == "forward" and "layers" in op.module]
    assert 0.6 * len([o for o in forward if o.kind is not OpKind.VIEW]) < len(again) < len(forward)
    saved = {t for op in full.ops if op.phase == "backward" for t in op.inputs}
    inside = {t for op in full.ops if op.phase == "forward" and ".mlp." in op.module for t in op.outputs}
    kept = {t for t in saved & inside if full.tensors[full.tensors[t].storage].role is Role.ACTIVATION}
    assert not kept  # nothing inside a layer's MLP is kept for the backward
    one = parallelise(graph, Plan(recompute="*.layers.1.mlp"))
    assert {op.module.split(".")[2] for op in one.ops if op.attributes.get("recomputed")} == {"1"}


@pytest.mark.parametrize(
    ("kind", "plan", "message"),
    [
        ("llama", Plan(tp=8), r"tp=8: 4 does not divide among 8.*nearest is tp=4"),
        ("llama", Plan(dp=2, ep=2), "has no experts; use ep=1"),
        ("mixtral", Plan(dp=3, ep=3), "does not divide the 8 experts.*nearest is ep=2"),
        ("llama", Plan(recompute="*.nowhere"), "no module of .* fits"),
        ("bloom", Plan(cp=2), "is not one operator"),
    ],
)
def test_what_cannot_be_divided_is_refused_with_the_nearest(kind: str, plan: Plan, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        parallelise(captured(kind), plan)


def test_a_users_styles_and_their_mistakes(tmp_path: object) -> None:
    graph = two_linears("alpha", "omega")
    with pytest.raises(PlanError, match="no parameter of hand-made has a name"):
        TensorParallel(2).run(graph)
    local = TensorParallel(2, styles={"*.alpha": "colwise", "*.omega": "rowwise"}).run(graph)
    assert len(of_name(local, "all_reduce")) == 1
    with pytest.raises(Exception, match="unknown sharding style 'colwize'; nearest: colwise"):
        styles_of(graph, {"*": "colwize"})
    path = f"{tmp_path}/styles.yaml"
    with open(path, "w") as file:
        file.write("- a\n")
    with pytest.raises(Exception, match="expected lines like"):
        load_styles(path)
