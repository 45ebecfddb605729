"""Reading Kineto and Chrome JSON: joins, versions, what strangers do, and real files where they are at hand."""

import gzip
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretrace.ir import ForetraceError, FormatError
from foretrace.traces import Trace, load_trace
from foretrace.traces.formats.kineto import read_json


def event(name: str, ts: Any, dur: Any, cat: str = "cpu_op", tid: Any = 1, **args: Any) -> dict[str, Any]:
    named = {key.replace("_", " "): value for key, value in args.items()}
    return {"ph": "X", "cat": cat, "name": name, "pid": 9, "tid": tid, "ts": ts, "dur": dur, "args": named}


def kernel(name: str, ts: float, dur: float, correlation: int, stream: int = 7, cat: str = "kernel") -> dict[str, Any]:
    args = {"device": 0, "stream": stream, "correlation": correlation, "External id": correlation}
    return {"ph": "X", "cat": cat, "name": name, "pid": 0, "tid": stream, "ts": ts, "dur": dur, "args": args}


def read(*events: Any, **top: Any) -> Trace:
    return read_json(json.dumps({"traceEvents": list(events), **top}).encode(), "some.json")


GPU_STEP = [
    event("module:net", 0, 100, "user_annotation"),
    event("module:net.fc", 0, 50, "user_annotation"),
    event("aten::linear", 1, 40, External_id=5, Input_Dims=[[2, 3], [4, 3], []]),
    event("aten::addmm", 2, 30, External_id=6, Input_Dims=[[4], [2, 3], [3, 4], [], []], Sequence_number=3),
    event("cudaLaunchKernel", 10, 5, "cuda_runtime", correlation=70, External_id=70),
    event("cudaLaunchKernel", 16, 5, "cuda_runtime", correlation=71, External_id=71),
    event("aten::relu", 60, 20, External_id=7),
    event("cudaLaunchKernel", 61, 5, "cuda_runtime", correlation=72),
    event("autograd::engine::evaluate_function: AddmmBackward0", 120, 30, tid=2, Sequence_number=3),
    event("aten::mm", 125, 20, tid=2, External_id=8),
    event("cudaLaunchKernel", 126, 5, "cuda_runtime", tid=2, correlation=73),
    kernel("gemm_a", 30, 10, 70),
    kernel("gemm_b", 40, 5, 71),
    kernel("relu", 70, 3, 72),
    kernel("gemm_c", 150, 9, 73, stream=8),
    kernel("unknown", 170, 1, 99),
]


def test_kernels_carry_the_operator_module_and_phase_that_issued_them() -> None:
    trace = read(*GPU_STEP, deviceProperties=[{"id": 0, "name": "NVIDIA H100"}], distributedInfo={"rank": 3})
    ids = dict(zip(trace.name.tolist(), trace.external_id.tolist(), strict=True))
    assert (ids["gemm_a"], ids["gemm_b"], ids["relu"], ids["gemm_c"], ids["unknown"]) == (6, 6, 7, 8, -1)
    modules = dict(zip(trace.name.tolist(), trace.module.tolist(), strict=True))
    assert modules["gemm_a"] == modules["aten::addmm"] == "net.fc"
    assert (modules["relu"], modules["gemm_c"], modules["aten::mm"]) == ("net", "net.fc", "net.fc")
    phases = dict(zip(trace.name.tolist(), trace.phase.tolist(), strict=True))
    assert (phases["aten::mm"], phases["gemm_c"], phases["aten::relu"]) == ("backward", "backward", "")
    assert Counter(trace.stream.tolist()) == {"host 1": 8, "host 2": 3, "gpu 0 stream 7": 4, "gpu 0 stream 8": 1}
    assert trace.system == "NVIDIA H100"
    assert set(trace.rank.tolist()) == {3}
    assert trace.source == "foreign"
    assert trace.info["warnings"] == []


