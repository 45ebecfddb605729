"""Nsight Systems exports of several schema versions: joins, names, what is missing, and damage."""

import contextlib
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretrace.ir import FormatError
from foretrace.traces import Trace, load_trace
from foretrace.traces.formats.nsight import read_nsight
from foretrace.traces.formats.nsight.names import Range, call_name, copy_name, parse_range
from tests.traces.nsight_files import PID, Export, step, tid

KERNEL, CALL, RANGE = "CUPTI_ACTIVITY_KIND_KERNEL", "CUPTI_ACTIVITY_KIND_RUNTIME", "NVTX_EVENTS"


def rows(trace: Trace, *columns: str) -> dict[str, tuple[object, ...]]:
    """The *columns* of device work by name."""
    values = [getattr(trace, c).tolist() for c in columns]
    on_gpu = trace.stream.where(lambda s: s.startswith("gpu")).tolist()
    named = zip(trace.name.tolist(), on_gpu, zip(*values, strict=True), strict=True)
    return {name: row for name, gpu, row in named if gpu}


@pytest.mark.parametrize("by_id", [False, True])
def test_kernels_carry_operator_module_and_phase(tmp_path: Path, by_id: bool) -> None:
    trace = read_nsight(step(by_id).save(tmp_path / "a.sqlite"))
    assert rows(trace, "kind", "stream", "module", "phase", "external_id") == {
        "void gemm<float, 4>(Params)": ("kernel", "gpu 0 stream 7", "net.fc", "forward", 6),
        "bias": ("kernel", "gpu 0 stream 7", "net.fc", "forward", 6),
        "relu": ("kernel", "gpu 0 stream 7", "net", "forward", 7),
        "gemm_bw": ("kernel", "gpu 0 stream 8", "net.fc", "backward", 9),
        "Memcpy HtoD (Pinned -> Device)": ("copy", "gpu 0 stream 7", "", "forward", -1),
    }
    host = trace.select(trace.stream.isin(["host 77"]))
    names, parent = host.name.tolist(), host.parent.tolist()
    above = {n: names[p] if p >= 0 else "" for n, p in zip(names, parent, strict=True)}
    assert above["aten::linear"] == "module:net.fc"
    assert above["aten::addmm"] == "aten::linear"
    assert above["cuLaunchKernel"] == "aten::addmm"
    assert above["cudaMemcpyAsync"] == "phase:forward"
    shapes = dict(zip(trace.name.tolist(), trace.shapes.tolist(), strict=True))
    assert shapes["aten::addmm"] == "[16][4,8][8,16]"
    kinds = dict(zip(trace.name.tolist(), trace.kind.tolist(), strict=True))
    assert kinds["cuLaunchKernel"] == "driver"
    assert kinds["cudaLaunchKernel"] == "launch"
    assert kinds["module:net"] == "annotation"
    assert (trace.system, trace.source, trace.info["warnings"]) == ("NVIDIA H200", "foreign", [])
    assert trace.info["devices"] == [{"id": 0, "name": "NVIDIA H200", "totalMemory": 150_000_000_000, "smCount": 132}]


def test_times_are_seconds_from_the_first_event(tmp_path: Path) -> None:
    trace = load_trace(step().save(tmp_path / "report.db"))
    assert rows(trace, "start_s", "duration_s", "bytes_moved", "correlation")["Memcpy HtoD (Pinned -> Device)"] == (
        *(pytest.approx(9e-7), pytest.approx(5e-8)),
        4096.0,
        104,
    )
    assert trace.info["start_ns"] == 1000


def test_modules_and_phases_without_operators(tmp_path: Path) -> None:
    made = step()
    kept = ("module:", "phase:")
    made.tables[RANGE] = [row for row in made.tables[RANGE] if row["text"].startswith(kept)]
    made.tables[KERNEL][0] |= {"start": 2500, "end": 2600}  # runs when another phase is being issued
    found = rows(read_nsight(made.save(tmp_path / "a.sqlite")), "module", "phase")
    assert found["void gemm<float, 4>(Params)"] == ("net.fc", "forward")
    assert found["relu"] == ("net", "forward")
    assert found["gemm_bw"] == ("", "backward")


def test_without_ranges_kernels_still_join_their_launches(tmp_path: Path) -> None:
    trace = read_nsight(step(ranges=False).save(tmp_path / "a.sqlite"))
    assert rows(trace, "module", "correlation", "external_id")["bias"] == ("", 102, -1)
    assert trace.info["warnings"] == []


def test_without_calls_kernels_stand_alone_and_it_is_said(tmp_path: Path) -> None:
    made = step()
    del made.tables[CALL]
    trace = read_nsight(made.save(tmp_path / "a.sqlite"))
    assert rows(trace, "external_id")["bias"] == (-1,)
    assert "no table CUPTI_ACTIVITY_KIND_RUNTIME" in trace.info["warnings"][0]


