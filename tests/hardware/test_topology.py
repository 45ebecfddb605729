"""Topologies: what groups get of them, by hand and against known results; where groups lie; YAML; refusals."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretrace.hardware import HardwareError, Link, System, load_system
from foretrace.hardware.topology import Placement, Topology, balanced, place


@pytest.mark.parametrize(
    ("ranks", "stride", "members", "nodes"),
    [
        (8, 1, 8, 1),
        (16, 8, 1, 16),
        (16, 4, 2, 8),
        (4, 2, 4, 1),
        (3, 1, 2, 2),  # 6, 7 and 8
        (4, 6, 2, 3),
        (2, 12, 1, 2),
        (128, 1, 8, 16),
    ],
)
def test_where_a_group_lies(ranks: int, stride: int, members: int, nodes: int) -> None:
    found = place(ranks, stride, 8, 128)
    assert (found.members, found.nodes) == (members, nodes)


@given(st.integers(1, 40), st.integers(1, 20), st.integers(1, 12))
def test_no_group_lies_worse(ranks: int, stride: int, node_size: int) -> None:
    """Against every group of a system with room for all the ways that blocks can lie."""
    span = ranks * stride
    count = span * node_size
    spanned = [
        len({(block + offset + i * stride) // node_size for i in range(ranks)})
        for block in range(0, count, span)
        for offset in range(stride)
    ]
    assert place(ranks, stride, node_size, count).nodes == max(spanned)


def test_only_groups_that_exist_count() -> None:
    assert place(3, 1, 8, 6).nodes == 1
    assert place(3, 1, 8, 16).nodes == 2


def test_balanced_factors() -> None:
    assert balanced(64, 2) == (8, 8)
    assert balanced(64, 3) == (4, 4, 4)
    assert balanced(7, 2) == (1, 7)


def reach(kind: str, group: Placement, **fields: object) -> tuple[float, float]:
    """Ring and direct shares of *group* in 16 nodes of 8 with a NIC each."""
    net = Topology(kind, **{"nodes": 16, "per_node": 8, "nics": 8, **fields})  # type: ignore[arg-type]
    found = net.reach(group)
    return found.ring, found.direct


WHOLE, DATA = place(128, 1, 8, 128), place(16, 8, 8, 128)


def test_siblings_over_a_switch_do_not_slow_each_other() -> None:
    for group in (WHOLE, DATA, place(4, 32, 8, 128)):
        assert reach("switch", group) == (1.0, 1.0)
        assert reach("switch", group, nics=4) == (0.5, 0.5)
    alone = Placement(16, 8, 1, 16, alone=True)
    assert reach("switch", alone, nics=4) == (1.0, 1.0)


def test_oversubscribed_leaves_slow_what_leaves_them() -> None:
    assert reach("fat-tree", DATA, oversubscription=2.0) == (0.5, 0.5)  # each node a leaf
    ring, direct = reach("fat-tree", DATA, oversubscription=2.0, group_size=4)
    assert ring == 1.0  # one of four neighbours is in another leaf
    assert direct == pytest.approx(0.5 * 15 / 12)
    assert reach("fat-tree", place(4, 8, 8, 128), oversubscription=2.0, group_size=4) == (1.0, 1.0)
    assert reach("fat-tree", place(4, 32, 8, 128), oversubscription=2.0, group_size=4) == (0.5, 0.5)


def test_rails_keep_ranks_of_one_index_together() -> None:
    assert reach("rail", DATA, oversubscription=8.0, group_size=16) == (1.0, 1.0)
    assert reach("rail", WHOLE, oversubscription=8.0, group_size=16) == (1.0, 1.0)
    assert reach("rail", place(4, 32, 8, 128), oversubscription=4.0, group_size=4) == (0.25, 0.25)


def test_a_dragonfly_takes_detours_where_neighbours_send_to_neighbours() -> None:
    """Minimal routes give groups that talk to one other 1 / (g - 1) of their links, Valiant's a half (Kim 2008)."""
    assert reach("dragonfly", place(2, 64, 8, 128), group_size=2)[0] == pytest.approx(0.5)
    assert reach("dragonfly", DATA, group_size=4)[1] == pytest.approx(1.0)


