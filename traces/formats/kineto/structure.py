"""Where the values of a JSON text begin and end, whatever is in them, without parsing them."""

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_OPEN, _CLOSE, _COMMA, _QUOTE = 1, 2, 3, 4
_KIND = np.zeros(256, np.uint8)
for _kind, _characters in ((_OPEN, b"[{"), (_CLOSE, b"]}"), (_COMMA, b","), (_QUOTE, b'"')):
    _KIND[list(_characters)] = _kind
_STEP = np.array([0, 1, -1, 0, 0])
_LOOKS = 32  # for a likely cut; then the text is scanned
_SLASHES = re.compile(rb"\\+\Z")


class Scan(NamedTuple):
    """What a text, read from some depth on, comes to."""

    commas: NDArray[np.int64]  #: positions of those that are inside no bracket and no string
    end: int  #: position of the bracket that closes more than was opened, -1 where none does
    depth: int
    inside: bool  #: whether the text ends inside a string


def scan(text: bytes, depth: int = 0, inside: bool = False) -> Scan:
    """The commas and the end of the list or object that *text* goes on with, read *depth* brackets further in.

    *inside*: the text begins inside a string. It must not end between a backslash and what that escapes:
    see `whole_escapes`.
    """
    data = np.frombuffer(text, np.uint8)
    kind = _KIND[data]
    at = np.flatnonzero(kind)
    kind = kind[at]
    if b"\\" in text:
        slashes = np.flatnonzero(data == ord("\\"))
        first = np.flatnonzero(np.diff(slashes, prepend=-2) != 1)
        length = np.diff(first, append=len(slashes))
        escaped = np.zeros(len(data) + 1, np.bool_)
        escaped[(slashes[first] + length)[length % 2 == 1]] = True
        kind[escaped[at]] = 0
    quotes = np.cumsum(kind == _QUOTE) + inside
    kept = (quotes % 2 == 0) & (kind > 0) & (kind < _QUOTE)
    ends_inside = bool(quotes[-1] % 2) if len(quotes) else inside
    at, kind = at[kept], kind[kept]
    levels = depth + np.cumsum(_STEP[kind])
    closed = np.flatnonzero(levels < 0)
    stop = int(closed[0]) if len(closed) else len(at)
    commas = at[:stop][(kind[:stop] == _COMMA) & (levels[:stop] == 0)]
    return Scan(commas, int(at[stop]) if len(closed) else -1, int(levels[-1]) if len(levels) else depth, ends_inside)


def whole_escapes(text: bytes) -> int:
    """The length of *text* without a last backslash that escapes what is not there yet."""
    found = _SLASHES.search(text, max(len(text) - 4096, 0)) if text.endswith(b"\\") else None
    return len(text) - (len(found[0]) % 2 if found else 0)


def likely_cut(text: bytes) -> int:
    """The last comma between two objects, as far as a glance tells; -1 where there is none."""
    at = len(text)
    for _ in range(_LOOKS):
        at = text.rfind(b"{", 0, at)
        if at < 0:
            break
        before = text[max(at - 80, 0) : at].rstrip()
        if before.endswith(b",") and before[:-1].rstrip().endswith(b"}"):
            return text.rindex(b",", 0, at)
    return -1
