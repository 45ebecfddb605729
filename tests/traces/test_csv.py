"""CSV: ours round-trips, anyone's columns and units are read, what nsys prints too, errors name the line."""

import contextlib
import csv
import gzip
import io
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretrace.ir import ForetraceError, FormatError
from foretrace.traces import Trace
from foretrace.traces.formats.csv import encode_csv, read_csv
from foretrace.traces.formats.csv import rows as csv_rows
from foretrace.traces.trace import COLUMNS

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["a,b", 'say "x"', "two\nlines", "\r", "=1+1", "f(g<4, 5>)", "\0"]
)
times = st.floats(0, 1e6)


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    n = draw(st.integers(0, 6))

    def column(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=n, max_size=n))

    ids = st.integers(-1, 2**62)
    columns = {c: column(texts) for c in ("name", "kind", "module", "phase", "stream", "shapes")}
    columns |= {c: column(ids) for c in ("op_id", "correlation", "external_id")}
    columns |= {c: column(times) for c in ("duration_s", "bytes_moved", "flops", "spread_s")}
    columns["start_s"] = column(st.floats(-1e6, 1e6))
    columns["rank"] = column(st.integers(0, 2**30 - 1))
    columns["parent"] = [draw(st.integers(-1, i - 1)) for i in range(n)]
    info = draw(st.dictionaries(texts, st.none() | st.integers() | st.lists(texts), max_size=2))
    meta = {"title": draw(texts), "system": draw(texts), "model": draw(texts), "info": info}
    source = draw(st.sampled_from(["predicted", "measured", "foreign"]))
    return Trace.from_columns(columns, source=source, step_s=draw(st.none() | times), **meta)


@given(traces(), st.booleans())
def test_writing_and_reading_is_the_identity(
    tmp_path_factory: pytest.TempPathFactory, trace: Trace, zipped: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / ("some.csv.gz" if zipped else "some.csv")
    data = encode_csv(trace)
    path.write_bytes(gzip.compress(data) if zipped else data)
    assert read_csv(path) == trace


def test_what_is_written_is_a_plain_table() -> None:
    trace = Trace.from_rows([{"name": "a", "start_s": 0.5, "duration_s": 0.25}, {"name": "b", "start_s": 1.0}])
    header, first, second = csv.reader(io.StringIO(encode_csv(trace).decode()))
    assert header == [*COLUMNS, "trace"]
    assert (first[0], first[header.index("start_s")], first[header.index("duration_s")]) == ("a", "0.5", "0.25")
    assert first[-1].startswith('{"version":')
    assert second[-1] == ""


def read(tmp_path: Path, text: str | bytes, name: str = "some.csv") -> Trace:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_csv(path)


@pytest.mark.parametrize(
    ("unit", "scale", "mark"), [("s", 1, ","), ("ms", 1e-3, ";"), ("us", 1e-6, "\t"), ("ns", 1e-9, ",")]
)
def test_units_and_marks(tmp_path: Path, unit: str, scale: float, mark: str) -> None:
    text = f"duration_{unit},name,start_{unit},spread_{unit},flops\n7,a,1500,2,\n\n1e1,b,-3.5,,6e9\n".replace(",", mark)
    trace = read(tmp_path, "\ufeff" + text.replace("\n", "\r\n"))
    assert trace.name.tolist() == ["a", "b"]
    assert trace.start_s.tolist() == pytest.approx([1500 * scale, -3.5 * scale])
    assert trace.duration_s.tolist() == pytest.approx([7 * scale, 10 * scale])
    assert trace.spread_s.tolist() == pytest.approx([2 * scale, 0])
    assert trace.flops.tolist() == [0, 6e9]
    assert (trace.title, trace.source) == ("some.csv", "foreign")


def test_kinds_and_parents_that_the_file_lacks(tmp_path: Path) -> None:
    text = """name,start_us,duration_us,stream,external_id
aten::linear,0,10,host 1,
aten::addmm,1,8,host 1,5.0
gemm,2,9,gpu 0 stream 7,5
bias,2,3,gpu 0 stream 7,5
"""
    trace = read(tmp_path, text)
    assert trace.kind.tolist() == ["cpu_op", "cpu_op", "kernel", "kernel"]
    assert trace.parent.tolist() == [-1, 0, -1, -1]
    assert trace.external_id.tolist() == [-1, 5, 5, 5]


def test_blocks_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"op{i % 7},{i},{i % 5},k{i % 3}" for i in range(100)]
    text = "\n".join(["name,start_us,duration_us,kind", *rows])
    whole = read(tmp_path, text)
    monkeypatch.setattr(csv_rows, "BLOCK", 8)
    assert read(tmp_path, text) == whole
    with pytest.raises(FormatError, match="line 93: duration_s"):
        read(tmp_path, text.replace(",91,1,", ",91,x,"))