@pytest.mark.parametrize(("kind", "dims"), [("ring", (64,)), ("torus-2d", (8, 8)), ("torus-3d", (4, 4, 4))])
def test_a_whole_torus_rings_over_all_its_links(kind: str, dims: tuple[int, ...]) -> None:
    found = Topology(kind, 64, dims=dims).reach(Placement(64, 1, 1, 64))
    assert found.ring == pytest.approx(1.0)
    assert found.ring_hops == sum(size - 1 for size in dims)
    mean = sum(np.minimum(np.arange(size), size - np.arange(size)).mean() for size in dims) * 64 / 63
    assert found.direct == pytest.approx(1 / mean, rel=0.03)  # links of a place, over the links that a flow takes


def test_a_line_of_a_torus_has_the_links_of_its_dimension() -> None:
    net = Topology("torus-3d", 64, dims=(4, 4, 4))
    assert net.reach(Placement(4, 1, 1, 4)).ring == pytest.approx(1 / 3)
    assert net.reach(Placement(4, 16, 1, 4)).ring == pytest.approx(1 / 3)
    assert net.reach(Placement(16, 1, 1, 16)).ring == pytest.approx(2 / 3)
    wide = Topology("torus-2d", 64, dims=(8, 8))
    assert wide.reach(Placement(4, 1, 1, 4)).ring == pytest.approx(1 / 4)  # half a line: its ring turns back


def test_a_mesh_has_one_bundle_for_each_peer() -> None:
    assert Topology("mesh", 8).reach(Placement(8, 1, 1, 8)).ring == 1.0
    assert Topology("mesh", 8).reach(Placement(2, 1, 1, 2)).ring == pytest.approx(1 / 7)
    assert reach("mesh", place(2, 64, 8, 128)) == (pytest.approx(1 / 15), pytest.approx(1 / 15))


def test_listed_links_are_what_they_say() -> None:
    square = tuple((i, (i + 1) % 4, 0.5) for i in range(4))
    listed = Topology("custom", 4, links=square).reach(Placement(4, 1, 1, 4))
    assert (listed.ring, listed.ring_hops, listed.direct_hops) == (0.5, 3.0, 2.0)
    chain = Topology("custom", 3, links=((0, 1, 1.0), (1, 2, 1.0))).reach(Placement(3, 1, 1, 3))
    assert chain.ring_hops == 4.0


kinds = st.sampled_from(("switch", "fat-tree", "rail", "dragonfly", "ring", "torus-2d", "torus-3d", "mesh"))


@given(kinds, st.sampled_from((2, 4, 8, 16)), st.sampled_from((1, 2, 4, 8, 16, 32)), st.sampled_from((1, 2, 4, 8)))
def test_shares_are_shares_and_more_nics_give_no_less(kind: str, ranks: int, stride: int, nics: int) -> None:
    group = place(ranks, stride, 8, 128)
    if group.nodes == 1:
        return
    more = {} if kind in ("switch", "ring", "torus-2d", "torus-3d", "mesh") else {"oversubscription": 2.0}
    few, many = (reach(kind, group, nics=n, group_size=4 if more else 1, **more) for n in (nics, 8))
    for low, high in zip(few, many, strict=True):
        assert 0 < low <= high + 1e-12
        assert high <= 1


# --- YAML ---------------------------------------------------------------------------------------------------------


def system(tmp_path: Path, scale_out: str, count: int = 32) -> System:
    path = tmp_path / "hw.yaml"
    path.write_text(f"accelerator: h100\ncount: {count}\nnetwork:\n  scale_out: {scale_out}\n", encoding="utf-8")
    return load_system(str(path))


def refusal(tmp_path: Path, scale_out: str, count: int = 32) -> str:
    with pytest.raises(HardwareError) as error:
        system(tmp_path, scale_out, count)
    return str(error.value)