def test_shapes_come_from_input_dims_without_what_has_none() -> None:
    trace = read(
        event("a", 0, 1, Input_Dims=[[4], [2, 3], []]), event("b", 2, 1, Input_Dims=[[[2, 3], [1]], [5]]),
        event("c", 4, 1, Input_Dims="odd"), event("d", 6, 1),
    )  # fmt: skip
    assert trace.shapes.tolist() == ["[4][2,3]", "[2,3][1][5]", "", ""]


def test_phase_annotations_hold_for_every_thread() -> None:
    trace = read(
        event("phase:forward", 0, 10, "user_annotation"), event("phase:backward", 10, 10, "user_annotation"),
        event("aten::mm", 1, 2), event("aten::mm", 12, 2, tid=2), event("aten::mm", 30, 1),
    )  # fmt: skip
    assert trace.phase.tolist()[2:] == ["forward", "backward", ""]


def test_the_innermost_phase_that_is_open_holds_and_the_outer_one_comes_back() -> None:
    trace = read(
        event("phase:backward", 0, 100, "user_annotation"), event("phase:forward", 20, 20, "user_annotation"),
        event("phase:recompute", 25, 5, "user_annotation", tid=3), event("phase:", 25, 5, "user_annotation", tid=4),
        *(event("aten::mm", ts, 1, tid=2) for ts in (10, 21, 26, 35, 41, 100, 101)),
    )  # fmt: skip
    assert trace.phase.tolist()[4:] == ["backward", "forward", "", "forward", "backward", "backward", ""]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=8), st.integers(0, 40))
def test_the_phase_is_that_of_the_last_open_annotation(spans: list[tuple[int, int]], at: int) -> None:
    marks = [
        event(f"phase:{i}", start, length, "user_annotation", tid=9 + i) for i, (start, length) in enumerate(spans)
    ]
    found = read(*marks, event("aten::mm", at, 1)).phase.tolist()[-1]
    inside = [(start, -length, i) for i, (start, length) in enumerate(spans) if start <= at <= start + length]
    assert found == (str(max(inside)[2]) if inside else "")


def test_a_kernel_that_nothing_issued_has_no_phase() -> None:
    late = [kernel("late", 55, 2, 71), kernel("stray", 55, 2, 99, stream=8)]
    trace = read(
        event("phase:forward", 0, 50, "user_annotation"), event("phase:backward", 50, 50, "user_annotation"),
        event("cudaLaunchKernel", 16, 5, "cuda_runtime", correlation=71), *late,
    )  # fmt: skip
    assert trace.phase.tolist()[2:] == ["forward", "forward", ""]


def process(pid: int, start: float, **launched: int) -> list[dict[str, Any]]:
    """What a process numbers from 1: an operator and a launch for each kernel of *launched*, arrows to the kernels."""
    rows: list[dict[str, Any]] = []
    for i, (name, arrow) in enumerate(launched.items(), 1):
        ts = start + 10 * i
        work = kernel(name, ts + 100, 5, i, stream=pid)
        rows += [
            event(f"aten::{name}", ts, 5, External_id=i) | {"pid": pid},
            event("cudaLaunchKernel", ts + 1, 2, "cuda_runtime", correlation=i, External_id=i) | {"pid": pid},
            work,
        ]
        if arrow:
            flow = {"cat": "ac2g", "name": "ac2g", "id": arrow}
            rows += [flow | {"ph": "s", "pid": pid, "tid": 1, "ts": ts + 1},
                     flow | {"ph": "f", "bp": "e", "pid": 0, "tid": pid, "ts": ts + 100}]  # fmt: skip
    return rows


def issuers(trace: Trace) -> dict[str, str]:
    """The operator of each kernel, "" where none is known."""
    operator, kernels = (np.flatnonzero(trace.kind.isin([kind])).tolist() for kind in ("cpu_op", "kernel"))
    names = {int(trace.external_id[i]): trace.name[i] for i in operator}
    return {trace.name[i]: names.get(int(trace.external_id[i]), "") for i in kernels}


