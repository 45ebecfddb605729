"""``foretrace validate``: its figures, its JSON contract, and what it says of bad input."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import measured_tables as tables
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from foretrace.cli import app
from foretrace.ir import ForetraceError
from foretrace.scatter import render
from foretrace.scores import score
from foretrace.validate import validate_tables

KEYS = {"groups", "overall", "skipped"}
GROUP_KEYS = {"gpu", "dtype", "kind", "n", "mape", "median_ape", "p90_ape", "bias"}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["validate", *(str(a) for a in arguments), "--costs", "roofline"])


def skipped(path: Path, **options: Any) -> dict[str, int]:
    return dict(validate_tables([path], costs="roofline", **options).skipped)


def test_json_keeps_its_contract(tmp_path: Path) -> None:
    paths = [tables.write(tmp_path / f"{name}.parquet", columns) for name, columns in tables.ALL.items()]
    result = run(*paths, "--json")
    assert result.exit_code == 0, result.output
    value = json.loads(result.stdout)
    assert set(value) >= KEYS
    assert all(set(group) >= GROUP_KEYS for group in value["groups"])
    assert set(value["overall"]) >= GROUP_KEYS - {"gpu", "dtype", "kind"}
    assert value["overall"]["n"] == sum(len(c["gpu"]) for c in tables.ALL.values())
    assert value["skipped"] == []
    assert {g["kind"] for g in value["groups"]} >= {
        "gemm",
        "attention_decode",
        "mla_prefill",
        "moe",
        "norm",
        "all_reduce",
    }


def test_figures_are_those_of_the_textbook() -> None:
    found = score(np.array([1.0, 2.0, 4.0]), np.array([1.0, 1.0, 8.0]), np.array([True, False, True]))
    assert (found.n, found.mape, found.median_ape) == (3, 0.5, 0.5)
    assert found.p90_ape == pytest.approx(0.9)
    assert found.bias == pytest.approx(1.0)
    assert found.coverage == pytest.approx(2 / 3)


def test_a_perfect_table_has_no_error(tmp_path: Path) -> None:
    first = validate_tables([tables.write(tmp_path / "a.parquet", tables.ATTENTION)], costs="roofline")
    exact = [0.0] * 3
    for point in first.points:
        exact[point.row] = point.predicted_s * 1e6
    again = validate_tables(
        [tables.write(tmp_path / "b.parquet", tables.ATTENTION, latency_us=exact)], costs="roofline"
    )
    overall = again.overall
    assert overall is not None
    assert overall.mape == pytest.approx(0, abs=1e-9)
    assert overall.bias == pytest.approx(1)


def test_the_worst_rows_come_first_and_say_what_bounds_them(tmp_path: Path) -> None:
    path = tables.write(tmp_path / "t.parquet", tables.GEMM, latency_us=[12.0, 160.0, 9000.0])
    result = validate_tables([path], costs="roofline", worst=2)
    assert result.worst[0].row == 2
    assert len(result.worst) == 2
    assert "m=100" in result.worst[0].what
    assert result.worst[0].bound == "launch"


def test_csv_and_other_units_of_time_are_read(tmp_path: Path) -> None:
    first = validate_tables([tables.write(tmp_path / "a.parquet", tables.GEMM)], costs="roofline")
    milli = [t / 1e3 for t in tables.GEMM["latency_us"]]
    path = tables.write(tmp_path / "b.csv", tables.GEMM, latency_us=None, latency_ms=milli)
    second = validate_tables([path], costs="roofline")
    assert first.overall is not None
    assert second.overall is not None
    assert second.overall.mape == pytest.approx(first.overall.mape)


BAD_CELLS = [
    ("m", [0, 4096, 100], "m is less than 1"),
    ("m", [-3, 4096, 100], "m is less than 1"),
    ("m", [2.5, 4096, 100], "m is not a whole number"),
    ("m", [float("nan"), 4096, 100], "m is empty"),
    ("k", [float("inf"), 1.0, 1.0], "k is larger than any tensor"),
    ("n", [1e300, 1.0, 1.0], "n is larger than any tensor"),
    ("latency_us", [float("nan"), 1.0, 1.0], "latency_us is empty"),
    ("latency_us", [0.0, 1.0, 1.0], "latency_us is not positive"),
    ("latency_us", [float("inf"), 1.0, 1.0], "latency_us is not finite"),
    ("dtype", ["fp7", "bf16", "bf16"], "dtype 'fp7' is no number format that we know"),
    ("gpu", ["H1000", "H100-SXM", "H100-SXM"], "unknown hardware 'H1000'"),
    ("gpu", ["", "H100-SXM", "H100-SXM"], "gpu is empty"),
    ("quality", ["suspect", "ok", "ok"], "quality 'suspect'"),
]


@pytest.mark.parametrize(("column", "values", "reason"), BAD_CELLS)
def test_a_bad_cell_costs_its_row_and_says_why(column: str, values: list[Any], reason: str, tmp_path: Path) -> None:
    path = tables.write(tmp_path / "t.parquet", tables.GEMM, **{column: values})
    result = validate_tables([path], costs="roofline")
    (said,) = result.skipped
    assert reason in said
    assert result.skipped[said] == 1
    assert result.overall is not None
    assert result.overall.n == 2


def test_sizes_beyond_all_proportion_are_refused(tmp_path: Path) -> None:
    path = tables.write(tmp_path / "t.parquet", tables.GEMM, m=[1e9] * 3, n=[1e9] * 3, k=[1e9] * 3)
    assert list(skipped(path).values()) == [3]


def test_a_format_without_units_is_refused_by_name(tmp_path: Path) -> None:
    path = tables.write(tmp_path / "t.parquet", tables.GEMM, gpu=["A100-SXM-80GB"] * 3)
    assert skipped(path) == {"a100-sxm-80gb has no float8_e4m3 units: a replay would emulate it with bfloat16": 1}


@pytest.mark.parametrize("column", ["gpu", "dtype", "m", "latency_us"])
def test_a_missing_column_is_named_with_its_file(column: str, tmp_path: Path) -> None:
    path = tables.write(tmp_path / "mine.parquet", tables.GEMM, **{column: None})
    result = run(path)
    assert result.exit_code == 1
    assert "mine.parquet" in result.output
    assert column in result.output


def test_units_a_thousand_times_off_are_warned_of(tmp_path: Path) -> None:
    off = [t * 1e3 for t in tables.GEMM["latency_us"]]
    result = validate_tables([tables.write(tmp_path / "t.parquet", tables.GEMM, latency_us=off)], costs="roofline")
    assert any("another unit" in w for w in result.warnings)
    right = validate_tables([tables.write(tmp_path / "u.parquet", tables.GEMM)], costs="roofline")
    assert not right.warnings


def test_gpus_can_be_chosen(tmp_path: Path) -> None:
    path = tables.write(tmp_path / "t.parquet", tables.GEMM)
    result = validate_tables([path], costs="roofline", gpus=["a100-sxm-80gb"])
    assert [g.gpu for g in result.scores] == ["A100-SXM-80GB"]
    assert sum(result.skipped.values()) == 2
    assert run(path, "--gpu", "h1000").exit_code == 1


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not a table at all\n\x00\xff", b"PAR1" + b"\x00" * 40 + b"PAR1"])
@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.txt"])
def test_a_file_that_is_no_table_is_one_clear_error(content: bytes, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    result = run(path)
    assert result.exit_code == 1
    assert name in result.output.replace("\n", "")
    assert "a fault of ours" not in result.output


def test_text_where_numbers_belong_is_named(tmp_path: Path) -> None:
    path = tables.write(tmp_path / "t.parquet", tables.GEMM, m=["many", "more", "most"])
    with pytest.raises(ForetraceError, match=r"t\.parquet.*'m'.*'many'"):
        validate_tables([path], costs="roofline")


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    names = [*tables.GEMM, "m"]
    pq.write_table(pa.table([pa.array(v) for v in (*tables.GEMM.values(), [1, 2, 3])], names=names), path)
    with pytest.raises(ForetraceError, match="'m' is there twice"):
        validate_tables([path], costs="roofline")


def test_an_empty_table_scores_nothing(tmp_path: Path) -> None:
    empty = pa.table({k: pa.array(v).slice(0, 0) for k, v in tables.GEMM.items()})
    pq.write_table(empty, tmp_path / "t.parquet")
    value = json.loads(run(tmp_path / "t.parquet", "--json").stdout)
    assert value["groups"] == []
    assert value["overall"]["n"] == 0


def test_no_such_file_is_said(tmp_path: Path) -> None:
    result = run(tmp_path / "nowhere.parquet")
    assert result.exit_code == 1
    assert "nowhere.parquet" in result.output.replace("\n", "")


def test_the_picture_is_one_file_without_scripts(tmp_path: Path) -> None:
    path = tables.write(tmp_path / "t.parquet", tables.GEMM, gpu=["H100-SXM", "H100-SXM", "A100-SXM-80GB"])
    page = tmp_path / "scatter.html"
    result = run(path, "--html", page)
    assert result.exit_code == 0, result.output
    text = page.read_text()
    assert text.count('class="p"') == 3
    assert "m=512" in text
    assert "<script" not in text
    assert "http" not in text
    assert render(validate_tables([path], costs="roofline")) == text


def test_a_strangers_names_are_no_markup_in_the_picture(tmp_path: Path) -> None:
    path = tables.write(tmp_path / "t.parquet", tables.CONVOLUTION, gpu=["T4"])
    hostile = path.rename(tmp_path / "<b>&.parquet")
    assert "<b>" not in render(validate_tables([hostile], costs="roofline"))


def test_an_unwritable_picture_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tables.write(tmp_path / "t.parquet", tables.GEMM)
    result = run(path, "--html", tmp_path / "no" / "such.html")
    assert result.exit_code == 1
    assert not (tmp_path / "no").exists()


def test_operators_are_validated_without_torch(tmp_path: Path) -> None:
    path = tables.write(tmp_path / "t.parquet", tables.GEMM)
    code = f"""