def test_older_schemas(tmp_path: Path) -> None:
    made = step()
    made.drop(KERNEL, "demangledName", "globalPid", "contextId")
    made.drop(RANGE, "textId", "eventType")
    del made.tables["TARGET_INFO_GPU"]
    trace = read_nsight(made.save(tmp_path / "a.sqlite"))
    assert rows(trace, "module", "phase", "external_id")["void gemm"] == ("net.fc", "forward", 6)
    assert (trace.system, trace.info["devices"]) == ("", [])
    made.drop(KERNEL, "shortName")
    assert "unknown" in read_nsight(made.save(tmp_path / "a.sqlite")).name.used()
    del made.texts["bias"]
    made.texts.clear()
    assert len(read_nsight(made.save(tmp_path / "a.sqlite"))) == len(trace)


def test_ids_are_unique_in_a_process_only(tmp_path: Path) -> None:
    made = Export()
    for pid, rank in ((PID, 0), (PID + 1, 1)):
        process = tid(0, pid)
        made.range(f"phase:p{rank}", 0, 100, tid(5, pid))
        made.range(f"module:m{rank}", 1, 90, tid(5, pid))
        made.range("aten::mm, op_id = 3", 2, 80, tid(5, pid))
        made.call("cudaLaunchKernel_v7000", 10, 20, 9, tid(5, pid))
        made.kernel(f"k{rank}", 50 + rank, 70, 9, globalPid=process)
    trace = read_nsight(made.save(tmp_path / "a.sqlite"))
    assert rows(trace, "module", "phase", "rank") == {"k0": ("m0", "p0", 0), "k1": ("m1", "p1", 1)}
    assert f"2 processes used a GPU: ranks are in the order of their ids ({PID}, {PID + 1})" in trace.info["warnings"]
    for column in ("external_id", "correlation"):
        mine, other = (set(getattr(trace, column)[trace.rank == r].tolist()) - {-1} for r in (0, 1))
        assert mine
        assert not mine & other
    ids = trace.parent[trace.parent >= 0]
    assert (trace.rank[ids] == trace.rank[trace.parent >= 0]).all()


def test_ranges_that_need_not_nest_leave_the_calls_alone(tmp_path: Path) -> None:
    made = step()
    made.range("module:other", 1120, 1700, eventType=60)  # ends inside module:net, begins inside a call
    found = rows(read_nsight(made.save(tmp_path / "a.sqlite")), "module")
    assert found["void gemm<float, 4>(Params)"] == ("net.fc",)
    assert found["relu"] == ("net",)
    trace = read_nsight(made.save(tmp_path / "a.sqlite"))
    assert "host 77 ranges" in trace.stream.used()


def test_start_end_ranges_that_nest_count_as_the_others(tmp_path: Path) -> None:
    made = step()
    for row in made.tables[RANGE][:3]:
        row["eventType"] = 60
    assert rows(read_nsight(made.save(tmp_path / "a.sqlite")), "module")["relu"] == ("net",)


def test_what_is_unsound_is_left_out_and_counted(tmp_path: Path) -> None:
    made = step()
    made.kernel("negative", 500, 400, 1)
    made.kernel("no end", 500, None, 2)  # type: ignore[arg-type]
    made.kernel("text", "soon", 9, 3)  # type: ignore[arg-type]
    made.kernel("absurd", 1 << 62, (1 << 62) + 5, 4)
    made.range("never closed", 1000, None)
    made.range("a mark", 1000, None, eventType=34)
    made.range("late\udc80".encode("utf-8", "surrogateescape").decode("latin-1"), 1000, 1001)
    trace = read_nsight(made.save(tmp_path / "a.sqlite"))
    assert trace.info["warnings"] == [
        "3 events without a readable start or end: left out",
        "1 events with a negative duration: left out",
        "1 events too far from the others in time: left out",
    ]
    assert len(trace) == len(read_nsight(step().save(tmp_path / "b.sqlite"))) + 1


def test_names_that_are_no_text(tmp_path: Path) -> None:
    path = step().save(tmp_path / "a.sqlite")
    connection = sqlite3.connect(path)
    connection.execute("UPDATE StringIds SET value = CAST(x'ff41' AS TEXT) WHERE value = 'bias'")
    connection.execute("UPDATE StringIds SET value = x'00' WHERE value = 'relu'")
    connection.execute("UPDATE NVTX_EVENTS SET text = 5, textId = 'x' WHERE text LIKE 'aten::relu%'")
    connection.commit()
    connection.close()
    names = read_nsight(path).name.used()
    assert {"\ufffdA", "unknown", "5"} <= set(names)