def test_kernels_of_processes_that_count_alike_take_the_process_of_their_arrow() -> None:
    trace = read(*process(1, 0, a=11, b=12), *process(2, 3, c=21, d=22, e=0))
    assert issuers(trace) == {n: f"aten::{n}" for n in "abcde"}  # e: no arrow, but only one process has its number
    launch, work = trace.kind.isin(["launch"]), trace.kind.isin(["kernel"])
    assert sorted(trace.correlation[launch].tolist()) == sorted(trace.correlation[work].tolist())
    assert len(set(trace.correlation[launch].tolist())) == 5
    assert trace.info["warnings"] == []
    assert trace.info["processes"] == 2


@pytest.mark.parametrize("arrow", [0, 11])
def test_kernels_whose_process_is_unclear_are_not_joined_and_counted(arrow: int) -> None:
    trace = read(*process(1, 0, a=11), *process(2, 3, b=arrow))  # no arrow, or one that both processes draw
    assert issuers(trace) == {"a": "" if arrow else "aten::a", "b": ""}
    assert trace.correlation[trace.name.isin(["b"])].tolist() == [-1]
    assert trace.info["warnings"] == [
        f"{1 + bool(arrow)} events on a device whose process is unclear (several have their correlation): not joined"
    ]


def test_sequence_numbers_of_two_processes_stay_apart() -> None:
    def forward(pid: int, ts: float) -> list[dict[str, Any]]:
        outer = event(f"module:net{pid}", ts, 9, "user_annotation")
        inner = event("aten::mm", ts + 1, 5, Sequence_number=3)
        backward = event("autograd::engine::evaluate_function: MmBackward0", ts + 20, 5, tid=2, Sequence_number=3)
        return [e | {"pid": pid} for e in (outer, inner, backward)]

    trace = read(*process(1, 0, a=11), *process(2, 3, b=12), *forward(1, 300), *forward(2, 350))
    backward = trace.name.where(lambda n: n.startswith("autograd"))
    assert trace.module.take(backward).tolist() == ["net1", "net2"]


def test_processes_that_share_no_correlation_keep_their_ids() -> None:
    other = [
        event("aten::x", 500, 9, External_id=70),
        event("cudaLaunchKernel", 501, 2, "cuda_runtime", correlation=80),
    ]
    trace = read(*GPU_STEP, *(e | {"pid": 10} for e in other), kernel("x", 510, 3, 80))
    assert set(trace.correlation.tolist()) == {-1, 70, 71, 72, 73, 80, 99}
    assert issuers(trace)["x"] == "aten::x"
    assert "processes" not in trace.info


def test_modules_from_the_files_own_hierarchy_or_frames() -> None:
    trace = read(event("aten::mm", 0, 5, Module_Hierarchy="Net.fc"), event("aten::t", 1, 1))
    assert trace.module.tolist() == ["Net.fc", "Net.fc"]
    frames = [event(f"nn.Module: {n}", i, 20 - 2 * i, "python_function") for i, n in enumerate(["Net_0", "Linear_1"])]
    assert read(*frames, event("aten::mm", 3, 1)).module.tolist() == ["Net_0", "Net_0.Linear_1", "Net_0.Linear_1"]


def test_old_and_foreign_category_names() -> None:
    cats = ["Operator", "Kernel", "Memcpy", "Runtime", "xpu_runtime", "cuda_driver", "hpu_op", None, "Trace"]
    trace = read(*(event("x", i, 1, cat) for i, cat in enumerate(cats)))
    kinds = ["cpu_op", "kernel", "copy", "launch", "launch", "driver", "hpu_op", "event", "span"]
    assert trace.kind.tolist() == kinds
    others = ["privateuse1_runtime", "privateuse1_driver", "xpu_driver", "mtia_ccp_events", "cuda_profiler_range"]
    kinds = read(*(event("x", i, 1, cat) for i, cat in enumerate(others))).kind.tolist()
    assert kinds == ["launch", "driver", "driver", "mtia_ccp_events", "cuda_profiler_range"]


