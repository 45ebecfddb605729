"""Chakra files: writing and reading is the identity, the published schema reads them, damage is an error or a note."""

import io
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretrace.ir import ForetraceError, FormatError, GraphError
from foretrace.traces import load_trace
from foretrace.traces.formats.chakra import (
    ChakraNode,
    ChakraRank,
    ChakraTrace,
    NodeType,
    RankReader,
    encode_rank,
    load_chakra,
    load_rank,
    save_chakra,
)
from tests.traces.chakra_files import HEAD, NODE, framed, messages, small

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
seconds = st.floats(0, 1e6, allow_subnormal=False) | st.sampled_from([0.0, 1e-9, 1 / 3, 2.5e-7])
scalars = (
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False),
    texts,
    st.binary(max_size=8),
)
values = st.one_of(*scalars) | st.one_of(*(st.lists(s, max_size=3).map(tuple) for s in scalars[3:])) | st.lists(
    st.integers(-(2**63), 2**63 - 1), max_size=3
).map(tuple)  # fmt: skip
names = texts.filter(lambda n: n not in ("start_s", "duration_s"))
attributes = st.dictionaries(names, values, max_size=4)


@st.composite
def ranks(draw: st.DrawFn, number: int = 0) -> ChakraRank:
    ids = draw(st.lists(st.integers(0, 2**64 - 1), unique=True, max_size=8))
    nodes = []
    for i, id_ in enumerate(ids):
        before = st.lists(st.sampled_from(ids[:i]), unique=True, max_size=3).map(tuple) if i else st.just(())
        node = ChakraNode(
            id_,
            draw(texts),
            draw(st.integers(0, 9)),
            draw(before),
            draw(before),
            draw(seconds),
            draw(seconds),
            draw(attributes),
            draw(st.tuples(texts, texts, texts)),
        )
        nodes.append(node)
    return ChakraRank(number, tuple(nodes), draw(attributes), draw(texts))


@given(ranks())
def test_writing_and_reading_is_the_identity(rank: ChakraRank) -> None:
    reader = RankReader(io.BytesIO(encode_rank(rank)), "x.0.et")
    assert tuple(reader) == rank.nodes
    assert reader.version == rank.version
    assert reader.metadata == rank.metadata


@given(st.lists(ranks(), min_size=1, max_size=3), st.dictionaries(texts, st.lists(st.integers(0, 9)).map(tuple)))
def test_a_trace_of_several_ranks_reads_back(
    tmp_path_factory: pytest.TempPathFactory, made: list[ChakraRank], groups: dict[str, tuple[int, ...]]
) -> None:
    prefix = tmp_path_factory.mktemp("chakra") / "run.1"
    numbered = tuple(ChakraRank(3 * i, r.nodes, r.metadata, r.version) for i, r in enumerate(made))
    files = save_chakra(ChakraTrace(numbered, groups), prefix)
    assert [f.name for f in files] == [f"run.1.{3 * i}.et" for i in range(len(made))] + ["run.1.groups.json"]
    for path in (prefix, prefix.parent):
        found = load_chakra(path)
        assert found == ChakraTrace(numbered, groups)
        assert not found.warnings
    assert load_chakra(files[0]) == ChakraTrace(numbered[:1], groups)


@given(ranks())
def test_the_published_schema_reads_what_is_written(rank: ChakraRank) -> None:
    (_, head), *bodies = messages(encode_rank(rank))
    assert HEAD.FromString(head).version == rank.version
    assert len(bodies) == len(rank.nodes)
    for (_, body), node in zip(bodies, rank.nodes, strict=True):
        found = NODE.FromString(body)
        assert (found.id, found.name, found.type) == (node.id, node.name, node.type)
        assert (tuple(found.data_deps), tuple(found.ctrl_deps)) == (node.data_deps, node.ctrl_deps)
        assert abs(found.duration_micros - node.duration_s * 1e6) <= 1.01
        assert [a.name for a in found.attr] == [*node.attributes, "start_s", "duration_s"]