import sys
from foretrace.validate import validate_tables
validate_tables([{str(path)!r}], costs="roofline")
print(sorted({{"torch", "transformers", "numba"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


ODD_NUMBERS = st.one_of(
    st.sampled_from([0, -1, 1, 2, 7, 0.5, 1e18, 1e308, -1e308, float("nan"), float("inf"), 2**31, 2**53]), st.none()
)
ODD_TEXTS = st.one_of(
    st.sampled_from(
        ["", "bf16", "fp8", "H100-SXM", "decode", "all_reduce", "softmax", "power_law_1e9", "a\0b", "\x1b[1m"]
    ),
    st.text(max_size=8),
    st.none(),
)


@given(st.sampled_from(sorted(tables.ALL)), st.data())
def test_odd_cells_never_break_it(name: str, data: st.DataObject) -> None:
    columns = dict(tables.ALL[name])
    rows = len(columns["gpu"])
    for column in data.draw(st.lists(st.sampled_from(sorted(columns)), min_size=1, max_size=3, unique=True)):
        cells = ODD_TEXTS if isinstance(columns[column][0], str) else ODD_NUMBERS
        values = data.draw(st.lists(cells, min_size=rows, max_size=rows))
        as_text = isinstance(columns[column][0], str)
        columns[column] = values if as_text else [None if v is None else float(v) for v in values]
    with tempfile.TemporaryDirectory() as folder:
        path = tables.write(Path(folder) / "t.parquet", columns)
        with contextlib.suppress(ForetraceError):
            result = validate_tables([path], costs="roofline")
            json.dumps(result.to_json(), allow_nan=False)
            render(result)
            scored = 0 if result.overall is None else result.overall.n
            assert scored + sum(result.skipped.values()) == rows


def test_as_many_names_as_rows_end_soon(tmp_path: Path) -> None:
    names = [f"name {i}" for i in range(20_000)]
    many = {k: (v * 20_000)[:20_000] for k, v in tables.ELEMENTWISE.items()}
    for column in ("op", "dtype"):
        path = tables.write(tmp_path / "t.parquet", many, **{column: names})
        assert sum(skipped(path).values()) == 20_000
        assert len(skipped(path)) < 20
    with pytest.raises(ForetraceError, match=r"20,000 machines"):
        skipped(tables.write(tmp_path / "t.parquet", many, gpu=names))


GROUND_TRUTH = os.environ.get("FORETRACE_GROUNDTRUTH", "")


@pytest.mark.skipif(not GROUND_TRUTH, reason="FORETRACE_GROUNDTRUTH is not set")
@pytest.mark.parametrize("table", ["gemm", "attention", "mla", "moe", "collectives", "elementwise", "conv"])
def test_every_row_of_the_ground_truth_is_understood(table: str) -> None:
    for folder in ("calib", "valid"):
        result = validate_tables([Path(GROUND_TRUTH) / folder / f"{table}.parquet"], costs="roofline")
        assert all(reason.startswith("quality") for reason in result.skipped), result.skipped
        assert not result.warnings
