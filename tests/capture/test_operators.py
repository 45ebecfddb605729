"""`measure_operators`: operators of a graph called by themselves, as rows that validate and calibrate read."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foretrace.calibrate import calibrate_costs
from foretrace.capture import capture_graph, measure_operators
from foretrace.capture.operators import OperatorTable
from foretrace.capture.operators.calls import NotCallable, call_of, viewed
from foretrace.capture.operators.rows import NoRow, row_of
from foretrace.capture.operators.timing import Bench
from foretrace.ir import FREE_KINDS, ForetraceError, Graph, OpKind, UnknownNameError
from foretrace.replay.measured import read_measurements
from foretrace.replay.table import tabulate
from foretrace.validate import validate_tables

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SIZES = {"batch": 2, "seq": 8}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("llama")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return str(folder)


@pytest.fixture(scope="module")
def training(llama: str) -> Graph:
    return capture_graph(llama, phase="train", optimizer="adamw", dtype="float32", **SIZES)


@pytest.fixture(scope="module")
def prefill(llama: str) -> Graph:
    return capture_graph(llama, phase="prefill", dtype="float32", **SIZES)


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call is run once and takes as long as it has bytes: no clock is read."""

    def time(self: Bench, call: object) -> object:
        from foretrace.capture.operators.timing import Timing

        call.check(call.function(*call.make()))  # type: ignore[attr-defined]
        return Timing(1e-6 + 1e-9 * call.input_bytes, 0.0)  # type: ignore[attr-defined]

    monkeypatch.setattr(Bench, "time", time)
    monkeypatch.setattr(Bench, "_dispatch_s", lambda self: 0.0)


def test_every_operator_of_a_training_step_is_timed(training: Graph, instant: None) -> None:
    table = measure_operators(training, dims=SIZES)
    assert table.skipped == {}
    launched = [op for op in training.ops if op.kind not in FREE_KINDS]
    assert sum(row["count"] for row in table.rows) == len(launched)
    assert {row["table"] for row in table.rows} == {"gemm", "attention", "elementwise"}


def test_rows_read_back_are_the_operators_of_the_graph(training: Graph, instant: None, tmp_path: Path) -> None:
    table = measure_operators(training, dims=SIZES)
    table.save(tmp_path / "ops.parquet")
    read: Counter[tuple[float, ...]] = Counter()
    at = 0
    counts = [row["count"] for row in table.rows]
    for part in read_measurements(tmp_path / "ops.parquet"):
        assert not part.refused
        assert part.looped.all()
        of, columns = np.argsort(part.row, kind="stable"), part.operators
        assert part.rows == columns.rows  # one operator each
        for i in of.tolist():
            moved = columns.bytes_read[i], columns.bytes_written[i], columns.matrix_flops[i]
            kind = columns.kind[i]
            read[(float(kind), *map(float, moved))] += counts[at + int(part.row[i])]
        at += part.rows
    assert at == len(table)
    whole = tabulate(training, training.bind(SIZES))
    times = np.bincount(whole.row, minlength=whole.rows)
    expected: Counter[tuple[float, ...]] = Counter()
    for i in np.flatnonzero(~whole.of_kind(FREE_KINDS)).tolist():
        key = (whole.kind[i], whole.bytes_read[i], whole.bytes_written[i], whole.matrix_flops[i])
        expected[tuple(map(float, key))] += int(times[i])
    streams = {k: n for k, n in expected.items() if k[3] == 0}
    assert {k: n for k, n in read.items() if k[3] == 0} == streams
    assert _by(read, 3) == _by(expected, 3)  # the FLOPs of products and attention


