"""PyTorch execution traces: alone, of old and new schemas, joined to Kineto, and damaged."""

import contextlib
import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretrace.ir import FormatError
from foretrace.traces import Trace, load_trace, save_trace
from foretrace.traces.formats.execution_trace import NO_TIMES, join_execution_trace, json_stream, read_execution_trace
from foretrace.traces.formats.execution_trace.json_stream import JsonStream
from foretrace.traces.formats.record_functions import pack_ids, unpack_ids

FRAME = "[pytorch|profiler|execution_trace|"


def tensor(number: int, elements: int, itemsize: int = 4) -> list[Any]:
    return [number, number + 100, 0, elements, itemsize, "cpu"]


def node(number: int, name: str, above: int, shapes: Any = (), values: Any = (), **said: Any) -> dict[str, Any]:
    attrs = {"rf_id": 0, "fw_parent": 0, "seq_id": -1, "scope": 0, "tid": 1, "op_schema": ""} | said
    side = {"values": list(values), "shapes": list(shapes), "types": [], "strides": []}
    return {
        "id": number,
        "name": name,
        "ctrl_deps": above,
        "inputs": side,
        "outputs": {"values": [], "shapes": [], "types": [], "strides": []},
        "attrs": [{"name": key, "type": "uint64", "value": value} for key, value in attrs.items()],
    }


NODES = [
    node(6, "aten::addmm", 5, [[16], [3, 8], [8, 16], [], []], [tensor(7, 24), tensor(8, 128), 1], rf_id=23, seq_id=4),
    node(5, "aten::linear", 4, [[3, 8], [16, 8], [16]], [tensor(7, 24)], rf_id=22),
    node(9, "aten::t", 4, [[16, 8]], [tensor(8, 128)], rf_id=24, op_schema="aten::t(Tensor(a) self) -> Tensor(a)"),
    node(4, "module:net.fc", 3, rf_id=21, scope=7),
    node(3, "phase:forward", 2, rf_id=20, scope=7),
    node(10, "aten::cat", 2, [[[2, 3], [2, 5]], []], [[tensor(1, 6), tensor(2, 10)]], rf_id=25),
    node(21, "AddmmBackward0", 20, rf_id=31, seq_id=4, scope=1, tid=2),
    node(20, "autograd::engine::evaluate_function: AddmmBackward0", 19, rf_id=30, tid=2),
    node(2, FRAME + "thread]", 1, scope=7),
    node(19, FRAME + "thread]", 1, scope=7, tid=2),
    node(1, FRAME + "process]", 1, scope=7, tid=0),
]


def old(new: dict[str, Any]) -> dict[str, Any]:
    """The node as schema 1.0.1 writes it."""
    flat = {a["name"]: a["value"] for a in new["attrs"]}
    sides = {s: new[s]["values"] for s in ("inputs", "outputs")}
    shapes = {"input_shapes": new["inputs"]["shapes"], "input_types": [], "output_shapes": [], "output_types": []}
    return {"name": new["name"], "id": new["id"], "parent": new["ctrl_deps"], **flat, **sides, **shapes}


def write(path: Path, nodes: Any, schema: str = "1.1.1-chakra.0.0.4", **more: Any) -> Path:
    path.write_text(json.dumps({"schema": schema, "pid": 1, "time": "today", **more, "nodes": nodes, "finish_ts": 9}))
    return path


