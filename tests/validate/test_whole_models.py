"""Rows of whole models go through capture and replay, or say why they cannot."""

from pathlib import Path
from typing import Any

import measured_tables as tables
import pytest

from foretrace.ir import OpKind
from foretrace.ir.dim import evaluate_dim
from foretrace.validate import validate_tables

E2E: dict[str, list[Any]] = {
    "gpu": ["V100-PCIE-32GB"] * 4,
    "model": ["gpt2", "gpt2", "gpt2", "a model nobody has"],
    "mode": ["inf", "train", "inf", "inf"],
    "batch": [2, 1, 2, 2],
    "seq": [128] * 4,
    "option": ["", "", "tp4", ""],
    "dtype": ["fp32"] * 4,
    "measured_ms": [12.0, 40.0, 5.0, 5.0],
    "fw_ms": [12.0, 14.0, 5.0, 5.0],
    "bw_ms": [0.0, 26.0, 0.0, 0.0],
}
SERVING: dict[str, list[Any]] = {"gpu": ["H100-SXM"], "measured_ttft_ms": [100.0], "measured_tpot_ms": [10.0]}
TRAIN: dict[str, list[Any]] = {
    "gpu": ["A100-SXM-80GB"] * 4,
    "hidden": [128] * 4,
    "layers": [2] * 4,
    "heads": [4] * 4,
    "seq": [64] * 4,
    "mbs": [2] * 4,
    "grad_acc": [1, 2, 1, 1],
    "dp": [1, 4, 1, 1],
    "tp": [1, 1, 2, 1],
    "pp": [1] * 4,
    "precision": ["FP16"] * 4,
    "status": ["Success", "Success", "Success", "OOM"],
    "step_ms": [20.0, 40.0, 20.0, float("nan")],
}


@pytest.mark.slow
def test_forward_and_backward_are_scored_apart(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    result = validate_tables([tables.write(tmp_path / "t.parquet", E2E)], costs="roofline")
    kinds = {group.kind: s.n for group, s in result.scores.items()}
    assert kinds == {"e2e_forward": 2, "e2e_backward": 1}
    assert result.skipped["needs a plan: tp4"] == 1
    assert any("a model nobody has" in reason for reason in result.skipped)
    assert sum(result.skipped.values()) == 2
    forward, backward = (next(p for p in result.points if p.group.kind == f"e2e_{w}") for w in ("forward", "backward"))
    assert backward.predicted_s > 0
    assert "model=gpt2" in forward.what


@pytest.mark.slow
def test_training_steps_are_replayed_under_their_plans(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    result = validate_tables([tables.write(tmp_path / "t.parquet", TRAIN)], costs="roofline")
    one, four, divided = sorted(result.points, key=lambda p: p.row)
    assert four.predicted_s > one.predicted_s  # two micro-batches and an all-reduce
    assert divided.row == 2
    assert [reason.split(":")[0] for reason in result.skipped] == ["ran out of memory"]


@pytest.mark.slow
def test_an_engine_writes_its_cache_in_place() -> None:
    pytest.importorskip("transformers")
    from foretrace import capture_graph, replay_graph
    from foretrace.transforms import InPlaceCache

    graph = capture_graph("gpt2", phase="decode", batch=8, context=900)
    paged = InPlaceCache().run(graph)
    grown, written = (
        sum(evaluate_dim(op.work.bytes, {"batch": 8, "context": 900}) for op in g.ops if op.kind is OpKind.COPY)
        for g in (graph, paged)
    )
    cache = 12 * 2 * 8 * 900 * 768 * 4  # layers, keys and values, batch, context, width, float32
    assert grown - written == 2 * cache
    times = [replay_graph(g, "h100-sxm", execution="cudagraph", costs="roofline").time_s for g in (graph, paged)]
    assert times[1] < times[0]


def test_serving_rows_are_counted_not_dropped(tmp_path: Path) -> None:
    result = validate_tables([tables.write(tmp_path / "t.parquet", SERVING)], costs="roofline")
    assert sum(result.skipped.values()) == 1
    assert result.overall is None


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("batch", 0, "batch is not a whole number"),
        ("gpu", "nothing", "unknown hardware"),
        ("fw_ms", -1.0, "not positive"),
    ],
)
def test_a_bad_cell_costs_its_row(column: str, value: Any, reason: str, tmp_path: Path) -> None:
    one = {name: values[1:2] for name, values in E2E.items()} | {column: [value]}
    if column == "fw_ms":
        pytest.importorskip("transformers")
    result = validate_tables([tables.write(tmp_path / "t.parquet", one)], costs="roofline")
    (said,) = result.skipped
    assert reason in said
