"""Saving and loading is the identity in every format; broken files are errors, never crashes or hangs."""

import errno
import gzip
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foretrace.ir import ForetraceError, FormatError
from foretrace.traces import Trace, load_trace, save_trace
from foretrace.traces.formats import unpack
from foretrace.traces.formats.perfetto import MAGIC

ENDINGS = [".trace", ".parquet", ".json", ".json.gz", ".pftrace", ".perfetto-trace"]
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
seconds = st.floats(0, 1e6, allow_subnormal=False) | st.sampled_from([0.0, 1e-9, 1 / 3, 1.7e9])
rows = st.fixed_dictionaries(
    {"name": texts, "start_s": seconds | st.floats(-100, 0), "duration_s": seconds},
    optional={
        **dict.fromkeys(["kind", "module", "phase", "stream", "shapes"], texts),
        **dict.fromkeys(["op_id", "correlation", "external_id"], st.integers(-1, 2**62)),
        "rank": st.integers(0, 3),
        "bytes_moved": st.floats(0, 1e30),
        "flops": st.integers(0, 2**53).map(float),
        "spread_s": seconds,
    },
)
json_values = st.recursive(st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts, st.lists, max_leaves=4)
metas = st.fixed_dictionaries(
    {
        "title": texts,
        "source": st.sampled_from(["predicted", "measured", "foreign"]),
        "system": texts,
        "model": texts,
        "step_s": st.none() | seconds,
        "info": st.dictionaries(texts, json_values, max_size=3),
    }
)


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    events = draw(st.lists(rows, max_size=12))
    for i, event in enumerate(events):
        event["parent"] = draw(st.integers(-1, i - 1))
    return Trace.from_rows(events, **draw(metas))


def small() -> Trace:
    events = [
        {"name": "aten.addmm.default", "kind": "matmul", "module": "model.é", "shapes": "[2,3][3,4]", "op_id": 0},
        {"name": "aten.relu.default", "kind": "elementwise", "module": "model", "op_id": 1, "flops": 8.0},
    ]
    events = [e | {"start_s": i * 1e-6 / 3, "duration_s": 1e-6 / 3, "stream": "compute"} for i, e in enumerate(events)]
    return Trace.from_rows(events, title="small", model="mlp", step_s=1e-6, info={"warnings": []})


@pytest.mark.parametrize("ending", ENDINGS)
@given(trace=traces())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_saving_and_loading_is_the_identity(trace: Trace, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"t{ending}"
    save_trace(trace, path)
    assert load_trace(path) == trace
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("ending", ENDINGS)
def test_content_tells_the_format_not_the_name(ending: str, tmp_path: Path) -> None:
    save_trace(small(), tmp_path / f"t{ending}")
    (tmp_path / f"t{ending}").rename(tmp_path / "anything.bin")
    assert load_trace(tmp_path / "anything.bin") == small()


@pytest.mark.parametrize("ending", [".trace", ".json", ".json.gz", ".pftrace"])
def test_a_file_cut_off_anywhere_is_a_format_error(ending: str, tmp_path: Path) -> None:
    path, cut = tmp_path / f"t{ending}", tmp_path / "cut"
    save_trace(small(), path)
    data = path.read_bytes()
    for length in range(0, len(data), max(1, len(data) // 400)):
        cut.write_bytes(data[:length])
        with pytest.raises(FormatError, match="cut"):
            load_trace(cut)


@pytest.mark.parametrize("ending", [".trace", ".json", ".json.gz", ".pftrace"])
@given(data=st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_byte_never_crashes_the_reader(ending: str, data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / f"t{ending}"
    save_trace(small(), path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with suppress(ForetraceError):
        load_trace(path)


@given(st.binary(max_size=200), st.sampled_from([b"", b"PAR1", b"\x1f\x8b", b"{", b"[", b"\n", MAGIC]))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes_are_a_format_error(tmp_path: Path, data: bytes, start: bytes) -> None:
    (tmp_path / "t").write_bytes(start + data)
    with pytest.raises(FormatError):
        load_trace(tmp_path / "t")


def test_an_unknown_ending_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ForetraceError, match=r"unknown ending; expected one of \.trace, \.parquet, \.json"):
        save_trace(small(), tmp_path / "t.xlsx")


def test_a_missing_file_and_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ForetraceError, match=r"nothing\.trace"):
        load_trace(tmp_path / "nothing.trace")
    with pytest.raises(ForetraceError, match=r"nowhere"):
        save_trace(small(), tmp_path / "nowhere" / "t.trace")


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_trace(small(), tmp_path / "t.trace")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ForetraceError, match="No space left"):
        save_trace(small().replace(module="other"), tmp_path / "t.trace")
    assert load_trace(tmp_path / "t.trace") == small()
    assert len(list(tmp_path.iterdir())) == 1


def test_info_that_is_not_json_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ForetraceError, match="expected JSON values"):
        save_trace(small().replace(info={"x": object()}), tmp_path / "t.trace")
    assert not list(tmp_path.iterdir())


def test_a_newer_format_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foretrace.traces.formats.parquet.FORMAT_VERSION", 9)
    for ending in (".trace", ".json"):
        save_trace(small(), tmp_path / f"t{ending}")
    monkeypatch.undo()
    for ending in (".trace", ".json"):
        with pytest.raises(FormatError, match="trace format 9; this Foretrace reads up to 1"):
            load_trace(tmp_path / f"t{ending}")


def test_another_parquet_file_is_no_trace(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"x": np.arange(3)}), tmp_path / "t.parquet")
    with pytest.raises(FormatError, match="not a Foretrace trace: columns missing: name"):
        load_trace(tmp_path / "t.parquet")