def test_numbers_as_strings_missing_durations_and_what_is_unsound() -> None:
    trace = read(
        event("a", "1000000.5", "2"), event("b", 1000002, None), event("c", 1000003.0, -1), event("d", "soon", 1),
        event("e", 1000004, 1, External_id="12", correlation=[1]), event("f", 1000004, [1]), event("g", 1e40, 1),
        "nonsense", {"ph": "i", "name": "note", "ts": 3}, {"name": "no phase"},
    )  # fmt: skip
    assert trace.name.tolist() == ["a", "b", "e"]
    assert np.allclose(trace.start_s, [0, 1.5e-6, 3.5e-6])
    assert trace.duration_s.tolist() == [2e-6, 0, 1e-6]
    assert (trace.external_id[2], trace.correlation[2]) == (12, -1)
    assert trace.info["other_events"] == {"None": 1, "i": 1}
    assert trace.info["warnings"] == [
        "1 entries that are not objects: left out",
        "1 events more than 4e+09 s long or late: left out",
        "1 events with a negative duration: left out",
        "1 events without a duration: taken as 0",
        "1 events without a readable duration: left out",
        "1 events without a readable start: left out",
    ]


def test_begin_and_end_events_pair_up_by_thread() -> None:
    marks = [("B", "a", 0), ("B", "b", 1), ("E", "b", 3), ("E", "a", 9), ("E", "z", 9), ("B", "c", 10)]
    trace = read(*({"ph": p, "name": n, "ts": t, "pid": 1, "tid": 1} for p, n, t in marks))
    assert sorted(zip(trace.name.tolist(), trace.duration_s.tolist(), strict=True)) == [("a", 9e-6), ("b", 2e-6)]
    assert trace.info["warnings"] == ["1 beginnings without an end: left out", "1 ends without a beginning: left out"]


def test_threads_of_unknown_tools_are_named_by_their_metadata() -> None:
    names = [("process_name", "/device:TPU:0"), ("thread_name", "XLA Ops")]
    meta = [{"ph": "M", "name": k, "pid": 9, "tid": 1, "args": {"name": n}} for k, n in names]
    assert read(*meta, event("fusion.1", 0, 1, "")).stream.tolist() == ["/device:TPU:0 XLA Ops"]


def test_a_bare_list_nan_and_broken_characters_are_read() -> None:
    plain = json.dumps([event("aten::mm", 0, 1)]).encode()
    assert read_json(plain, "x").name.tolist() == ["aten::mm"]
    odd = plain.replace(b'"dur": 1', b'"dur": 1, "z": NaN').replace(b"aten::mm", b"aten\x80\tmm")
    assert read_json(b"\xef\xbb\xbf" + odd, "x").name.tolist() == ["aten�\tmm"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{}", "no list of traceEvents"),
        (b'{"nodes": [], "a": 1}', "no sound node|execution trace"),
        (b'{"traceEvents": []}', "no sound event among 0"),
        (b'{"traceEvents": {"a": 1}}', "no list of traceEvents"),
        (b'[{"ph": "X", "ts": -1e400}, 3]', "no sound event among 2; 1 entries that are not objects"),
        (b"[" * 100_000, "not valid JSON|nested too deep"),
        (b"[" * 600 + b"]" * 600, "no sound event"),
        (b'{"a":' * 100_000, "not valid JSON|nested too deep"),
        (b'{"traceEvents": [{"ph": "X", "ts": ' + b"1" * 6000 + b"}]}", "not valid JSON|no sound event"),
        (b'{"foretrace": 3, "traceEvents": []}', "no readable trace description"),
    ],
)
def test_absurd_documents_are_format_errors(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_bytes(data)
    with pytest.raises(FormatError, match=message):
        load_trace(tmp_path / "t.json")


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
anything = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=3), v, max_size=3)
)
KEYS = ["ph", "cat", "name", "pid", "tid", "ts", "dur", "args"]
ARGS = ["External id", "correlation", "Input Dims", "device", "stream", "Module Hierarchy", "Sequence number", "bytes"]


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_mutated_events_never_crash_the_reader(data: st.DataObject) -> None:
    events = json.loads(json.dumps(GPU_STEP))
    for _ in range(data.draw(st.integers(1, 6))):
        chosen = events[data.draw(st.integers(0, len(events) - 1))]
        if data.draw(st.booleans()) and isinstance(chosen.get("args"), dict):
            chosen["args"][data.draw(st.sampled_from(ARGS))] = data.draw(anything)
        else:
            chosen[data.draw(st.sampled_from(KEYS))] = data.draw(anything)
    top = {k: data.draw(anything) for k in data.draw(st.sets(st.sampled_from(["deviceProperties", "distributedInfo"])))}
    try:
        trace = read(*events, **top)
    except ForetraceError:
        return
    assert 0 < len(trace) <= len(events)