def test_attributes_are_of_the_type_that_astra_sim_reads() -> None:
    said = {
        "is_cpu_op": False,
        "num_ops": 1,
        "tensor_size": 2,
        "comm_type": 2,
        "comm_size": 3,
        "comm_src": 4,
        "comm_dst": 5,
        "comm_tag": 6,
        "comm_priority": 0,
        "pg_name": "7",
    }
    data = encode_rank(ChakraRank(0, (ChakraNode(1, "c", NodeType.COLLECTIVE, attributes=said),)))
    fields = {a.name: a.WhichOneof("value") for a in NODE.FromString(messages(data)[1][1]).attr}
    assert fields == {
        "is_cpu_op": "bool_val",
        "num_ops": "int64_val",
        "tensor_size": "uint64_val",
        "comm_type": "int64_val",
        "comm_size": "int64_val",
        "comm_src": "int32_val",
        "comm_dst": "int32_val",
        "comm_tag": "int32_val",
        "comm_priority": "int32_val",
        "pg_name": "string_val",
        "start_s": "double_val",
        "duration_s": "double_val",
    }


def test_whole_microseconds_add_up_along_a_stream() -> None:
    nodes = tuple(ChakraNode(i, "k", 4, start_s=i * 2.4e-6, duration_s=2.4e-6) for i in range(1000))
    found = [NODE.FromString(body) for _, body in messages(encode_rank(ChakraRank(0, nodes)))[1:]]
    assert sum(n.duration_micros for n in found) == 2400
    assert {n.duration_micros for n in found} == {2, 3}


def test_times_that_another_tool_has_changed_hold() -> None:
    head, body = (b for _, b in messages(encode_rank(ChakraRank(0, (ChakraNode(1, "k", 4, duration_s=5e-6),)))))
    node = NODE.FromString(body)
    node.duration_micros = 80
    (found,) = RankReader(io.BytesIO(framed(head, node.SerializeToString())), "x")
    assert found.duration_s == pytest.approx(80e-6)


def test_a_stranger_s_file_keeps_what_is_unknown(tmp_path: Path) -> None:
    head = HEAD(version="0.0.4")
    odd = NODE(id=7, name="new", duration_micros=12)
    odd.attr.add(name="mystery").sfixed32_list.values.extend([-1, 5])
    odd.attr.add(name="comm_tag").fixed64_val = 2**60
    coll = NODE(id=8, name="nccl", type=7, data_deps=[7])
    coll.attr.add(name="comm_type").int64_val = 42
    bodies = [
        odd.SerializeToString() + b"\x18\x2a" + b"\xfa\x3f\x02hi",
        coll.SerializeToString(),
    ]  # type 42, field 1023
    path = tmp_path / "theirs.et"
    path.write_bytes(framed(head.SerializeToString(), *bodies))
    first, second = load_rank(path).nodes
    assert first.kind == "node type 42"
    assert first.attributes == {"mystery": (-1, 5), "comm_tag": 2**60}
    assert (second.kind, second.collective) == ("collective", "collective 42")
    assert ChakraNode(1, "c", 7, attributes={"comm_type": 7}).collective == "reduce-scatter"
    trace = load_trace(path)
    assert list(trace.kind) == ["node type 42", "collective"]
    assert trace.source == "foreign"
    assert trace.start_s.tolist() == pytest.approx([0.0, 12e-6])  # no times in the file: by dependencies
    assert "no start times" in trace.info["warnings"][0]


def test_the_trace_has_ranks_kinds_and_times(tmp_path: Path) -> None:
    save_chakra(ChakraTrace((small(3, 0), small(2, 5))), tmp_path / "run")
    for path in (tmp_path / "run", tmp_path):
        trace = load_trace(path)
        assert trace.rank.tolist() == [0, 5, 0, 5, 0]
        assert list(trace.kind) == ["cpu_op", "cpu_op", "kernel", "kernel", "cpu_op"]
        assert trace.duration_s.tolist() == [2.5e-7] * 5
        assert trace.model == "mlp"
    renamed = tmp_path / "anything"
    (tmp_path / "run.5.et").rename(renamed)
    assert len(load_trace(renamed)) == 2  # by content
    assert load_trace(tmp_path / "run.0.et") == load_chakra(tmp_path / "run.0.et").trace


