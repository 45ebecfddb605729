"""Real runs on this machine's CPU: measured, predicted and diffed."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config
from typer.testing import CliRunner

import foretrace
from foretrace.capture import measure_model, measure_step
from foretrace.capture.models import PretrainedModel, UserModel
from foretrace.cli import app
from foretrace.ir import ForetraceError, UnknownNameError
from foretrace.traces import Trace, align_traces

GPT2 = PretrainedModel(
    "tiny",
    GPT2Config(
        n_layer=2, n_embd=64, n_head=4, vocab_size=500, n_positions=64, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, attn_pdrop=0.0, embd_pdrop=0.0,
    ),
    "float32",
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine would take most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "small_model.py").write_text(
        "import torch\n"
        "def build():\n"
        "    layers = [torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 64)]\n"
        "    return torch.nn.Sequential(*layers), (torch.zeros(32, 64),)\n"
        "def fails():\n"
        "    return torch.nn.Linear(8, 8), (torch.zeros(2, 9),)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "small_model:build"
    sys.modules.pop("small_model", None)


def column(trace: Trace, name: str, of: str = "module") -> set[str]:
    return {v for n, v in zip(trace.name.tolist(), getattr(trace, of).tolist(), strict=True) if n == name}


def test_a_module_of_ones_own_is_measured(small_model: str) -> None:
    told: list[str] = []
    trace = foretrace.measure_model(small_model, warmup=1, repeats=2, progress=told.append)
    assert trace.source == "measured"
    assert trace.step_s is not None
    assert trace.step_s > 0
    assert len(trace.info["step_s"]) == len(trace.info["host_s"]) == 2
    assert trace.step_s == trace.info["median_s"]
    assert {"torch", "device", "threads"} <= trace.info.keys()
    assert column(trace, "aten::addmm") == {"0", "2"}
    assert column(trace, "aten::addmm", "phase") == {"forward"}
    assert set(trace.kind.used()) == {"cpu_op"}
    assert told[-1] == "recording the structure"


def test_a_training_step_says_phase_and_module_of_every_operator() -> None:
    trace = measure_model(GPT2, phase="train", optimizer="adamw", batch=2, seq=16, warmup=0, repeats=1)
    assert trace.info["warmup"] == 1  # its optimizer makes its state first
    assert set(trace.phase.used()) == {"forward", "backward", "optimizer"}
    assert column(trace, "aten::addmm", "phase") == {"forward"}
    assert column(trace, "aten::mm", "phase") == {"forward", "backward"}  # the head has no bias
    assert column(trace, "aten::gelu_backward", "phase") <= {"backward"}
    assert column(trace, "aten::_foreach_addcdiv_", "phase") == {"optimizer"}
    backward = trace.select(trace.phase.isin(["backward"]))
    linears = {
        f"transformer.h.{i}.{m}" for i in range(2) for m in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
    assert column(backward, "aten::mm") == {*linears, "lm_head"}


GRADIENT_SEED = {"aten.ones_like.default", "aten._to_copy.default"}


@pytest.mark.parametrize("phase", ["forward", "prefill", "decode", "train"])
def test_what_is_measured_is_what_was_captured(phase: str) -> None:
    """Every captured operator that moves data is found in the run, in its module and phase."""
    sizes = {"batch": 2, "seq": 16} if phase != "decode" else {"batch": 2, "context": 16}
    extra = {"optimizer": "adamw"} if phase == "train" else {}
    measured = measure_model(GPT2, phase=phase, warmup=1, repeats=1, **sizes, **extra)
    graph = foretrace.capture_graph(GPT2, phase=phase, **sizes, **extra)
    predicted = foretrace.replay_graph(graph, "h100-sxm", **sizes).trace
    alone = [i for i in align_traces(predicted, measured).unmatched_predicted.tolist() if predicted.kind[i] != "view"]
    assert {predicted.name[i] for i in alone} <= GRADIENT_SEED


def test_a_users_own_step_takes_multi_tensor_optimizers_as_captured() -> None:
    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.Adam(model.parameters())

    def step(module: Any, x: torch.Tensor) -> None:
        module(x).sum().backward()
        optimizer.step()

    work = UserModel("own", model, (torch.ones(2, 8),), {}, step)
    before = model.weight.detach().clone()
    trace = measure_model(work, phase="train", repeats=1)
    assert column(trace, "aten::_foreach_addcdiv_", "phase") == {"optimizer"}
    assert not torch.equal(before, model.weight)
    assert not sys.modules["torch.optim.optimizer"]._global_optimizer_pre_hooks  # nothing of ours stays behind


def test_a_function_of_ones_own_is_measured() -> None:
    layer, x, calls = torch.nn.Linear(16, 16), torch.randn(4, 16), []

    def step() -> None:
        calls.append(1)
        with torch.no_grad():
            layer(x)

    trace = measure_step(step, module=layer, name="mine", warmup=1, repeats=3)
    assert (trace.title, trace.model) == ("mine", "mine")
    assert len(calls) == 1 + 3 + 3 + 1
    assert trace.info["repeats"] == 3
    assert "aten::addmm" in trace.name.tolist()


def test_memory_is_followed() -> None:
    x = torch.zeros(1000)
    trace = measure_step(lambda: x + torch.ones(250_000).sum(), repeats=1)
    assert trace.info["peak_bytes"] >= 1_000_000
    assert max(trace.info["memory"]["allocated_bytes"]) == trace.info["peak_bytes"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch deprecates
@pytest.mark.parametrize("phase", ["forward", "train"])
def test_compiled_kernels_are_seen_on_a_cpu(phase: str) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 16))
    work = UserModel("own", model, (torch.randn(4, 16),), {})
    trace = measure_model(work, phase=phase, execution="compiled", warmup=2, repeats=2)
    fused = [n for n in trace.name.tolist() if "fused" in n]
    assert any("gelu" in n for n in fused)
    assert trace.info["execution"] == "compiled"
    assert trace.info["graph_breaks"] == 0
    assert model._compiled_call_impl is None
    if phase == "train":
        assert {"forward", "backward"} <= set(trace.phase.used())


@pytest.mark.slow
def test_gpt2_measured_here_matches_its_capture(tmp_path: Path) -> None:
    """The issue's bar: at least 99 % of measured operator time belongs to captured operators."""
    measured = foretrace.measure_model("gpt2", batch=1, seq=64, warmup=1, repeats=2)
    predicted = foretrace.replay_graph(foretrace.capture_graph("gpt2"), "this-machine", batch=1, seq=64).trace
    diff = foretrace.diff_traces(predicted, measured)
    assert diff.matched_share >= 0.99
    assert diff.predicted_s > 0
    file = tmp_path / "m.trace"
    foretrace.save_trace(measured, file)
    assert foretrace.load_trace(file) == measured
    assert file.stat().st_size < 100 * len(measured)


