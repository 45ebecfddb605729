"""Memory over time, worked out by hand: views, in-place ops, KV caches, gradients, ties."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from strategies import graphs

from foretrace.ir import RESIDENT_ROLES, ForetraceError, Graph, OpKind, Role
from foretrace.replay.footprint import CATEGORIES, Allocation, Footprint, measure_footprint
from foretrace.replay.table import tabulate
from tests.replay.models import Builder

E = OpKind.ELEMENTWISE


def _times(graph: Graph) -> list[tuple[int, int]]:
    return [(10 * i, 10 * i + 10) for i in range(len(graph.ops))]


def measure(graph: Graph, times: Sequence[tuple[int, int]] | None = None) -> Footprint:
    """The footprint of ops that run for 10 ticks, one after the other, unless *times* says otherwise."""
    start, end = np.array(_times(graph) if times is None else times, np.int64).reshape(-1, 2).T
    return measure_footprint(tabulate(graph, graph.bind({})), start, end)


def curve(footprint: Footprint) -> list[tuple[int, int]]:
    return list(zip(footprint.ticks.tolist(), footprint.bytes.tolist(), strict=True))


def test_views_share_and_in_place_ops_reuse() -> None:
    b = Builder("uint8")
    x = b.tensor("x", 100, role=Role.INPUT)
    b.weight("w", 1000)
    a = b.tensor("a", 10)
    b.op(E, "f", [x], [a])
    v = b.view(a, 5, 2)
    c = b.tensor("c", 20)
    b.op(E, "g", [v], [c])
    b.op(E, "relu_", [c], [b.tensor("c2", 20, storage=c)])
    b.op(E, "h", [len(b.tensors) - 1], [b.tensor("out", 30, role=Role.OUTPUT)])
    found = measure(b.graph(), [(0, 10), (10, 10), (20, 30), (30, 40), (40, 50)])
    # before, a, c, a freed (its view was read last at 30), out, c freed when its in-place version was read
    assert curve(found) == [(0, 1100), (0, 1110), (20, 1130), (30, 1120), (40, 1150), (50, 1130)]
    assert (found.peak_bytes, found.peak_tick, found.peak_op) == (1150, 40, 4)
    assert found.by_category_bytes == dict.fromkeys(CATEGORIES, 0) | {"parameters": 1000, "activations": 150}
    assert found.largest[:2] == (Allocation("w", 1000, "parameters"), Allocation("x", 100, "activations"))


def test_a_finished_op_hands_its_memory_on_at_the_same_instant() -> None:
    b = Builder("uint8")
    x = b.tensor("x", 0, role=Role.INPUT)
    for i in range(4):
        out = b.tensor(f"t{i}", 10)
        b.op(E, "f", [x], [out])
        x = out
    assert measure(b.graph()).peak_bytes == 20


def test_an_op_of_no_duration_still_needs_its_output() -> None:
    b = Builder("uint8")
    b.op(E, "f", [b.tensor("x", 1, role=Role.INPUT)], [b.tensor("a", 10)])
    assert curve(measure(b.graph(), [(0, 0)])) == [(0, 1), (0, 11), (0, 1)]


def kv_graph(in_place: bool) -> Graph:
    b = Builder("uint8")
    old = b.tensor("past", 50, role=Role.KV_CACHE)
    k = b.tensor("k", 5, role=Role.INPUT)
    new = b.tensor("kv", 50 if in_place else 55, role=Role.KV_CACHE, storage=old if in_place else None)
    b.op(OpKind.COPY, "write", [old, k], [new])
    b.op(E, "attend", [new], [b.tensor("out", 5, role=Role.OUTPUT)])
    return b.graph()


def test_a_grown_cache_replaces_the_old_one() -> None:
    found = measure(kv_graph(in_place=False))
    assert curve(found) == [(0, 55), (0, 110), (10, 60), (10, 65)]
    assert found.by_category_bytes["kv_cache"] == 105


def test_a_cache_written_in_place_does_not_grow() -> None:
    assert curve(measure(kv_graph(in_place=True))) == [(0, 55), (10, 60)]


def test_gradients_stay_to_the_end() -> None:
    b = Builder("uint8")
    x = b.tensor("x", 1, role=Role.INPUT)
    kept, read = b.tensor("kept", 10, role=Role.GRADIENT), b.tensor("read", 20, role=Role.GRADIENT)
    b.op(E, "f", [x], [kept], phase="backward")
    b.op(E, "f", [x], [read], phase="backward")
    state = b.tensor("state", 40, role=Role.OPTIMIZER_STATE)
    b.op(E, "step_", [state, read], [b.tensor("next", 40, role=Role.OPTIMIZER_STATE, storage=state)], phase="optimizer")
    found = measure(b.graph())
    assert curve(found) == [(0, 41), (0, 51), (10, 71)]
    assert (found.by_category_bytes["gradients"], found.by_category_bytes["optimizer"]) == (30, 40)


def test_nothing_at_all() -> None:
    found = measure(Builder().graph())
    assert (found.peak_bytes, found.peak_op, found.largest) == (0, None, ())


@given(graphs())
def test_the_peak_holds_what_is_resident(graph: Graph) -> None:
    try:
        found = measure(graph)
    except ForetraceError:
        return  # sizes that no memory holds
    produced = graph.producers
    resident = {
        t.storage: t
        for i, t in enumerate(graph.tensors)
        if t.role in RESIDENT_ROLES and i == t.storage and i not in produced
    }
    table = tabulate(graph, graph.bind({}))
    assert found.peak_bytes >= sum(int(table.tensor_bytes[s]) for s in resident)
    assert sum(found.by_category_bytes.values()) == found.peak_bytes == found.bytes.max()
    assert (found.bytes >= 0).all()
