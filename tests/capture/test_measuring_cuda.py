"""What a measurement asks of CUDA, on a machine that has none: the calls and their order, with stand-ins."""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from foretrace.capture.measuring import environment, executions, sampling
from foretrace.capture.measuring.clock import time_step
from foretrace.capture.measuring.steps import Work

Calls = list[str]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """torch.cuda's streams, events and graphs, which only write down that they were used."""
    made: Calls = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            made.append("record")

        def elapsed_time(self, other: "Event") -> float:
            return 12.5  # milliseconds

    class Stream:
        def wait_stream(self, other: "Stream") -> None:
            made.append("wait")

    class Graph:
        def replay(self) -> None:
            made.append("replay")

    @contextmanager
    def inside(name: str) -> Iterator[None]:
        made.append(f"begin {name}")
        yield
        made.append(f"end {name}")

    current = Stream()
    for name, value in {
        "Event": Event,
        "Stream": Stream,
        "CUDAGraph": Graph,
        "synchronize": lambda: made.append("synchronize"),
        "current_stream": lambda: current,
        "stream": lambda _: inside("stream"),
        "graph": lambda _: inside("capture"),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return made


def test_a_step_is_timed_between_events_on_an_idle_device(calls: Calls) -> None:
    time = time_step(lambda: calls.append("run"), "cuda", lambda: calls.append("ready"))
    assert calls == ["ready", "synchronize", "record", "run", "record", "synchronize"]
    assert time.device_s == pytest.approx(0.0125)
    assert time.host_s <= time.step_s


def test_a_graph_is_captured_once_after_settling(calls: Calls) -> None:
    linear = torch.nn.Linear(2, 2)
    adam = torch.optim.AdamW(linear.parameters())
    sgd = torch.optim.SGD(linear.parameters())
    work = Work("m", lambda: calls.append("run"), linear, optimizers=(adam, sgd))
    with executions.prepared(work, "cudagraph", "cuda") as run:
        captured = [*calls]
        run()
        run()
    settled = ["wait", "begin stream", *["run"] * executions.SETTLING_RUNS, "end stream", "wait"]
    assert captured == [*settled, "begin capture", "run", "end capture"]
    assert calls == [*captured, "replay", "replay"]
    assert adam.param_groups[0]["capturable"]
    assert "capturable" not in sgd.param_groups[0]


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a program of that name, with the given shell code, where it is found first."""
    environment.device_id.cache_clear()
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    properties = SimpleNamespace(
        uuid="11-22", major=9, minor=0, multi_processor_count=132, total_memory=int(141e9), name="NVIDIA H200"
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: "native")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    def write(code: str) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{code}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    yield write
    environment.device_id.cache_clear()


def test_the_environment_of_a_gpu_in_si_units(nvidia_smi: Callable[[str], None]) -> None:
    nvidia_smi('[ "$2" = GPU-11-22 ] && echo "570.86, 1980, 3201, 700.00, Enabled, [N/A]"')
    info = environment.describe_environment("cuda")
    assert info["device"] == "NVIDIA H200"
    assert info["driver"] == "570.86"
    assert (info["max_clock_hz"], info["max_memory_clock_hz"], info["power_limit_w"]) == (1.98e9, 3.201e9, 700.0)
    assert info["persistence"] == "Enabled"
    assert "mig" not in info
    assert (info["capability"], info["multiprocessors"]) == ("9.0", 132)
    assert info["allocator_backend"] == "native"


def test_without_nvidia_smis_answer_the_rest_is_known(nvidia_smi: Callable[[str], None]) -> None:
    nvidia_smi("echo refused >&2; exit 6")
    info = environment.describe_environment("cuda")
    assert info["multiprocessors"] == 132
    assert "driver" not in info


def test_power_and_clocks_are_sampled_until_the_end(nvidia_smi: Callable[[str], None]) -> None:
    nvidia_smi('while :; do echo "650.0, 1755, 3201, 61"; sleep 0.01; done')
    with sampling.sampled("cuda", period_s=0.01) as samples:
        pass
    info: dict[str, Any] = samples.to_info()
    assert (info["power_w"], info["clock_hz"], info["temperature_c"]) == (650.0, 1.755e9, 61.0)


def test_a_driver_that_refuses_costs_only_the_samples(nvidia_smi: Callable[[str], None]) -> None:
    nvidia_smi("exit 9")
    with sampling.sampled("cuda", period_s=0.01) as samples:
        pass
    assert samples.to_info() == {}
