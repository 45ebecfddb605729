"""Recorded traces: what `benchmarks/record.py` writes is scored, and so is the layout of another script."""

import csv
import gzip
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import foretrace
from foretrace.hardware import load_system
from foretrace.ir import FormatError
from foretrace.replay.measured import read_measurements

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
pytestmark = pytest.mark.checkout
pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


SYSTEM = "name: recorded\naccelerator: v100-pcie-32gb\nhost: {dispatch: 4 us, sources: {dispatch: a test}}\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of what the physics predicts, each kernel 1.3 times as long: calibration can find it out."""
    import sys

    sys.path.insert(0, str(FOLDER))
    from recording.items import Item

    place = tmp_path_factory.mktemp("machine")
    (place / "system.yaml").write_text(SYSTEM)
    index: dict[str, Any] = {"system": "system.yaml", "device": "cuda", "steps": [], "operators": [], "failed": []}
    for item in (Item("tiny", "prefill", 2, 64), Item("tiny", "decode", 2, context=64)):
        graph = item.capture(place / "models")
        trace = foretrace.replay_graph(graph, str(place / "system.yaml"), dims=item.sizes()).trace
        foretrace.save_trace(trace.replace(source="measured"), place / f"{item.name}.trace")
        index["steps"].append(item.as_row() | {"file": f"{item.name}.trace", "step_s": trace.step_s or trace.span_s})
    index["failed"].append(Item("gpt2").as_row() | {"what": "step", "reason": "no time left"})
    (place / "recorded.yaml").write_text(yaml.safe_dump(index))
    sys.path.remove(str(FOLDER))
    return place


def test_a_prediction_recorded_as_measured_is_without_error(folder: Path) -> None:
    from scoreboard.recorded import score_all, table

    scored = score_all(folder)
    assert [s.item.phase for s in scored.scores] == ["prefill", "decode"]
    for score in scored.scores:
        assert score.matched == pytest.approx(1.0)
        assert score.before == pytest.approx(0.0, abs=1e-6)
        assert score.after is None
        assert score.mape_before == pytest.approx(0.0, abs=1e-6)
    text = "\n".join(table(scored))
    assert "Not scored: " in text
    assert "no time left" in text
    assert "no operator table to calibrate on" in text
    assert "2 of 2 within 8%" in text


def test_misses_are_stated_as_misses(folder: Path) -> None:
    from scoreboard.recorded import Scored, score_all, summary

    (first, *_) = score_all(folder).scores
    bad = replace(first, matched=0.5, before=0.5, after=0.09)
    lines = "\n".join(summary(Scored([bad, replace(bad, after=0.01)])))
    assert lines.count("**missed**") == 2
    good = replace(first, matched=0.98, before=0.5, after=-0.04)
    assert "**missed**" not in "\n".join(summary(Scored([good])))
    cpu = replace(good, device="cpu")  # 99 % are asked of a CPU's eager steps
    assert "**missed**" in "\n".join(summary(Scored([cpu])))


def test_points_are_distinct_rows_of_every_table(tmp_path: Path) -> None:
    from scoreboard.recorded import draw

    rows = [
        {"table": kind, "gpu": "system.yaml", "m": float(i), "latency_us": 1.0 + i, "count": 3}
        for kind in ("gemm", "elementwise", "attention")
        for i in range(40 if kind != "attention" else 4)
    ]
    for name in ("a", "b"):  # the same operators in two steps
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    draw([tmp_path / "a.parquet", tmp_path / "b.parquet"], tmp_path / "points.parquet", 50, 0)
    found = pq.read_table(tmp_path / "points.parquet").to_pylist()
    assert len(found) == 50
    assert len({(row["table"], row["m"]) for row in found}) == 50
    kinds = [row["table"] for row in found]
    assert kinds.count("attention") == 4
    assert min(kinds.count("gemm"), kinds.count("elementwise")) >= 14
    assert kinds == sorted(kinds)  # rows of one table stand together
    assert {row["gpu"] for row in found} == {str(tmp_path / "system.yaml")}


def test_the_section_stands_once_in_the_page() -> None:
    from scoreboard.recorded import with_section

    page = "# Accuracy\n\n## Fifty\n\ntext\n\n## By GPU\n\ntable\n"
    once = with_section(page, ["\n## Recorded traces\n", "old"])
    assert once == "# Accuracy\n\n## Fifty\n\ntext\n\n## Recorded traces\n\nold\n\n## By GPU\n\ntable\n"
    twice = with_section(once, ["\n## Recorded traces\n", "new"])
    assert twice == once.replace("old", "new")
    assert with_section(page, []) == page


def test_what_the_host_takes_is_what_is_left_of_a_step_that_does_nothing() -> None:
    from recording.machine import dispatch_s

    assert dispatch_s(110e-6, kernels=20, views=0, floor_s=0.5e-6) == pytest.approx(5e-6)
    assert dispatch_s(5e-6, kernels=20, views=0, floor_s=0.5e-6) == 0


