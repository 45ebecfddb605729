"""Kineto files read in blocks: cut anywhere, the events are those of the whole; files that end early, gzip damage."""

import gzip
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretrace.ir import FormatError
from foretrace.traces import Trace, load_trace
from foretrace.traces.formats import unpack
from foretrace.traces.formats.kineto import columns, document, read_json
from foretrace.traces.formats.kineto.structure import likely_cut, scan, whole_escapes
from foretrace.traces.formats.unpack import Source

odd_text = st.text(st.sampled_from('ab"\\{}[],:\n é\x7f'), max_size=6)
odd_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | odd_text,
    lambda v: st.lists(v, max_size=3) | st.dictionaries(odd_text, v, max_size=3),
    max_leaves=6,
)
arguments = st.dictionaries(odd_text, odd_value, max_size=2) | st.fixed_dictionaries(
    {"External id": st.integers(0, 9) | st.just("7"), "Input Dims": st.just([[2, 3], []]) | odd_value},
    optional={"correlation": st.integers(0, 5), "Sequence number": st.integers(0, 3), "bytes": st.integers(0, 99)},
)
complete = st.fixed_dictionaries(
    {
        "ph": st.just("X"),
        "name": odd_text,
        "cat": st.sampled_from(["cpu_op", "kernel", "cuda_runtime", "gpu_memcpy", "odd"]),
        "ts": st.integers(0, 50) | st.floats(0, 50).map(lambda t: round(t, 3)),
        "dur": st.integers(0, 9),
        "pid": st.integers(0, 1),
        "tid": st.integers(0, 1) | odd_text,
    },
    optional={"args": arguments},
)
marks = st.fixed_dictionaries({"ph": st.sampled_from("BEisfM"), "name": odd_text, "ts": st.integers(0, 50)})
entries = st.lists(complete | marks | odd_value, max_size=8)
heads = st.dictionaries(odd_text.map(lambda k: "k" + k), odd_value, max_size=3)


@contextmanager
def pieces_of(size: int) -> Iterator[None]:
    with mock.patch.object(unpack, "PIECE", size), mock.patch.object(document, "PIECE", size):
        yield


def text_of(before: dict[str, Any], events: list[Any], after: dict[str, Any], indent: int | None) -> bytes:
    return json.dumps({**before, "traceEvents": events, **after}, indent=indent).encode()


@given(heads, entries, heads, st.sampled_from([None, 0, 2]), st.integers(4, 200), st.booleans())
@settings(max_examples=60, deadline=None)
def test_blocks_of_any_size_read_as_the_whole(
    before: dict[str, Any], events: list[Any], after: dict[str, Any], indent: int | None, size: int, packed: bool
) -> None:
    first = {"ph": "X", "cat": "cpu_op", "name": "first", "ts": 1, "dur": 2}
    data = text_of(before, [first, *events], after, indent)
    whole = read_json(data, "t")
    assert whole.info["warnings"] == [w for w in whole.info["warnings"] if "valid JSON" not in w]
    sound = [e for e in events if isinstance(e, dict)]
    assert sum(whole.info["other_events"].values()) == sum(e.get("ph") not in ("X", "B", "E") for e in sound)
    assert len(whole) >= 1 + sum(e.get("ph") == "X" and "dur" in e for e in sound)
    with pieces_of(size):
        assert read_json(gzip.compress(data) if packed else data, "t") == whole


@given(st.lists(odd_value, max_size=5), st.booleans(), st.integers(1, 30))
def test_a_scan_finds_the_commas_and_the_end_whatever_stands_between(values: list[Any], plain: bool, size: int) -> None:
    parts = [json.dumps(v, ensure_ascii=plain).encode() for v in values]
    text = b",".join(parts) + b"]"
    commas, end, _, _ = scan(text)
    assert end == len(text) - 1
    assert [text[a + 1 : b] for a, b in zip([-1, *commas], [*commas, end], strict=True)] == (parts or [b""])
    depth, inside, at, found = 0, False, 0, []
    while at < len(text):  # the same in pieces
        piece = text[at : at + size + 1]
        piece = piece[: whole_escapes(piece)]
        part = scan(piece, depth, inside)
        found += [at + int(c) for c in part.commas]
        if part.end >= 0:
            break
        depth, inside, at = part.depth, part.inside, at + len(piece)
    assert (found, at + part.end) == (commas.tolist(), end)


@pytest.mark.parametrize(
    ("text", "cut"),
    [(b'{"a": 1}, {"b": {', 8), (b'{"a": 1}\n ,\n  {', 10), (b'{"a": {"b": 1}}', -1), (b"3, {}", -1), (b"", -1)],
)
def test_likely_cuts(text: bytes, cut: int) -> None:
    assert likely_cut(text) == cut


def step(count: int) -> list[dict[str, Any]]:
    return [
        {"ph": "X", "cat": "cpu_op", "name": f"aten::op{i} {{}}, {{", "pid": 1, "tid": 1, "ts": 10 * i, "dur": 5,
         "args": {"External id": i, "Input Dims": [[i, 2]], "Nested": [{"a": 1}, {"b": "}, {"}]}}
        for i in range(count)
    ]  # fmt: skip


def test_a_file_cut_off_anywhere_gives_the_events_before_the_cut() -> None:
    events = step(6)
    data = text_of({"schemaVersion": 1, "distributedInfo": {"rank": 2}}, events, {"traceName": "x"}, 1)
    whole = read_json(data, "t.json")
    kept = 0
    for length in range(len(data)):
        if kept == 0 and data[:length].count(b'"ph"') < 2 and not _reads(data[:length]):
            with pytest.raises(FormatError, match=r"t.json: not valid JSON \(cut off\?\)"):
                read_json(data[:length], "t.json")
            continue
        trace = read_json(data[:length], "t.json")
        kept = len(trace)
        assert trace.name.tolist() == whole.name.tolist()[:kept]
        assert set(trace.rank.tolist()) == {2}
        assert len(trace.info["warnings"]) == 1
        assert trace.info["warnings"][0].startswith(f"cut off after {kept} events")
        assert data[:length].count(b'"ph"') - kept in (0, 1)
    assert kept == 6