def ids_by_name(trace: Trace) -> dict[str, int]:
    return dict(zip(trace.name.tolist(), trace.external_id.tolist(), strict=True))


def test_kernels_of_a_graph_launch_share_its_operator() -> None:
    trace = read(
        event("graph_replay", 0, 50, External_id=4), event("cudaGraphLaunch", 5, 9, "cuda_runtime", correlation=70),
        *(kernel(f"k{i}", 30 + 5 * i, 4, 70) for i in range(3)),
    )  # fmt: skip
    assert [ids_by_name(trace)[f"k{i}"] for i in range(3)] == [4, 4, 4]
    assert trace.correlation[-3:].tolist() == [70] * 3


def test_kernels_of_a_graph_launched_outside_any_operator_have_the_launch_s_module_and_phase() -> None:
    trace = read(
        event("phase:forward", 0, 20, "user_annotation"), event("module:net", 1, 18, "user_annotation"),
        event("cudaGraphLaunch", 5, 9, "cuda_runtime", correlation=70),
        *(kernel(f"k{i}", 30 + 5 * i, 4, 70) for i in range(3)), kernel("late", 90, 1, 71),
    )  # fmt: skip
    assert trace.module.tolist()[-4:] == ["net", "net", "net", ""]
    assert trace.phase.tolist()[-4:] == ["forward", "forward", "forward", ""]
    assert set(trace.external_id[-4:].tolist()) == {-1}


def test_without_a_correlation_external_ids_join() -> None:
    work = kernel("gemm", 30, 4, 9)
    work["args"] = {"device": 0, "stream": 7, "External id": 5}
    trace = read(event("aten::mm", 0, 9, External_id=5), event("aten::add", 10, 9, External_id=6), work)
    assert ids_by_name(trace)["gemm"] == 5


def test_two_operators_of_one_id_in_two_processes_keep_their_kernels_apart() -> None:
    first = [event("aten::mm", 0, 9, External_id=5), event("cudaLaunchKernel", 1, 2, "cuda_runtime", correlation=1)]
    second = [e | {"pid": 8, "ts": e["ts"] + 1} for e in first]
    second[1] = second[1] | {"args": {"correlation": 2}}
    trace = read(*first, *second, kernel("a", 20, 1, 1), kernel("b", 30, 1, 2))
    assert trace.external_id[4:].tolist() == [trace.external_id[0], trace.external_id[2]]
    assert trace.external_id[0] != trace.external_id[2]
    assert set(trace.stream.tolist()) == {"host 9/1", "host 8/1", "gpu 0 stream 7"}


