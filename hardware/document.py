"""Reading hardware YAML: plain data with the place of every key, built from YAML events.

A file from a stranger is data: no tags, no anchors or aliases, bounded size and depth, no duplicate
keys. Scalars read as YAML 1.2 does: ``1e12`` is a number, ``no`` is a word; ``true``, ``false`` and
``null`` mean what they say.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import yaml

from foretrace.ir.errors import ForetraceError, FormatError

from .quantity import printable, quoted

MAX_BYTES: Final = 256 * 1024
MAX_DEPTH: Final = 20
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

KeyPath: TypeAlias = tuple[str | int, ...]


class HardwareError(ForetraceError):
    """A hardware description that says something wrong: ``FILE:LINE:COLUMN: field: what is wrong``."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a key stands: *file* as the user named it, *line* and *column* from 1, *path* as written."""

    file: str
    line: int
    column: int
    path: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"

    def error(self, message: str) -> HardwareError:
        """The error that says *message* of this place."""
        return HardwareError(f"{self.below()}{message}")

    def below(self, *steps: str | int) -> str:
        """``FILE:LINE:COLUMN: dotted.path: `` of this place, or of a path that is absent below it."""
        written = ".".join((*self.path, *map(str, steps)))
        return f"{self}: {printable(written, 200)}: " if written else f"{self}: "


@dataclass(slots=True)
class Document:
    """A mapping read from a file (`data`) and the mark of every path in it (`marks`; () is the whole)."""

    data: dict[str, Any]
    marks: dict[KeyPath, Mark] = field(default_factory=dict)

    def mark(self, path: KeyPath) -> Mark:
        """The mark of *path*, or of its nearest ancestor that has one."""
        while path and path not in self.marks:
            path = path[:-1]
        return self.marks[path]

    def part(self, key: str) -> "Document":
        """The mapping under *key* as a document of its own, its marks unchanged."""
        marks = {path[1:]: mark for path, mark in self.marks.items() if path[:1] == (key,)}
        return Document(self.data[key], marks)

    def without(self, *keys: str) -> "Document":
        """This document less some top-level keys."""
        data = {key: value for key, value in self.data.items() if key not in keys}
        return Document(data, {p: m for p, m in self.marks.items() if not p or p[0] not in keys})

    def put(self, key: str, part: "Document") -> None:
        """Set *key* to another document's mapping, marks included."""
        self.data[key] = part.data
        self.marks |= {(key, *path): mark for path, mark in part.marks.items()}

    def leaves(self) -> Iterator[KeyPath]:
        """The path of every value that is not a mapping."""
        return _leaves(self.data, ())

    def over(self, base: "Document") -> "Document":
        """This document laid over *base*: mappings merge key by key, anything else replaces."""
        data = _merged(self.data, base.data)
        replaced = set(self.leaves())
        kept = {p: m for p, m in base.marks.items() if not any(p[:n] in replaced for n in range(len(p)))}
        return Document(data, kept | self.marks)


def read_document(path: Path, shown: str | None = None) -> Document:
    """The YAML file at *path*, called *shown* in errors. Raises `FormatError` or `HardwareError`."""
    shown = shown or str(path)
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FormatError(f"{shown}: cannot be read: {reason}") from None
    return parse_document(content, shown)