def test_items_are_named_apart_and_read_back() -> None:
    from recording.items import Item, groups

    for device in ("cpu", "cuda"):
        items = [item for _, group in groups(device, quick=False) for item in group]
        assert len({item.name for item in items}) == len(items)
        assert all(Item.of_row(item.as_row() | {"file": "x"}) == item for item in items)
        assert all(len({item.model for item in group}) == 1 for _, group in groups(device, quick=False))


def test_a_worker_lists_what_there_is_no_time_for(tmp_path: Path) -> None:
    from recording.items import Item
    from recording.worker import run

    (tmp_path / "system.yaml").write_text(SYSTEM)
    said: list[tuple[str, dict[str, Any]]] = []
    run([Item("tiny", "prefill", 2, 16)], "cpu", tmp_path, 0.0, 1, lambda kind, row: said.append((kind, row)))
    assert [(kind, row["what"]) for kind, row in said] == [("failed", "step"), ("failed", "operators")]
    assert all("no time left" in row["reason"] for _, row in said)
    assert not list(tmp_path.glob("*.trace"))


# --- the other layout --------------------------------------------------------------------------------------------

GEMM = {"op": "linear", "dtype": "fp32", "b": 1, "m": 8, "n": 16, "k": 32, "latency_us": 5.0}
STREAM = {"op": "cast_fp32", "dtype": "bf16", "rows": 64, "cols": 32, "n_in": 1, "latency_us": 3.0}


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    place = tmp_path / "there"
    place.mkdir()
    rates = {"copy_bytes_per_s": 1e10, "matmul_flop_per_s": {"float32": 1e11}}
    (place / "env.json").write_text(json.dumps({"device": "cpu", "cpus": 2, **rates}))
    step = {
        "model": "tiny", "phase": "prefill", "batch": 2, "seq": 16, "context": 0, "dtype": "float32",
        "attention": "sdpa", "execution": "eager", "median_s": 0.002,
    }  # fmt: skip
    lost = step | {"batch": 3}
    (place / "steps.jsonl").write_text(f"{json.dumps(step)}\n{json.dumps(lost)}\n")
    event = {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "pid": 1, "tid": 1, "ts": 0.0, "dur": 900.0}
    packed = gzip.compress(json.dumps({"schemaVersion": 1, "traceEvents": [event]}).encode())
    with tarfile.open(place / "traces_1.tar", "w") as tar:
        for name in ("tiny_prefill_b2_s16_c0_float32_sdpa_eager.json.gz", "../outside.json.gz"):
            member = tarfile.TarInfo(name)
            member.size = len(packed)
            tar.addfile(member, io.BytesIO(packed))
    for name, row in (("gemm", GEMM), ("elementwise", STREAM)):
        with (place / f"ops_{name}.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, ["gpu", *row, "timing", "source", "quality"])
            writer.writeheader()
            writer.writerow(row | {"gpu": "cpu", "timing": "eager_median5", "source": "recorded", "quality": "ok"})
    return place


def test_another_layout_is_imported(foreign: Path, tmp_path: Path) -> None:
    from scoreboard.record_layout import import_record

    out = import_record(foreign, tmp_path / "out")
    index = yaml.safe_load((out / "recorded.yaml").read_text())
    (step,) = index["steps"]
    assert step["phase"] == "forward"  # its prefill gives the logits of every token
    assert foretrace.load_trace(out / step["file"]).step_s == 0.002
    (lost,) = index["failed"]
    assert lost["batch"] == 3
    assert load_system(str(out / "system.yaml")).accelerator.memory.bandwidth == 1e10
    assert not (tmp_path / "outside.trace").exists()


def test_its_operators_are_priced_as_what_they_are(foreign: Path, tmp_path: Path) -> None:
    from scoreboard.record_layout import OPS, import_record

    parts = list(read_measurements(import_record(foreign, tmp_path / "out") / OPS))
    assert [part.rows for part in parts] == [1, 1]
    stream, gemm = parts
    assert stream.operators.names == ("aten._to_copy.default",)
    assert stream.operators.bytes_read.tolist() == [64 * 32 * 2]
    assert stream.operators.bytes_written.tolist() == [64 * 32 * 4]
    assert gemm.operators.matrix_flops.tolist() == [2 * 8 * 16 * 32]
    assert np.concatenate([part.looped for part in parts]).all()


def test_a_damaged_layout_names_the_file(foreign: Path, tmp_path: Path) -> None:
    from scoreboard.record_layout import import_record

    (foreign / "steps.jsonl").write_text("{")
    with pytest.raises(FormatError, match=r"steps\.jsonl"):
        import_record(foreign, tmp_path / "out")
