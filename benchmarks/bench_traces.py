"""How fast traces are written, read and aligned: ``pytest benchmarks/bench_traces.py``; each prints its figure."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foretrace.traces import StringColumn, Trace, align_traces, diff_traces, save_trace
from foretrace.traces.formats.kineto import read_json


def layered(events: int, seed: int = 0) -> Trace:
    """A step of *events* operators: 60 names, 400 modules, one stream."""
    rng = np.random.default_rng(seed)
    duration = rng.random(events) * 1e-5
    names = tuple(f"aten.op{i}.default" for i in range(60))
    modules = tuple(f"model.layers.{i}.mlp" for i in range(400))
    index = np.arange(events)
    columns = {
        "name": StringColumn(rng.integers(0, 60, events).astype(np.int32), names),
        "module": StringColumn((index * 400 // max(events, 1)).astype(np.int32), modules),
        "shapes": StringColumn((index % 97).astype(np.int32), tuple(f"[1,{i},768][768,2304]" for i in range(97))),
        "kind": "matmul",
        "stream": "compute",
        "op_id": index,
        "start_s": np.cumsum(duration) - duration,
        "duration_s": duration,
        "bytes_moved": rng.integers(0, 1 << 30, events).astype(np.float64),
    }
    return Trace.from_columns(columns)


@pytest.mark.parametrize("ending", [".pftrace", ".trace"])
def test_write_a_million_slices(benchmark: Any, tmp_path: Path, ending: str) -> None:
    trace, path = layered(1_000_000), tmp_path / f"t{ending}"
    benchmark.pedantic(save_trace, (trace, path), rounds=3, warmup_rounds=1)
    print(f"\n{ending}: 1 M events in {benchmark.stats['min']:.2f} s, {path.stat().st_size / 1e6:.0f} MB")


def test_read_kineto(benchmark: Any) -> None:
    ops = 50_000
    events = []
    for i in range(ops):
        host = {"ph": "X", "pid": 1, "tid": 1, "cat": "cpu_op", "name": f"aten::op{i % 60}", "ts": 10.0 * i, "dur": 9.5}
        events.append(host | {"args": {"External id": i, "Ev Idx": i, "Input Dims": [[1, i % 97], [97, 4], []]}})
        launch = {"ph": "X", "pid": 1, "tid": 1, "cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": 10.0 * i + 1}
        events.append(launch | {"dur": 4.0, "args": {"External id": i, "cbid": 211, "correlation": i}})
        kernel = {"ph": "X", "pid": 0, "tid": 7, "cat": "kernel", "name": f"gemm{i % 30}", "ts": 10.0 * i + 6, "dur": 8}
        events.append(kernel | {"args": {"External id": i, "device": 0, "stream": 7, "correlation": i, "grid": [1, 2]}})
    data = json.dumps({"traceEvents": events}).encode()
    trace = benchmark.pedantic(read_json, (data, "bench"), rounds=3)
    print(f"\nKineto: {len(trace) / benchmark.stats['min'] / 1e3:.0f} k events/s")


@pytest.mark.parametrize("known", ["modules and shapes", "names only"])
def test_align_100k_operators(benchmark: Any, known: str) -> None:
    predicted = layered(100_000)
    if known == "names only":
        predicted = predicted.replace(module="", shapes="")
    dropped = np.random.default_rng(1).integers(0, len(predicted), 2_000)
    measured = predicted.select(np.delete(np.arange(len(predicted)), dropped)).replace(kind="cpu_op", stream="host")
    found = benchmark.pedantic(align_traces, (predicted, measured), rounds=2)
    print(f"\nalign, {known}: 100 k operators in {benchmark.stats['min']:.2f} s, {found.matched_share:.4f} matched")


def test_diff_100k_operators(benchmark: Any) -> None:
    predicted = layered(100_000)
    benchmark.pedantic(diff_traces, (predicted, predicted.replace(kind="cpu_op")), rounds=2)
    print(f"\ndiff: 100 k operators in {benchmark.stats['min']:.2f} s")
