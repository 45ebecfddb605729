"""Folders of Kineto files: ranks, one clock, what cannot be read; and the memory that a trace carries."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foretrace.ir import ForetraceError, FormatError
from foretrace.traces import Trace, load_trace, save_trace
from foretrace.traces.formats.execution_trace import join_execution_trace
from foretrace.traces.formats.kineto import read_json
from foretrace.traces.formats.record_functions import unpack_ids
from foretrace.traces.memory import MAX_POINTS, MemoryLine, memory_line, thin_memory


def events_of(start: float) -> list[dict[str, Any]]:
    host = {"ph": "X", "pid": 1, "tid": 1, "dur": 5}
    return [
        {**host, "cat": "cpu_op", "name": "aten::mm", "ts": start, "args": {"External id": 1}},
        {**host, "cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": start + 1, "dur": 2,
         "args": {"correlation": 4}},
        {"ph": "X", "cat": "kernel", "name": "gemm", "pid": 0, "tid": 7, "ts": start + 9, "dur": 3,
         "args": {"device": 0, "stream": 7, "correlation": 4}},
        {"ph": "i", "name": "note", "ts": start},
    ]  # fmt: skip


def write(path: Path, start: float = 0.0, **top: Any) -> None:
    text = json.dumps({**top, "traceEvents": events_of(start)}).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def test_a_folder_is_one_trace_of_all_ranks_on_one_clock(tmp_path: Path) -> None:
    base = 1_735_632_360_000_000_000
    write(tmp_path / "a.pt.trace.json", 50, baseTimeNanoseconds=base, distributedInfo={"rank": 2})
    write(tmp_path / "b.json.gz", 7, baseTimeNanoseconds=base + 40_000, distributedInfo={"rank": 0})
    (tmp_path / "notes.txt").write_text("no trace")
    told: list[float] = []
    trace = load_trace(tmp_path, progress=told.append)
    assert trace.rank.tolist() == [0, 0, 0, 2, 2, 2]
    assert trace.start_s == pytest.approx(np.array([0, 1, 9, 3, 4, 12]) * 1e-6, abs=1e-12)
    assert trace.parent.tolist() == [-1, 0, -1, -1, 3, -1]
    gemm = np.flatnonzero(trace.name.isin(["gemm"]))
    operator = np.flatnonzero(trace.name.isin(["aten::mm"]))
    assert trace.external_id[gemm].tolist() == trace.external_id[operator].tolist()
    assert len(set(trace.external_id[gemm].tolist())) == len(set(trace.correlation[gemm].tolist())) == 2
    assert trace.info["warnings"] == []
    assert trace.info["files"] == {"0": "b.json.gz", "2": "a.pt.trace.json"}
    assert trace.info["other_events"] == {"i": 2}
    assert trace.title == tmp_path.name
    assert told == sorted(told)
    assert told[-1] == 1.0


@pytest.mark.parametrize(
    ("names", "ranks"),
    [
        (["run_rank10.json", "run_rank9.json"], {"9": "run_rank9.json", "10": "run_rank10.json"}),
        (["rank-1_1735632360.json", "rank-0_1735632360.json"],
         {"0": "rank-0_1735632360.json", "1": "rank-1_1735632360.json"}),
        (["trace_3.json", "trace_12.json.gz"], {"3": "trace_3.json", "12": "trace_12.json.gz"}),
        (["b.json", "a.json", "c.json"], {"0": "a.json", "1": "b.json", "2": "c.json"}),
    ],
)  # fmt: skip
def test_ranks_by_the_names_where_the_files_say_none(names: list[str], ranks: dict[str, str], tmp_path: Path) -> None:
    for name in names:
        write(tmp_path / name)
    assert load_trace(tmp_path).info["files"] == ranks


def test_record_functions_of_each_rank_survive(tmp_path: Path) -> None:
    def joined(name: str, number: int | None, rank: int) -> None:
        events = events_of(5.0)
        if number is not None:
            events[0]["args"]["Record function id"] = number
        (tmp_path / name).write_text(json.dumps({"traceEvents": events, "distributedInfo": {"rank": rank}}))

    joined("a.json", 40, 0)
    alone = load_trace(tmp_path)
    assert unpack_ids(alone.external_id[:1], alone.info["record_functions"]).tolist() == [40]
    joined("b.json", None, 1)  # an old version: external ids are record function ids
    joined("c.json", 60, 2)
    trace = load_trace(tmp_path)
    operators = trace.kind.isin(["cpu_op"])
    assert unpack_ids(trace.external_id[operators], trace.info["record_functions"]).tolist() == [40, 1, 60]
    node = {"id": 2, "name": "aten::mm", "rf_id": 60, "ctrl_deps": 1, "inputs": [], "input_shapes": [[7, 7]]}
    (tmp_path / "et").write_text(json.dumps({"schema": "1.0.1", "nodes": [node]}))
    with pytest.raises(FormatError, match=r"et: the Kineto trace .* has 3 ranks, an execution trace is of one; select"):
        join_execution_trace(trace, tmp_path / "et")
    with pytest.raises(FormatError, match="none of the 1 operators"):
        join_execution_trace(trace.select(trace.rank == 0), tmp_path / "et")
    found = join_execution_trace(trace.select(trace.rank == 2), tmp_path / "et")
    assert found.info["execution_trace"]["joined"] == 1
    with pytest.raises(FormatError, match="has 2 processes that share ids"):
        join_execution_trace(alone.replace(info={"processes": 2}), tmp_path / "et")


def test_files_without_a_rank_take_those_that_are_free(tmp_path: Path) -> None:
    write(tmp_path / "a.json")
    write(tmp_path / "b.json", distributedInfo={"rank": 0})
    assert load_trace(tmp_path).info["files"] == {"0": "b.json", "1": "a.json"}


def test_two_files_of_one_rank_are_an_error_that_names_both(tmp_path: Path) -> None:
    write(tmp_path / "a.json", distributedInfo={"rank": 5})
    write(tmp_path / "b.json", distributedInfo={"rank": 5})
    with pytest.raises(FormatError, match=r"b\.json: rank 5, as .*a\.json has"):
        load_trace(tmp_path)


def test_clocks_of_different_days_begin_at_zero_each(tmp_path: Path) -> None:
    write(tmp_path / "a.json", 1e15, distributedInfo={"rank": 0})
    write(tmp_path / "b.json", 100, distributedInfo={"rank": 1})
    trace = load_trace(tmp_path)
    assert trace.start_s.tolist() == pytest.approx([0, 1e-6, 9e-6] * 2)
    assert trace.info["warnings"] == ["the clocks of the ranks are 1000000000 s apart: each rank begins at 0"]


def test_files_of_a_folder_that_hold_no_trace_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a.json", distributedInfo={"rank": 0})
    (tmp_path / "config.json").write_text('{"hidden_size": 3}')
    text = (tmp_path / "a.json").read_text().replace('"rank": 0', '"rank": 1')
    (tmp_path / "cut.json").write_text(text[: text.index("gemm")])
    trace = load_trace(tmp_path)
    assert trace.rank.tolist() == [0, 0, 0, 1, 1]
    warnings = trace.info["warnings"]
    assert warnings[0] == "config.json: left out: no list of traceEvents (top-level keys: hidden_size)"
    assert warnings[1].startswith("cut.json: cut off after 2 events")
    (tmp_path / "a.json").unlink()
    (tmp_path / "cut.json").unlink()
    with pytest.raises(FormatError, match=r"config\.json: no list of traceEvents"):
        load_trace(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FormatError, match="a folder without Kineto"):
        load_trace(tmp_path)


ODD_INFO = [
    {"record_functions": 5}, {"record_functions": [[1]]}, {"record_functions": [["a", "b", "c"]]},
    {"record_functions": [[1 << 70, 1, 1]]}, {"memory": 5}, {"memory": {"time_s": 5}},
    {"memory": {"time_s": ["a"], "allocated_bytes": [None]}}, {"other_events": 5}, {"other_events": {"a": "b"}},
]  # fmt: skip


@pytest.mark.parametrize("info", ODD_INFO)
def test_files_of_ours_with_odd_info_are_merged_without_it(info: dict[str, Any], tmp_path: Path) -> None:
    for rank in (0, 1):
        rows = [{"name": "a", "duration_s": 1.0, "rank": rank, "external_id": 3}]
        save_trace(Trace.from_rows(rows, source="measured", info=info), tmp_path / f"{rank}.json")
    trace = load_trace(tmp_path)
    assert trace.rank.tolist() == [0, 1]
    assert trace.info["other_events"] == {}
    assert "memory" not in trace.info


def test_files_of_ours_that_are_empty_or_have_several_ranks(tmp_path: Path) -> None:
    save_trace(Trace.from_rows([], source="measured"), tmp_path / "a.json")
    write(tmp_path / "b.json")
    assert len(load_trace(tmp_path)) == 3
    save_trace(Trace.from_rows([{"name": "a", "rank": r} for r in (0, 1)], source="measured"), tmp_path / "a.json")
    with pytest.raises(FormatError, match=r"a\.json: has several ranks itself"):
        load_trace(tmp_path)


def test_the_memory_of_a_folder_is_that_of_the_fullest_rank_on_the_common_clock(tmp_path: Path) -> None:
    for rank, held in enumerate([5, 9]):
        events = [*events_of(100 + 50 * rank), memory_event(101 + 50 * rank, held)]
        (tmp_path / f"{rank}.json").write_text(json.dumps({"traceEvents": events, "distributedInfo": {"rank": rank}}))
    line = memory_line(load_trace(tmp_path))
    assert line is not None
    assert (line.time_s.tolist(), line.allocated_bytes.tolist()) == ([pytest.approx(51e-6)], [9])


def memory_event(ts: float, total: Any, device: int = -1, kind: Any = 0, **args: Any) -> dict[str, Any]:
    found = {"Total Allocated": total, "Device Id": device, "Device Type": kind, "Addr": 1, "Bytes": 8, **args}
    return {"ph": "i", "cat": "cpu_instant_event", "name": "[memory]", "pid": 1, "tid": 1, "ts": ts, "s": "t",
            "args": found}  # fmt: skip


def read(*events: dict[str, Any]) -> Trace:
    return read_json(json.dumps({"traceEvents": [*events_of(100), *events]}).encode(), "t")


def test_memory_events_become_the_line_of_the_device() -> None:
    host = [memory_event(101, 10**9), memory_event(103, 5)]
    device = [memory_event(104, 300, 0, 1), memory_event(102, 200, 0, 1), memory_event(105, 100, 0, 1)]
    other = [memory_event(102, 250, 1, "cuda")]
    line = memory_line(read(*host, *device, *other))
    assert line is not None
    assert line.time_s == pytest.approx([2e-6, 4e-6, 5e-6])
    assert line.allocated_bytes.tolist() == [200, 300, 100]
    assert line.peak == 300
    alone = memory_line(read(*host))
    assert alone is not None
    assert alone.allocated_bytes.tolist() == [10**9, 5]
    trace = read(*host, memory_event(1, None, Bytes=-1), memory_event(float("nan"), 3))
    assert trace.info["other_events"] == {"i": 5}
    assert memory_line(read()) is None


def test_without_totals_the_changes_are_summed() -> None:
    events = [memory_event(100 + i, None, 0, 1, Bytes=change) for i, change in enumerate([64, 128, -64, -128, 32])]
    line = memory_line(read(*events))
    assert line is not None
    assert line.allocated_bytes.tolist() == [64, 192, 128, 0, 32]


def test_thinning_keeps_the_peak_and_the_order() -> None:
    rng = np.random.default_rng(0)
    time, allocated = rng.permutation(50_000) * 1e-6, rng.random(50_000)
    thin = thin_memory(time, allocated)
    assert len(thin["time_s"]) == len(thin["allocated_bytes"]) <= MAX_POINTS
    assert max(thin["allocated_bytes"]) == allocated.max()
    assert min(thin["allocated_bytes"]) == allocated.min()
    assert thin["time_s"] == sorted(thin["time_s"])
    assert thin["time_s"][int(np.argmax(thin["allocated_bytes"]))] == time[np.argmax(allocated)]
    assert thin_memory([2, 1], [5, 6]) == {"time_s": [1.0, 2.0], "allocated_bytes": [6.0, 5.0]}
    assert MemoryLine(np.zeros(0), np.zeros(0)).peak == 0.0


@pytest.mark.parametrize("wrong", [3, {"time_s": [1.0]}, {"time_s": [1.0], "allocated_bytes": []}, {"time_s": "a"}])
def test_a_memory_line_that_is_none_is_an_error(wrong: Any) -> None:
    with pytest.raises(ForetraceError, match="trace info memory: expected time_s and allocated_bytes"):
        memory_line(Trace.from_rows([], info={"memory": wrong}))


def test_memory_of_the_profiler_here(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from torch.profiler import profile

    with profile(profile_memory=True) as profiler:
        x = torch.ones(1 << 18)
        y = x + x
        del x, y
    profiler.export_chrome_trace(str(tmp_path / "t.json"))
    line = memory_line(load_trace(tmp_path / "t.json"))
    assert line is not None
    assert line.peak - line.allocated_bytes.min() >= 2 << 20
