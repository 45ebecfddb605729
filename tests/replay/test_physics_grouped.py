"""Grouped products and fused layers of experts: physical bounds, monotone, no cliffs; the loads of routings."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretrace.ir import ForetraceError
from foretrace.replay.costs.physics.facts import Facts
from foretrace.replay.costs.physics.gemm import MATH, MEMORY
from foretrace.replay.costs.physics.grouped import (
    TILES,
    GroupedConstants,
    Groups,
    Layers,
    around_bytes,
    price_groups,
    products,
    quantile_rows,
    routing,
)

HOPPER = Facts("hopper", 132, 1.755e9, 4096, 512, 16, 3.35e12, 6e12, 50e6, 1.4e-6, 700, 1.0, 1.0)
AMPERE = Facts("ampere", 108, 1.41e9, 2048, 256, 16, 2.04e12, 5e12, 40e6, 1.6e-6, 400, 1.0, 1.0)
CONSTANTS = GroupedConstants(0.7, 70.0, 50.0, 1300.0, 0.9, 50.0, 2e-6, 26e-6, 0.7)

facts = st.sampled_from((HOPPER, AMPERE))
experts = st.integers(1, 256)
rows = st.integers(1, 4096)
widths = st.integers(1, 8192)
skews = st.floats(1, 64)
weights = st.sampled_from((0.53125, 1.0, 2.0))
ALPHAS = ("balanced", "power_law_1.01", "power_law_1.2")


def groups(active: int, mean: float, n: int, k: int, skew: float = 1.0, bytes_b: float = 2.0) -> Groups:
    longest = min(mean * skew, mean * active)
    row = (mean * active, active, longest, n, k, 2.0, bytes_b, 2.0)
    return Groups(*(np.array([float(v)]) for v in row))


def seconds(x: Groups, f: Facts = HOPPER) -> float:
    return float(price_groups(x, f, CONSTANTS)[0][0])


def layer(tokens: int, experts: int = 64, topk: int = 4, ranks: int = 1, name: str = "balanced") -> Layers:
    load = routing(tokens, experts, topk, ranks, name)
    row = (tokens, 4096, 1024, 2, load.rows, load.active, load.longest, load.rows, 2, 2, 0)
    return Layers(*(np.array([float(v)]) for v in row))


@given(facts, experts, rows, widths, widths, skews, weights)
def test_no_product_beats_the_chip(
    f: Facts, active: int, mean: int, n: int, k: int, skew: float, bytes_b: float
) -> None:
    x = groups(active, mean, n, k, skew, bytes_b)
    took = seconds(x, f)
    assert took >= 2 * active * mean * n * k / f.flops
    assert took >= active * n * k * bytes_b / f.bandwidth
    assert took >= f.launch_floor_s


@given(facts, experts, rows, widths, widths, skews, st.floats(1, 3))
def test_more_rows_are_never_faster(f: Facts, active: int, mean: int, n: int, k: int, skew: float, more: float) -> None:
    x = groups(active, mean, n, k, skew)
    bigger = dataclasses.replace(x, rows=x.rows * more, longest=x.longest * more)
    assert seconds(x, f) <= seconds(bigger, f) * (1 + 1e-9)


@given(facts, experts, rows, widths, widths, st.floats(1, 3))
def test_wider_is_never_faster(f: Facts, active: int, mean: int, n: int, k: int, more: float) -> None:
    x = groups(active, mean, n, k)
    for name in ("n", "k"):
        wider = dataclasses.replace(x, **{name: getattr(x, name) * more})
        assert seconds(x, f) <= seconds(wider, f) * (1 + 1e-9)


@given(experts, rows, widths, widths, st.floats(1, 4))
def test_a_better_chip_is_never_slower(active: int, mean: int, n: int, k: int, better: float) -> None:
    x = groups(active, mean, n, k)
    for name in ("bandwidth", "clock_hz", "flops_per_clock"):
        chip = dataclasses.replace(HOPPER, **{name: getattr(HOPPER, name) * better})
        assert seconds(x, chip) <= seconds(x) * (1 + 1e-9)


@given(facts, experts, st.integers(1, 100000), widths, widths, skews)
def test_one_percent_more_rows_are_no_cliff_but_at_waves(
    f: Facts, active: int, mean: int, n: int, k: int, skew: float
) -> None:
    x = groups(active, mean, n, k, skew)
    more = dataclasses.replace(x, rows=x.rows * 1.01, longest=x.longest * 1.01)
    if not _another_wave(x, more, f):
        assert seconds(more, f) <= 2 * seconds(x, f)


def _another_wave(x: Groups, more: Groups, f: Facts) -> bool:
    def waves(of: Groups) -> list[float]:
        blocks = [of.active * np.ceil(quantile_rows(of) / m).mean(axis=0) * np.ceil(of.n / n) for m, n in TILES]
        return [float(np.ceil(b[0] / f.cores)) for b in blocks]

    return waves(x) != waves(more)


@given(experts, rows, skews)
def test_eighths_keep_the_sum(active: int, mean: int, skew: float) -> None:
    x = groups(active, mean, 64, 64, skew)
    eighths = quantile_rows(x)
    assert eighths.mean() >= mean * (1 - 1e-9)
    assert eighths.max() <= max(x.longest[0], mean) * (1 + 1e-9)
    if eighths.min() > 1:
        assert eighths.mean() == pytest.approx(mean)


def test_few_rows_cost_the_weights_and_many_the_units() -> None:
    few, many = groups(64, 2, 4096, 4096), groups(64, 4096, 4096, 4096)
    assert seconds(few) == pytest.approx(64 * 4096 * 4096 * 2 / (0.9 * 3.35e12), rel=0.15)
    assert price_groups(few, HOPPER, CONSTANTS)[1][0] == MEMORY
    assert price_groups(many, HOPPER, CONSTANTS)[1][0] == MATH


def test_an_uneven_router_costs_more_tiles() -> None:
    assert seconds(groups(64, 256, 4096, 4096, 30)) >= seconds(groups(64, 256, 4096, 4096))


@given(st.integers(1, 20000), st.integers(1, 20000), st.sampled_from((1, 2, 8)))
def test_more_tokens_are_never_faster_when_balanced(tokens: int, more: int, ranks: int) -> None:
    small, large = (sum(map(seconds, products(layer(t, ranks=ranks)))) for t in (tokens, tokens + more))
    assert small <= large * 1.02  # a row more may make the mean expert shorter by a fraction


def test_a_layer_by_parts() -> None:
    x = layer(512)
    first, second = products(x)
    alone = dataclasses.replace(first, around=None)
    assert seconds(first) == pytest.approx(seconds(alone) + 26e-6 + around_bytes(x)[0] / (0.7 * 3.35e12))
    assert seconds(dataclasses.replace(first, around=np.array([np.nan]))) == seconds(alone)
    assert second.around is None
    assert around_bytes(dataclasses.replace(x, quantised=np.ones(1))) > around_bytes(x)
    assert around_bytes(dataclasses.replace(x, around_rows=x.rows * 2)) > around_bytes(x)


@given(
    st.integers(1, 20000),
    st.sampled_from((8, 64, 256)),
    st.integers(1, 8),
    st.sampled_from((1, 2, 8)),
    st.sampled_from(ALPHAS),
)
def test_loads_hold_together(tokens: int, experts: int, topk: int, ranks: int, name: str) -> None:
    load = routing(tokens, experts, topk, ranks, name)
    assert 1 <= load.active <= experts / ranks
    assert load.longest <= max(tokens, 1)
    assert load.rows / load.active - 1e-9 <= load.longest <= load.rows
    assert load.rows <= tokens * topk
    assert load == routing(tokens, experts, topk, ranks, name)
    assert load.rows * ranks >= tokens * topk * (1 - 1e-9)


def test_loads_by_hand() -> None:
    assert routing(16, 8, 2) == (32, 8, 4)
    assert routing(1, 64, 4, 8) == (1, 1, 1)
    even, uneven = routing(4096, 128, 8, 8), routing(4096, 128, 8, 8, "power_law_1.2")
    assert even == (4096, 16, 256)
    assert uneven.rows > even.rows
    assert uneven.longest > even.longest


@pytest.mark.parametrize("sizes", [(0, 8, 2, 1), (4, 8, 9, 1), (4, 8, 2, 3)])
def test_sizes_that_no_router_has(sizes: tuple[int, int, int, int]) -> None:
    with pytest.raises(ForetraceError, match="routing: "):
        routing(*sizes)


def test_an_unknown_distribution() -> None:
    with pytest.raises(ForetraceError, match="expected balanced or power_law_ALPHA, got 'zipf'"):
        routing(4, 8, 2, 1, "zipf")
