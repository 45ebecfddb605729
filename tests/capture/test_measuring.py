"""The parts of a measurement: clocks, samples, structure, errors; CUDA's logic on made-up traces."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foretrace.capture.measuring import environment, sampling, structure
from foretrace.capture.measuring.clock import StepTime, StepTimes, time_step
from foretrace.capture.measuring.executions import check_execution
from foretrace.capture.measuring.failures import explained
from foretrace.capture.measuring.profiling import annotated_phases, profile_run
from foretrace.capture.measuring.steps import Work
from foretrace.ir import ForetraceError, UnknownNameError
from foretrace.traces import Trace, load_trace, save_trace

seconds = st.floats(1e-6, 10.0)


def times(*values: float) -> StepTimes:
    return StepTimes([StepTime(v, v) for v in values])


def row(name: str, kind: str, start: float, duration: float, **rest: Any) -> dict[str, Any]:
    return {"name": name, "kind": kind, "start_s": start, "duration_s": duration, **rest}


def test_the_median_is_the_step_and_the_spread_a_sample_deviation() -> None:
    info = times(1.0, 3.0, 2.0).to_info()
    assert info["median_s"] == 2.0
    assert info["spread_s"] == pytest.approx(1.0)
    assert info["step_s"] == [1.0, 3.0, 2.0]
    assert "device_s" not in info
    assert times(1.0).spread_s == 0.0


def test_device_seconds_are_kept_beside_the_hosts() -> None:
    info = StepTimes([StepTime(3.0, 1.0, 2.5), StepTime(4.0, 1.5, 3.5)]).to_info()
    assert info["host_s"] == [1.0, 1.5]
    assert info["device_s"] == [2.5, 3.5]
    assert info["device_median_s"] == 3.0


@given(st.lists(seconds, min_size=2, max_size=9))
def test_a_machine_is_not_quiet_exactly_over_a_tenth(values: list[float]) -> None:
    found = times(*values)
    assert bool(found.warnings()) == (found.spread_s > 0.1 * found.median_s)


def test_what_makes_a_step_ready_is_not_timed() -> None:
    order: list[str] = []
    time_step(lambda: order.append("run"), "cpu", lambda: order.append("ready"))
    assert order == ["ready", "run"]


def test_one_line_of_nvidia_smi() -> None:
    assert sampling.parse_smi("431.20, 1980, 2619, 54\n") == {
        "power_w": 431.2, "clock_hz": 1.98e9, "memory_clock_hz": 2.619e9, "temperature_c": 54.0,
    }  # fmt: skip
    assert sampling.parse_smi("[N/A], 1980, 2619, 54") == {
        "clock_hz": 1.98e9, "memory_clock_hz": 2.619e9, "temperature_c": 54.0,
    }  # fmt: skip
    assert sampling.parse_smi("") == {}


def test_samples_are_thinned_and_their_median_told() -> None:
    samples = sampling.Samples()
    for i in range(1000):
        samples.add(10.0 + i, {"power_w": float(i % 2), "clock_hz": 1e9})
    info = samples.to_info()
    assert len(info["samples"]["time_s"]) == len(info["samples"]["power_w"]) <= sampling.MAX_SAMPLES
    assert info["samples"]["time_s"][0] == 0.0
    assert (info["power_w"], info["clock_hz"]) == (0.5, 1e9)
    assert sampling.Samples().to_info() == {}


def test_a_device_that_stops_answering_costs_only_its_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []

    def read() -> dict[str, float]:
        raise OSError("gone")

    monkeypatch.setattr(sampling, "_cpu_reader", lambda: (read, lambda: closed.append(True)))
    with sampling.sampled("cpu", period_s=0.001) as samples:
        pass
    assert samples.to_info() == {}
    assert closed


def test_at_least_one_sample_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    taken = threading.Event()

    def read() -> dict[str, float]:
        taken.set()
        return {"power_w": 5.0}

    monkeypatch.setattr(sampling, "_cpu_reader", lambda: (read, lambda: None))
    with sampling.sampled("cpu") as samples:
        assert taken.wait(10)
    assert samples.to_info()["power_w"] == 5.0


def test_a_busy_machine_is_told_of() -> None:
    told = environment.load_warnings({"load": 1.2, "cores": 2})
    assert told == ["the machine was busy before: a load of 1.2 on 2 cores"]
    assert environment.load_warnings({"load": 0.9, "cores": 2}) == []
    assert environment.load_warnings({"cores": 2}) == []


def test_the_environment_names_what_times_depend_on() -> None:
    info = environment.describe_environment("cpu")
    assert {"device", "torch", "transformers", "threads", "matmul_precision", "cores", "platform"} <= info.keys()


def test_an_execution_that_does_not_exist_or_cannot_be() -> None:
    with pytest.raises(UnknownNameError, match="unknown execution 'compile'; nearest: compiled"):
        check_execution("compile", "cpu")
    with pytest.raises(ForetraceError, match="they need --device cuda"):
        check_execution("cudagraph", "cpu")
    check_execution("cudagraph", "cuda")


class InvalidCxxCompiler(RuntimeError):  # noqa: N818 - torch's name
    pass


def chained(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("error", "execution", "message"),
    [
        (RuntimeError("shape"), "eager", "m: its step failed on cpu: RuntimeError: shape"),
        (chained(ValueError("outer"), KeyError("inner")), "eager", "KeyError: 'inner'"),
        (chained(RuntimeError("x"), InvalidCxxCompiler("none")), "compiled", "needs a C\\+\\+ compiler"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has"),
            "eager",
            "out of memory on cpu: 2.50 GiB more were asked for.*smaller --batch",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8000000000 bytes."),
            "eager",
            "out of memory on cpu: 8.0 GB more were asked for",
        ),
        (RuntimeError("operation not permitted when stream is capturing"), "cudagraph", "failed as a CUDA graph"),
    ],
)
def test_errors_name_the_place_and_the_fix(error: Exception, execution: str, message: str) -> None:
    with pytest.raises(ForetraceError, match=message) as caught, explained("m: its step", "cpu", execution):
        raise error
    assert "\n" not in str(caught.value)


def test_our_own_errors_pass_as_they_are() -> None:
    with pytest.raises(ForetraceError, match=r"^mine$"), explained("m", "cpu"):
        raise ForetraceError("mine")


def test_resident_memory_counts_shared_storage_once() -> None:
    linear = torch.nn.Linear(10, 10, bias=False)
    view = linear.weight.detach()[:5]
    assert Work("m", lambda: None, linear, tensors=(view, torch.zeros(3))).resident_bytes() == 412


def operators(*names: str) -> Trace:
    rows = [row(n, "cpu_op", i * 1e-3, 5e-4, stream="host 1") for i, n in enumerate(names)]
    return Trace.from_rows(rows)


def test_structure_comes_from_the_annotated_run() -> None:
    timed = operators("aten::mm", "aten::add", "aten::mm")
    annotated = Trace.from_rows(
        [
            row("module:a", "annotation", 0.0, 1e-2, stream="host 1"),
            row("aten::mm", "cpu_op", 1e-3, 2e-3, stream="host 1", module="a", phase="forward", shapes="[2,2]"),
            row("aten::add", "cpu_op", 4e-3, 2e-3, stream="host 1", module="b", phase="forward"),
            row("aten::mm", "cpu_op", 7e-3, 2e-3, stream="host 1", module="a", phase="backward"),
        ],
        info={"memory": {"time_s": [1e-3, 5.5e-3, 9e-3], "allocated_bytes": [5, 9, 2]}},
    )
    joined = structure.with_structure(timed, annotated)
    assert joined.module.tolist() == ["a", "b", "a"]
    assert joined.phase.tolist() == ["forward", "forward", "backward"]
    assert joined.shapes.tolist() == ["[2,2]", "", ""]
    assert joined.duration_s.tolist() == timed.duration_s.tolist()
    assert joined.info["memory"]["time_s"] == pytest.approx([0.0, 1.5e-3, 2e-3])


def test_runs_that_differ_a_little_keep_the_times_of_the_unobserved_one() -> None:
    names = [f"aten::op{i}" for i in range(20)]
    annotated = operators(*names).replace(module="m")
    joined = structure.with_structure(operators("## Call ##", *names), annotated)
    assert joined.module.tolist() == ["", *["m"] * 20]
    assert "warnings" not in joined.info


def test_runs_that_differ_much_are_not_joined() -> None:
    annotated = operators("aten::mm").replace(module="a")
    joined = structure.with_structure(operators("aten::add", "aten::mul"), annotated)
    assert joined.name.tolist() == ["aten::mm"]
    assert "differ in their operators" in joined.info["warnings"][0]


def with_launches(trace: Trace, *names: str, seconds: float = 1e-4) -> Trace:
    columns = {c: v.tolist() for c, v in trace.columns().items()}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    rows += [row(n, "launch", 1.0 + i, seconds, stream="host 1") for i, n in enumerate(names)]
    return Trace.from_rows(rows, **trace.meta())


def test_launches_that_one_run_has_more_do_not_keep_structure_away() -> None:
    """A run that polls: more runtime calls than operators, of which the annotated run has none."""
    annotated = with_launches(operators("aten::mm", "aten::add"), "cudaLaunchKernel").replace(module="m")
    timed = with_launches(operators("aten::mm", "aten::add"), "cudaLaunchKernel", *["cudaEventQuery"] * 9)
    joined = structure.with_structure(timed, annotated)
    assert "warnings" not in joined.info
    assert len(joined) == 12
    assert joined.module.tolist()[:3] == ["m", "m", "m"]


def test_runs_with_unequal_launches_are_averaged_with_the_launches_they_share() -> None:
    ops = operators("aten::mm", "aten::add")
    runs = [with_launches(ops, "cudaLaunchKernel", seconds=s) for s in (1e-4, 2e-4)]
    mean = structure.average_runs([*runs, with_launches(ops, "cudaLaunchKernel", "cudaEventQuery", seconds=6e-4)])
    assert mean.name.tolist() == ["aten::mm", "aten::add", "cudaLaunchKernel"]
    assert mean.duration_s.tolist()[-1] == pytest.approx(3e-4)
    assert mean.info["repeats"] == 3
    assert not mean.info["warnings"]


def test_a_run_that_lacks_too_much_is_left_out_of_the_mean() -> None:
    runs = [operators(*["aten::mm"] * n) for n in (1, 3, 2)]
    mean = structure.average_runs(runs)
    assert len(mean) == 2
    assert mean.info["warnings"] == ["1 of 3 steps differ from the others and are left out"]


def eager_step() -> Trace:
    """linear (two kernels through addmm, one of them its own) and relu in a module, a copy nobody issued."""
    return Trace.from_rows(
        [
            row("aten::linear", "cpu_op", 0.0, 9e-3, stream="host 1", module="fc", phase="forward", external_id=1),
            row("aten::addmm", "cpu_op", 1e-3, 5e-3, stream="host 1", module="fc", phase="forward", shapes="[4,4]",
                external_id=2, parent=0),
            row("aten::relu", "cpu_op", 1e-2, 5e-3, stream="host 1", module="act", phase="forward", external_id=3),
            row("aten::view", "cpu_op", 2e-2, 1e-3, stream="host 1", module="act", external_id=4),
            row("gemm", "kernel", 5e-3, 4e-3, stream="gpu 0 stream 7", module="fc", phase="forward", external_id=2),
            row("splitk", "kernel", 1e-2, 1e-3, stream="gpu 0 stream 7", module="fc", phase="forward", external_id=2),
            row("relu", "kernel", 2e-2, 1e-3, stream="gpu 0 stream 7", module="act", phase="forward", external_id=3),
            row("copy", "copy", 3e-2, 1e-3, stream="gpu 0 stream 7"),
        ]
    )  # fmt: skip


def graph_step(*names: str) -> Trace:
    kernels = [row(n, "kernel", i * 1e-4, 9e-5, stream="gpu 0 stream 20") for i, n in enumerate(names)]
    return Trace.from_rows([row("cudaGraphLaunch", "launch", 0.0, 1e-5, stream="host 1"), *kernels])


def test_kernels_of_a_cuda_graph_get_the_operators_that_were_captured() -> None:
    graph = structure.with_captured_operators(graph_step("gemm", "splitk", "relu", "copy"), eager_step())
    added = [i for i, s in enumerate(graph.stream.tolist()) if s == structure.GRAPH_STREAM]
    assert [graph.name[i] for i in added] == ["aten::linear", "aten::addmm", "aten::relu"]
    linear, addmm, relu = added
    assert graph.parent[addmm] == linear
    assert graph.duration_s[addmm] == pytest.approx(1.9e-4)  # from the first kernel's start to the last one's end
    assert graph.start_s[relu] == pytest.approx(2e-4)
    kernels = {graph.name[i]: i for i in range(len(graph)) if graph.kind[i] == "kernel"}
    assert graph.external_id[kernels["gemm"]] == graph.external_id[kernels["splitk"]] == graph.external_id[addmm]
    assert graph.external_id[kernels["relu"]] == graph.external_id[relu]
    assert graph.external_id[kernels["copy"]] == -1
    assert graph.module[kernels["relu"]] == "act"
    assert graph.shapes[addmm] == "[4,4]"
    assert "warnings" not in graph.info


def test_a_cuda_graph_with_other_kernels_names_no_operator() -> None:
    graph = structure.with_captured_operators(graph_step("gemm", "relu"), eager_step())
    assert len(graph) == 3
    assert "no operator is named" in graph.info["warnings"][0]


def test_operators_of_a_cuda_graph_are_diffed_as_eager_ones_are() -> None:
    from foretrace.traces import align_traces

    predicted = Trace.from_rows(
        [
            row("aten.addmm.default", "matmul", 0.0, 1e-4, stream="compute", module="fc", op_id=0),
            row("aten.relu.default", "elementwise", 2e-4, 1e-4, stream="compute", module="act", op_id=1),
        ]
    )
    graph = structure.with_captured_operators(graph_step("gemm", "splitk", "relu", "copy"), eager_step())
    matched = align_traces(predicted, graph)
    assert matched.matched_share == pytest.approx(3 / 4)  # all but the copy that no operator issued


@given(st.lists(st.tuples(seconds, seconds), min_size=1, max_size=30), st.floats(0, 1e6))
def test_compact_times_are_a_nanosecond_off_at_most(spans: list[tuple[float, float]], base: float) -> None:
    trace = Trace.from_rows([row("aten::mm", "cpu_op", base + s, d) for s, d in spans])
    small = structure.compact(trace)
    error = np.abs(small.start_s + trace.start_s.min() - trace.start_s)
    assert error.max() <= 1e-9 + 4 * math.ulp(base + 10)
    assert np.abs(small.duration_s - trace.duration_s).max() <= 1e-9 + 8 * math.ulp(base + 20)


def test_compact_keeps_what_a_reader_needs() -> None:
    rows = [
        row("span", "span", 0.0, 9.0, stream="host 1"),
        row("frame.py", "python", 0.0, 9.0, stream="host 1"),
        row("module:a", "annotation", 1.0, 3.0, stream="host 1", parent=1),
        row("## Call CompiledFxGraph f34 ##", "cpu_op", 1.4, 2.0, stream="host 1", parent=2, external_id=6),
        row("aten::mm", "cpu_op", 1.5, 1.0, stream="host 1", parent=3, external_id=7),
        row("aten::t", "cpu_op", 1.6, 0.1, stream="host 1", parent=4),
    ]
    memory = {"time_s": [float(i) for i in range(5000)], "allocated_bytes": list(range(5000))}
    info = {"memory": memory, "record_functions": [1, 2], "warnings": ["w"]}
    small = structure.compact(Trace.from_rows(rows, info=info))
    assert small.name.tolist() == ["aten::mm", "aten::t"]
    assert small.parent.tolist() == [-1, 0]
    assert small.start_s[0] == 0.0
    assert small.external_id.tolist() == [-1, -1]  # nothing to join on a CPU
    assert small.info.keys() == {"memory", "warnings"}
    assert len(small.info["memory"]["time_s"]) == structure.MAX_POINTS
    assert structure.peak_bytes(small) == 4999


def test_a_cpus_memory_counts_from_what_was_there() -> None:
    trace = operators("aten::mm").replace(info={"memory": {"time_s": [0, 1, 2], "allocated_bytes": [70, 100, 60]}})
    assert structure.peak_bytes(structure.memory_above(trace, 1000)) == 1040
    assert structure.peak_bytes(operators("aten::mm")) is None


def test_a_saved_measurement_is_small(tmp_path: Any) -> None:
    rng = np.random.default_rng(0)
    count = 5000
    start = np.cumsum(rng.exponential(2e-6, count))
    trace = Trace.from_columns(
        {
            "name": [f"aten::op{i % 40}" for i in range(count)],
            "kind": "cpu_op",
            "module": [f"model.layers.{i % 32}.mlp" for i in range(count)],
            "start_s": start,
            "duration_s": rng.exponential(1e-5, count),
            "spread_s": rng.exponential(1e-6, count),
        }
    )
    save_trace(structure.compact(trace), tmp_path / "s.trace")
    assert (tmp_path / "s.trace").stat().st_size < 100 * count
    assert len(load_trace(tmp_path / "s.trace")) == count


def test_phases_follow_each_other_however_often() -> None:
    """Two micro-batches, clipping and a step: what autograd runs again belongs to the backward."""
    from torch.utils.checkpoint import checkpoint

    inner = torch.nn.Linear(8, 8)

    class Outer(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return checkpoint(inner, x, use_reentrant=False)

    model, x = Outer(), torch.randn(4, 8)
    model.inner = inner
    optimizer = torch.optim.SGD(model.parameters(), foreach=True)

    def step() -> None:
        for _ in range(2):
            model(x).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    def run() -> None:
        with annotated_phases(model):
            step()

    trace = profile_run(run, "cpu")
    phase_of: dict[str, set[str]] = {}
    for name, phase in zip(trace.name.tolist(), trace.phase.tolist(), strict=True):
        phase_of.setdefault(name, set()).add(phase)
    assert phase_of["aten::addmm"] == {"forward", "backward"}
    assert phase_of["aten::mean"] == {"forward"}
    assert phase_of["aten::mm"] == {"backward"}
    assert {p for n, found in phase_of.items() if "norm" in n for p in found} == {"optimizer"}
    assert phase_of["aten::_foreach_add_"] == {"optimizer"}
    forward = [n for n, p in zip(trace.name.tolist(), trace.phase.tolist(), strict=True) if p == "forward"]
    assert forward.count("aten::addmm") == 2
