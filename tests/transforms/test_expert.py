"""Expert parallel: what belongs to an expert goes with it, rows travel twice, and a skewed rank has more of them."""

from collections import Counter

import pytest

from foretrace.ir import Graph, OpKind, Role, prod, verify
from foretrace.transforms.parallel import parallelise
from foretrace.transforms.plan import Plan, PlanError
from foretrace.transforms.shard import ExpertParallel
from tests.replay.models import BATCH, SEQ, Builder
from tests.transforms.shard_models import captured

pytestmark = pytest.mark.slow

TOPS, EXPERTS, WIDTH, WIDE = 2, 8, 16, 32


def sent(graph: Graph) -> Counter[tuple[str, str]]:
    """(phase, bytes) of the all-to-alls among expert parallel ranks."""
    return Counter((op.phase, str(op.attributes["bytes"])) for op in graph.ops if "all_to_all" in op.name)


def experts(packed: bool = False, batch: int | None = None) -> Graph:
    """Rows gathered for their experts, one product, a bias for each row in place, rows home; and two gradients."""
    b = Builder()
    tokens = BATCH * SEQ if batch is None else batch * 8
    rows = TOPS * tokens
    x = b.tensor("x", tokens, WIDTH, role=Role.INPUT)
    ids = b.tensor("ids", rows, role=Role.INPUT, dtype="int64")
    ends = b.tensor("ends", EXPERTS, role=Role.INPUT, dtype="int32")
    name, bias = "mlp.experts.w", b.weight("mlp.experts.b", EXPERTS, WIDE)
    w = b.weight(name, EXPERTS * WIDTH, WIDE) if packed else b.weight(name, EXPERTS, WIDTH, WIDE)
    b.tensor(f"optimizer_state.exp_avg.{name}", *b.tensors[w].shape, role=Role.OPTIMIZER_STATE)
    at = {"module": "mlp.experts"}
    own = b.view(w, EXPERTS, WIDTH, WIDE, **at) if packed else w
    mine, added = b.tensor("rows", rows, WIDTH), b.tensor("biases", rows, WIDE)
    b.op(OpKind.GATHER_SCATTER, "aten.index.Tensor", [x, ids], [mine], **at)
    b.op(OpKind.GATHER_SCATTER, "aten.index.Tensor", [bias, ids], [added], **at)
    out = b.tensor("out", rows, WIDE)
    sizes = {"b": 1, "n": WIDE, "groups": EXPERTS}
    b.op(OpKind.GROUPED_MATMUL, "aten._grouped_mm.default", [mine, own, ends], [out], **at, m=rows, k=WIDTH, **sizes)
    biased = b.pointwise("add_", out, added, in_place=True, **at)
    home = b.tensor("home", rows, WIDE)
    b.op(OpKind.GATHER_SCATTER, "aten.index.Tensor", [biased, ids], [home], **at)
    back = {**at, "phase": "backward"}
    flat = b.view(mine, WIDTH, rows, name="t", **at)
    product = b.tensor("", EXPERTS, WIDTH, WIDE)
    b.op(
        OpKind.GROUPED_MATMUL,
        "aten._grouped_mm.default",
        [flat, home, ends],
        [product],
        **back,
        m=WIDTH,
        k=rows,
        **sizes,
    )
    of_w = b.tensor(name, *b.tensors[product].shape, role=Role.GRADIENT)
    b.op(OpKind.HOST, "aten.new_empty_strided.default", [product], [of_w], **back)
    of_w2 = b.tensor(name, *b.tensors[product].shape, role=Role.GRADIENT, storage=of_w)
    b.op(OpKind.COPY, "aten.copy_.default", [of_w, product], [of_w2], **back)
    zeros = b.tensor("", EXPERTS, WIDE)
    b.op(OpKind.ELEMENTWISE, "aten.new_zeros.default", [home], [zeros], **back)
    of_bias = b.tensor("mlp.experts.b", EXPERTS, WIDE, role=Role.GRADIENT)
    b.op(OpKind.GATHER_SCATTER, "aten.index_put.default", [zeros, ids, home], [of_bias], **back)
    return b.graph(phase="train")


