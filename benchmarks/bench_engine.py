"""Nodes per second of both engines on one graph of a million nodes: ``pytest benchmarks/bench_engine.py -s``."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from foretrace.replay.engine import Engine, Schedule, run

NODES = 1_000_000
RESOURCES = {"streams": (8, True), "ready-heaps": (8, False), "many-resources": (10_000, False)}
seconds: dict[tuple[str, str], float] = {}


def layered(nodes: int, resources: int, in_order: bool) -> Schedule:
    """Nodes dealt over *resources*: each needs the one before it on its own, and one or two at random."""
    rng = np.random.default_rng(0)
    resource = rng.integers(0, resources, nodes)
    along = np.argsort(resource, kind="stable")
    same = resource[along[1:]] == resource[along[:-1]]
    node = np.arange(1, nodes)
    target = np.concatenate([node, node[rng.random(nodes - 1) < 0.5]])
    # Behind by a few or by many: most cross edges of real graphs are short.
    source = target - np.minimum(target, np.rint(rng.pareto(1.0, target.size) * 20).astype(np.int64) + 1)
    return Schedule.from_edges(
        ticks(rng, nodes),
        resource,
        np.concatenate([along[:-1][same], source]),
        np.concatenate([along[1:][same], target]),
        np.full(resources, in_order),
    )


def ticks(rng: np.random.Generator, nodes: int) -> Any:
    """Durations like kernels': 1 µs to 1 ms."""
    return (10 ** rng.uniform(6, 9, nodes)).astype(np.int64)


@pytest.fixture(scope="module", params=list(RESOURCES))
def case(request: pytest.FixtureRequest) -> tuple[str, Schedule]:
    return request.param, layered(NODES, *RESOURCES[request.param])


@pytest.mark.parametrize("engine", ["reference", "compiled"])
def test_engine(
    benchmark: Callable[..., Any], case: tuple[str, Schedule], engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    name, schedule = case
    if engine == "compiled":
        run(layered(1000, 8, True), engine)  # compile or load
    rounds = 1 if engine == "reference" else 5
    times = []

    def timed() -> None:
        begin = time.perf_counter()
        run(schedule, engine)
        times.append(time.perf_counter() - begin)

    benchmark.pedantic(timed, rounds=rounds)  # type: ignore[attr-defined]
    seconds[name, engine] = min(times)
    with capsys.disabled():
        print(f"\n{name}, {engine}: {NODES / min(times) / 1e6:.2f} M nodes/s", end="")
        if (name, "reference") in seconds and engine == "compiled":
            print(f", {seconds[name, 'reference'] / min(times):.1f} x the reference", end="")