def test_a_device_that_is_not_there() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ForetraceError, match="torch sees no CUDA device here"):
        foretrace.measure_model("gpt2", device="cuda")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"phase": "training"}, "unknown phase 'training'; nearest: train"),
        ({"execution": "graph"}, "unknown execution 'graph'; nearest: cudagraph"),
        ({"execution": "cudagraph"}, "--execution cudagraph: they need --device cuda"),
        ({"attention": "flash"}, "unknown attention 'flash'"),
        ({"optimizer": "adamw"}, "only --phase train has one"),
        ({"phase": "train", "optimizer": "adamw2"}, "unknown optimizer 'adamw2'; nearest: adamw"),
        ({"repeats": 0}, "--repeats of at least 1"),
        ({"warmup": -1}, "--warmup of at least 0"),
        ({"seq": 65}, "at most 64"),
        ({"dims": {"width": 3}}, "unknown symbol 'width'"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_runs(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ForetraceError, match=message):
        measure_model(GPT2, **arguments)


def test_a_step_that_fails_is_named(small_model: str) -> None:
    with pytest.raises(ForetraceError, match=r"small_model:fails: its step failed on cpu: RuntimeError: mat1 and mat2"):
        measure_model("small_model:fails")


def test_a_model_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ForetraceError, match=r"needs .* GB for its weights, gradients and adamw optimizer state"):
        measure_model("Llama-3.1-405B", phase="train", optimizer="adamw")
    with pytest.raises(UnknownNameError):
        measure_model("no-such-model")


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["measure", *arguments])


def test_the_command_writes_a_trace_and_says_what_it_measured(small_model: str, tmp_path: Path) -> None:
    done = run(small_model, "-o", str(tmp_path / "m"), "--repeats", "2", "--warmup", "1")
    assert done.exit_code == 0, done.output
    trace = foretrace.load_trace(tmp_path / "m.trace")
    assert trace.info["repeats"] == 2
    assert "ms a step (spread" in done.output
    assert "small_model:build forward eager on" in " ".join(done.output.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-o", "{tmp}/m.tracee"), "/m.tracee: unknown ending"),
        (("-o", "{tmp}/none/m.trace"), "no such folder"),
        (("-o", "{tmp}/m.trace", "--limit", "3"), "goes with --ops"),
        (("-o", "{tmp}/m.trace", "--ops"), "--ops writes a table"),
        (("-o", "{tmp}/m.csv", "--ops", "--execution", "compiled"), "--ops times operators as they stand"),
        (("-o", "{tmp}/m.trace", "--execution", "compile"), "nearest: compiled"),
        (("-o", "{tmp}/m.trace", "--phase", "decode"), "runs in phase forward or train only"),
        (("-o", "{tmp}/m.trace", "--seq", "8"), "captured at the sizes"),
    ],
)
def test_the_command_refuses(small_model: str, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    done = run(small_model, *(a.replace("{tmp}", str(tmp_path)) for a in arguments))
    assert done.exit_code == 1
    assert message in " ".join(done.output.split())
    assert not [p for p in tmp_path.iterdir() if p.suffix in (".trace", ".tracee", ".csv")]


def test_the_command_hands_operators_to_their_bench(
    small_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import foretrace.capture

    asked: dict[str, Any] = {}

    class Table:
        skipped = {"takes less than its own dispatch": 2}

        def __len__(self) -> int:
            return 3

        def save(self, path: Path) -> None:
            path.write_text("x")

    def measure_operators(graph: Any, **arguments: Any) -> Table:
        asked.update(arguments, graph=graph)
        return Table()

    monkeypatch.setattr(foretrace.capture, "measure_operators", measure_operators, raising=False)
    file = tmp_path / "ops.csv"
    done = run(small_model, "-o", str(file), "--ops", "--limit", "4", "--repeats", "3")
    assert done.exit_code == 0, done.output
    assert {k: asked[k] for k in ("device", "dims", "repeats", "limit")} == {
        "device": "cpu", "dims": {}, "repeats": 3, "limit": 4,
    }  # fmt: skip
    assert asked["graph"].phase == "forward"
    assert "3 operators of" in done.output
    assert "takes less than its own dispatch" in " ".join(done.output.split())