def _reads(data: bytes) -> bool:
    try:
        return len(read_json(data, "t.json")) > 0
    except FormatError:
        return False


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_gzip_cut_off_gives_the_events_before_the_cut(share: float, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    events = [e | {"id": rng.bytes(20).hex()} for e in step(3000)]
    data = gzip.compress(text_of({}, events, {}, None))
    (tmp_path / "t.json.gz").write_bytes(data[: int(share * len(data))])
    trace = load_trace(tmp_path / "t.json.gz")
    assert 0.8 * share * 3000 < len(trace) < 3000
    cut = f"cut off after {len(trace)} events: gzip data ends early: the file is cut off"
    assert trace.info["warnings"] == [cut]


def test_corrupt_gzip_gives_what_came_before(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    events = [e | {"id": rng.bytes(20).hex()} for e in step(3000)]
    data = bytearray(gzip.compress(text_of({}, events, {}, None)))
    data[-8:-4] = b"\0\0\0\0"  # the checksum
    (tmp_path / "t.json.gz").write_bytes(data)
    trace = load_trace(tmp_path / "t.json.gz")
    assert 2000 < len(trace) < 3000  # all but the last piece
    assert trace.info["warnings"][0].startswith(f"cut off after {len(trace)} events: corrupt gzip data")
    (tmp_path / "t.json.gz").write_bytes(data[:200])
    with pytest.raises(FormatError, match="cut off"):
        load_trace(tmp_path / "t.json.gz")


def test_a_damaged_entry_costs_itself_alone() -> None:
    data = text_of({}, step(4), {}, None).replace(b'"ts": 20', b'"ts": 2 0')
    trace = read_json(data, "t")
    assert [n[:9] for n in trace.name.tolist()] == ["aten::op0", "aten::op1", "aten::op3"]
    assert trace.info["warnings"] == ["1 entries that are not valid JSON: left out"]


def test_text_that_is_no_json_after_the_events_is_said() -> None:
    data = text_of({}, step(4), {"a": 1, "b": 2}, None).replace(b'"b": 2', b"'b': 2")
    trace = read_json(data, "t")
    assert len(trace) == 4
    assert trace.info["warnings"][0].startswith("no valid JSON any more after 4 events")


def test_a_string_that_never_ends_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "MAX_ENTRY", 1 << 16)
    data = text_of({}, step(20), {}, None).replace(b'"aten::op9 {}', b'"aten::op9 {}"') + b" " * (1 << 20)
    trace = read_json(data, "t")
    assert "events: an event of more than" in trace.info["warnings"][0]
    assert 0 < len(trace) <= 20


def test_large_other_entries_are_passed_over_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "MAX_INFO", 1000)
    big = [{"x": 'a"\\], {' * 10, "y": [1, {}]} for _ in range(50)]
    small = {"distributedInfo": {"rank": 3}, "deviceProperties": [{"name": "GPU"}]}
    for before, after in (({"big": big, **small}, {}), ({}, {"big": big, **small}), (small, {"big": big})):
        for size in (100, 1 << 18):
            with pieces_of(size):
                trace = read_json(text_of(before, step(3), after, None), "t")
            assert (len(trace), trace.system, trace.rank.tolist()) == (3, "GPU", [3, 3, 3])
            assert trace.info["warnings"] == []


def test_more_events_than_are_read_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "MAX_EVENTS", 10)
    with pytest.raises(FormatError, match="t: more than the 10 complete events"):
        read_json(text_of({}, step(11), {}, None), "t")


def test_progress_rises_to_one(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_bytes(text_of({}, step(2000), {}, None))
    told: list[float] = []
    with pieces_of(4096):
        load_trace(tmp_path / "t.json", progress=told.append)
    assert len(told) > 50
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_a_file_larger_than_what_is_held_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "MAX_BYTES", 1000)
    (tmp_path / "t.json").write_bytes(text_of({}, step(100), {}, None))
    assert len(load_trace(tmp_path / "t.json")) == 100
    whole = Source(io.BytesIO(b"x" * 1001), "t")
    with pytest.raises(FormatError, match="t: more than the"):
        whole.read_all()


def test_our_own_chrome_file_with_its_keys_in_another_order(tmp_path: Path) -> None:
    from foretrace.traces import save_trace

    rows = [{"name": "a", "start_s": 0.0, "duration_s": 1.0, "kind": "matmul"}]
    trace = Trace.from_rows(rows, info={})
    save_trace(trace, tmp_path / "t.json")
    ours = json.loads((tmp_path / "t.json").read_bytes())
    for key in ("foretrace", "streams", "displayTimeUnit"):
        ours[key] = ours.pop(key)
    (tmp_path / "t.json").write_text(json.dumps(ours))
    assert load_trace(tmp_path / "t.json") == trace


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_changed_and_missing_bytes_never_crash_the_reader(data: st.DataObject) -> None:
    text = bytearray(text_of({"schemaVersion": 1}, step(4), {"deviceProperties": [{"name": "GPU"}]}, None))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    size = data.draw(st.integers(4, 300))
    try:
        with pieces_of(size):
            trace = read_json(bytes(text), "t")
    except FormatError:
        return
    assert 0 < len(trace) <= 5
    assert trace.replace(info={}) == read_json(bytes(text), "t").replace(info={})
