"""Pipeline stages: balance against brute force, where every op goes, and the halves of a backward."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretrace.transforms.plan import PlanError
from foretrace.transforms.stages import OpPass, balance, cut, find_layers, pass_of
from tests.replay.models import mlp, transformer
from tests.replay.parallel.models import training


@given(
    st.lists(st.integers(0, 9).map(float), min_size=1, max_size=8),
    st.integers(1, 5),
    st.integers(0, 9).map(float),
    st.integers(0, 9).map(float),
)
def test_no_other_cut_has_a_faster_slowest_stage(seconds: list[float], stages: int, first: float, last: float) -> None:
    if stages > len(seconds):
        return
    split = balance(np.array(seconds), stages, first, last)
    assert (len(split), sum(split), min(split) > 0) == (stages, len(seconds), True)

    def worst(counts: list[int]) -> float:
        ends = np.cumsum([0, *counts])
        loads = [sum(seconds[a:b]) for a, b in pairwise(ends.tolist())]
        loads[0] += first
        loads[-1] += last
        return max(loads)

    every = [np.diff([0, *at, len(seconds)]).tolist() for at in combinations(range(1, len(seconds)), stages - 1)]
    assert worst(split) == pytest.approx(min(map(worst, every)))


def test_equal_layers_are_spread_evenly() -> None:
    assert sorted(balance(np.ones(14), 4)) == [3, 3, 4, 4]
    assert balance(np.ones(8), 4, 1.0, 1.0) == [2, 2, 2, 2] or max(balance(np.ones(8), 4, 1.0, 1.0)) <= 3


def test_ops_without_a_layer_go_to_the_ends() -> None:
    graph = training(layers=4)
    layers = find_layers(graph)
    assert (layers.container, layers.count) == ("model.layers", 4)
    stage = cut(graph, 4, np.ones(len(graph.ops)), split=(1, 1, 1, 1))
    for op, s in zip(graph.ops, stage.tolist(), strict=True):
        expected = {"model.embed": 0, "head": 3, "": 3}.get(op.module)
        if op.phase == "optimizer":
            expected = -1
        elif expected is None:
            expected = int(op.module.split(".")[2])
        assert s == expected, (op.name, op.module)


def test_one_stage_needs_no_layers() -> None:
    assert set(cut(mlp(), 1, np.ones(len(mlp().ops))).tolist()) == {0}
    with pytest.raises(PlanError, match="no numbered layers"):
        cut(mlp(), 2, np.ones(len(mlp().ops)))


def test_weights_decide() -> None:
    graph = transformer(layers=4)
    weights = np.array([10.0 if op.module.startswith("model.layers.0") else 1.0 for op in graph.ops])
    stage = cut(graph, 2, weights)
    assert {s for op, s in zip(graph.ops, stage.tolist(), strict=True) if "layers.1" in op.module} == {1}


def test_ranks_of_several_stages_are_balanced_together() -> None:
    graph = training(layers=12)
    weights = np.array([6.0 if op.module == "head" else 1.0 for op in graph.ops])
    stage = cut(graph, 4, weights, ranks=2)
    load = np.bincount(stage[stage >= 0] % 2, weights[stage >= 0])
    assert load.max() / load.min() < 1.2


def test_products_of_weights_are_the_weight_half() -> None:
    graph = training(layers=2)
    passes = pass_of(graph)
    backward = [
        (op.name, op.module, p) for op, p in zip(graph.ops, passes.tolist(), strict=True) if op.phase == "backward"
    ]
    halves = [p for name, module, p in backward if name == "aten.mm.default" and "layers" in module]
    assert halves == [OpPass.BACKWARD_WEIGHT, OpPass.BACKWARD_INPUT] * 2
    assert passes[-1] == OpPass.OPTIMIZER
    assert (passes[: len(graph.ops) // 3] == OpPass.FORWARD).all()


def test_a_tied_gradient_is_the_weight_half_on_both_ends() -> None:
    graph = training(layers=2, tied=True)
    passes = pass_of(graph)
    of_head = [
        p
        for op, p in zip(graph.ops, passes.tolist(), strict=True)
        if op.module == "head" and op.phase == "backward" and op.name == "aten.mm.default"
    ]
    assert of_head == [OpPass.BACKWARD_WEIGHT, OpPass.BACKWARD_INPUT]
