"""Attribute values as text, and back: ``none true 1 0.5 "text" batch*seq [1, 2]``. Both written forms share it."""

import json
import math
import re
from typing import Any, Final

from .dim import MAX_EXPRESSION_CHARS, Dim, parse_dim
from .errors import FormatError, GraphError

_CONSTANTS: Final = {"none": None, "true": True, "false": False, "inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_INT: Final = re.compile(r"-?[0-9]+")
_FLOAT: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?(e[-+]?[0-9]+)?")
MAX_DEPTH: Final = 32
MAX_DIGITS: Final = 1_000
_decoder: Final = json.JSONDecoder()


def format_value(value: Any, depth: int = 0) -> str:
    """One attribute value as text that `parse_value` reads back to an equal value (a list as a tuple).

    Raises `GraphError` for what an attribute cannot hold: another type, a number or a nesting beyond all use.
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, Dim):
        text = str(value)
        if len(text) > MAX_EXPRESSION_CHARS:
            raise GraphError(f"a dim of {len(text)} characters is longer than {MAX_EXPRESSION_CHARS}: {text[:60]}...")
        return text
    if isinstance(value, int):
        if value.bit_length() > 3 * MAX_DIGITS:
            raise GraphError(f"an attribute cannot hold a number of {value.bit_length()} bits")
        return int.__repr__(value)
    if isinstance(value, float):
        return float.__repr__(value)  # numpy's own would write np.float64(...)
    if isinstance(value, tuple | list) and depth < MAX_DEPTH:
        return f"[{', '.join(format_value(v, depth + 1) for v in value)}]"
    raise GraphError(f"an attribute cannot hold a {type(value).__name__}: {repr(value)[:60]}")


def quote(text: str) -> str:
    """*text* as a JSON string with every line separator escaped, so that one line stays one line."""
    quoted = json.dumps(text, ensure_ascii=False)
    if quoted.isascii():
        return quoted
    return quoted.replace("\x85", "\\u0085").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def parse_value(text: str) -> Any:
    """The value that *text* stands for; lists become tuples. Raises `FormatError`."""
    value, end = read_value(text, 0)
    if text[end:].strip():
        raise FormatError(f"cannot read the value {text[:60]!r}: something follows it")
    return value


def read_value(text: str, at: int, depth: int = 0) -> tuple[Any, int]:
    """Read one value from position *at*; gives it and the position after it."""
    while at < len(text) and text[at] == " ":
        at += 1
    if at == len(text) or depth > MAX_DEPTH:
        raise FormatError(f"cannot read a value in {text[:60]!r}")
    if text[at] == '"':
        try:
            return _decoder.raw_decode(text, at)
        except ValueError as e:
            raise FormatError(f"a string does not end: {text[at : at + 40]!r}") from e
    if text[at] == "[":
        return _read_list(text, at + 1, depth)
    end, level = at, 0
    while end < len(text) and (level or text[end] not in ",]}"):
        level += {"(": 1, ")": -1}.get(text[end], 0)
        end += 1
    return _scalar(text[at:end].strip()), end


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
    if _INT.fullmatch(word):
        if len(word) > MAX_DIGITS:
            raise FormatError(f"the number {word[:20]}... has more than {MAX_DIGITS} digits")
        return int(word)
    if _FLOAT.fullmatch(word):
        return float(word)
    try:
        return parse_dim(word)
    except GraphError as e:
        raise FormatError(str(e)) from e
