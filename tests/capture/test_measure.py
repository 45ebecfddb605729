"""A real run on this machine's CPU, measured, predicted and diffed."""

import sys
from pathlib import Path

import pytest

import foretrace
from foretrace.ir import ForetraceError


@pytest.fixture
def small_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "small_model.py").write_text(
        "import torch\n"
        "def build():\n"
        "    layers = [torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 64)]\n"
        "    return torch.nn.Sequential(*layers), (torch.zeros(32, 64),)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "small_model:build"
    sys.modules.pop("small_model", None)


def test_a_module_of_ones_own_is_measured(small_model: str) -> None:
    told: list[str] = []
    trace = foretrace.measure_model(small_model, warmup=1, repeats=2, progress=told.append)
    assert trace.source == "measured"
    assert trace.step_s is not None
    assert trace.step_s > 0
    assert len(trace.info["step_s"]) == 2
    assert {"torch", "device", "threads"} <= trace.info.keys()
    places = {m for n, m in zip(trace.name.tolist(), trace.module.tolist(), strict=True) if n == "aten::addmm"}
    assert places == {"0", "2"}
    assert told[-1] == "recording the structure"


@pytest.mark.slow
def test_gpt2_measured_here_matches_its_capture(tmp_path: Path) -> None:
    """The issue's bar: at least 95 % of measured operator time belongs to captured operators."""
    measured = foretrace.measure_model("gpt2", batch=1, seq=64, warmup=1, repeats=2)
    predicted = foretrace.replay_graph(foretrace.capture_graph("gpt2"), "this-machine", batch=1, seq=64).trace
    diff = foretrace.diff_traces(predicted, measured)
    assert diff.matched_share >= 0.95
    assert diff.predicted_s > 0
    foretrace.save_trace(measured, tmp_path / "m.trace")
    assert foretrace.load_trace(tmp_path / "m.trace") == measured


def test_a_device_that_is_not_there() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ForetraceError, match="torch sees no CUDA device here"):
        foretrace.measure_model("gpt2", device="cuda")