@pytest.mark.parametrize("schema", ["1.0.1", "1.1.1-chakra.0.0.4"])
def test_alone_it_has_structure_and_no_times(tmp_path: Path, schema: str) -> None:
    nodes = [old(n) for n in NODES] if schema == "1.0.1" else NODES
    trace = read_execution_trace(write(tmp_path / "et.json", nodes, schema))
    assert trace.name.tolist() == [
        "phase:forward",
        "module:net.fc",
        "aten::linear",
        "aten::addmm",
        "aten::t",
        "aten::cat",
        "autograd::engine::evaluate_function: AddmmBackward0",
        "AddmmBackward0",
    ]
    assert trace.parent.tolist() == [-1, 0, 1, 2, 1, -1, -1, 6]
    assert trace.kind.tolist() == ["annotation"] * 2 + ["cpu_op"] * 6
    assert trace.stream.tolist() == ["host 1"] * 6 + ["host 2"] * 2
    assert trace.shapes.tolist() == ["", "", "[3,8][16,8][16]", "[16][3,8][8,16]", "[16,8]", "[2,3][2,5]", "", ""]
    assert trace.bytes_moved.tolist() == [0, 0, 96, 608, 0, 64, 0, 0]
    assert trace.module.tolist() == ["", *["net.fc"] * 4, "", "net.fc", "net.fc"]
    assert trace.phase.tolist() == ["forward"] * 5 + [""] * 3
    assert trace.external_id.tolist() == [20, 21, 22, 23, 24, 25, 30, 31]
    assert (trace.total_s, trace.source, trace.info["schema_version"]) == (0.0, "foreign", schema)
    assert trace.info["warnings"] == [NO_TIMES]


def test_load_trace_knows_it_by_its_content(tmp_path: Path) -> None:
    path = write(tmp_path / "run.json", NODES)
    zipped = tmp_path / "run.bin"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    assert load_trace(path) == load_trace(zipped).replace(title="run.json")
    save_trace(load_trace(path), tmp_path / "run.trace")
    assert load_trace(tmp_path / "run.trace") == load_trace(path)


def kineto(tmp_path: Path, rows: list[tuple[str, int, int | None]]) -> Trace:
    """A Kineto file of operators (name, external id, record function id)."""
    events = []
    for i, (name, external, record) in enumerate(rows):
        args = {"External id": external, "Ev Idx": i} | ({} if record is None else {"Record function id": record})
        events.append(
            {"ph": "X", "cat": "cpu_op", "name": name, "pid": 1, "tid": 1, "ts": i * 10.5, "dur": 5, "args": args}
        )
    path = tmp_path / "kineto.json"
    path.write_text(json.dumps({"schemaVersion": 1, "traceEvents": events}))
    return load_trace(path)


@pytest.mark.parametrize("known", [True, False])
def test_kineto_gets_shapes_and_bytes_by_record_function_id(tmp_path: Path, known: bool) -> None:
    ids = [(22, "aten::linear"), (23, "aten::addmm"), (25, "aten::cat"), (99, "aten::relu")]
    rows = [(name, number - 20 if known else number, number if known else None) for number, name in ids]
    joined = join_execution_trace(kineto(tmp_path, rows), write(tmp_path / "et.json", NODES))
    assert joined.shapes.tolist() == ["[3,8][16,8][16]", "[16][3,8][8,16]", "[2,3][2,5]", ""]
    assert joined.bytes_moved.tolist() == [96, 608, 64, 0]
    assert joined.duration_s.tolist() == pytest.approx([5e-6] * 4)
    summary = joined.info["execution_trace"]
    assert (summary["joined"], summary["of"], summary["nodes"]) == (3, 4, 8)
    assert joined.info["warnings"] == ["et.json: only 3 of 4 operators join by record function id"]


def test_joining_keeps_what_kineto_says(tmp_path: Path) -> None:
    rows = [("aten::linear", 22, 22), ("aten::addmm", 23, 23)]
    trace = kineto(tmp_path, rows).replace(shapes=["[1,1]", ""], bytes_moved=[7.0, 0.0])
    joined = join_execution_trace(trace, write(tmp_path / "et.json", NODES))
    assert joined.shapes.tolist() == ["[1,1]", "[16][3,8][8,16]"]
    assert joined.bytes_moved.tolist() == [7, 608]
    part = join_execution_trace(trace.select(np.array([1])), tmp_path / "et.json")
    assert part.shapes.tolist() == ["[16][3,8][8,16]"]


