"""Attribute values as text, and back: ``none true 1 0.5 "text" batch*seq [1, 2]``. Shared by the text and protobuf forms."""

import json
import math
from typing import Any

from .dim import Dim, parse_dim
from .errors import FormatError

_CONSTANTS = {"none": None, "true": True, "false": False, "inf": math.inf, "-inf": -math.inf, "nan": math.nan}
MAX_DEPTH = 32


def format_value(value: Any) -> str:
    """One attribute value as text that `parse_value` reads back to an equal value."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int | Dim):
        return str(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(format_value, value))}]"
    raise TypeError(f"an attribute cannot hold a {type(value).__name__}: {value!r}")


def parse_value(text: str) -> Any:
    """The value that *text* stands for; lists become tuples. Raises `FormatError`."""
    value, end = read_value(text, 0)
    if text[end:].strip():
        raise FormatError(f"cannot read the value {text!r}: something follows it")
    return value


def read_value(text: str, at: int, depth: int = 0) -> tuple[Any, int]:
    """Read one value from position *at*; gives it and the position after it."""
    while at < len(text) and text[at] == " ":
        at += 1
    if at == len(text) or depth > MAX_DEPTH:
        raise FormatError(f"cannot read a value in {text[:60]!r}")
    if text[at] == '"':
        try:
            value, end = _decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as e:
            raise FormatError(f"a string does not end: {text[at : at + 40]!r}") from e
        return value, end
    if text[at] == "[":
        return _read_list(text, at + 1, depth)
    end, level = at, 0
    while end < len(text) and (level or text[end] not in ",]}"):
        level += {"(": 1, ")": -1}.get(text[end], 0)
        end += 1
    return _scalar(text[at:end].strip()), end


_decoder = json.JSONDecoder()


def _read_list(text: str, at: int, depth: int) -> tuple[tuple[Any, ...], int]:
    items: list[Any] = []
    while True:
        while at < len(text) and text[at] in " ,":
            at += 1
        if at >= len(text):
            raise FormatError(f"a list does not end: {text[:60]!r}")
        if text[at] == "]":
            return tuple(items), at + 1
        if text[at] == "}":
            raise FormatError(f"a list ends with '}}': {text[:60]!r}")
        value, at = read_value(text, at, depth + 1)
        items.append(value)


def _scalar(word: str) -> Any:
    if word in _CONSTANTS:
        return _CONSTANTS[word]
    try:
        return int(word)
    except ValueError:
        pass
    try:
        return float(word)
    except ValueError:
        return parse_dim(word)
