"""Predictions as Chakra traces: dependencies alone give our time, collectives have the graph's sizes, ranks agree."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from foretrace.ir import Graph, OpKind, Role, UnknownNameError, evaluate_dim, load_graph, save_graph
from foretrace.replay import Result, replay_graph
from foretrace.replay.chakra_groups import Groups, group_members
from foretrace.replay.chakra_nodes import chakra_ranks, save_chakra_result
from foretrace.traces import Trace, diff_traces, load_trace
from foretrace.traces.formats.chakra import (
    ChakraNode,
    ChakraRank,
    CollectiveType,
    NodeType,
    chakra_graph,
    check_nodes,
    load_chakra,
)
from foretrace.transforms.plan import Plan
from tests.replay.models import BATCH, Builder, mlp, system, transformer
from tests.replay.parallel.models import training

PLANS = ["pp=2,dp=4", "pp=4,dp=2,zero=1", "dp=8,zero=3", "pp=2,dp=4,interleave=2", "pp=4,dp=2,schedule=zb-h1"]


def replayed(nodes: Iterable[ChakraNode]) -> dict[int, tuple[float, float]]:
    """Start and end of each node by its dependencies and durations alone; a node stands after what it waits for."""
    times: dict[int, tuple[float, float]] = {}
    for node in nodes:
        start = max((times[d][1] for d in (*node.data_deps, *node.ctrl_deps)), default=0.0)
        times[node.id] = start, start + node.duration_s
    return times


def only(result: Result) -> ChakraRank:
    (rank,) = chakra_ranks(result, Groups())
    return rank


def collectives(ring: bool = False) -> Graph:
    """Kernels between collectives of each sort, on a quarter of [batch, 64] or on all of it."""
    b = Builder()
    x = b.tensor("x", BATCH, 64, role=Role.INPUT)
    steps = [
        ("_c10d_functional.reduce_scatter_tensor.default", 16, 64),
        ("_c10d_functional.all_gather_into_tensor.default", 64, 64),
        ("_c10d_functional.all_reduce.default", 64, 64),
        ("_c10d_functional.all_to_all_single.default", 64, 64),
        ("c10d.broadcast_.default", 64, 64),
        *([("c10d.send_recv", 64, 64)] if ring else []),
    ]
    for name, columns, whole in steps:
        y = b.tensor("y", BATCH, columns)
        placed = {"ranks": 4, "stride": 2, "group": "tp"}
        b.op(OpKind.COLLECTIVE, name, [b.view(x, *b.tensors[x].shape)], [y], bytes=BATCH * whole * 2, **placed)
        x = b.pointwise("relu", y, module="act")
    return b.graph("collectives")


def events(trace: Trace) -> Counter[tuple[Any, ...]]:
    columns = [list(column) for column in trace.columns().values()]
    return Counter(zip(*columns, strict=True))


@pytest.mark.parametrize("execution", ["eager", "compiled", "cudagraph", "serving"])
@pytest.mark.parametrize("graph", [mlp(), transformer(), collectives(True)], ids=lambda g: g.name)
def test_dependencies_alone_give_our_time(graph: Graph, execution: str) -> None:
    result = replay_graph(graph, "h100-sxm:8", execution=execution)
    rank = only(result)
    check_nodes(rank.nodes)
    times = replayed(rank.nodes)
    assert max(end for _, end in times.values()) == pytest.approx(result.time_s, rel=1e-12)
    for node in rank.nodes:
        assert times[node.id][0] == pytest.approx(node.start_s, abs=1e-12)


def test_dependencies_alone_give_our_time_on_a_cpu() -> None:
    result = replay_graph(transformer(), system("cpu"), costs="roofline")
    times = replayed(only(result).nodes)
    assert max(end for _, end in times.values()) == pytest.approx(result.time_s, rel=1e-12)


@pytest.mark.parametrize("execution", ["eager", "cudagraph"])
def test_the_file_reads_back_as_the_trace(tmp_path: Path, execution: str) -> None:
    result = replay_graph(collectives(), "h100-sxm:8", execution=execution)
    save_chakra_result(result, tmp_path / "step")
    found = load_trace(tmp_path / "step.0.et")
    assert found.meta() == result.trace.meta()
    assert events(found) == events(result.trace)
    assert found.start_s.tolist() == result.trace.start_s.tolist()
    assert diff_traces(found, result.trace).error == 0


def test_data_dependencies_are_those_of_the_graph() -> None:
    """Through views; equally what a walk over networkx' view of the graph finds."""
    graph = collectives()
    result = replay_graph(graph, "h100-sxm:8", execution="cudagraph")
    nodes = {n.attributes["op_id"]: n for n in only(result).nodes if not n.attributes["is_cpu_op"]}
    op_of = {n.id: op for op, n in nodes.items()}
    ran = result.table.graph
    assert set(nodes) == {i for i, op in enumerate(ran.ops) if op.kind not in (OpKind.VIEW, OpKind.HOST)}

    def sources(i: int) -> set[int]:
        found: set[int] = set()
        for p in ran.predecessors[i]:
            found |= {p} if p in nodes else sources(p)
        return found

    for i, node in nodes.items():
        assert {op_of[d] for d in node.data_deps} == sources(i)


