"""The scoreboard (`make capture-matrix`): its fast slice, what it compares, and that a bad job harms no other."""

from pathlib import Path
from typing import Any

import pytest

from foretrace.capture import capture_graph, catalogue_name
from foretrace.capture.models import UserModel
from foretrace.ir import MATRIX_KINDS, Graph, OpKind

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
pytestmark = pytest.mark.checkout


@pytest.fixture(autouse=True)
def _scoreboard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    from scoreboard import results

    monkeypatch.setattr(results, "FOLDER", tmp_path)


def measure(key: str) -> dict[str, Any]:
    from scoreboard.capture_job import capture_job
    from scoreboard.jobs import job_of

    return capture_job(job_of(key), lambda _: None)


def test_the_list_is_64_models_of_the_catalogue() -> None:
    from scoreboard.jobs import FAST, GIANTS, MODELS

    assert len(set(MODELS)) == 64
    assert all(catalogue_name(n) for n in MODELS)
    assert {*FAST, *GIANTS} <= set(MODELS)


@pytest.mark.slow
def test_every_model_trains_and_every_type_is_asked_for() -> None:
    from scoreboard.jobs import MODELS, all_jobs, causal_types

    jobs = all_jobs()
    assert len({j.key for j in jobs}) == len(jobs)
    assert [j.name for j in jobs if j.group == "models" and j.phase == "train"] == MODELS
    assert sum(j.group == "models" and j.phase == "decode" for j in jobs) == 53
    assert {"llama", "mamba", "qwen3_moe"} <= set(causal_types())


@pytest.mark.slow
@pytest.mark.parametrize(
    "key",
    [
        "models/gpt2/forward",
        "models/gpt2/train",
        "models/t5-base/decode",
        "models/vit-base-patch16-224/forward",
        "models/OLMoE-1B-7B-0924/forward",
        "types/gpt_neox/forward",
    ],
)
def test_the_fast_slice(key: str) -> None:
    found = measure(key)
    assert found["exact"], found["differs"]
    assert found["published"] in (None, found["parameters"])
    assert found["counted"] == found["seen"] > 0


@pytest.mark.slow
def test_export_and_recorder_are_equal() -> None:
    from scoreboard.export_job import export_job
    from scoreboard.jobs import job_of

    found = export_job(job_of("export/vit-base-patch16-224/forward"), lambda _: None)
    assert found["their_parameters"] == found["parameters"]
    assert found["their_seen"] == found["seen"] == found["flops"]


def test_a_wrong_size_is_found() -> None:
    from scoreboard.capture_job import exact
    from scoreboard.capture_job import step_of as build

    from foretrace.capture import resolve_model

    model = resolve_model("SmolLM2-135M")
    model.config.num_hidden_layers = 2
    graph = capture_graph(model)
    at = graph.bind({"batch": 3, "seq": 19})
    same, differs = exact(graph, at, *build(model, "forward", "sdpa", at), "forward")
    assert same, differs
    same, differs = exact(graph, at | {"seq": 20}, *build(model, "forward", "sdpa", at), "forward")
    assert not same
    assert "of the graph" in differs


def test_kernels_of_ours_are_left_out_and_what_runs_inside_them_is_not() -> None:
    from scoreboard.counting import LeftOut

    left_out = LeftOut(frozenset({"0.mixer", "1.experts"}), frozenset({"0.mixer.in_proj", "1.gate"}))
    assert [
        m for m in ("0", "0.mixer", "0.mixer.in_proj", "1.experts", "1.experts.mlp", "1.gate") if m in left_out
    ] == [
        "0.mixer",
        "1.experts",
        "1.experts.mlp",
    ]