def test_the_files_of_two_runs_do_not_join(tmp_path: Path) -> None:
    path = write(tmp_path / "et.json", NODES)
    with pytest.raises(FormatError, match=r"et\.json: none of the 2 operators .* files of one run"):
        join_execution_trace(kineto(tmp_path, [("aten::mm", 22, 22), ("aten::linear", 5, 5)]), path)


@given(st.lists(st.tuples(st.integers(-1, 60), st.integers(-1, 3), st.integers(0, 1)), max_size=60))
def test_packed_ids_unpack(drawn: list[tuple[int, int, int]]) -> None:
    table = dict(sorted((e, e + 7 * d if d >= 0 else -1) for e, d, _ in drawn if e >= 0))
    external, record = np.array(list(table), np.int64), np.array(list(table.values()), np.int64)
    runs = pack_ids(external, record)
    known = record >= 0
    assert unpack_ids(external, runs)[known].tolist() == record[known].tolist()
    assert bool(runs) == bool((record != external)[known].any())
    json.dumps(runs)


@pytest.mark.parametrize("runs", [[[1, 2]], [["a", 1, 2]], "no", {"a": 1}, [[1 << 70, 1, 1]], [[[1], [2], [3]]]])
def test_unreadable_runs_join_nothing(runs: Any) -> None:
    assert unpack_ids(np.array([1, 2]), runs).tolist() == [-1, -1]


def test_what_is_unsound_is_left_out_and_said(tmp_path: Path) -> None:
    odd = [
        *NODES,
        5,
        {"name": "no id"},
        {"id": -3, "name": "negative"},
        {"id": 1 << 80, "name": "huge"},
        {"id": 40, "name": 7},
        node(6, "again", 5),
        node(50, "loop", 51),
        node(51, "loop", 50),
        node(52, "self", 52),
        {"id": 53, "name": "odd", "ctrl_deps": "x", "attrs": [1, {"name": []}], "inputs": {"shapes": {"a": 1}}},
        {"id": 54, "name": "bad\ud800name", "inputs": [[[[]]]], "rf_id": 1 << 90, "input_shapes": [["x"], [1.5]]},
    ]
    trace = read_execution_trace(write(tmp_path / "et.json", odd))
    assert len(trace) == 8 + 5
    assert trace.parent.tolist()[8:] == [-1, 8, -1, -1, -1]
    text = " ".join(trace.info["warnings"])
    for count, what in ((1, "not objects"), (4, "readable id or name"), (1, "id of another"), (2, "began after")):
        assert f"{count} nodes" in text
        assert what in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "the file is empty"),
        (b"  ", "the file is empty"),
        (b"[]", "not valid JSON: expected {"),
        (b"{}", r"no list of nodes \(top-level keys: none\)"),
        (b'{"a": 1, "nodes": {}}', "no list of nodes"),
        (b'{"nodes": []}', "no sound node"),
        (b'{"nodes": [1, 2]}', "no sound node.*2 nodes that are not objects"),
        (b'{"nodes": [{"id": 1', "cut off"),
        (b'{"schema": 1', "cut off"),
        (b'{"nodes": [' + b"[" * 100_000, "nested too deep"),
        (b'{"nodes": [{"id": ' + b"9" * 5000 + b"}]}", "not valid JSON"),
        (b'{"nodes": [{"id" 1, "name": "a long enough name"}]}', "not valid JSON: expected JSON"),
        (b'{"nodes" 1}', "not valid JSON: expected :"),
        (b"{1: 2}", "expected a key|not valid JSON"),
        (b"\xff\xfe{\x00}\x00", "UTF-16"),
    ],
)
def test_damage_names_the_file(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "et.json"
    path.write_bytes(text)
    with pytest.raises(FormatError, match=message) as caught:
        read_execution_trace(path)
    assert "et.json" in str(caught.value)


def test_a_file_that_is_cut_off_gives_the_nodes_before(tmp_path: Path) -> None:
    whole = write(tmp_path / "et.json", NODES).read_bytes()
    cut = tmp_path / "cut.json"
    cut.write_bytes(whole[: whole.index(b"module:net.fc")])
    trace = read_execution_trace(cut)
    assert sorted(trace.name.tolist()) == ["aten::addmm", "aten::linear", "aten::t"]
    assert "cut off" in trace.info["warnings"][1]
    assert "3 nodes" in trace.info["warnings"][1]
    cut.write_bytes(gzip.compress(whole)[:-30])
    assert "cut off" in str(read_execution_trace(cut).info["warnings"])


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cannot read"):
        read_execution_trace(tmp_path / "none.json")


@given(st.data())
def test_any_damage_is_an_error_of_ours(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = write(tmp_path_factory.getbasetemp() / "damaged.json", NODES[:4])
    text = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    path.write_bytes(text)
    with contextlib.suppress(FormatError):
        read_execution_trace(path)


@given(st.lists(st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5), max_size=8), st.data())
def test_the_stream_gives_what_json_gives(
    tmp_path_factory: pytest.TempPathFactory, elements: list[Any], data: st.DataObject
) -> None:
    document = {"a": "nodes", "n": -12.5, "nodes": elements, "z": {"nodes": [1]}}
    path = tmp_path_factory.getbasetemp() / "stream.json"
    text = json.dumps(document, indent=data.draw(st.sampled_from([None, 1])))
    path.write_text(text)
    size = data.draw(st.integers(1, 9))
    stream = JsonStream(path, "nodes")
    stream._pieces = iter([text[i : i + size] for i in range(0, len(text), size)])
    assert list(stream) == elements
    assert stream.found
    assert stream.head == {key: value for key, value in document.items() if key != "nodes"}


def test_one_value_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "MAX_VALUE", 1000)
    path = write(tmp_path / "et.json", [node(5, "x" * 1_000_000, 1)])
    with pytest.raises(FormatError, match="more than 1000"):
        read_execution_trace(path)