def test_collectives_have_the_graph_s_sizes_and_groups() -> None:
    groups = Groups()
    result = replay_graph(collectives(), "h100-sxm:8", batch=6)
    (rank,) = chakra_ranks(result, groups)
    graph, found = result.table.graph, [n for n in rank.nodes if n.type == NodeType.COLLECTIVE]
    wanted = [op for op in graph.ops if op.kind is OpKind.COLLECTIVE]
    for node, op in zip(found, wanted, strict=True):
        assert node.attributes["bytes"] == evaluate_dim(op.attributes["bytes"], result.bindings) == 6 * 64 * 2
        put_in = sum(evaluate_dim(graph.tensors[t].bytes, result.bindings) for t in op.inputs)
        assert node.attributes["comm_size"] == put_in  # what ASTRA-sim counts
        assert groups.ranks[node.attributes["pg_name"]] == (0, 2, 4, 6)
        assert node.name == op.name
    kinds = [CollectiveType(n.attributes["comm_type"]).name for n in found]
    assert kinds == ["REDUCE_SCATTER", "ALL_GATHER", "ALL_REDUCE", "ALL_TO_ALL", "BROADCAST"]
    assert list(groups.ranks) == ["1"]


def test_members_of_a_group() -> None:
    assert group_members({"ranks": 4, "stride": 2}, 13) == (9, 11, 13, 15)
    assert group_members({"ranks": 2, "stride": 1}, 5) == (4, 5)
    assert group_members({"ranks": 3, "stride": 2, "base": 1}, 5) == (1, 3, 5)
    assert group_members({"ranks": 2, "members": (0, 7)}, 7) == (0, 7)
    assert group_members({}, 3) == ()
    plan = Plan(tp=2, cp=2, dp=3, pp=2)
    for axis, count in (("tp", 2), ("cp", 2), ("dp", 3), ("pp", 2)):
        for r in range(plan.ranks):
            members = group_members({"ranks": count, "stride": plan.stride(axis)}, r)
            others = {k: v for k, v in plan.place(r).items() if k != axis}
            assert members == tuple(
                m for m in range(plan.ranks) if {k: v for k, v in plan.place(m).items() if k != axis} == others
            )


def test_a_send_and_receive_is_two_nodes() -> None:
    rank = only(replay_graph(collectives(ring=True), "h100-sxm:8"))
    (send,), (receive,) = ([n for n in rank.nodes if n.type == t] for t in (NodeType.SEND, NodeType.RECEIVE))
    assert (send.attributes["comm_src"], send.attributes["comm_dst"]) == (0, 2)
    assert (receive.attributes["comm_src"], receive.attributes["comm_dst"]) == (6, 0)
    reader = rank.nodes[-1]
    assert set(reader.data_deps) == {send.id, receive.id}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("plan", PLANS)
def test_the_ranks_of_a_plan_agree(tmp_path: Path, plan: str, tied: bool) -> None:
    result = replay_graph(training(layers=8, tied=tied), "h100-sxm:8", plan=plan, batch=32)
    files = save_chakra_result(result, tmp_path / "step", range(8))
    assert len(files) == 9
    found = load_chakra(tmp_path / "step")
    assert not found.warnings
    sent, received = Counter[Any](), Counter[Any]()
    collectives: dict[str, dict[int, list[tuple[int, int]]]] = {}
    last = []
    for rank in found.ranks:
        times = replayed(rank.nodes)
        last.append(max(n.start_s + n.duration_s for n in rank.nodes))
        for node in rank.nodes:
            assert times[node.id][0] <= node.start_s + 1e-12
            said = node.attributes
            ends = tuple(said.get(f"comm_{key}") for key in ("src", "dst", "tag", "size"))
            if node.type == NodeType.SEND:
                assert ends[0] == rank.rank
                sent[ends] += 1
            elif node.type == NodeType.RECEIVE:
                assert ends[1] == rank.rank
                received[ends] += 1
            elif node.type == NodeType.COLLECTIVE:
                each = collectives.setdefault(said["pg_name"], {})
                each.setdefault(rank.rank, []).append((said["comm_type"], said["comm_size"]))
    assert sent == received
    assert bool(sent) == ("pp" in plan)
    for group, by_rank in collectives.items():
        assert tuple(sorted(by_rank)) == found.groups[group]
        assert len(set(map(tuple, by_rank.values()))) == 1, group  # all call the same, in the same order
    assert max(last) == pytest.approx(result.time_s, rel=0.02)
    again = load_trace(tmp_path / "step")
    assert set(again.rank.tolist()) == set(range(8))
    assert again.info["plan"] == result.plan


