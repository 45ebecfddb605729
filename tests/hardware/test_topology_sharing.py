"""Max-min fair rates: feasible, optimal, work conserving; by hand; when flows are done."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretrace.hardware.topology import Paths, finish_times, max_min_rates, slowest_rate


@st.composite
def networks(draw: st.DrawFn) -> tuple[Paths, np.ndarray]:
    links = draw(st.integers(1, 6))
    routes = draw(st.lists(st.sets(st.integers(0, links - 1), min_size=1), min_size=1, max_size=8))
    paths = Paths.of([sorted(route) for route in routes])
    weights = draw(st.lists(st.sampled_from((0.25, 0.5, 1.0, 2.0)), min_size=paths.flow.size, max_size=paths.flow.size))
    paths = Paths(paths.flows, paths.flow, paths.link, np.array(weights))
    return paths, np.array(draw(st.lists(st.floats(0.1, 100), min_size=links, max_size=links)))


@given(networks())
def test_rates_are_feasible(network: tuple[Paths, np.ndarray]) -> None:
    paths, capacity = network
    assert (paths.load(max_min_rates(paths, capacity), capacity.size) <= capacity * (1 + 1e-9)).all()


@given(networks())
def test_every_flow_has_a_full_link_on_which_none_is_faster(network: tuple[Paths, np.ndarray]) -> None:
    """What makes rates max-min fair (Bertsekas and Gallager 1992), and leaves no link idle that a flow could use."""
    paths, capacity = network
    rates = max_min_rates(paths, capacity)
    full = paths.load(rates, capacity.size) >= capacity * (1 - 1e-9)
    for flow in range(paths.flows):
        mine = paths.link[paths.flow == flow]
        fastest = [rates[paths.flow[paths.link == link]].max() for link in mine.tolist() if full[link]]
        assert fastest, "no full link"
        assert min(fastest) <= rates[flow] * (1 + 1e-9)


@given(networks())
def test_the_slowest_is_the_first_to_stop(network: tuple[Paths, np.ndarray]) -> None:
    paths, capacity = network
    assert slowest_rate(paths, capacity) == pytest.approx(max_min_rates(paths, capacity).min())


@given(networks(), st.floats(1, 8))
def test_more_capacity_never_slows_the_slowest(network: tuple[Paths, np.ndarray], more: float) -> None:
    paths, capacity = network
    assert slowest_rate(paths, capacity * more) >= slowest_rate(paths, capacity) * (1 - 1e-12)


def test_two_short_flows_and_a_long_one() -> None:
    paths = Paths.of([[0], [1], [0, 1]])
    assert max_min_rates(paths, np.array([1.0, 3.0])).tolist() == [0.5, 2.5, 0.5]


def test_no_link_no_limit() -> None:
    assert max_min_rates(Paths.of([[], [0]]), np.array([2.0])).tolist() == [np.inf, 2.0]
    assert slowest_rate(Paths.of([]), np.array([2.0])) == np.inf


def test_who_ends_leaves_the_rest_more() -> None:
    paths = Paths.of([[0], [0]])
    assert finish_times(paths, np.array([1.0]), np.array([1.0, 3.0])).tolist() == [2.0, 4.0]
    late = finish_times(paths, np.array([1.0]), np.array([4.0, 1.0]), np.array([0.0, 2.0]))
    assert late.tolist() == [5.0, 4.0]
    assert finish_times(paths, np.array([1.0]), np.array([0.0, 3.0])).tolist() == [0.0, 3.0]
    assert finish_times(Paths.of([]), np.array([1.0]), np.zeros(0)).tolist() == []


@given(networks(), st.data())
def test_all_is_moved_no_faster_than_links_carry(network: tuple[Paths, np.ndarray], data: st.DataObject) -> None:
    paths, capacity = network
    nbytes = np.array(data.draw(st.lists(st.floats(0.1, 1e3), min_size=paths.flows, max_size=paths.flows)))
    done = finish_times(paths, capacity, nbytes)
    assert np.isfinite(done).all()
    carried = np.bincount(paths.link, (paths.weight * nbytes[paths.flow]), capacity.size)
    assert done.max() >= (carried / capacity).max() * (1 - 1e-9)
    assert done.max() <= (carried / capacity).sum() * (1 + 1e-9)
