"""Recomputation: what is alive at the backward by storage, peaks worked out by hand, and what runs again."""

from collections import Counter

import numpy as np
import pytest

from foretrace.ir import Graph, Op, OpKind, Role, verify
from foretrace.replay.footprint import measure_footprint
from foretrace.replay.table import tabulate
from foretrace.transforms.parallel import parallelise
from foretrace.transforms.plan import Plan
from foretrace.transforms.recompute import Recompute
from tests.replay.models import Builder
from tests.transforms.shard_models import captured

pytestmark = pytest.mark.slow

ROWS, WIDTH, WIDE = 1024, 16, 64
W, X, A = 2 * WIDTH * WIDE, 2 * ROWS * WIDTH, 2 * ROWS * WIDE
"""Bytes of a weight, of a layer's input, of what is inside a layer."""


def perceptron(layers: int = 3) -> Graph:
    """x + relu(x · w1) · w2, layer after layer, and its backward; relu saves its result, through a view."""
    b = Builder()

    def view(x: int, *shape: int, phase: str, module: str) -> int:
        out = b.tensor("", *shape, storage=b.tensors[x].storage, role=b.tensors[x].role)
        return b.op(OpKind.VIEW, "aten.detach.default", [x], [out], module, phase)

    x = b.tensor("x", ROWS, WIDTH, role=Role.INPUT)
    saved = []
    for i in range(layers):
        module = f"layers.{i}"
        w1, w2 = b.weight(f"w1.{i}", WIDTH, WIDE), b.weight(f"w2.{i}", WIDE, WIDTH)
        act = b.pointwise("relu", b.matmul(x, w1, module), module=module)
        saved.append((x, act, view(act, ROWS, WIDE, phase="forward", module=module), w1, w2))
        x = b.pointwise("add", x, b.matmul(act, w2, module), module=module)
    b.pointwise("mse_loss", x)
    g = b.pointwise("mse_loss_backward", x, phase="backward")
    for i in reversed(range(layers)):
        module = f"layers.{i}"
        x, act, kept, w1, w2 = saved[i]
        at = (module, "backward")
        of_act = b.matmul(g, view(w2, WIDTH, WIDE, phase="backward", module=module), *at)
        b.matmul(view(act, WIDE, ROWS, phase="backward", module=module), g, *at, role=Role.GRADIENT)
        mask = view(kept, ROWS, WIDE, phase="backward", module=module)
        of_up = b.pointwise("threshold_backward", of_act, mask, module=module, phase="backward")
        b.matmul(view(x, WIDTH, ROWS, phase="backward", module=module), of_up, *at, role=Role.GRADIENT)
        of_x = b.matmul(of_up, view(w1, WIDE, WIDTH, phase="backward", module=module), *at)
        g = b.pointwise("add", g, of_x, module=module, phase="backward")
    return b.graph(phase="train")


def peak(graph: Graph, **sizes: int) -> int:
    start = np.arange(len(graph.ops), dtype=np.int64)
    return measure_footprint(tabulate(graph, graph.bind(sizes)), start, start + 1).peak_bytes


def alive(graph: Graph) -> set[int]:
    """Storages that the forward makes and that an op of the backward touches."""
    made = {t for op in graph.ops if op.phase == "forward" for t in op.outputs if graph.tensors[t].storage == t}
    return made & {
        graph.tensors[t].storage
        for op in graph.ops
        if op.phase == "backward" and op.kind is not OpKind.VIEW
        for t in (*op.inputs, *op.outputs)
    }


def again(graph: Graph) -> list[Op]:
    return [op for op in graph.ops if op.attributes.get("recomputed")]