def test_a_plan_writes_one_rank_of_each_class(tmp_path: Path) -> None:
    result = replay_graph(training(), "h100-sxm:8", plan="pp=2,dp=4", batch=16)
    names = [p.name for p in save_chakra_result(result, tmp_path / "step")]
    assert names == ["step.0.et", "step.4.et", "step.groups.json"]
    trace = result.trace
    for rank in load_chakra(tmp_path / "step").ranks:
        own = trace.select(trace.rank == rank.rank)
        there = Counter(n.name for n in rank.nodes if n.type != NodeType.RECEIVE)
        assert there == Counter(own.name)
        kernels = sum(n.duration_s for n in rank.nodes if n.attributes.get("stream") == "compute")
        assert kernels == pytest.approx(float(own.duration_s[own.stream.where(lambda s: s == "compute")].sum()))


def test_ranks_that_are_not_there(tmp_path: Path) -> None:
    result = replay_graph(mlp(), "h100-sxm")
    with pytest.raises(UnknownNameError):
        save_chakra_result(result, tmp_path / "step", [1])
    parallel = replay_graph(training(), "h100-sxm:4", plan="dp=4", batch=8)
    with pytest.raises(UnknownNameError):
        save_chakra_result(parallel, tmp_path / "step", [4])
    assert not list(tmp_path.iterdir())


def test_a_graph_without_ops(tmp_path: Path) -> None:
    result = replay_graph(replace(mlp(), ops=(), tensors=()), "h100-sxm")
    save_chakra_result(result, tmp_path / "step")
    assert len(load_trace(tmp_path / "step")) == 0


def test_equal_results_give_equal_files(tmp_path: Path) -> None:
    save_graph(collectives(), tmp_path / "a.graph")
    written = []
    for name in ("one", "two"):
        result = replay_graph(load_graph(tmp_path / "a.graph"), "h100-sxm:8")
        written.append([p.read_bytes() for p in save_chakra_result(result, tmp_path / name)])
    assert written[0] == written[1]


def test_host_waits_are_dependencies() -> None:
    b = Builder()
    y = b.pointwise("relu", b.tensor("x", 256, 256, role=Role.INPUT))
    b.op(OpKind.HOST, "aten.item.default", [y], [])
    b.pointwise("neg", y)
    nodes = only(replay_graph(b.graph(), "h100-sxm")).nodes
    by_name = {(n.name, n.attributes["is_cpu_op"]): n for n in nodes}
    kernel, item = by_name["aten.relu.default", False], by_name["aten.item.default", True]
    assert kernel.id in item.ctrl_deps
    assert item.start_s == pytest.approx(kernel.start_s + kernel.duration_s)


def test_a_trace_becomes_a_graph_for_other_hardware(tmp_path: Path) -> None:
    graph = collectives(ring=True)
    result = replay_graph(graph, "h100-sxm:8", batch=6, execution="cudagraph", costs="roofline")
    save_chakra_result(result, tmp_path / "step")
    again = chakra_graph(tmp_path / "step")
    wanted = [op for op in result.table.graph.ops if op.kind is OpKind.COLLECTIVE]
    found = [op for op in again.ops if op.kind is OpKind.COLLECTIVE]
    assert [op.name.split(".")[1].split("_")[0] for op in found[:4]] == ["reduce", "all", "all", "all"]
    for op, other in zip(wanted[:5], found, strict=False):
        assert other.attributes["bytes"] == evaluate_dim(op.attributes["bytes"], result.bindings)
        assert (other.attributes["ranks"], other.attributes["stride"]) == (4, 2)
    assert [op.name for op in found[5:]] == ["c10d.send.default", "c10d.recv_.default"]
    others = [op for op in again.ops if op.kind is OpKind.OTHER]
    assert (
        sum(op.work.bytes for op in others)
        == result.table.bytes[result.table.row][
            [i for i, op in enumerate(result.table.graph.ops) if op.kind is OpKind.ELEMENTWISE]
        ].sum()
    )
    assert replay_graph(again, "h100-sxm:8", execution="cudagraph").time_s > 0
    assert "note.memory" in again.metadata
    with pytest.raises(UnknownNameError):
        chakra_graph(tmp_path / "step", rank=3)


def test_the_command_line_writes_them(tmp_path: Path) -> None:
    from foretrace.cli import app

    save_graph(training(), tmp_path / "stack.graph")
    call = ["replay", str(tmp_path / "stack.graph"), "--on", "h100-sxm:4", "--plan", "pp=2", "--batch", "8", "--json"]
    done = CliRunner().invoke(app, [*call, "--chakra", str(tmp_path / "all"), "--ranks", "0-2,3"])
    assert done.exit_code == 0, done.output
    assert [r.rank for r in load_chakra(tmp_path / "all").ranks] == [0, 1, 2, 3]
    done = CliRunner().invoke(app, [*call, "--chakra", str(tmp_path / "some")])
    assert [r.rank for r in load_chakra(tmp_path / "some").ranks] == [0, 2]
    assert "Chakra, 2 ranks" in done.stderr
    for wrong in ("3-1", "a", "0-", "0-999999999", "9"):
        done = CliRunner().invoke(app, [*call, "--chakra", str(tmp_path / "wrong"), "--ranks", wrong])
        assert done.exit_code == 1, wrong
    assert not list(tmp_path.glob("wrong*"))