def test_what_a_collective_moves_is_the_larger_of_what_goes_in_and_out() -> None:
    def collective(**args: Any) -> dict[str, Any]:
        made = kernel("ncclDevKernel", 0, 1, 1)
        return made | {"args": made["args"] | args}

    trace = read(
        collective(**{"In msg nelems": 100, "Out msg nelems": 800, "dtype": "BFloat16"}),
        collective(**{"In msg nelems": 800, "Out msg nelems": 100, "dtype": "Float"}),
        collective(**{"In msg nelems": "64", "dtype": "Float8_e4m3fn"}),
        collective(**{"In msg nelems": 64, "dtype": "mystery"}),
        collective(**{"In msg nelems": 64, "dtype": "Long", "bytes": 7}),
    )
    assert trace.bytes_moved.tolist() == [1600, 3200, 64, 0, 7]
    assert trace.kind.tolist() == ["kernel"] * 5


def test_a_clock_that_jumps_is_left_out_and_said() -> None:
    trace = read(*(event("aten::mm", 1e15 + i, 1) for i in range(30)), event("aten::late", 7, 1))
    assert trace.span_s == pytest.approx(30e-6)
    assert trace.info["warnings"] == ["1 events more than 24 hours from all others (the clock jumped): left out"]
    half = read(*(event("aten::mm", 1e15 * (i % 2) + i, 1) for i in range(10)))
    assert len(half) == 10


def test_ids_of_any_age_and_record_functions() -> None:
    old = event("a", 0, 1)
    old["args"] = {"external id": 12, "Input dims": [[7, 7]]}
    trace = read(old, event("b", 2, 1, External_id=13, Record_function_id=3))
    assert trace.external_id.tolist() == [12, 13]
    assert trace.shapes.tolist() == ["[7,7]", ""]
    assert trace.info["record_functions"] == [[13, 13, -10]]


def test_numbers_beyond_64_bits_are_as_good_as_none() -> None:
    work = kernel("k", 0, 1, 1)
    many = {"external id": 2**70, "Bytes": 2**70, "In msg nelems": 2**61, "dtype": "Long", "correlation": 2**70}
    trace = read(work | {"args": many}, event("a", 2**80, 1), event("b", 5, 1, bytes=2**65, Sequence_number=2**64))
    assert trace.name.tolist() == ["k", "b"]
    assert (trace.external_id.max(), trace.correlation.max(), trace.bytes_moved.max()) == (-1, -1, 0)


def test_a_name_that_is_no_utf_8_costs_nothing_else() -> None:
    plain = json.dumps({"traceEvents": GPU_STEP}).encode()
    odd, trace = read_json(plain.replace(b"aten::relu", b"aten::r\xff\xfelu"), "x"), read(*GPU_STEP)
    assert odd.name.map(lambda n: n.replace("aten::r\ufffd\ufffdlu", "aten::relu")) == trace.name
    assert odd.replace(name=trace.name, title=trace.title) == trace