def test_graphs_and_waits(tmp_path: Path) -> None:
    made = step()
    device = {"deviceId": 0, "streamId": 7, "globalPid": tid(0)}
    made.add("CUPTI_ACTIVITY_KIND_GRAPH_TRACE", start=2600, end=2700, correlationId=7, graphId=3, **device)
    made.add("CUPTI_ACTIVITY_KIND_SYNCHRONIZATION", start=2000, end=2100, correlationId=8, syncType=3, **device)
    made.add("CUPTI_ACTIVITY_KIND_MEMSET", start=2100, end=2110, correlationId=9, bytes=64, **device)
    trace = read_nsight(made.save(tmp_path / "a.sqlite"))
    found = rows(trace, "kind")
    assert (found["CUDA graph 3"], found["Stream Sync"], found["Memset (Device)"]) == (
        ("kernel",),
        ("sync",),
        ("memset",),
    )
    assert "--cuda-graph-trace=node" in trace.info["warnings"][0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("aten::linear, seq = 12, op_id = 5, sizes = [[4, 8], [8], []]", ("aten::linear", "cpu_op", "[4,8][8]", 12, 5)),
        ("aten::add, op_id = 7, sizes = [[], []]", ("aten::add", "cpu_op", "", -1, 7)),
        ("MulBackward0, seq = 3, sizes = [[2]], input_op_ids = [(1,0)]", ("MulBackward0", "cpu_op", "[2]", 3, -1)),
        ("aten::cat, op_id = 1, sizes = [[[2, 3], [4, 3]], []]", ("aten::cat", "cpu_op", "[2,3][4,3]", -1, 1)),
        ("aten::relu", ("aten::relu", "cpu_op", "", -1, -1)),
        ("phase:forward, op_id = 2", ("phase:forward", "annotation", "", -1, -1)),
        ("module:a.b", ("module:a.b", "annotation", "", -1, -1)),
        ("my range, of two words", ("my range, of two words", "annotation", "", -1, -1)),
        ("x, seq = " + "9" * 40, ("x", "cpu_op", "", -1, -1)),
    ],
)
def test_range_texts(text: str, expected: tuple[str, str, str, int, int]) -> None:
    assert parse_range(text) == Range(*expected)


@given(
    st.text() | st.lists(st.sampled_from([", seq = ", ", sizes = ", "[", "1", "[[", "]", ", op_id = "])).map("".join)
)
def test_any_range_text_is_read(text: str) -> None:
    parse_range(text)


def test_names_of_calls_and_copies() -> None:
    assert call_name("cudaMemcpyAsync_ptsz_v7000") == "cudaMemcpyAsync"
    assert call_name("cuLaunchKernel") == "cuLaunchKernel"
    assert copy_name(8, 2, 2) == "Memcpy DtoD (Device -> Device)"
    assert copy_name(99, -1, 2) == "Memcpy unknown"


def database(path: Path, *statements: str) -> Path:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()
    return path


def test_a_database_of_something_else(tmp_path: Path) -> None:
    path = database(tmp_path / "a.db", "CREATE TABLE users (id)", f"CREATE TABLE {KERNEL} (other)")
    with pytest.raises(FormatError, match=r"a\.db: no kernels.*tables: CUPTI.*users.*nsys export"):
        load_trace(path)
    path = database(tmp_path / "b.db", f"CREATE TABLE {KERNEL} (start, end)", f"INSERT INTO {KERNEL} VALUES (9, 1)")
    with pytest.raises(FormatError, match=r"no sound event among 1: .*1 events with a negative duration"):
        load_trace(path)


def test_nothing_of_the_schema_is_run(tmp_path: Path) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i AS start, i AS end FROM n"
    path = database(tmp_path / "a.db", f"CREATE VIEW {KERNEL} AS {endless}")
    with pytest.raises(FormatError, match="no kernels"):
        read_nsight(path)
    made = step().save(tmp_path / "b.db")
    before = made.read_bytes()
    read_nsight(made)
    assert made.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.db", "b.db"]


def test_files_that_are_no_database(tmp_path: Path) -> None:
    path = tmp_path / "a b?#.sqlite"
    for data, message in ((b"", "the file is empty"), (b"NSYS", "no SQLite database")):
        path.write_bytes(data)
        with pytest.raises(FormatError, match=message):
            read_nsight(path)
    step().save(path)
    assert len(read_nsight(path)) == 19
    with pytest.raises(FormatError, match="cannot read"):
        read_nsight(tmp_path / "none")


@given(st.data())
def test_any_damage_is_an_error_of_ours(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp()
    whole = folder / "whole.sqlite"
    if not whole.exists():
        step().save(whole)
    content = bytearray(whole.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(16, len(content) - 1)) :]
    for _ in range(data.draw(st.integers(0, 4)) if len(content) > 16 else 0):
        content[data.draw(st.integers(16, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = folder / "damaged.sqlite"
    path.write_bytes(content)
    with contextlib.suppress(FormatError):
        read_nsight(path)


def test_half_a_database(tmp_path: Path) -> None:
    made = step()
    for i in range(20_000):
        made.kernel("many", 3000 + i, 3001 + i, 1000 + i)
    path = made.save(tmp_path / "a.sqlite")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(FormatError, match=r"a\.sqlite: cut off or corrupt .*export it again: nsys export"):
        read_nsight(path)
