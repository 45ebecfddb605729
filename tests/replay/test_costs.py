"""The op table and the roofline: figures by hand, fallbacks, bounds."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import graphs

from foretrace.ir import DTYPES, FREE_KINDS, MATRIX_KINDS, ForetraceError, Graph, OpKind, Role, evaluate_dim
from foretrace.replay.columns import KINDS
from foretrace.replay.costs import BOUNDS, Costs, load_costs
from foretrace.replay.costs.roofline import HIGH_FACTOR, UNVALIDATED, causal_share, matrix_rate
from foretrace.replay.table import OpTable, tabulate
from tests.replay.models import BATCH, Builder, mlp, replay_roofline, system, transformer


def table_of(graph: Graph, **sizes: int) -> OpTable:
    return tabulate(graph, graph.bind(sizes))


def price(graph: Graph, **figures: float) -> tuple[OpTable, Costs]:
    table = table_of(graph)
    return table, load_costs("roofline").price(table, system(**figures))  # type: ignore[arg-type]


def test_equal_ops_share_a_row() -> None:
    table = table_of(transformer(layers=50))
    assert table.ops == 50 * 21 + 2
    assert table.rows == table_of(transformer(layers=2)).rows
    assert all(table.graph.ops[i].name == table.graph.ops[table.first[r]].name for i, r in enumerate(table.row))


def test_columns_of_the_mlp() -> None:
    table = table_of(mlp(), batch=4)
    assert [KINDS[k] for k in table.kind] == [
        OpKind.MATMUL,
        OpKind.ELEMENTWISE,
        OpKind.VIEW,
        OpKind.ELEMENTWISE,
        OpKind.MATMUL,
    ]
    assert table.matrix_flops.tolist() == [2 * 4 * 256 * 1024, 0, 0, 0, 2 * 4 * 256 * 1024]
    assert table.bytes.tolist() == [534528.0, 16384.0, 0.0, 16384.0, 534528.0]
    assert table.special_flops.tolist() == [0, 4096, 0, 0, 0]
    np.testing.assert_array_equal(table.attribute("m"), [4, np.nan, np.nan, np.nan, 4])
    assert table.attribute("k", 0.0).tolist() == [256, 0, 0, 0, 1024]
    assert table.dtypes == (DTYPES["float16"],)


def test_each_limit_by_hand() -> None:
    table, costs = price(transformer(width=512))
    by_name = {table.graph.ops[i].name: r for r, i in enumerate(table.first.tolist())}
    norm = by_name["aten.native_layer_norm.default"]
    assert costs.seconds[norm] == 1e-6  # 2 * 8 * 512 elements: 32,768 bytes take 0.33 us, under the floor
    assert BOUNDS[costs.bound[norm]] == "launch"
    head = table.row[-1]
    assert costs.seconds[head] == (512 * 2048 + 16 * 512 + 16 * 2048) * 2 / 1e11
    assert BOUNDS[costs.bound[head]] == "memory"
    assert costs.seconds[by_name["aten.view.default"]] == 0
    assert BOUNDS[costs.bound[by_name["aten.view.default"]]] == "free"
    slow_matrix = price(transformer(width=512), matrix={"bfloat16": 1e9})[1]
    assert slow_matrix.seconds[head] == 2 * 16 * 512 * 2048 / 1e9
    assert BOUNDS[slow_matrix.bound[head]] == "matrix"
    slow_special = price(mlp(), special_per_clock=1e-6)[1]  # 100 cores at 1 GHz: 1e5 a second
    assert slow_special.seconds[1] == pytest.approx(2048 / 1e5)
    assert BOUNDS[slow_special.bound[1]] == "special"


def test_the_interval_is_the_bound_and_three_times_it() -> None:
    _, costs = price(mlp())
    assert (costs.low_s == costs.seconds).all()
    assert (costs.high_s == HIGH_FACTOR * costs.seconds).all()
    assert UNVALIDATED in costs.warnings


@pytest.mark.parametrize(
    ("dtype", "matrix", "rate", "used"),
    [
        ("float16", {"float16": 4e12}, 4e12, "float16"),
        ("float8_e5m2", {"float8_e4m3": 8e12}, 8e12, "float8_e5m2"),  # the twin's rate
        ("float4_e2m1", {"bfloat16": 4e12}, 4e12, "bfloat16"),  # through fp8
        ("bfloat16", {"float16": 4e12}, 1e12, "float32"),  # fp16 lacks the range
        ("float32", {"float16": 4e12}, 1e12, "float32"),  # plain fp32 runs on the vector units
        ("int64", {"float16": 4e12}, 1e12, "float32"),
        ("complex128", {}, 1e12, "float32"),
    ],
)
def test_a_missing_format_runs_on_a_named_one(dtype: str, matrix: dict[str, float], rate: float, used: str) -> None:
    assert matrix_rate(system(matrix=matrix).accelerator, DTYPES[dtype]) == (rate, DTYPES[used])


def test_emulation_is_a_warning() -> None:
    assert "round has no bfloat16 units: its matrix work is timed on those of float32" in (
        replay_roofline(transformer(), system(matrix={"float16": 1e13})).warnings
    )


def brute_share(q: int, kv: int, window: int) -> float:
    seen = sum(0 <= kv - q + i - j < (window or math.inf) for i in range(q) for j in range(kv))
    return seen / (q * kv)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 14))
def test_causal_attention_works_on_what_it_sees(q: int, kv: int, window: int) -> None:
    b = Builder()
    sizes = {"batch": 1, "heads": 1, "kv_heads": 1, "q_len": q, "kv_len": kv, "head_dim": 2, "v_dim": 2}
    tensors = [b.tensor(n, 1, 1, length, 2, role=Role.INPUT) for n, length in (("q", q), ("k", kv), ("v", kv))]
    for causal in (True, False):
        b.op(OpKind.ATTENTION, "sdpa", tensors, [b.tensor("o", 1, 1, q, 2)], causal=causal, window=window, **sizes)
    shares = causal_share(table_of(b.graph()))
    assert shares == pytest.approx([brute_share(q, kv, window), 1.0])
    if q == kv and not window:
        assert shares[0] == pytest.approx((q + 1) / (2 * kv))


def test_causal_flops_are_reported_in_full() -> None:
    graph = transformer()
    assert replay_roofline(graph, system()).flops == graph.flops(graph.bind({}))


def test_an_operator_nobody_modelled_is_priced_by_bytes_and_named() -> None:
    b = Builder()
    b.op(OpKind.OTHER, "my.odd_op", [b.tensor("x", BATCH, 1_000_000, role=Role.INPUT)], [b.tensor("y", BATCH)])
    result = replay_roofline(b.graph(), system())
    assert result.unmodelled_ops == ("my.odd_op",)
    assert result.breakdown_s["compute"] == pytest.approx(4_000_004 / 1e11)
    assert "priced by their bytes alone: my.odd_op" in result.warnings


@given(graphs())
def test_nothing_beats_the_physical_limit(graph: Graph) -> None:
    chip = system()
    bindings = graph.bind({})
    try:
        table = tabulate(graph, bindings)
    except ForetraceError:
        return
    costs = load_costs("roofline").price(table, chip)
    for i, op in enumerate(graph.ops):
        row = table.row[i]
        seconds = costs.seconds[row]
        assert (seconds == 0) == (op.kind in FREE_KINDS)
        if op.kind in FREE_KINDS:
            continue
        assert seconds >= 0.999999 * evaluate_dim(op.work.bytes, bindings) / chip.accelerator.memory.bandwidth
        if op.kind in MATRIX_KINDS and not op.attributes.get("causal"):
            rate, _ = matrix_rate(chip.accelerator, table.dtypes[table.dtype[row]])
            assert seconds >= 0.999999 * evaluate_dim(op.work.matrix_flops, bindings) / rate
        assert costs.low_s[row] <= seconds <= costs.high_s[row]
