"""A plan on the command line: the JSON contract, a trace of chosen ranks, the terminal, one clear error."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from foretrace.cli import app
from foretrace.ir import save_graph
from foretrace.traces import load_trace
from tests.replay.parallel.models import training


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    save_graph(training(layers=8), tmp_path / "stack.graph")
    return tmp_path / "stack.graph"


def test_a_plan_in_json_and_its_trace(graph: Path, tmp_path: Path) -> None:
    trace = tmp_path / "step.pftrace"
    given = ["replay", graph, "--on", "h100-sxm:16", "--plan", "pp=4", "--batch", 64, "--json", "--trace", trace]
    result = CliRunner().invoke(app, [str(a) for a in [*given, "--ranks", "0,15"]])
    assert result.exit_code == 0, result.output
    value = json.loads(result.stdout)
    assert value["plan"] == "pp=4,dp=4"  # data parallel fills the system
    assert (value["batch"], value["micro_batches"], value["schedule"]) == (64, 16, "1f1b")
    assert value["symbols"]["batch"] == 64
    assert [rank["count"] for rank in value["ranks"]] == [4, 4, 4, 4]
    assert value["hfu"] == value["mfu"]
    assert sum(value["critical_path"].values()) == pytest.approx(value["time_s"])
    assert np.unique(load_trace(trace).rank).tolist() == [0, 15]


def test_the_terminal_shows_the_ranks(graph: Path) -> None:
    result = CliRunner().invoke(
        app, ["replay", str(graph), "--on", "h100-sxm:8", "--plan", "pp=4,zero=1"], env={"COLUMNS": "150"}
    )
    assert result.exit_code == 0, result.output
    for part in ("pp=4,dp=2,zero=1", "critical path", "ranks", "waiting", "no --batch: 8 samples are assumed"):
        assert part in result.output


@pytest.mark.parametrize(("plan", "message"), [("pp=3", "nearest is"), ("tp=x", "expected a whole number")])
def test_a_bad_plan_is_one_line(graph: Path, plan: str, message: str) -> None:
    result = CliRunner().invoke(app, ["replay", str(graph), "--on", "h100-sxm:8", "--plan", plan])
    assert result.exit_code == 1
    assert message in result.output


def test_ranks_are_numbers_of_a_plan(graph: Path, tmp_path: Path) -> None:
    given = ["replay", str(graph), "--on", "h100-sxm:8", "--trace", str(tmp_path / "x.pftrace")]
    for more, message in (
        (["--plan", "pp=2", "--ranks", "one"], "expected whole numbers"),
        (["--plan", "pp=2", "--ranks", "9"], "ranks 0 to 7"),
        (["--ranks", "0"], "give a plan"),
    ):
        result = CliRunner().invoke(app, [*given, *more])
        assert result.exit_code == 1
        assert message in result.output
    assert not (tmp_path / "x.pftrace").exists()