HEAD = "name,start_us,duration_us"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("\n \n", "the file is empty"),
        ("name,start_us,duraton_us\n", "unknown column 'duraton_us'; nearest: duration_us"),
        ("name,start_us\na,1\n", "no column duration_s, _ms, _us or _ns"),
        ("start_us,duration_us\n1,2\n", "no column name"),
        (";;\n;\n", "no header, and nothing else but separators"),
        (HEAD + ",start_ns\n", "two columns for start"),
        (HEAD + ",name\n", "two columns for name"),
        (HEAD + "\na,1,2\nb,x,2\n", "line 3: start_s: expected a number, got 'x'"),
        (HEAD + '\n"a\nb",1,2\nc,1,-2\n', "line 4: duration_s: expected a number that is not negative.*got '-2'"),
        (HEAD + "\na,1,nan\n", "line 2: duration_s"),
        ("\n\n" + HEAD + "\n\na,1,nan\n", "line 5: duration_s"),
        (HEAD + "\na,inf,1\n", "line 2: start_s"),
        (HEAD + "\na,1e300,1\n", "line 2: start_s: expected a number of at most 4e"),
        (HEAD + "\na,,1\n", "line 2: start_s: expected a number, got ''"),
        (HEAD + "\na,1,2\nb,1\n", "line 3: expected 3 cells as in the header, got 2; is the file cut off"),
        (HEAD + "\na,1,2,3\n", "line 2: expected 3 cells"),
        (HEAD + '\n"a,1,2\n', "line 2: not valid CSV: .*a quote is not closed"),
        (HEAD + ",op_id\na,1,2,0.5\n", "line 2: op_id: expected a whole number"),
        (HEAD + ",op_id\na,1,2," + "9" * 30, "line 2: op_id"),
        (HEAD + ",op_id\na,1,2,-7\n", "line 2: op_id: expected -1 or more, got '-7'"),
        (HEAD + ",rank\na,1,2,-1\n", "line 2: rank: expected 0 or more, at most 1073741823"),
        (HEAD + ",bytes_moved\na,1,2,-1\n", "line 2: bytes_moved: expected a number that is not negative"),
        (HEAD + ",parent\na,1,2,5\n", "parent, row 0"),
        (HEAD + ",trace\na,1,2,{}\n", "no readable trace description"),
        (HEAD + ",trace\na,1,2,{\n", "line 2: column trace: no JSON"),
        ("<html>\n<body>\n", "unknown column '<html>'"),
        (b"\xff\xfen\x00", "UTF-16"),
        (b"\x1f\x8b\x08nonsense", "corrupt gzip"),
    ],
)
def test_errors_name_the_file_and_the_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        read(tmp_path, text)
    assert "some.csv" in str(caught.value)