def test_a_gzip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "FREE_BYTES", 1 << 20)
    (tmp_path / "bomb.json.gz").write_bytes(gzip.compress(b" " * (64 << 20)))
    with pytest.raises(FormatError, match=r"bomb\.json\.gz: gzip data unpacks to more than"):
        load_trace(tmp_path / "bomb.json.gz")


@pytest.mark.parametrize(
    ("name", "data", "reader"),
    [
        ("a.bin", b"SQLite format 3\0 and so on", "nsight.read_nsight"),
        ("a.json", b'{"schema": "1.0", "pid": 1, "nodes": [{"id": 1}]}', "execution_trace.read_execution_trace"),
        ("a.json", b' {"nodes": [], "other": {"a": 1}}', "execution_trace.read_execution_trace"),
        ("a.CSV", b"name,start_s\nx,1\n", "csv.read_csv"),
    ],
)
def test_other_readers_are_called_by_content(
    name: str, data: bytes, reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(data)
    asked: list[Path] = []
    monkeypatch.setattr(f"foretrace.traces.formats.{reader}", lambda path: asked.append(path) or small())
    assert load_trace(tmp_path / name) == small()
    assert asked == [tmp_path / name]


def test_a_pipe_is_read(tmp_path: Path) -> None:
    save_trace(small(), tmp_path / "t.json")
    os.mkfifo(tmp_path / "pipe")
    data = (tmp_path / "t.json").read_bytes()
    with ThreadPoolExecutor(1) as pool:
        pool.submit((tmp_path / "pipe").write_bytes, data)
        assert load_trace(tmp_path / "pipe") == small()


def test_what_never_ends_is_refused_at_once() -> None:
    with pytest.raises(FormatError, match="/dev/zero: neither"):
        load_trace("/dev/zero")


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("p.csv", b"name,start_s,duration_s\na,0,1\n", "CSV from a pipe"),
        ("p", b"SQLite format 3\0 and so on", "SQLite from a pipe"),
        ("p.json", b'{"schema": "1.0", "nodes": [{"id": 1}]}', "a PyTorch execution trace from a pipe"),
        ("p.json", b'{"a": "' + b"x" * 99 + b'", "foretrace": {}, "traceEvents": []}', "this has to be read twice"),
    ],
)
def test_a_pipe_of_what_is_opened_twice_is_refused(name: str, data: bytes, what: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with ThreadPoolExecutor(1) as pool:
        pool.submit((tmp_path / name).write_bytes, data)
        with pytest.raises(FormatError, match=f"{name}: {what}.*save it to a file first"):
            load_trace(tmp_path / name)


def test_text_of_two_bytes_a_character_is_said(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_bytes('{"traceEvents": []}'.encode("utf-16"))
    with pytest.raises(FormatError, match="UTF-16 or UTF-32 text: save it as UTF-8"):
        load_trace(tmp_path / "t.json")


def test_a_csv_of_blank_lines_is_empty(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\n\n")
    with pytest.raises(FormatError, match=r"t\.csv: the file is empty"):
        load_trace(tmp_path / "t.csv")


def test_info_that_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    save_trace(Trace.from_rows([{"name": "a"}], info={"x": "text"}), tmp_path / "t.csv")
    text = (tmp_path / "t.csv").read_text()
    (tmp_path / "t.csv").write_text(text.replace('""text""', r'""\ud800""'))
    with pytest.raises(FormatError, match=r"t\.csv: line 2: trace description: info: a text that is no UTF-8"):
        load_trace(tmp_path / "t.csv")
