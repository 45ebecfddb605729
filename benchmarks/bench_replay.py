"""A saved graph replayed from a cold process: wall seconds, torch never imported (goal: under 1 s)."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from foretrace import capture_graph, load_graph, replay_graph, save_graph


@pytest.mark.parametrize("name", ["Llama-3.1-8B", "Llama-3.1-405B"])
def test_replay_cold(benchmark, name, tmp_path: Path):  # type: ignore[no-untyped-def]
    file = tmp_path / "model.graph"
    save_graph(capture_graph(name, phase="decode"), file)
    command = [sys.executable, "-m", "foretrace", "replay", str(file), "--on", "h100-sxm", "--json"]
    benchmark.pedantic(lambda: subprocess.run(command, capture_output=True, check=True), rounds=5, iterations=1)
    print(f"\nreplay {name} from a cold process: {benchmark.stats.stats.median:.2f} s median")
    graph = load_graph(file)
    replay_graph(graph, "h100-sxm")
    start = time.perf_counter()
    replay_graph(graph, "h100-sxm", batch=2)
    print(f"replay {name} warm: {(time.perf_counter() - start) * 1e3:.0f} ms for {len(graph.ops):,} ops")