def test_peaks_by_hand() -> None:
    """At the last layer's relu backward: weights, layer inputs, what is kept inside, three inner tensors, gradients."""
    graph = perceptron()
    assert peak(graph) == 6 * W + 3 * X + 3 * A + (X + 2 * A + W)
    local = verify(Recompute("full").run(graph))
    assert peak(local) == 6 * W + 3 * X + A + (X + 2 * A + W)
    assert Counter(op.name.split(".")[1] for op in again(local)) == {"mm": 3, "relu": 3}
    whole = verify(Recompute("full", whole=True).run(graph))
    assert Counter(op.name.split(".")[1] for op in again(whole)) == {"mm": 6, "relu": 3, "add": 3}
    one = Recompute("layers.1").run(graph)
    assert {op.module for op in again(one)} == {"layers.1"}


@pytest.mark.parametrize("plan", ["recompute=full", "recompute=full,tp=2", "recompute=full,tp=2,sp=1"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_only_layer_inputs_are_alive_at_the_backward(kind: str, plan: str) -> None:
    graph = captured(kind)
    local = verify(parallelise(graph, Plan.parse(plan)))
    inside = {
        t: op.module.split(".layers." if ".layers." in op.module else ".h." if ".h." in op.module else ".layer.")[1][0]
        for op in local.ops
        if op.phase == "forward" and any(f".{name}." in f"{op.module}." for name in ("layers", "h", "layer"))
        for t in op.outputs
    }
    kept = [t for t in alive(local) if t in inside]
    assert len(kept) == 2  # one for each layer: what the next one, or the last norm, begins with
    assert {str(local.tensors[t].shape[-1]) for t in kept} == {"64"}
    assert peak(local, batch=4, seq=256) < peak(parallelise(graph, Plan.parse(plan[15:])), batch=4, seq=256)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "bloom"])
def test_selective_is_the_core_of_attention(kind: str) -> None:
    graph = captured(kind, "eager")
    local = verify(parallelise(graph, Plan(recompute="selective")))
    kinds = Counter(op.kind for op in again(local))
    assert (kinds[OpKind.MATMUL], kinds[OpKind.SOFTMAX], kinds[OpKind.NORM]) == (4, 2, 0)
    cores = {op.module for op in graph.ops if op.kind is OpKind.SOFTMAX and "log" not in op.name}
    assert {op.module.removesuffix(".attention_dropout").removesuffix(".dropout") for op in again(local)} == cores
    seq = graph.tensors[next(op for op in graph.ops if op.kind is OpKind.SOFTMAX).outputs[0]].shape[-1]
    whole = {t for t in alive(graph) if graph.tensors[t].shape[-2:] == (seq, seq)}
    kept = {t for t in alive(local) if local.tensors[t].shape[-2:] == (seq, seq)}
    layers = [t for t in kept if local.tensors[t].shape[0] != 1 and local.tensors[t].shape[1] != 1]
    assert whole
    assert not layers  # a mask that all layers share may stay
    assert peak(local, batch=4, seq=512) < peak(graph, batch=4, seq=512)


def test_selective_runs_a_flash_kernel_again_and_nothing_else() -> None:
    local = verify(parallelise(captured("llama"), Plan(recompute="selective")))
    assert [op.kind for op in again(local)] == [OpKind.ATTENTION] * 2
    ring = verify(parallelise(captured("llama"), Plan(recompute="selective", cp=4, ring=True)))
    assert Counter(op.kind for op in again(ring)) == {OpKind.ATTENTION: 2 * 4, OpKind.COLLECTIVE: 2 * 3}


def test_what_another_layer_reads_is_not_made_again() -> None:
    """The norm of the next layer reads a layer's result: it is kept, and its last product and all-reduce with it."""
    local = parallelise(captured("bloom"), Plan(recompute="full", tp=2))
    modules = Counter(op.module.split(".h.0.")[-1] for op in again(local) if op.kind is OpKind.MATMUL)
    assert modules["self_attention.query_key_value"] == modules["self_attention.dense"] == 1
    assert (modules["mlp.dense_h_to_4h"], modules["mlp.dense_4h_to_h"]) == (1, 0)
    reduces = [op for op in again(local) if "all_reduce" in op.name]
    assert ["self_attention" in op.module for op in reduces] == [True, True]
