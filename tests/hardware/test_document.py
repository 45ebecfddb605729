"""The YAML reader: scalars, places, what is refused, and that no input ends in a foreign exception."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretrace.hardware.document import MAX_BYTES, MAX_DEPTH, HardwareError, dump, parse_document, read_document
from foretrace.hardware.loading import check_file
from foretrace.ir.errors import ForetraceError, FormatError


def data(text: str) -> dict[str, object]:
    return parse_document(text.encode(), "hw.yaml").data


def test_scalars_read_as_yaml_1_2() -> None:
    text = "a: 1e12\nb: no\nc: 'true'\nd: true\ne: ~\nf: 12\ng: 0x10\nh: 1:30\ni: .inf\nj: 2020-01-01\non: 3.5\n"
    wanted = {"a": 1e12, "b": "no", "c": "true", "d": True, "e": None, "f": 12}
    wanted |= {"g": "0x10", "h": "1:30", "i": ".inf", "j": "2020-01-01", "on": 3.5}
    assert data(text) == wanted


def test_every_key_has_its_place() -> None:
    document = parse_document(b"a: 1\nb:\n  c: {d: 2}\n  e: [x, y]\n", "hw.yaml")
    places = {path: str(mark) for path, mark in document.marks.items()}
    assert places[("a",)] == "hw.yaml:1:1"
    assert places["b", "c", "d"] == "hw.yaml:3:7"
    assert places["b", "e", 1] == "hw.yaml:4:10"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "hw.yaml:2:1: a: written twice; first at line 1"),
        ("a: &x 1", "hw.yaml:1:4: a: anchors and aliases (`&`, `*`) are not taken: write the value out"),
        ("a: *x", "hw.yaml:1:4: a: anchors and aliases (`&`, `*`) are not taken: write the value out"),
        ("<<: {a: 1}\nb: <<", "hw.yaml:2:4: b: merge keys are not taken: use `extends`"),
        ("a: !!python/object/apply:os.system [ls]", 'hw.yaml:1:4: a: tags are not taken, got "tag:yaml.org,2002'),
        ("a: 1\n---\nb: 2", "hw.yaml:2:1: a second document (`---`): expected one in a file"),
        ("? [a]\n: 1", "hw.yaml:1:3: expected a plain word as a key"),
        ("a: [1, 2", "hw.yaml:2:1: not YAML: did not find expected ',' or ']'"),
        ("", "hw.yaml:1:1: expected a mapping such as `memory:`, got an empty file"),
        ("- 1", "hw.yaml:1:1: expected a mapping such as `memory:`, got a list"),
        ("a\0", "hw.yaml: not YAML: "),
        ("a: " + "[" * (MAX_DEPTH + 1), f"a.{'.'.join('0' * (MAX_DEPTH - 1))}: nested deeper than {MAX_DEPTH}"),
    ],
)
def test_refuses(text: str, message: str) -> None:
    with pytest.raises((HardwareError, FormatError)) as error:
        data(text)
    assert message in str(error.value)


def test_bytes_that_are_no_text_and_files_that_are_too_large() -> None:
    with pytest.raises(FormatError, match=r"hw.yaml: not UTF-8 text \(byte 2\)"):
        parse_document(b"a:\xff", "hw.yaml")
    with pytest.raises(FormatError, match=r"hw.yaml: larger than 256 KiB"):
        parse_document(b"#" * (MAX_BYTES + 1), "hw.yaml")


def test_alias_bomb_is_refused_at_its_first_anchor() -> None:
    bomb = "a: &a [x, x]\n" + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *a]\n" for n in range(20))
    with pytest.raises(HardwareError, match=r"hw.yaml:1:4: a: anchors"):
        data(bomb)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"nothing.yaml: cannot be read: No such file"):
        read_document(tmp_path / "nothing.yaml")


def test_lists_and_scalars_replace_mappings_merge() -> None:
    child = parse_document(b"a: {b: 1}\nc: [3]\nd: 4\n", "child.yaml")
    base = parse_document(b"a: {b: 9, e: 5}\nc: [1, 2]\nd: {f: 6}\n", "base.yaml")
    merged = child.over(base)
    assert merged.data == {"a": {"b": 1, "e": 5}, "c": [3], "d": 4}
    assert str(merged.mark(("a", "e"))) == "base.yaml:1:11"
    assert str(merged.mark(("d",))) == "child.yaml:3:1"
    assert ("d", "f") not in merged.marks
    assert ("c", 1) not in merged.marks


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=20)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(10**17), 10**17), TEXTS)
VALUES = st.recursive(SCALARS, lambda v: st.one_of(st.lists(v, max_size=3), st.dictionaries(TEXTS, v, max_size=3)))


@given(st.dictionaries(TEXTS, VALUES, max_size=4))
def test_what_is_dumped_reads_back(value: dict[str, object]) -> None:
    assert parse_document(dump(value).encode(), "hw.yaml").data == value


LINES = st.lists(
    st.one_of(
        st.sampled_from(
            [
                "extends: h100-sxm",
                "extends: x86-cpu",
                "accelerator: t4",
                "accelerator: {extends: l4, cores: 3}",
                "host: {dispatch: 1 us}",
                "host: host-x86-server",
                "network: {scale_up: null}",
                "network: {scale_out: {bandwidth: 1 Gb/s}}",
                "count: 16",
                "compute: {matrix: {fp8: 3 TFLOP/s}, vector: null}",
                "compute: {emulated_with: {fp8: [1]}}",
                "compute: 5",
                "memory: null",
                "memory: {capacity: 1 GB}",
                "links: {pcie: []}",
                "sources: {a: {b: 1}}",
                "lineage: 5",
                "name: 7",
                "kind: host",
                "kind: cpu",
                "aliases: {}",
                "node_size: 0",
                "cores: 1e400",
            ]
        ),
        st.text(max_size=20),
    ),
    max_size=6,
)


@settings(deadline=None)  # reads the library's files
@given(st.one_of(st.binary(max_size=60), LINES.map(lambda lines: "\n".join(lines).encode("utf-8", "replace"))))
def test_any_file_is_a_system_or_one_clear_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(content)
    try:
        system = check_file(path)
    except ForetraceError:
        return
    assert system.accelerator.memory.bandwidth > 0
