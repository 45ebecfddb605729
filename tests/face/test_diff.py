"""`foretrace diff`: its page, its timeline, exit codes, and traces of two different models."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from foretrace.cli import app
from foretrace.traces import Trace, load_trace, save_trace


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def step(names: list[str], module: str, source: str, factor: float = 1.0) -> Trace:
    rows = [
        {"name": name, "kind": "elementwise", "module": f"{module}.{i % 4}", "shapes": f"[{i},8]", "stream": "compute",
         "op_id": i, "start_s": i * 1e-3 * factor, "duration_s": 1e-3 * factor, "flops": 8.0, "bytes_moved": 64.0}
        for i, name in enumerate(names)
    ]  # fmt: skip
    system = "h100-sxm" if source == "predicted" else "a GPU"
    return Trace.from_rows(rows, source=source, title=module, system=system)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    names = [f"aten.op{i % 5}.default" for i in range(20)]
    found = {
        "predicted": step(names, "net.h", "predicted"),
        "measured": step(names, "net.h", "measured", 1.25),
        "stranger": step(["aten.other.default"] * 20, "trunk.q", "measured"),
        "empty": step([], "net", "measured"),
    }
    paths = {name: tmp_path / f"{name}.trace" for name in found}
    for name, trace in found.items():
        save_trace(trace, paths[name])
    return paths


def test_page_and_timeline(files: dict[str, Path], tmp_path: Path) -> None:
    page, both = tmp_path / "diff.html", tmp_path / "both.pftrace"
    done = run("diff", files["predicted"], files["measured"], "--html", page, "--trace", both)
    assert done.exit_code == 0, done.output
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert '"bytes_per_s":3350000000000' in text  # the predicted system's memory, which the roofline draws
    assert len(load_trace(both)) == 40


def test_json_says_where_the_difference_comes_from(files: dict[str, Path]) -> None:
    value = json.loads(run("diff", files["predicted"], files["measured"], "--json").stdout)
    assert value["matched_share"] == 1.0
    assert value["error"] == pytest.approx(-0.2, abs=0.01)
    steps = value["waterfall"]
    assert steps[0]["seconds"] == pytest.approx(value["predicted_s"])
    assert sum(s["seconds"] for s in steps[:-1]) == pytest.approx(steps[-1]["seconds"]) == value["measured_s"]
    assert {cause["what"] for cause in value["causes"]} == {"slower"}
    assert set(value["activity"]) == {"predicted", "measured"}


def test_another_models_trace_is_over_any_tolerance(files: dict[str, Path]) -> None:
    done = run("diff", files["predicted"], files["stranger"], "--tolerance", "1000%")
    assert done.exit_code == 3
    assert "matched" in done.stderr
    assert run("diff", files["predicted"], files["stranger"]).exit_code == 0


def test_an_empty_trace_is_over_any_tolerance(files: dict[str, Path]) -> None:
    assert run("diff", files["predicted"], files["empty"], "--tolerance", "10%").exit_code == 3
    assert run("diff", files["empty"], files["empty"], "--json").exit_code == 0


@pytest.mark.parametrize(("flag", "name"), [("--html", "page.txt"), ("--trace", "both.json")])
def test_a_wrong_ending_is_refused_and_nothing_written(
    files: dict[str, Path], tmp_path: Path, flag: str, name: str
) -> None:
    done = run("diff", files["predicted"], files["measured"], flag, tmp_path / name)
    assert done.exit_code == 1
    assert name in done.stderr
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("flag", ["--top", "--depth"])
@pytest.mark.parametrize("value", [-1, 0])
def test_tables_of_less_than_one_row_are_refused(files: dict[str, Path], flag: str, value: int) -> None:
    done = run("diff", files["predicted"], files["measured"], flag, value)
    assert done.exit_code == 2
    assert flag in done.stderr
    assert run("diff", files["predicted"], files["measured"], flag, 1).exit_code == 0


@pytest.mark.parametrize("warnings", ["5", '"cut off"', "[1]", "null"])
def test_a_trace_with_odd_warnings_is_named(files: dict[str, Path], tmp_path: Path, warnings: str) -> None:
    save_trace(load_trace(files["measured"]), tmp_path / "m.json")
    text = (tmp_path / "m.json").read_text()
    assert '"info":{}' in text
    (tmp_path / "m.json").write_text(text.replace('"info":{}', f'"info":{{"warnings":{warnings}}}'))
    done = run("diff", files["predicted"], tmp_path / "m.json")
    assert done.exit_code == 1
    assert f"{tmp_path / 'm.json'}: trace info warnings: expected a list of texts" in " ".join(done.stderr.split())


def test_a_name_that_is_no_utf_8_is_drawn_and_written(files: dict[str, Path], tmp_path: Path) -> None:
    odd = tmp_path / "m\udcff.json"
    event = {"ph": "X", "cat": "cpu_op", "name": "aten::op0", "pid": 1, "tid": 1, "ts": 1, "dur": 1}
    odd.write_text(json.dumps({"traceEvents": [event]}))
    page, both = tmp_path / "diff.html", tmp_path / "both.pftrace"
    done = run("diff", files["predicted"], odd, "--html", page, "--trace", both)
    assert done.exit_code == 0, done.output
    assert "m?.json" in page.read_text()
    assert len(load_trace(both)) == 21