def _by(rows: Counter[tuple[float, ...]], at: int) -> Counter[tuple[float, ...]]:
    found: Counter[tuple[float, ...]] = Counter()
    for key, count in rows.items():
        found[key[0], key[at]] += count
    return found


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_validate_and_calibrate_take_one_file(prefill: Graph, instant: None, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"ops{suffix}"
    table = measure_operators(prefill, dims=SIZES)
    system = tmp_path / "chip.yaml"
    system.write_text("extends: v100-pcie-32gb\nname: my-chip\n")
    table.on("chip.yaml").save(file)
    result = validate_tables([file])
    assert result.skipped == {}
    assert result.overall is not None
    assert result.overall.n == len(table)
    assert {group.gpu for group in result.scores} == {str(system)}
    pytest.importorskip("scipy")
    assert calibrate_costs([file]).gpu == "my-chip"


def test_the_file_says_what_was_not_timed(prefill: Graph, instant: None, tmp_path: Path) -> None:
    table = measure_operators(prefill, dims=SIZES, limit=3)
    assert len(table) == 3
    assert table.skipped == {"beyond --limit 3": len(table.not_timed)}
    table.save(tmp_path / "ops.parquet")
    about = json.loads(pq.read_schema(tmp_path / "ops.parquet").metadata[b"foretrace"])
    assert len(about["not_timed"]) == len(table.not_timed)
    assert about["info"]["sizes"] == SIZES


def test_what_takes_the_longest_comes_first_under_a_limit(prefill: Graph, instant: None) -> None:
    (row,) = measure_operators(prefill, dims=SIZES | {"seq": 4096}, limit=1).rows
    assert row["table"] == "attention"


def test_one_operator_that_fails_costs_no_other(prefill: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    def time(self: Bench, call: object) -> object:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(Bench, "time", time)
    table = measure_operators(prefill, dims=SIZES)
    assert not table.rows
    assert set(table.skipped) == {"fails by itself: RuntimeError: no kernel"}
    with pytest.raises(ForetraceError, match="nothing was timed"):
        table.save("ops.parquet")


def test_real_clocks_give_positive_times(prefill: Graph) -> None:
    table = measure_operators(prefill, dims=SIZES, repeats=1, limit=4)
    assert len(table) + sum(n.reason == "takes less than its own dispatch" for n in table.not_timed) >= 4
    assert all(row["latency_us"] > 0 for row in table.rows)
    assert {row["timing"] for row in table.rows} <= {"loop_median1"}


def test_bad_arguments(prefill: Graph, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError):
        measure_operators(prefill, device="gpu")
    with pytest.raises(ForetraceError, match="--limit"):
        measure_operators(prefill, limit=0)
    with pytest.raises(UnknownNameError):
        measure_operators(prefill, dims={"sequence": 3})
    with pytest.raises(ForetraceError, match=r"\.parquet or \.csv"):
        OperatorTable([{"table": "gemm"}], []).save(tmp_path / "ops.txt")


def test_a_weight_lies_as_the_model_has_it(prefill: Graph) -> None:
    bindings = prefill.bind(SIZES)
    linear = next(op for op in prefill.ops if op.name == "aten.mm.default")
    inputs = call_of(linear, prefill, bindings, "cpu").make()
    assert inputs[1].stride() == (1, inputs[1].shape[0])  # nn.Linear's weight, transposed
    fresh = call_of(linear, prefill, bindings, "cpu").fresh(inputs)
    assert fresh[0] is inputs[0]
    assert fresh[1].data_ptr() != inputs[1].data_ptr()
    assert fresh[1].stride() == inputs[1].stride()


def test_a_head_keeps_the_strides_of_its_views(prefill: Graph) -> None:
    bindings = prefill.bind(SIZES)
    attention = next(op for op in prefill.ops if op.kind is OpKind.ATTENTION)
    call = call_of(attention, prefill, bindings, "cpu")
    assert tuple(call.make()[0].shape) == (2, 4, 8, 8)


def test_an_operator_that_torch_does_not_know_is_named(prefill: Graph) -> None:
    from dataclasses import replace

    op = replace(prefill.ops[0], name="mine.frobnicate.default")
    with pytest.raises(NotCallable, match="no function"):
        call_of(op, prefill, prefill.bind(SIZES), "cpu")
    collective = replace(prefill.ops[0], kind=OpKind.COLLECTIVE)
    with pytest.raises(NoRow, match="several devices"):
        row_of(collective, prefill, prefill.bind(SIZES))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_views_are_found_again_from_their_shapes(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.sampled_from((2, 3, 5, 7)), min_size=2, max_size=4, unique=True))
    whole = torch.arange(int(np.prod(sizes))).reshape(sizes)
    i, j = data.draw(st.permutations(range(len(sizes))))[:2]
    views = {
        "transpose": whole.transpose(i, j),
        "view": whole.view(-1),
        "unsqueeze": whole.unsqueeze(i),
        "slice": whole.narrow(i, 0, sizes[i] - 1),
        "select": whole.select(i, 0),
        "expand": whole.unsqueeze(0).expand(4, *sizes),
    }
    for name, view in views.items():
        base = whole.unsqueeze(0) if name == "expand" else whole
        found = viewed(base, name, tuple(view.shape))
        assert found is not None, name
        assert found.shape == view.shape
        assert found.stride() == view.stride(), name


@pytest.mark.parametrize(
    ("name", "attributes", "shape", "limit"),
    [
        ("aten.embedding.default", {}, (50, 8), 50),
        ("aten.gather.default", {"dim": 1}, (50, 8), 8),
        ("aten.nll_loss_forward.default", {}, (50, 8), 8),
        ("aten.embedding_dense_backward.default", {"num_weights": 99}, (4, 8), 99),
        ("aten.index.Tensor", {}, (), 1),
    ],
)
def test_indices_are_never_out_of_bounds(
    name: str, attributes: dict[str, int], shape: tuple[int, ...], limit: int
) -> None:
    from foretrace.capture.operators.calls import _index_limit
    from foretrace.ir import Op

    kind = OpKind.EMBEDDING if name == "aten.embedding.default" else OpKind.GATHER_SCATTER
    assert _index_limit(Op(kind, name, (), (), attributes), [shape]) == limit


@pytest.mark.parametrize("rotated", [80_000, 1_000_000, 20_000_000, 100_000_000])
def test_cold_inputs_take_turns_past_the_cache(monkeypatch: pytest.MonkeyPatch, rotated: int) -> None:
    monkeypatch.setattr(Bench, "_dispatch_s", lambda _: 0.0)
    bench = Bench("cpu", 1)
    bench.cache_bytes = 36 << 20
    assert bench._sets(rotated, rotated) * rotated >= 3 * bench.cache_bytes
    assert bench._sets(50_000, 50_000) == 1
