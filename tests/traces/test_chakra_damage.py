"""Damaged Chakra files: what is sound is read and the rest is said, or an error names the byte."""

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretrace.ir import ForetraceError, FormatError
from foretrace.traces import load_trace
from foretrace.traces.formats.chakra import (
    ChakraTrace,
    CutOffError,
    RankReader,
    encode_rank,
    load_chakra,
    load_rank,
    save_chakra,
)
from tests.traces.chakra_files import HEAD, NODE, framed, messages, small


def test_a_file_that_is_cut_off_gives_what_is_sound(tmp_path: Path) -> None:
    data = encode_rank(small())
    offsets = [at for at, _ in messages(data)]
    path = tmp_path / "run.0.et"
    for end in range(1, len(data)):
        path.write_bytes(data[:end])
        sound = sum(at < end for at in offsets) - 1  # the message that the cut is in
        if end in offsets:
            assert load_rank(path).nodes == small().nodes[:sound]
        elif sound == 0:
            with pytest.raises(FormatError, match="byte 0"):
                load_rank(path)
        else:
            found = load_rank(path)
            assert found.nodes == small().nodes[: sound - 1]
            assert f"byte {offsets[sound]}" in found.warnings[0]
            assert f"the {sound - 1} nodes" in found.warnings[0]
    trace = load_trace(path)
    assert "cut off" in trace.info["warnings"][0]
    assert trace.source == "foreign"  # `diff` prints the warnings of what is not predicted
    reader = RankReader(io.BytesIO(data[:-1]), "x")
    with pytest.raises(CutOffError):
        list(reader)


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        (b"\xff\xff\xff\xff\x0f", r"byte \d+: a message of 4294967295 bytes, at most"),
        (b"\xff" * 10 + b"\x01", r"byte \d+: a message of \d+ bytes"),
        (framed(b"\xff\xff\xff"), r"byte \d+: damaged"),
        (framed(b"\x12\x02\xff\xfe"), r"byte \d+: damaged"),  # no UTF-8
        (framed(b"\x52\x03\x0a\x05a"), r"byte \d+: damaged"),  # an attribute that is cut off
    ],
)
def test_damage_names_the_byte(tmp_path: Path, tail: bytes, message: str) -> None:
    path = tmp_path / "run.0.et"
    data = encode_rank(small())
    path.write_bytes(data + tail)
    for load in (load_rank, load_trace, load_chakra):
        with pytest.raises(FormatError, match=message) as error:
            load(path)
        assert str(path) in str(error.value)
        assert f"byte {len(data)}" in str(error.value)


@given(st.data())
def test_any_damage_is_an_error_of_ours(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    raw = bytearray(encode_rank(small(6)))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.0.et"
    path.write_bytes(bytes(raw))
    for load in (load_chakra, load_trace):
        error = ""
        try:
            load(path)
        except ForetraceError as raised:
            error = str(raised)
        assert not error or "damaged.0.et" in error


def test_a_message_is_not_read_beyond_the_bound() -> None:
    class Endless(io.RawIOBase):
        asked = 0

        def read(self, size: int = -1) -> bytes:
            assert 0 <= size <= 4 << 20
            self.asked += 1
            return b"\xff\xff\xff\x7f"[:size] if size == 1 else b""

    with pytest.raises(FormatError):
        RankReader(Endless(), "endless")  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["[1]", '{"1": 3}', '{"1": [1.5]}', '{"1": [-1]}', "{", '{"1": [true]}'])
def test_groups_that_are_none(tmp_path: Path, text: str) -> None:
    save_chakra(ChakraTrace((small(),), {"1": (0,)}), tmp_path / "run")
    assert json.loads((tmp_path / "run.groups.json").read_text()) == {"1": [0]}
    (tmp_path / "run.groups.json").write_text(text)
    with pytest.raises(FormatError, match=r"run\.groups\.json"):
        load_chakra(tmp_path / "run")


def test_odd_dependencies_are_said(tmp_path: Path) -> None:
    nodes = [NODE(id=1, name="a", type=4, data_deps=[99]), NODE(id=2, type=4, ctrl_deps=[2], duration_micros=1)]
    path = tmp_path / "odd.0.et"
    path.write_bytes(framed(HEAD().SerializeToString(), *(n.SerializeToString() for n in nodes)))
    warnings = load_chakra(path).warnings
    assert "1 dependencies on nodes that the file does not hold" in warnings[0]
    assert "1 nodes wait for each other" in warnings[1]
    assert len(load_trace(path)) == 2
    nodes[1].id = 1
    path.write_bytes(framed(HEAD().SerializeToString(), *(n.SerializeToString() for n in nodes)))
    with pytest.raises(FormatError, match="two nodes"):
        load_chakra(path)
