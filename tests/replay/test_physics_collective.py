"""Collectives: the physical bound, monotone in bytes and ranks, no cliffs; by hand; tiers of a system; refusals."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretrace.hardware import load_system
from foretrace.ir import DTYPES, ForetraceError
from foretrace.replay.costs.physics.collective import (
    ALL_GATHER,
    ALL_REDUCE,
    ALL_TO_ALL,
    HOPS,
    LAUNCH,
    LINK,
    NVLINK,
    OPS,
    PCIE,
    REDUCE_SCATTER,
    SCALE_OUT,
    SEND_RECV,
    CollectiveConstants,
    Collectives,
    Fabric,
    Launching,
    Protocol,
    Protocols,
    Shots,
    fabrics_of,
    hops_and_passes,
    price_collectives,
)
from foretrace.replay.costs.physics.facts import Facts, facts_of

RINGS = Protocols(
    Protocol(4e-6, 0.8, 0.33), Protocol(23e-6, 4.0, 0.88), Protocol(6e-6, 0.8, 0.8), Protocol(18e-6, 0.6, 0.76), own=0.5
)
WITH_SWITCH = dataclasses.replace(RINGS, in_switch=Protocol(60e-6, 3.0, 0.65))
PLAIN = CollectiveConstants({NVLINK: RINGS, PCIE: RINGS, SCALE_OUT: RINGS})
ENGINE = CollectiveConstants({NVLINK: WITH_SWITCH}, Shots(3e-6, 0.07, 0.62, 3e-6, 2.0**23))
SWITCH = Fabric(NVLINK, 450e9, 1e-6, "switch", True, 8)
FACTS = Facts("hopper", 132, 1.755e9, 4096, 512, 16, 3.35e12, 6e12, 50e6, 1.4e-6, 700, 1.0, 1.0)

ops = st.sampled_from(range(len(OPS)))
sizes = st.floats(1, 2**32)
libraries = st.sampled_from((PLAIN, ENGINE))
topologies = st.sampled_from(("switch", "mesh", "cube-mesh"))


def seconds(
    op: int, size: float, ranks: int = 8, c: CollectiveConstants = PLAIN, fabric: Fabric = SWITCH, nodes: int = 1
) -> float:
    row = Collectives(np.array([op]), *(np.array([float(v)]) for v in (size, ranks, nodes)))
    far = Fabric(SCALE_OUT, 50e9, 3e-6, "switch", False, 2**30)
    return float(price_collectives(row, (fabric, far), FACTS, c)[0][0])


@given(ops, sizes, st.integers(2, 8), libraries, topologies)
def test_no_collective_beats_its_link(
    op: int, size: float, ranks: int, library: CollectiveConstants, topology: str
) -> None:
    fabric = dataclasses.replace(SWITCH, topology=topology)
    _, passes = hops_and_passes(np.array([op]), np.array([float(ranks)]), 0.0)
    if op == ALL_REDUCE:  # a switch that adds sends the sum once
        passes = np.minimum(passes, (ranks + 1) / ranks)
    assert seconds(op, size, ranks, library, fabric) >= size * passes[0] / fabric.bandwidth + FACTS.launch_floor_s


@given(ops, sizes, st.floats(1, 4), st.integers(2, 8), libraries)
def test_more_bytes_are_never_faster(
    op: int, size: float, more: float, ranks: int, library: CollectiveConstants
) -> None:
    assert seconds(op, size, ranks, library) <= seconds(op, size * more, ranks, library) * (1 + 1e-12)


@given(ops, sizes, st.integers(2, 7))
def test_more_ranks_are_never_faster_in_rings(op: int, size: float, ranks: int) -> None:
    assert seconds(op, size, ranks) <= seconds(op, size, ranks + 1) * (1 + 1e-12)


@given(ops, sizes, st.integers(2, 8), st.floats(1, 8))
def test_a_faster_link_is_never_slower(op: int, size: float, ranks: int, faster: float) -> None:
    fast = dataclasses.replace(SWITCH, bandwidth=SWITCH.bandwidth * faster)
    assert seconds(op, size, ranks, ENGINE, fast) <= seconds(op, size, ranks, ENGINE)


@given(ops, sizes, st.integers(2, 8), libraries)
def test_one_percent_more_is_no_cliff(op: int, size: float, ranks: int, library: CollectiveConstants) -> None:
    assert seconds(op, size * 1.01, ranks, library) <= 2 * seconds(op, size, ranks, library)


def test_a_large_ring_by_hand() -> None:
    ring, size = RINGS.simple, 2.0**30
    link = size * (2 * 7 + 0.5) / 8 / (0.88 * 450e9)
    assert seconds(ALL_REDUCE, size) == pytest.approx(link + 14 * 4.0e-6 + 1.4e-6 + ring.start_s)
    assert seconds(ALL_GATHER, size) == seconds(REDUCE_SCATTER, size)


def test_what_limits() -> None:
    rows = Collectives(np.array([0, 0, 5]), np.array([2.0**30, 8.0, 8.0]), np.array([8.0, 8.0, 2.0]), np.ones(3))
    assert price_collectives(rows, (SWITCH,), FACTS, PLAIN)[1].tolist() == [LINK, HOPS, LAUNCH]


def test_an_engine_takes_its_own_all_reduce_for_small_buffers() -> None:
    assert seconds(ALL_REDUCE, 1024, c=ENGINE) < seconds(ALL_REDUCE, 1024) / 2
    assert seconds(ALL_GATHER, 1024, c=ENGINE) == seconds(ALL_GATHER, 1024)
    assert seconds(ALL_REDUCE, 2.0**31, c=ENGINE) < seconds(ALL_REDUCE, 2.0**31)  # the switch adds
    over_pcie = dataclasses.replace(SWITCH, family=PCIE, reduces=False)
    assert seconds(ALL_REDUCE, 1024, c=ENGINE, fabric=over_pcie) == seconds(ALL_REDUCE, 1024)


def test_launching_is_a_floor_for_all_but_send_and_receive() -> None:
    launched = dataclasses.replace(PLAIN, launching=Launching(40e-6, 2.0))
    assert seconds(ALL_REDUCE, 1024, c=launched) == pytest.approx(40e-6, rel=0.05)
    assert seconds(SEND_RECV, 1024, 2, launched) == pytest.approx(seconds(SEND_RECV, 1024, 2))
    size = 2.0**32
    copies = 2 * size / FACTS.bandwidth
    assert seconds(ALL_REDUCE, size, c=launched) == pytest.approx(seconds(ALL_REDUCE, size) + copies, rel=1e-3)


def test_two_levels_for_ranks_in_nodes() -> None:
    inside, across = seconds(ALL_REDUCE, 2.0**30), seconds(ALL_REDUCE, 2.0**30, 16, nodes=2)
    assert across > max(inside, 2.0**30 / 8 / 50e9)
    row = Collectives(np.array([0, 0]), np.full(2, 1e6), np.array([8.0, 16.0]), np.array([1.0, 2.0]))
    tiers = (SWITCH, Fabric(SCALE_OUT, 50e9, 3e-6, "switch", False, 2**30))
    assert price_collectives(row, tiers, FACTS, PLAIN)[2].tolist() == [False, True]


def test_one_rank_alone_takes_no_time() -> None:
    assert seconds(ALL_REDUCE, 1e9, 1) == 0
    assert seconds(ALL_TO_ALL, 1e9, 1, dataclasses.replace(PLAIN, launching=Launching(40e-6))) == 0


def test_tiers_of_systems() -> None:
    assert [f.family for f in fabrics_of(load_system("h100-sxm"))][:2] == [NVLINK, PCIE]
    assert fabrics_of(load_system("h100-sxm"))[0].reduces
    assert [f.family for f in fabrics_of(load_system("l40s"))] == [PCIE]
    facts = facts_of(load_system("l40s").accelerator, DTYPES["bfloat16"])
    row = Collectives(np.array([0]), np.array([1e6]), np.array([2.0]), np.array([2.0]))
    with pytest.raises(ForetraceError, match="no link joins 2 ranks in 2 nodes"):
        price_collectives(row, fabrics_of(load_system("l40s")), facts, PLAIN)


def test_links_that_lead_to_few() -> None:
    mesh, cube = (dataclasses.replace(SWITCH, topology=name) for name in ("mesh", "cube-mesh"))
    ranks = np.array([2.0, 8.0])
    assert mesh.usable(ranks).tolist() == [1 / 7, 1.0]
    assert cube.usable(ranks).tolist() == [1 / 3, 1.0]
    assert SWITCH.usable(ranks).tolist() == [1.0, 1.0]