def test_a_pair_that_pytorch_records_now(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from torch.profiler import ExecutionTraceObserver, ProfilerActivity, profile

    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    with profile(activities=[ProfilerActivity.CPU]):
        model(torch.randn(3, 8))  # moves record function ids on
    observer = ExecutionTraceObserver().register_callback(str(tmp_path / "et.json"))
    with profile(activities=[ProfilerActivity.CPU], execution_trace_observer=observer) as profiler:
        model(torch.randn(3, 8)).sum().backward()
    profiler.export_chrome_trace(str(tmp_path / "kineto.json"))
    trace = load_trace(tmp_path / "kineto.json")
    joined = join_execution_trace(trace, tmp_path / "et.json")
    assert not trace.shapes.where(bool).any()
    summary = joined.info["execution_trace"]
    assert summary["joined"] == summary["of"] == int(trace.kind.isin(["cpu_op", "annotation"]).sum())
    shapes = [s for n, s in zip(joined.name.tolist(), joined.shapes.tolist(), strict=True) if n == "aten::linear"]
    assert shapes == ["[3,8][16,8][16]", "[3,16][4,16][4]"]
    alone = load_trace(tmp_path / "et.json")
    assert "backward" in alone.phase.used()
    assert len(alone) == summary["nodes"] >= summary["joined"]


@pytest.mark.skipif("FORETRACE_GROUNDTRUTH" not in os.environ, reason="needs files of others")
def test_a_pair_of_someone_else() -> None:
    folder = Path(os.environ["FORETRACE_GROUNDTRUTH"]).parent / "foreign-traces"
    joined = join_execution_trace(load_trace(folder / "simple-add-kineto.json.gz"), folder / "simple-add-et.json.gz")
    assert joined.info["execution_trace"]["joined"] == joined.info["execution_trace"]["of"] == 36
    assert int(joined.shapes.where(bool).sum()) == 12