def test_cut_gzip_and_other_bytes(tmp_path: Path) -> None:
    data = gzip.compress((HEAD + "\n" + "a,1,2\n" * 1000).encode())
    with pytest.raises(FormatError, match="cut off"):
        read(tmp_path, data[: len(data) // 2])
    assert read(tmp_path, (HEAD + "\n").encode() + b"caf\xe9,1,2\n").name.tolist() == ["caf\ufffd"]
    with pytest.raises(FormatError, match="cannot read"):
        read_csv(tmp_path / "none.csv")


def test_a_line_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_rows, "MAX_LINE", 1000)
    with pytest.raises(FormatError, match="a line of more than 1000 characters"):
        read(tmp_path, HEAD + "\n" + "a" * 1_000_000)


NSYS = """Generating SQLite file report.sqlite from report.nsys-rep
Processing [report.sqlite] with [/opt/nvidia/reports/cuda_gpu_trace.py]...

Start (ns),Duration (ns),CorrId,GrdX,BlkX,Bytes (MB),Throughput (MB/s),Device,Ctx,Strm,Name
3240000,1664,118,,,0.004,2461.5,NVIDIA A100-SXM4-40GB (0),1,7,[CUDA memcpy Host-to-Device]
3244000,12000,120,1,128,,,NVIDIA A100-SXM4-40GB (1),1,9,"void gemm<float, (int)4>(Params)"
3250000,10,,,,,,NVIDIA A100-SXM4-40GB (0),1,7,[CUDA memset]
"""


def test_what_nsys_stats_prints(tmp_path: Path) -> None:
    trace = read(tmp_path, NSYS)
    assert trace.name.tolist()[1] == "void gemm<float, (int)4>(Params)"
    assert trace.kind.tolist() == ["copy", "kernel", "memset"]
    assert trace.stream.tolist() == ["gpu 0 stream 7", "gpu 1 stream 9", "gpu 0 stream 7"]
    assert trace.start_s.tolist() == pytest.approx([0, 4e-6, 1e-5])
    assert trace.duration_s.tolist() == pytest.approx([1.664e-6, 1.2e-5, 1e-8])
    assert trace.bytes_moved.tolist() == [4000, 0, 0]
    assert trace.correlation.tolist() == [118, 120, -1]
    assert trace.system == "NVIDIA A100-SXM4-40GB"
    assert "no operators" in trace.info["warnings"][0]


def test_what_nsys_prints_is_held_once_a_name(tmp_path: Path) -> None:
    line = NSYS.splitlines()[5].replace("gemm<", "gemm<" + "cute::C<1>, " * 40)
    path = tmp_path / "long.csv"
    path.write_text("\n".join([NSYS.splitlines()[3], *[line] * 20_000]))
    tracemalloc.start()
    try:
        trace = read_csv(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (len(trace), trace.name.values, len(trace.stream.values)) == (20_000, (trace.name[7],), 1)
    assert peak < 20_000 * 600  # bytes; a name alone has 500


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",Strm,", ",Other,", "no column Strm: expected the report cuda_gpu_trace"),
        ("Start (ns)", "Start (h)", "column Start: expected a unit of ns"),
        (",12000,", ",-12000,", "line 6: Duration: expected a time that is not negative, got '-12000'"),
        (",12000,", ",many,", "line 6: Duration: expected a number"),
        (",120,", ",x,", "line 6: CorrId"),
    ],
)
def test_what_nsys_prints_with_faults(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        read(tmp_path, NSYS.replace(old, new))
    assert "some.csv" in str(caught.value)


def test_a_report_without_events(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no events"):
        read(tmp_path, NSYS[: NSYS.index("3240000")])


@given(st.text(st.sampled_from('name,start_us,duration_us\n"5-.e;\t\r\0é'), max_size=80), st.booleans())
def test_any_text_is_a_trace_or_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, text: str, headed: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_text((HEAD + "\n" if headed else "") + text, newline="")
    with contextlib.suppress(FormatError):
        read_csv(path)


def test_info_that_is_no_json() -> None:
    trace = Trace.from_columns({"name": ["a"], "start_s": [0.0], "duration_s": np.ones(1)}, info={"x": object()})
    with pytest.raises(ForetraceError, match="JSON"):
        encode_csv(trace)