def test_operators_on_the_host_nest(tmp_path: Path) -> None:
    said = {"is_cpu_op": True}
    outer = ChakraNode(1, "aten::linear", NodeType.COMPUTE, (), (), 1e-6, 9e-6, said)
    inner = ChakraNode(2, "aten::addmm", NodeType.COMPUTE, (), (1,), 2e-6, 5e-6, said)
    kernel = ChakraNode(3, "gemm", NodeType.COMPUTE, (2,), (), 4e-6, 3e-6, {"is_cpu_op": False, "stream": 7})
    save_chakra(ChakraTrace((ChakraRank(0, (outer, inner, kernel)),)), tmp_path / "theirs")
    trace = load_trace(tmp_path / "theirs")
    assert trace.parent.tolist() == [-1, 0, -1]
    assert list(trace.stream) == ["host", "host", "stream 7"]
    assert list(trace.kind) == ["cpu_op", "cpu_op", "kernel"]


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ((ChakraNode(1, "a", 4, (9,)),), "waits for 9, and no node"),
        ((ChakraNode(1, "a", 4), ChakraNode(1, "b", 4)), "two nodes have the id 1"),
        ((ChakraNode(1, "a", 4, (2,)), ChakraNode(2, "b", 4, (), (1,))), "waits for itself"),
        ((ChakraNode(1, "a", 4, attributes={"x": {}}),), "attribute 'x'"),
        ((ChakraNode(1, "a", 4, attributes={"x": 1 << 64}),), "attribute 'x'"),
        ((ChakraNode(1, "a", 4, attributes={"x": (1, "a")}),), "attribute 'x'"),
        ((ChakraNode(-1, "a", 4),), "node -1"),
        ((ChakraNode(1, "a", 4, duration_s=float("nan")),), "node 1"),
        ((ChakraNode(1, "\ud800", 4),), "node 1"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(tmp_path: Path, nodes: Any, message: str) -> None:
    ranks = (small(3, 0), ChakraRank(1, nodes))
    with pytest.raises(ForetraceError, match=message):
        save_chakra(ChakraTrace(ranks, {"1": (0, 1)}), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_failing_write_leaves_the_files_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_chakra(ChakraTrace((small(1, 0), small(1, 1))), tmp_path / "run")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    calls = iter(range(9))

    def full(_: int) -> None:
        if next(calls) == 1:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ForetraceError, match=r"cannot write .*run\.1\.et: No space left"):
        save_chakra(ChakraTrace((small(2, 0), small(2, 1))), tmp_path / "run")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_ranks_of_another_run_are_not_mixed_in(tmp_path: Path) -> None:
    save_chakra(ChakraTrace((small(1, 0), small(1, 1))), tmp_path / "run")
    with pytest.raises(ForetraceError, match=r"run\.1\.et of another run"):
        save_chakra(ChakraTrace((small(2, 0),)), tmp_path / "run")
    assert len(load_chakra(tmp_path / "run").ranks[0].nodes) == 1
    save_chakra(ChakraTrace((small(1, 0),)), tmp_path / "other")
    with pytest.raises(FormatError, match="several runs"):
        load_chakra(tmp_path)


def test_paths_that_are_no_trace(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no such file, and no Chakra trace"):
        load_chakra(tmp_path / "absent")
    with pytest.raises(FormatError, match="cannot read"):
        load_trace(tmp_path / "absent")
    with pytest.raises(ForetraceError, match="it is a folder"):
        save_chakra(ChakraTrace(()), tmp_path)
    with pytest.raises(ForetraceError, match="cannot write"):
        save_chakra(ChakraTrace((small(),)), tmp_path / "absent" / "run")
    (tmp_path / "empty.0.et").write_bytes(b"")
    with pytest.raises(FormatError, match="the file is empty"):
        load_chakra(tmp_path / "empty.0.et")


def test_a_hundred_thousand_nodes(tmp_path: Path) -> None:
    rank = small(100_000)
    save_chakra(ChakraTrace((rank,)), tmp_path / "large")
    assert load_rank(tmp_path / "large.0.et").nodes == rank.nodes
    assert len(load_trace(tmp_path / "large")) == 100_000


def test_a_cycle_is_an_error_of_the_graph() -> None:
    with pytest.raises(GraphError):
        encode_rank(ChakraRank(0, (ChakraNode(1, "a", 4, (1,)),)))
