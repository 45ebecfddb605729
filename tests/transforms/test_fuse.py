"""Fusion: before and after, bytes by hand, hazards, and on any graph the same FLOPs and no more bytes."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from strategies import graphs

from foretrace.ir import Graph, GraphError, Op, OpKind, Role, evaluate_dim, verify
from foretrace.transforms import Fuse, apply
from foretrace.transforms.fuse import order_constraints
from tests.replay.models import BATCH, SEQ, Builder, mlp, transformer

N, E = OpKind.NORM, OpKind.ELEMENTWISE


def names(graph: Graph) -> list[str]:
    return [op.name.removeprefix("aten.").removesuffix(".default") for op in graph.ops]


def fused(graph: Graph) -> Op:
    [op] = [op for op in graph.ops if "fused" in op.attributes]
    return op


def test_a_chain_between_matmuls_becomes_one_kernel() -> None:
    graph = apply([Fuse()], mlp())
    assert names(graph) == ["mm", "fused(gelu, mul)", "mm"]
    op = fused(graph)
    assert op.attributes["fused"] == ("aten.gelu.default", "aten.mul.default")
    assert (op.kind, op.module, op.phase) == (E, "mlp.act", "forward")
    assert (op.work.bytes_read, op.work.bytes_written) == (BATCH * 2048, BATCH * 2048)  # gelu's output is gone
    assert (op.work.vector_flops, op.work.special_flops) == (BATCH * 2048, BATCH * 1024)
    assert op.inputs == mlp().ops[1].inputs
    assert op.outputs == mlp().ops[3].outputs


def test_what_others_read_is_still_written_and_read_once_inside() -> None:
    b = Builder()
    x, y = (b.tensor(n, BATCH, 64, role=Role.INPUT) for n in "xy")
    s = b.pointwise("add", x, y, module="layers.0")
    n = b.pointwise("native_layer_norm", s, module="layers.1.norm", kind=N)
    b.pointwise("add", s, b.matmul(n, b.weight("w", 64, 64)), role=Role.OUTPUT)
    op = fused(apply([Fuse()], b.graph()))
    assert (op.kind, op.module, op.outputs) == (N, "layers.0", (s, n))
    assert (op.work.bytes_read, op.work.bytes_written) == (BATCH * 256, BATCH * 256)


def test_an_input_that_two_members_read_is_read_once() -> None:
    b = Builder()
    x = b.tensor("x", 64, role=Role.INPUT)
    b.pointwise("mul", b.pointwise("sigmoid", x), x, role=Role.OUTPUT)
    assert fused(apply([Fuse()], b.graph())).work.bytes_read == 128


def test_a_view_of_what_comes_from_outside_is_read() -> None:
    b = Builder()
    y = b.matmul(b.tensor("x", 8, 64, role=Role.INPUT), b.weight("w", 64, 64))
    z = b.pointwise("neg", b.view(y, 64, 8))
    b.pointwise("exp", z, role=Role.OUTPUT)
    op = fused(apply([Fuse()], b.graph()))
    assert op.inputs == (y,)
    assert (op.work.bytes_read, op.work.bytes_written) == (1024, 1024)


def test_partial_reads_keep_their_figure() -> None:
    b = Builder()
    x = b.tensor("x", 64, role=Role.INPUT)
    y = b.pointwise("neg", x)
    b.pointwise("add", y, b.weight("bias", 64), role=Role.OUTPUT)
    odd = b.ops[1]
    b.ops[1] = Op(odd.kind, odd.name, odd.inputs, odd.outputs, {}, work=type(odd.work)(0, 64, 0, 130, 128))
    assert fused(apply([Fuse()], b.graph())).work.bytes_read == 128 + 130


def test_a_cycle_through_a_matmul_is_not_made() -> None:
    b = Builder()
    x = b.tensor("x", 64, 64, role=Role.INPUT)
    y = b.pointwise("neg", x)
    z = b.matmul(y, b.weight("w", 64, 64))
    b.pointwise("add", y, z, role=Role.OUTPUT)  # cannot join neg: the matmul stands between
    assert apply([Fuse()], b.graph()) == b.graph()


def test_phases_stay_apart_and_groups_are_bounded() -> None:
    b = Builder()
    x = b.tensor("x", 64, role=Role.INPUT)
    for phase in ("forward", "forward", "backward", "backward", "backward", "backward"):
        x = b.pointwise("neg", x, phase=phase)
    assert names(apply([Fuse()], b.graph())) == ["fused(neg, neg)", "fused(neg, neg, neg, neg)"]
    assert names(apply([Fuse(max_ops=2)], b.graph())) == ["fused(neg, neg)"] * 3
    assert len(apply([Fuse(max_ops=1)], b.graph()).ops) == 6


def test_a_reader_stays_before_the_write_in_place() -> None:
    b = Builder()
    x = b.tensor("x", 64, 64, role=Role.INPUT)
    y = b.pointwise("neg", x)
    old = b.matmul(y, b.weight("w", 64, 64))  # reads y before it is overwritten
    new = b.pointwise("exp", y, in_place=True)
    b.pointwise("add", new, old, role=Role.OUTPUT)
    graph = b.graph()
    assert order_constraints(graph)[2] == {0, 1}
    assert names(apply([Fuse()], graph)) == ["neg", "mm", "fused(exp, add)"]


def test_a_write_in_place_into_what_stays_is_written() -> None:
    b = Builder()
    cache = b.tensor("cache", 64, role=Role.KV_CACHE)
    k = b.pointwise("neg", b.tensor("k", 64, role=Role.INPUT))
    out = b.tensor("cache.1", 64, role=Role.KV_CACHE, storage=cache)
    b.op(OpKind.COPY, "aten.copy_.default", [cache, k], [out])
    op = fused(apply([Fuse()], b.graph()))
    assert op.outputs == (out,)
    assert op.work.bytes_written == 128


def test_long_groups_have_short_names() -> None:
    b = Builder()
    x = b.tensor("x", 64, role=Role.INPUT)
    for f in ("add", "mul", "exp", "neg", "sub", "tanh"):
        x = b.pointwise(f, x)
    assert names(apply([Fuse()], b.graph())) == ["fused(add, mul, exp, 3 more)"]


@dataclass(frozen=True)
class Broken:
    name: str = "broken"

    def run(self, graph: Graph) -> Graph:
        return Graph(graph.name, graph.phase, {}, graph.tensors, graph.ops)


def test_a_failing_pass_names_those_before_it() -> None:
    with pytest.raises(GraphError, match=r"pass broken \(after fuse\): tensor 0 \(x\): .* undeclared symbols: batch"):
        apply([Fuse(), Broken()], mlp())


def test_equal_layers_fuse_alike() -> None:
    graph = apply([Fuse()], transformer(layers=4))
    assert len({op.work for op in graph.ops if op.name == "fused(silu, mul)"}) == 1
    assert sum(op.name == "fused(silu, mul)" for op in graph.ops) == 4


def totals(graph: Graph) -> dict[str, int]:
    bound = graph.bind({})
    work = ("matrix_flops", "vector_flops", "special_flops", "bytes_read", "bytes_written")
    return {w: sum(evaluate_dim(getattr(op.work, w), bound) for op in graph.ops) for w in work}


def check_fused(graph: Graph) -> None:
    after = verify(Fuse().run(graph))
    before_work, after_work = totals(graph), totals(after)
    for name, value in after_work.items():
        assert value == before_work[name] if "flops" in name else 0 <= value <= before_work[name]
    still = {t for op in after.ops for t in op.inputs} | {
        i for i, t in enumerate(graph.tensors) if t.role is not Role.ACTIVATION and i in graph.producers
    }
    made = {t for op in after.ops for t in op.outputs}
    assert {t for t in still if t in graph.producers} <= made
    assert len(after.ops) <= len(graph.ops)
    assert Fuse().run(graph) == after


@given(graphs(max_ops=12))
@settings(max_examples=100)
def test_any_graph_keeps_its_flops_and_gains_no_bytes(graph: Graph) -> None:
    check_fused(graph)


def test_random_chains_keep_every_order() -> None:
    """Dense graphs of in-place ops, views and matmuls: no op moves before one it must follow."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        graph = dense_graph(rng)
        check_fused(graph)
        after = Fuse().run(graph)
        place = {name: i for i, op in enumerate(after.ops) for name in op.attributes.get("fused", (op.name,))}
        for i, before in enumerate(order_constraints(graph)):
            for p in before:
                a, b = graph.ops[p], graph.ops[i]
                if a.kind is not OpKind.VIEW and b.kind is not OpKind.VIEW:
                    assert place[a.name] <= place[b.name]


def dense_graph(rng: np.random.Generator, ops: int = 30) -> Graph:
    b = Builder()
    made = [b.tensor("x", 8, SEQ, role=Role.INPUT), b.weight("w", 8, SEQ)]
    for i in range(ops):
        inputs = rng.choice(made, size=2).tolist()
        choice = rng.integers(6)
        kind = OpKind.VIEW if choice == 0 else OpKind.SORT if choice == 1 else E
        storage = b.tensors[inputs[0]].storage if choice in (0, 2) else None
        out = b.tensor(f"t{i}", 8, SEQ, storage=storage)
        b.op(kind, f"op{i}", inputs[:1] if choice == 0 else inputs, [out])
        made.append(out)
    return b.graph()
