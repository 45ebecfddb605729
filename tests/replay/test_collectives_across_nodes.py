"""Collectives over several nodes: by hand, bounds, who is chosen, where groups lie, networks, contention."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretrace.hardware import System, load_system
from foretrace.hardware.topology import Topology
from foretrace.ir import ForetraceError, OpKind
from foretrace.replay.costs import UnreachableError
from foretrace.replay.costs.physics import Physics
from foretrace.replay.costs.physics.collective import (
    ALL_GATHER,
    ALL_REDUCE,
    ALL_TO_ALL,
    ANY,
    BROADCAST,
    NVLINK,
    OPS,
    REDUCE_SCATTER,
    SCALE_OUT,
    SEND_RECV,
    CollectiveConstants,
    Collectives,
    Fabric,
    Protocol,
    Protocols,
    price_collectives,
)
from foretrace.replay.costs.physics.contention import Traffic, slowdowns
from foretrace.replay.costs.physics.facts import Facts
from foretrace.replay.measured.columns import join
from tests.replay.physics_rows import block

NEAR = Protocols(Protocol(4e-6, 0.8, 0.33), Protocol(23e-6, 4.0, 0.88), Protocol(18e-6, 0.6, 0.76), own=0.5)
FAR = Protocols(Protocol(6e-6, 0.9, 0.2), Protocol(8e-6, 4.7, 0.4), Protocol(14e-6, 1.0, 0.65))
NCCL = CollectiveConstants({NVLINK: NEAR, SCALE_OUT: FAR})
OTHERS = dataclasses.replace(NCCL, library=ANY)
FACTS = Facts("hopper", 132, 1.755e9, 4096, 512, 16, 3.35e12, 6e12, 50e6, 1.4e-6, 700, 1.0, 1.0)
NODE = Fabric(NVLINK, 450e9, 1e-6, "switch", False, 8)
NETWORK = Fabric(SCALE_OUT, 50e9, 3e-6, "switch", False, 64, Topology("switch", 64, 8, 8))
LAUNCH_S = FACTS.launch_floor_s + FAR.simple.start_s


def seconds(
    op: int, size: float, ranks: int, nodes: int, c: CollectiveConstants = NCCL, far: Fabric = NETWORK, stride: int = 1
) -> float:
    columns = (np.array([float(v)]) for v in (size, ranks, nodes, stride))
    rows = Collectives(np.array([op]), *columns, np.array([False]))
    return float(price_collectives(rows, (NODE, far), FACTS, c)[0][0])


# --- by hand ------------------------------------------------------------------------------------------------------


def test_a_flat_ring_crosses_nodes_on_every_nic() -> None:
    size = 2.0**32
    near, far = NEAR.simple.step * 1e-6, FAR.simple.step * 3e-6
    link = size * 2 * 31 / 32 / (8 * 0.4 * 50e9)
    assert seconds(ALL_REDUCE, size, 32, 4) == pytest.approx(link + 2 * (3 * far + 28 * near) + LAUNCH_S)
    assert seconds(ALL_GATHER, size, 32, 4) == pytest.approx(link / 2 + 3 * far + 28 * near + LAUNCH_S)
    assert seconds(REDUCE_SCATTER, size, 32, 4) == seconds(ALL_GATHER, size, 32, 4)


def test_one_rank_a_node_has_one_nic() -> None:
    size = 2.0**32
    got = seconds(ALL_REDUCE, size, 4, 4, stride=8)
    assert got == pytest.approx(size * 2 * 3 / 4 / (0.4 * 50e9) + 6 * FAR.simple.step * 3e-6 + LAUNCH_S)


def test_a_tree_is_taken_where_steps_count() -> None:
    size, ranks = 1024.0, 512
    low = FAR.low_latency
    tree = 2 * (np.log2(64) * low.step * 3e-6 + 7 * NEAR.low_latency.step * 1e-6)
    link = 2 * size / (8 * low.efficiency * 0.92 * 50e9)
    assert seconds(ALL_REDUCE, size, ranks, 64) == pytest.approx(tree + link + FACTS.launch_floor_s + low.start_s)
    assert seconds(ALL_GATHER, size, ranks, 64) > seconds(ALL_REDUCE, size, ranks, 64)  # NCCL gathers in rings


def test_an_exchange_is_bound_by_what_leaves_the_node() -> None:
    size = 2.0**30
    link = size * 24 / 32 / (0.65 * 50e9)
    steps = 24 * 3e-6 + 7 * NEAR.direct.step * 1e-6
    assert seconds(ALL_TO_ALL, size, 32, 4) == pytest.approx(link + steps + FACTS.launch_floor_s + 14e-6)
    assert seconds(SEND_RECV, size, 2, 2, stride=8) == pytest.approx(
        size / (0.65 * 50e9) + 3e-6 + FACTS.launch_floor_s + 14e-6
    )


def test_switches_that_add_send_the_buffer_once() -> None:
    size = 2.0**32
    sharp = dataclasses.replace(NETWORK, reduces=True)
    assert seconds(ALL_REDUCE, size, 16, 16, far=sharp, stride=8) == pytest.approx(
        size / (0.4 * 50e9) + 2 * FAR.simple.step * 3e-6 + LAUNCH_S
    )
    adding = dataclasses.replace(NEAR, in_switch=Protocol(60e-6, 3.0, 0.65))
    nvls = dataclasses.replace(NCCL, protocols={NVLINK: adding, SCALE_OUT: FAR})
    row = Collectives(np.array([ALL_REDUCE]), np.array([size]), np.array([16.0]), np.array([2.0]))
    node = dataclasses.replace(NODE, reduces=True)
    with_switch = price_collectives(row, (node, NETWORK), FACTS, nvls)[0][0]
    assert with_switch < 0.6 * seconds(ALL_REDUCE, size, 16, 2)  # a tree of two nodes sends it once too


def test_other_libraries_have_logarithmic_algorithms() -> None:
    assert seconds(ALL_REDUCE, 1e6, 512, 64, OTHERS) <= seconds(ALL_REDUCE, 1e6, 512, 64)
    for op in (ALL_GATHER, REDUCE_SCATTER):
        assert seconds(op, 1e6, 512, 64, OTHERS) < seconds(op, 1e6, 512, 64) / 2
    size = 2.0**30
    halving = seconds(ALL_REDUCE, size, 16, 16, OTHERS, stride=8)
    assert halving <= size * 2 * 15 / 16 / (0.4 * 50e9) + 2 * 4 * FAR.simple.step * 3e-6 + LAUNCH_S


# --- properties ---------------------------------------------------------------------------------------------------

ops = st.sampled_from(range(len(OPS)))
sizes = st.floats(1, 2**34)
libraries = st.sampled_from((NCCL, OTHERS))
groups = st.sampled_from(((16, 2, 1), (64, 8, 1), (512, 64, 1), (8, 8, 8), (64, 64, 8), (16, 8, 4), (12, 4, 3)))
KINDS = ("switch", "fat-tree", "rail", "dragonfly", "torus-2d", "torus-3d", "ring", "mesh")
networks = st.sampled_from(KINDS).map(
    lambda kind: dataclasses.replace(NETWORK, topology=kind, network=Topology(kind, 64, 8, 8))
)


@given(ops, sizes, groups, libraries, networks)
def test_no_collective_beats_what_must_cross(
    op: int, size: float, group: tuple[int, int, int], library: CollectiveConstants, far: Fabric
) -> None:
    """A node that holds m of n ranks sends at least this, however it is done, over m NICs."""
    ranks, nodes, stride = group
    members = -(-ranks // nodes)
    least = {
        ALL_REDUCE: size / members,
        ALL_GATHER: size / ranks,
        REDUCE_SCATTER: size * (ranks - members) / ranks / members / 2,
        ALL_TO_ALL: size * (ranks - members) / ranks,
        BROADCAST: size / members / 2,
        SEND_RECV: size,
    }[op]
    assert seconds(op, size, ranks, nodes, library, far, stride) >= least / 50e9 + FACTS.launch_floor_s


@given(ops, sizes, st.floats(1, 4), groups, libraries, networks)
def test_more_bytes_are_never_faster(
    op: int, size: float, more: float, group: tuple[int, int, int], library: CollectiveConstants, far: Fabric
) -> None:
    ranks, nodes, stride = group
    few, many = (seconds(op, s, ranks, nodes, library, far, stride) for s in (size, size * more))
    assert few <= many * (1 + 1e-12)
    assert many <= 2 * more * few


@given(ops, sizes, groups, libraries, networks, st.floats(1, 8))
def test_a_faster_network_is_never_slower(
    op: int, size: float, group: tuple[int, int, int], library: CollectiveConstants, far: Fabric, faster: float
) -> None:
    ranks, nodes, stride = group
    fast = dataclasses.replace(far, bandwidth=far.bandwidth * faster)
    assert seconds(op, size, ranks, nodes, library, fast, stride) <= seconds(
        op, size, ranks, nodes, library, far, stride
    ) * (1 + 1e-12)


@given(ops, sizes, groups, libraries, st.sampled_from(KINDS))
def test_no_network_beats_a_switch_that_blocks_nothing(
    op: int, size: float, group: tuple[int, int, int], library: CollectiveConstants, kind: str
) -> None:
    ranks, nodes, stride = group
    other = dataclasses.replace(NETWORK, topology=kind, network=Topology(kind, 64, 8, 4))
    got = seconds(op, size, ranks, nodes, library, other, stride)
    if not kind.startswith("torus"):  # a torus has fewer steps in its dimensions
        assert got >= seconds(op, size, ranks, nodes, library, NETWORK, stride) * (1 - 1e-12)


# --- through the model --------------------------------------------------------------------------------------------


def priced(
    system: System, op: str, size: float, ranks: int, stride: int = 1, **more: float
) -> tuple[float, tuple[str, ...]]:
    sizes = {"bytes": size, "ranks": ranks, "stride": stride, **more}
    columns = {name: np.array([float(value)]) for name, value in sizes.items()}
    name, moved = f"_c10d_functional.{op}.default", columns["bytes"]
    row = block(OpKind.COLLECTIVE, name, "bfloat16", columns, moved, moved)
    costs = Physics().price(join([row])[0], system, "serving")
    return float(costs.seconds[0]), costs.warnings


@pytest.mark.parametrize("chip", ["h100-sxm", "a100-sxm-80gb"])
def test_a_group_s_stride_says_where_it_lies(chip: str) -> None:
    system, one = load_system(f"{chip}:64"), load_system(f"{chip}:8")
    size = 2.0**28
    tensor, data, whole = (priced(system, "all_reduce", size, *group)[0] for group in ((8, 1), (8, 8), (64, 1)))
    assert tensor == priced(one, "all_reduce", size, 8)[0]
    assert tensor < whole < data  # eight NICs, or one
    assert data > size * 2 * 7 / 8 / system.network.scale_out.bandwidth  # type: ignore[union-attr]
    assert priced(system, "all_reduce", size, 8, 1, nodes=1)[0] == tensor
    assert priced(system, "all_reduce", size, 8, 8, nodes=8)[0] == data


def test_what_is_said_of_several_nodes() -> None:
    assert priced(load_system("h100-sxm:64"), "all_reduce", 1e6, 8)[1] == ()
    assert any(
        "1 collectives over several nodes" in w for w in priced(load_system("h100-sxm:64"), "send", 1e6, 2, 8)[1]
    )


def test_a_group_beyond_the_nodes_of_a_system_without_a_network() -> None:
    with pytest.raises(UnreachableError, match="no link joins 16 ranks in 2 nodes"):
        priced(load_system("l40s:8"), "all_reduce", 1e6, 16)


def test_a_custom_network_joins_those_that_it_lists() -> None:
    system = with_network(4, {"links": [[0, 1, 5e10], [1, 2, 5e10], [2, 3, 5e10]]})
    assert priced(system, "all_reduce", 1e9, 4, 8)[0] > priced(with_network(4, {}), "all_reduce", 1e9, 4, 8)[0]
    with pytest.raises(ForetraceError, match="join 4 nodes, 16 are asked for"):
        priced(system, "all_reduce", 1e9, 16, 8, nodes=16)


def with_network(nodes: int, fields: dict[str, object]) -> System:
    system = load_system(f"h100-sxm:{8 * nodes}")
    data = system.model_dump(by_alias=True)
    data["network"]["scale_out"] |= fields
    return System.model_validate(data, context={"si": True})


@pytest.mark.parametrize(
    "worse",
    [
        {"nics_per_node": 2},
        {"topology": "fat-tree", "oversubscription": 4.0},
        {"topology": "torus-3d"},
        {"topology": "ring"},
        {"topology": "rail", "oversubscription": 4.0},
    ],
)
def test_poorer_networks_are_slower(worse: dict[str, object]) -> None:
    good, poor = with_network(16, {}), with_network(16, worse)
    for op, group in (("all_to_all", (16, 8)), ("all_reduce", (4, 32))):
        assert priced(poor, op, 1e9, *group)[0] > 1.2 * priced(good, op, 1e9, *group)[0]


# --- different collectives at once --------------------------------------------------------------------------------


def members(first: int, ranks: int, stride: int) -> np.ndarray:
    return first + np.arange(ranks) * stride


def test_those_that_share_a_nic_share_its_bandwidth() -> None:
    system = with_network(4, {"nics_per_node": 1})
    one, other = (Traffic(ALL_REDUCE, 1e9, members(i, 4, 8)) for i in (0, 1))
    assert slowdowns(system, [one, other]) == pytest.approx([2, 2])
    late = dataclasses.replace(other, start_s=1.0)
    assert slowdowns(system, [one, late]) == pytest.approx([1, 1])
    small = dataclasses.replace(other, bytes=1e8)
    assert slowdowns(system, [one, small]) == pytest.approx([1.1, 2])
    assert slowdowns(load_system("h100-sxm:32"), [one, other]) == pytest.approx([1, 1])


def test_what_stays_in_a_node_is_not_slowed() -> None:
    system = with_network(4, {"nics_per_node": 1})
    inside, send = Traffic(ALL_GATHER, 1e9, members(0, 8, 1)), Traffic(SEND_RECV, 1e9, np.array([0, 8]))
    assert slowdowns(system, [inside, send]).tolist() == [1, 1]
    assert slowdowns(load_system("h100-sxm:8"), [inside]).tolist() == [1]
    assert slowdowns(system, []).tolist() == []


def test_an_exchange_beside_an_all_reduce() -> None:
    both = [Traffic(ALL_TO_ALL, 1e9, members(0, 32, 1)), Traffic(ALL_REDUCE, 1e9, members(0, 4, 8))]
    exchange, reduction = slowdowns(load_system("h100-sxm:32"), both)
    assert reduction > 1.2
    assert exchange > 1.01
    with pytest.raises(ForetraceError, match=r"rank 39 is a member of a collective, but .* has 32"):
        slowdowns(load_system("h100-sxm:32"), [Traffic(BROADCAST, 1.0, members(32, 8, 1))])