def test_a_file_of_the_profiler_here(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from torch.profiler import profile, record_function

    net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    with profile(record_shapes=True) as profiler, record_function("phase:forward"):
        x = torch.randn(2, 8)
        for name, layer in net.named_children():
            with record_function(f"module:{name}"):
                x = layer(x)
    profiler.export_chrome_trace(str(tmp_path / "t.json"))
    trace = load_trace(tmp_path / "t.json")
    addmm = np.flatnonzero(trace.name.isin(["aten::addmm"]))
    assert [trace.module[i] for i in addmm] == ["0", "2"]
    assert [trace.shapes[i] for i in addmm] == ["[16][2,8][8,16]", "[4][2,16][16,4]"]
    assert {trace.phase[i] for i in addmm} == {"forward"}
    assert all(trace.name[int(trace.parent[i])] == "aten::linear" for i in addmm)


def foreign_traces() -> list[Path]:
    truth = os.environ.get("FORETRACE_GROUNDTRUTH")
    return sorted((Path(truth).parent / "foreign-traces").glob("*")) if truth else []


EXPECTED = {
    "alexnet.json.gz": (79, 98, 98),
    "control-a100.json.gz": (8568, 9450, 9450),
    "event-sync-multi-stream.json.gz": (3, 6, 6),
    "mi250-train-rocm62.json.gz": (14, 16, 16),
    "nccl-rank0.json.gz": (1154, 1204, 1204),
    "nccl-rank1.json.gz": (1104, 1154, 1154),
    "simple-add-kineto.json.gz": (4, 4, 4),
    "test-v100.json.gz": (9876, 15632, 15018),
    "triton.json.gz": (1, 1, 1),
}  # kernels, pieces of device work, those of them that a call in the file launched


@pytest.mark.parametrize("path", foreign_traces(), ids=lambda p: p.name)
def test_files_of_other_people_lose_no_event_and_no_kernel_time(path: Path) -> None:
    document = json.loads(gzip.decompress(path.read_bytes()))
    if "traceEvents" not in document:
        with pytest.raises(FormatError, match="execution trace"):
            read_json(path.read_bytes(), path.name)
        return
    complete = [e for e in document["traceEvents"] if e.get("ph") == "X"]
    trace = load_trace(path)
    assert trace.info["warnings"] == []
    assert len(trace) == len(complete)
    assert sum(trace.info["other_events"].values()) == len(document["traceEvents"]) - len(complete)
    kinds = {
        "cpu_op": "cpu_op", "kernel": "kernel", "gpu_memcpy": "copy", "gpu_memset": "memset", "cuda_runtime": "launch",
        "cuda_driver": "driver", "cuda_sync": "sync", "user_annotation": "annotation", "Trace": "span",
        "gpu_user_annotation": "gpu_annotation",
    }  # fmt: skip
    by_category = Counter(kinds.get(e["cat"], e["cat"]) for e in complete)
    assert Counter(trace.kind.tolist()) == by_category
    expected: dict[str, float] = Counter()
    for e in complete:
        if e.get("cat") == "kernel":
            expected[f"gpu {e['args']['device']} stream {e['args']['stream']}"] += e["dur"] * 1e-6
    kernels = trace.select(trace.kind.isin(["kernel"]))
    assert kernels.group_seconds("stream") == pytest.approx(expected)
    work = trace.select(trace.kind.isin(["kernel", "copy", "memset"]))
    launched = [e["args"].get("correlation") for e in complete if e.get("cat") in ("cuda_runtime", "cuda_driver")]
    known = np.isin(work.correlation, [c for c in launched if c is not None])
    if path.name in EXPECTED:
        assert (len(kernels), len(work), int(known.sum())) == EXPECTED[path.name]
    assert not known.any() or len(trace) < 100 or (work.external_id[known] >= 0).mean() > 0.9


@pytest.mark.parametrize("path", foreign_traces(), ids=lambda p: p.name)
def test_joined_kernels_of_other_people_name_an_operator_around_their_launch(path: Path) -> None:
    if "-et." in path.name:
        pytest.skip("no kernels")
    trace = load_trace(path)
    operator = np.flatnonzero(trace.kind.isin(["cpu_op"]))
    launch = np.flatnonzero(trace.kind.isin(["launch", "driver"]))
    joined = np.flatnonzero(trace.kind.isin(["kernel", "copy", "memset"]) & (trace.external_id >= 0))
    assert np.isin(trace.external_id[joined], trace.external_id[operator]).all()
    of = {int(trace.external_id[i]): i for i in operator[::-1]}
    calls = {int(trace.correlation[i]): i for i in launch if trace.correlation[i] >= 0}
    for kernel in joined.tolist():
        call, issuer = calls.get(int(trace.correlation[kernel]), -1), of[int(trace.external_id[kernel])]
        if call >= 0 and trace.parent[call] >= 0:
            assert trace.start_s[issuer] <= trace.start_s[call] + 1e-6
            assert trace.end_s[call] <= trace.end_s[issuer] + 1e-6
            assert trace.stream[call] == trace.stream[issuer]


def test_the_folder_of_foreign_traces_is_where_it_is_looked_for() -> None:
    if "FORETRACE_GROUNDTRUTH" not in os.environ:
        pytest.skip("FORETRACE_GROUNDTRUTH is not set")
    assert foreign_traces()