def check_owners(graph: Graph) -> None:
    """A gradient has its parameter's elements, a state its shape, and a result lies in an operand's storage or its own.

    Gradients are the owners of their storage: what memory counts.
    """
    tensors = graph.tensors
    parameters = {t.name: t for i, t in enumerate(tensors) if t.role is Role.PARAMETER and t.storage == i}
    made = {t for op in graph.ops for t in op.outputs}
    for i, t in enumerate(tensors):
        of = t.name.split(".", 2)[-1] if t.role is Role.OPTIMIZER_STATE else t.name
        if t.role is Role.GRADIENT and t.name in parameters and i in made:
            owner = tensors[t.storage]
            assert owner.elements == t.elements == parameters[t.name].elements, t.name
        if t.role is Role.OPTIMIZER_STATE and ".exp_avg" in t.name and of in parameters:
            assert t.shape == parameters[of].shape
    for op in graph.ops:
        near = {tensors[t].storage for t in op.inputs}
        assert all(tensors[t].storage in near | {t} for t in op.outputs), op


def test_experts_by_hand() -> None:
    local = verify(ExpertParallel(4).run(experts()))
    check_owners(local)
    products = [op for op in local.ops if op.kind is OpKind.GROUPED_MATMUL]
    assert [op.attributes["groups"] for op in products] == [2, 2]
    assert {t.name: t.shape[0] for t in local.with_role(Role.PARAMETER)} == {"mlp.experts.w": 2, "mlp.experts.b": 2}
    row, out = str(2 * TOPS * WIDTH * BATCH * SEQ), str(2 * TOPS * WIDE * BATCH * SEQ)
    assert sent(local) == {("forward", row): 1, ("forward", out): 1, ("backward", out): 1}


def test_a_skewed_rank_has_more_rows_open_or_fixed() -> None:
    for graph, batch in ((experts(), 2), (experts(batch=2), 2)):
        sizes = {"batch": batch, "seq": 8}
        even, skewed = (verify(ExpertParallel(4, skew=skew).run(graph)) for skew in (1, 1.5))
        grouped = {OpKind.GROUPED_MATMUL}
        assert skewed.flops(sizes, grouped) == 1.5 * even.flops(sizes, grouped)
        there, back, _ = (op for op in skewed.ops if "all_to_all" in op.name)
        narrow = 2 * TOPS * WIDTH * 3 // 2 * (BATCH * SEQ if graph.tensors[0].shape[0] != 16 else 16)
        assert (there.attributes["bytes"], back.attributes["bytes"]) == (narrow, 2 * narrow)
        assert skewed.tensors[there.outputs[0]].bytes == there.attributes["bytes"]
        assert skewed.tensors[back.inputs[0]].bytes == back.attributes["bytes"]


def test_packed_weights_divide_with_their_views() -> None:
    """DBRX keeps experts times rows in one dim."""
    local = verify(ExpertParallel(4).run(experts(packed=True)))
    for op in local.ops:
        if op.kind is OpKind.VIEW:
            assert local.tensors[op.inputs[0]].elements == local.tensors[op.outputs[0]].elements
    shapes = {t.name: t.shape for t in local.with_role(Role.PARAMETER)}
    assert shapes["mlp.experts.w"] == (EXPERTS * WIDTH // 4, WIDE)


@pytest.mark.parametrize("plan", ["dp=4,ep=4", "dp=4,ep=4,skew=1.5", "dp=4,ep=4,tp=2,sp=1"])
@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_every_gradient_is_as_large_as_its_parameter(kind: str, plan: str) -> None:
    local = verify(parallelise(captured(kind), Plan.parse(plan)))
    check_owners(local)
    held = sum(prod(t.shape) for t in local.with_role(Role.PARAMETER) if ".experts." in t.name)
    whole = sum(prod(t.shape) for t in captured(kind).with_role(Role.PARAMETER) if ".experts." in t.name)
    assert held < whole / 3
    layers = {"mixtral": 2, "gpt_oss": 1}[kind]
    assert len([op for op in local.ops if "all_to_all" in op.name]) == layers * 2 * 2  # directions, phases


def test_tensor_parallel_ranks_share_what_is_sent() -> None:
    graph = captured("mixtral")
    row = 2 * 64 * 4 * BATCH * SEQ
    assert sent(parallelise(graph, Plan(dp=4, ep=4, tp=4))) == {("forward", str(row)): 4, ("backward", str(row)): 4}
    shared = verify(parallelise(graph, Plan(dp=4, ep=4, tp=4, sp=True)))
    assert sent(shared) == {("forward", str(row // 4)): 4, ("backward", str(row // 4)): 4}
    beside = Counter(
        op.name.split(".")[1].split("_tensor")[0].split("_into")[0]
        for op in shared.ops
        if op.kind is OpKind.COLLECTIVE and op.module.endswith("experts") and op.attributes["bytes"] == row
    )
    assert beside == {"all_gather": 4, "reduce_scatter": 4}


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(PlanError, match=r"does not divide the 8 experts.*nearest is ep=2"):
        ExpertParallel(3).run(experts())
