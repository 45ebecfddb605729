"""Prices a second on one core: products (goal: 300,000 a second), a Llama-70B graph (goal: 50 ms), a table's rows.

Figures are processor time: those of one core, whoever else is at work on the machine.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foretrace import capture_graph
from foretrace.hardware import load_system
from foretrace.ir import OpKind
from foretrace.replay.costs.physics import Physics
from foretrace.replay.measured.columns import DTYPE_CODE, Block, join
from foretrace.replay.table import tabulate
from foretrace.validate import validate_tables

PRODUCTS = 200_000
ROWS = 100_000
SYSTEM = load_system("h100-sxm")


pytestmark = pytest.mark.benchmark(timer=time.process_time)


def fastest(benchmark: Any, call: Callable[[], object], rounds: int = 5) -> float:
    """s of the fastest of *rounds* calls, after one more."""
    benchmark.pedantic(call, rounds=rounds, iterations=1, warmup_rounds=1)
    return float(benchmark.stats.stats.min)


def sizes(count: int) -> dict[str, Any]:
    """Sizes of distinct products, 16 to 16,384 in each dim."""
    rng = np.random.default_rng(0)
    return {name: np.floor(2 ** rng.uniform(4, 14, count)) for name in "mnk"}


def test_products(benchmark: Any) -> None:
    s = sizes(PRODUCTS)
    m, n, k = s["m"], s["n"], s["k"]
    dtype = np.full(PRODUCTS, DTYPE_CODE["bfloat16"], np.int8)
    read, written = 2 * (m * k + k * n), 2 * m * n
    flops = 2 * m * n * k
    block = Block(
        np.arange(PRODUCTS), OpKind.MATMUL, "aten.mm.default", dtype, {"b": 1.0, **s}, read, written, matrix_flops=flops
    )
    columns, _ = join([block])
    best = fastest(benchmark, lambda: Physics().price(columns, SYSTEM))
    print(f"\nphysics, products: {PRODUCTS / best / 1e3:.0f} k/s on one core (goal: 300 k/s)")


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_llama_70b(benchmark: Any, phase: str) -> None:
    graph = capture_graph("Llama-3.1-70B", phase=phase)
    bindings = graph.bind({})
    whole = fastest(benchmark, lambda: Physics().price(tabulate(graph, bindings), SYSTEM), 20)
    table = tabulate(graph, bindings)
    begin = time.process_time()
    Physics().price(table, SYSTEM)
    priced = time.process_time() - begin
    print(
        f"\nphysics, Llama-3.1-70B {phase} warm: {whole * 1e3:.1f} ms for {len(graph.ops):,} ops in {table.rows} rows, "
        f"of which pricing {priced * 1e3:.1f} ms (goal: 50 ms)"
    )


def test_a_table(benchmark: Any, tmp_path: Path) -> None:
    path = tmp_path / "gemm.parquet"
    s = {name: values.astype(np.int64) for name, values in sizes(ROWS).items()}
    same = {"gpu": ["H100-SXM"] * ROWS, "dtype": ["bf16"] * ROWS, "op": ["linear"] * ROWS}
    measured = 1e6 * (2e-6 + 2.0 * s["m"] * s["n"] * s["k"] / 6e14)
    pq.write_table(pa.table({**same, **s, "latency_us": measured}), path)
    best = fastest(benchmark, lambda: validate_tables([path]), 3)
    print(f"\nvalidate, rows of products: {ROWS / best / 1e3:.0f} k/s on one core")
