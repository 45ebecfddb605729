"""`rank_plans` and `foretrace plans`: the same answers as one replay a plan, ordered, whoever does the work."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from foretrace import ForetraceError, replay_graph, save_graph
from foretrace.cli import app
from foretrace.plans import rank_plans
from foretrace.plans_command import numbers
from foretrace.transforms.candidates import Space
from tests.transforms.shard_models import captured

pytestmark = pytest.mark.slow

SPACE = Space(tp=(1, 2), pp=(1, 2), microbatch=(1, 2), recompute=("none", "full"), zero=(0, 1))


def test_answers_are_those_of_single_replays_in_order() -> None:
    graph = captured("llama")
    ranked = rank_plans(graph, "h100-sxm:4", batch=16, seq=128, plans=SPACE, jobs=1, intervals=3)
    assert len(ranked) == 28
    assert [r.order for r in ranked] == sorted(r.order for r in ranked)
    for r in ranked[::9]:
        alone = replay_graph(graph, "h100-sxm:4", plan=r.plan, batch=16, seq=128)
        assert (r.time_s, r.peak_bytes, r.mfu) == (alone.time_s, alone.memory.peak_bytes, alone.mfu)
    assert all(r.time_low_s < r.time_s < r.time_high_s for r in ranked[:3])


def test_two_processes_answer_as_one() -> None:
    graph = captured("llama")
    space = Space(tp=(1, 2), pp=(1,), microbatch=(1,), recompute=("none",), zero=(0,))
    one, two = (rank_plans(graph, "h100-sxm:4", batch=8, seq=128, plans=space, jobs=jobs) for jobs in (1, 2))
    assert [r.to_json() for r in one] == [r.to_json() for r in two]


def test_the_command_prints_json_and_a_page(tmp_path: Path) -> None:
    path = tmp_path / "tiny.graph"
    save_graph(captured("llama"), path)
    command = ["plans", str(path), "--on", "h100-sxm:4", "--batch", "8", "--seq", "128", "--jobs", "1", "--tp", "1,2"]
    command += ["--pp", "1", "--microbatch", "1", "--recompute", "none"]
    found = CliRunner().invoke(app, [*command, "--json"])
    assert found.exit_code == 0, found.output
    answer = json.loads(found.stdout)
    assert answer["count"] == 4
    assert {p["plan"] for p in answer["plans"]} == {"dp=4", "dp=4,zero=1", "tp=2,sp=1,dp=2", "tp=2,sp=1,dp=2,zero=1"}
    page = CliRunner().invoke(app, command)
    assert "4 plans: 4 fit, 0 do not, 0 cannot run" in page.stdout


def test_a_list_that_is_none() -> None:
    with pytest.raises(ForetraceError, match=r"--tp a: expected whole numbers, e\.g\. --tp 1,2,4"):
        numbers("tp", "a")