def test_the_backward_of_attention_is_counted_as_the_unpatched_model_runs_it() -> None:
    import torch
    from scoreboard.counting import counted_flops, left_out_of, our_flops

    from foretrace.capture.user import user_step

    class Attend(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = torch.nn.Linear(16, 48)

        def forward(self, x: Any) -> Any:
            q, k, v = self.qkv(x).view(2, 9, 3, 2, 8).permute(2, 0, 3, 1, 4)
            return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    model = UserModel("attend", Attend(), (torch.ones(2, 9, 16),), {})
    graph: Graph = capture_graph(model, phase="train")
    left_out = left_out_of(graph)
    assert any(op.kind is OpKind.ATTENTION and op.attributes.get("backward") for op in graph.ops)
    root, step = user_step(UserModel("attend", Attend(), (torch.ones(2, 9, 16),), {}), "train", "meta", None)
    total, compared = counted_flops(root, step, True, left_out)
    assert total == compared == our_flops(graph, {}, left_out) < graph.flops({}, MATRIX_KINDS)


def test_a_job_that_hangs_or_needs_too_much_fails_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from scoreboard import workers
    from scoreboard.jobs import Job

    script = tmp_path / "worker.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(FOLDER)!r})\n"
        "from scoreboard import workers\n"
        "def run(job, keep):\n"
        "    keep({'ops': 7})\n"
        "    if job.name == 'hangs': sys.stdin.readline()\n"
        "    if job.name == 'grows': return {'size': len(bytearray(9 * 10**9))}\n"
        "    if job.name == 'dies': import os; os._exit(3)\n"
        "    print('noise')\n"
        "    return {'ops': 8}\n"
        "workers._run = run\n"
        "workers.serve(8)\n"
    )
    monkeypatch.setattr(workers, "SCRIPT", script)
    monkeypatch.setattr(workers, "START_S", 0)
    monkeypatch.setitem(workers.GROUPS, "export", 5)
    found: dict[str, dict[str, Any]] = {}
    jobs = [Job("export", "hangs", "forward"), *(Job("types", name, "forward") for name in ("grows", "dies", "works"))]
    workers.run_jobs(jobs, 1, 8, lambda _: None, lambda job, result: found.update({job.name: result}))
    assert found["hangs"]["stopped"].startswith("took longer")
    assert found["grows"]["stopped"] == "needs more than 8 GB"
    assert found["dies"]["stopped"] == "its process ended: exit code 3"
    assert found["works"]["ops"] == 8
    assert all(r["ops"] == 7 for name, r in found.items() if name != "works")


def test_results_are_kept_and_say_what_made_them(tmp_path: Path) -> None:
    from scoreboard import results
    from scoreboard.jobs import Job

    job = Job("types", "llama", "forward")
    assert results.load(job) is None
    results.save(job, {"error": "no"})
    found = results.load(job)
    assert found is not None
    assert results.failed(found)
    assert not results.is_stale(found)
    assert results.is_stale(found | {"made_by": {"code": "other"}})
    (tmp_path / "types" / "llama.forward.json").write_text("{")
    assert results.load(job) is None


def test_the_page_says_what_is_outside_and_why() -> None:
    from scoreboard import results
    from scoreboard.jobs import Job
    from scoreboard.page import goals_of, page_of

    good = {
        "rung": "sdpa", "family": "decoder", "ops": 10, "folded": 301, "parameters": 5, "published": 5, "flops": 8,
        "seconds": 1.0, "open": ["batch"], "fixed": [], "at": {"batch": 4}, "exact": True, "differs": "", "seen": 8,
        "counted": 9, "counted_in_all": 9,
    }  # fmt: skip
    jobs = [Job("models", "a", "forward"), Job("models", "b", "forward"), Job("export", "a", "forward")]
    results.save(jobs[0], good)
    results.save(jobs[1], {"error": "its forward <failed>\nhere"})
    results.save(jobs[2], {"parameters": 5, "seen": 8, "their_parameters": 5, "their_seen": 8, "flops": 8})
    page = page_of([*jobs, Job("types", "c", "forward")])
    assert "3 of 4 measured" in page
    assert "- b, forward: not captured: its forward ‹failed› here" in page
    assert "- a, forward: 8 FLOPs, the counter 9" in page
    assert "- a, forward: 301 ops folded" in page
    assert "Equal parameters and FLOPs (1): a." in page
    missed = {g.what for g in goals_of(jobs) if not g.met}
    assert "forward captured, of the 64 models" in missed
    assert "models: FLOPs equal to the counter's, where it counts" in missed
    assert "models: every size exact at a held-out point" not in missed
