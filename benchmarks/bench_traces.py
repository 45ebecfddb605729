"""How fast traces are written, read and aligned: ``pytest benchmarks/bench_traces.py``; each prints its figure."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foretrace.traces import StringColumn, Trace, align_traces, diff_traces, load_trace, save_trace


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


def write_kineto(path: Path, launches: int) -> int:
    """A file as PyTorch 2 writes them: nested operators with shapes, launches, kernels, flows; entries written."""
    with path.open("w") as file:
        file.write('{\n  "schemaVersion": 1,\n  "distributedInfo": {"rank": 0},\n  "traceEvents": [\n')
        for i in range(launches):
            t, m = 41.0 * i, i % 397
            types = '"Input type": ["c10::BFloat16", "c10::BFloat16", ""], "Concrete Inputs": ["", "", ""]'
            for j, name in enumerate(("aten::linear", "aten::addmm")):
                file.write(
                    f'  {{\n    "ph": "X", "cat": "cpu_op", "name": "{name}", "pid": 4037, "tid": 4037,\n'
                    f'    "ts": {t + 5 * j:.3f}, "dur": {39.5 - 9 * j:.3f},\n    "args": {{\n'
                    f'      "External id": {2 * i + j},"Record function id": {2 * i + j}, {types}, '
                    f'"Input Dims": [[{m}, 4096], [4096, 4096], []], "Ev Idx": {2 * i + j}\n    }}\n  }},\n'
                )
            file.write(
                '  {\n    "ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "pid": 4037, "tid": 4037,\n'
                f'    "ts": {t + 12:.3f}, "dur": 6.001,\n    "args": {{\n      "External id": {2 * i + 1}, '
                f'"cbid": 211, "correlation": {i}\n    }}\n  }},\n'
                f'  {{\n    "ph": "s", "id": {i}, "pid": 4037, "tid": 4037, "ts": {t + 12:.3f},\n'
                '    "cat": "ac2g", "name": "ac2g"\n  },\n'
                f'  {{\n    "ph": "X", "cat": "kernel", "name": "gemm_bf16_{m % 30}_64x64_32x6_tn_align8", "pid": 0, '
                f'"tid": 7,\n    "ts": {t + 20:.3f}, "dur": 12.128,\n    "args": {{\n      '
                f'"External id": {2 * i + 1}, "queued": 0, "device": 0, "context": 1, "stream": 7, "correlation": {i}, '
                '"registers per thread": 122, "shared memory": 12544, "blocks per SM": 5.925926, '
                '"grid": [8, 16, 5], "block": [128, 1, 1], "est. achieved occupancy %": 25\n    }\n  },\n'
                f'  {{\n    "ph": "f", "id": {i}, "pid": 0, "tid": 7, "ts": {t + 20:.3f},\n'
                f'    "cat": "ac2g", "name": "ac2g", "bp": "e"\n  }}{"," if i < launches - 1 else ""}\n'
            )
        file.write('  ],\n  "traceName": "bench.json"\n}\n')
    return 6 * launches


def test_read_kineto(benchmark: Any, tmp_path: Path) -> None:
    entries = write_kineto(tmp_path / "bench.json", 50_000)
    trace = benchmark.pedantic(load_trace, (tmp_path / "bench.json",), rounds=5, warmup_rounds=1)
    assert len(trace) == entries * 4 // 6
    print(f"\nKineto: {entries / benchmark.stats['min'] / 1e3:.0f} k events/s")


def test_memory_of_reading_kineto(benchmark: Any, tmp_path: Path) -> None:
    """Peak memory of a process that reads a file of N bytes and one of 4 N; what a byte takes follows."""
    script = (
        "import resource, sys; from foretrace.traces import load_trace; load_trace(sys.argv[1]); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10)"
    )
    sizes, peaks = [], []
    for launches in (50_000, 200_000):
        write_kineto(tmp_path / "bench.json", launches)
        sizes.append((tmp_path / "bench.json").stat().st_size)
        peaks.append(int(subprocess.check_output([sys.executable, "-c", script, str(tmp_path / "bench.json")])))
    share = (peaks[1] - peaks[0]) / (sizes[1] - sizes[0])
    benchmark.pedantic(lambda: None)
    at_2_gb = peaks[0] + share * (2e9 - sizes[0])
    print(f"\nKineto: {share:.2f} bytes of memory per byte of file; a 2 GB file takes {at_2_gb / 1e9:.2f} GB")


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
