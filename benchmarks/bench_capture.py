"""Capture of Llama-3.1-405B at full depth: CPU seconds after imports and peak memory (goal: 3 CPU-s, 0.6 GB)."""

import subprocess
import sys

import pytest

CODE = """
import resource, sys, time
import foretrace.capture as capture
from transformers.models.llama import modeling_llama
imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.process_time()
graph = capture.capture_graph("Llama-3.1-405B", phase=sys.argv[1])
seconds = time.process_time() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
memory = f"peak {peak / 1e6:.2f} GB ({imported / 1e6:.2f} GB of it the imports)"
print(f"{seconds:.2f} CPU-s, {len(graph.ops):,} ops, {memory}")
"""


@pytest.mark.parametrize("phase", ["forward", "prefill", "decode"])
def test_capture_405b(benchmark, phase):  # type: ignore[no-untyped-def]
    def capture() -> str:
        return subprocess.run([sys.executable, "-c", CODE, phase], capture_output=True, text=True, check=True).stdout

    said = benchmark.pedantic(capture, rounds=3, iterations=1)
    print(f"\ncapture Llama-3.1-405B {phase}: {said.strip()}")