def parse_document(content: bytes, shown: str) -> Document:
    """The mapping that the YAML text *content* holds. Raises `FormatError` or `HardwareError`."""
    if len(content) > MAX_BYTES:
        raise FormatError(f"{shown}: larger than {MAX_BYTES // 1024} KiB: not a hardware description")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"{shown}: not UTF-8 text (byte {error.start})") from None
    reader = _Reader(shown)
    try:
        data = reader.read(yaml.parse(text, Loader=_LOADER))
    except yaml.MarkedYAMLError as error:
        spot = error.problem_mark or error.context_mark
        place = f"{shown}:{spot.line + 1}:{spot.column + 1}" if spot else shown
        raise FormatError(f"{place}: not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise FormatError(f"{shown}: not YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(data, dict):
        raise FormatError(f"{shown}:1:1: expected a mapping such as `memory:`, got {_sort(data)}")
    return Document(data, reader.marks)


class _Reader:
    """One pass over the events of one file."""

    def __init__(self, shown: str) -> None:
        self.shown = shown
        self.marks: dict[KeyPath, Mark] = {(): Mark(shown, 1, 1)}
        self.events: Iterator[Any] = iter(())

    def read(self, events: Iterator[Any]) -> Any:
        self.events = events
        value: Any = None
        documents = 0
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self.mark(event, ()).error("a second document (`---`): expected one in a file")
                value = self.value(next(events), (), ())
        return value

    def mark(self, event: Any, path: tuple[str, ...]) -> Mark:
        spot = event.start_mark
        return Mark(self.shown, spot.line + 1, spot.column + 1, path)

    def value(self, event: Any, path: KeyPath, written: tuple[str, ...]) -> Any:
        here = self.mark(event, written)
        if isinstance(event, yaml.AliasEvent) or event.anchor:
            raise here.error("anchors and aliases (`&`, `*`) are not taken: write the value out")
        if event.tag is not None:
            raise here.error(f"tags are not taken, got {quoted(event.tag)}")
        if isinstance(event, yaml.ScalarEvent):
            return _scalar(event, here)
        if len(path) >= MAX_DEPTH:
            raise here.error(f"nested deeper than {MAX_DEPTH}")
        if isinstance(event, yaml.SequenceStartEvent):
            return self.sequence(path, written)
        return self.mapping(path, written)

    def sequence(self, path: KeyPath, written: tuple[str, ...]) -> list[Any]:
        values: list[Any] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            index = len(values)
            self.marks[*path, index] = self.mark(event, (*written, str(index)))
            values.append(self.value(event, (*path, index), (*written, str(index))))
        return values

    def mapping(self, path: KeyPath, written: tuple[str, ...]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent) or event.anchor or event.tag:
                raise self.mark(event, written).error("expected a plain word as a key")
            key = event.value
            mark = self.mark(event, (*written, key))
            if key in values:
                raise mark.error(f"written twice; first at line {self.marks[*path, key].line}")
            self.marks[*path, key] = mark
            values[key] = self.value(next(self.events), (*path, key), (*written, key))
        return values


_INT: Final = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT: Final = re.compile(r"[-+]?([0-9]{1,40}\.?[0-9]{0,40}|\.[0-9]{1,40})([eE][-+]?[0-9]{1,4})?")
_WORDS: Final[dict[str, bool | None]] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "false": False, "False": False,
}  # fmt: skip


def _scalar(event: Any, mark: Mark) -> Any:
    text: str = event.value
    if event.style:  # quoted, or a block: always text
        return text
    if text in _WORDS:
        return _WORDS[text]
    if text == "<<":
        raise mark.error("merge keys are not taken: use `extends`")
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def _sort(value: Any) -> str:
    if value is None:
        return "an empty file"
    return "a list" if isinstance(value, list) else quoted(value)


def _leaves(value: Any, path: KeyPath) -> Iterator[KeyPath]:
    if not isinstance(value, dict):
        yield path
        return
    for key, inner in value.items():
        yield from _leaves(inner, (*path, key))


def _merged(child: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    data = dict(base)
    for key, value in child.items():
        below = base.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            value = _merged(value, below)
        data[key] = value
    return data


class _Dumper(yaml.SafeDumper):
    """Writes text so that this module reads it back as text."""


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    plain = text not in _WORDS and text != "<<" and not _FLOAT.fullmatch(text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


_Dumper.add_representer(str, _text_node)


def dump(data: dict[str, Any]) -> str:
    """*data* as YAML text that `parse_document` reads back to equal data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