@pytest.mark.parametrize(
    "written",
    [
        "{topology: fat-tree, oversubscription: 2, group_size: 2}",
        "{topology: rail, nics_per_node: 4}",
        "{topology: torus-2d, dims: [2, 2]}",
        "{topology: dragonfly, group_size: 2}",
        '{links: [[0, 1, "50 GB/s"], [1, 2, "50 GB/s"], [3, 2, "400 Gb/s"]]}',
        "{topology: full-mesh}",
    ],
)
def test_a_system_is_written_as_it_is_read(tmp_path: Path, written: str) -> None:
    read = system(tmp_path, written)
    (tmp_path / "again.yaml").write_text(read.to_yaml(), encoding="utf-8")
    again = load_system(str(tmp_path / "again.yaml"))
    assert again.network == read.network
    assert read.network.scale_out is not None
    reached = Topology.of(read.network.scale_out, read.nodes, 8).reach(place(4, 8, 8, 32))
    assert 0 < reached.ring <= 1


def test_unset_fields_are_not_shown(tmp_path: Path) -> None:
    plain, rail = system(tmp_path, "{topology: switch}"), system(tmp_path, "{topology: rail, nics_per_node: 4}")
    shown = {row.field: row.value for row in rail.describe()}
    assert shown["network.scale_out.nics_per_node"] == "4"
    assert not any("nics" in row.field or "dims" in row.field for row in plain.describe())


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ('{links: [[0, 1, "50 GB/s"], [2, 3, "50 GB/s"]]}', "scale_out.links: not connected: no path from 0 to 2"),
        ('{links: [[0, 1, "50 GB/s"], [2, 3, "50 GB/s"]]}', 'add a link that leads there, e.g. [0, 2, "50 GB/s"]'),
        ('{links: [[0, 4, "50 GB/s"]]}', "[0, 4]: expected two of the 4 nodes (count / node_size), counted from 0"),
        ('{links: [[1, 1, "50 GB/s"]]}', "[1, 1]: expected two of the 4 nodes"),
        ("{topology: custom}", "scale_out.links: missing: topology custom lists them"),
        ("{topology: torus-2d, dims: [4, 4]}", "scale_out.dims: 4 x 4 is 16, but there are 4 nodes"),
        ("{topology: torus-3d, dims: [2, 2]}", "scale_out.dims: expected 3 for torus-3d, got 2"),
        (
            "{topology: switch, oversubscription: 2}",
            "oversubscription: topology switch has none: expected topology: fat",
        ),
        ("{topology: fat-tree, oversubscription: 0.5}", "scale_out.oversubscription: "),
        ("{topology: fat-tre}", "scale_out.topology: expected "),
        ("{topology: fat-tree, groupsize: 3}", "unknown key, did you mean 'group_size'?"),
    ],
)
def test_a_network_that_cannot_be_is_refused(tmp_path: Path, written: str, said: str) -> None:
    assert said in refusal(tmp_path, written)


def test_only_nodes_have_nics(tmp_path: Path) -> None:
    path = tmp_path / "hw.yaml"
    path.write_text("accelerator: h100\nnetwork: {scale_up: {nics_per_node: 4}}\n", encoding="utf-8")
    with pytest.raises(HardwareError, match=r"network\.scale_up\.nics_per_node: only scale_out has NICs"):
        load_system(str(path))


def test_a_name_and_a_count_is_whole_nodes() -> None:
    assert load_system("h100-sxm:64").nodes == 8
    assert load_system("a100-sxm-80gb:64").network.scale_out is not None
    with pytest.raises(
        HardwareError, match=r"h100-sxm:12: expected a count from 1 to 8 .* or whole nodes, e\.g\. 16, got 12"
    ):
        load_system("h100-sxm:12")
    with pytest.raises(HardwareError, match=r"l40s:16: expected a count from 1 to 8 .*scale_out"):
        load_system("l40s:16")


def test_a_link_of_a_tier_beyond_what_the_system_has_grows() -> None:
    link = Link.model_validate({"bandwidth": 5e10, "topology": "torus-2d"}, context={"si": True})
    assert Topology.of(link, 1, 8).holding(16).dims == (4, 4)
