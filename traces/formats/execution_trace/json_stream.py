"""One long list inside a JSON object, read an element at a time: what comes before and after it is small."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from foretrace.ir import FormatError
from foretrace.traces.formats.text_stream import CutOffError, read_text

MAX_VALUE = 64 << 20  # characters of one value outside the list, or of one element
_SPACE = re.compile(r"[ \t\r\n]*")


class JsonStream:
    """The JSON object in a file whose entry *key* is a list of any length.

    Iterating yields the list's elements; `head` then holds the other entries. Raises FormatError, naming the file, for
    text that is no JSON object, is nested too deep, or holds a value beyond `MAX_VALUE`; CutOffError, after the
    elements that are whole, where it ends early.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.head: dict[str, Any] = {}
        self.found = False
        self._path, self._key = path, key
        self._pieces = read_text(path)
        self._text, self._at = "", 0
        self._decoder = json.JSONDecoder(strict=False)

    def __iter__(self) -> Iterator[Any]:
        if self._peek() == "" and not self._text:
            raise FormatError(f"{self._path}: the file is empty")
        self._expect("{")
        if self._peek() == "}":
            return
        while True:
            key = self._value()
            self._expect(":")
            if key == self._key and self._peek() == "[":
                self.found = True
                yield from self._elements()
            elif isinstance(key, str):
                self.head[key] = self._value()
            else:
                raise self._wrong("a key")
            if self._expect(",}") == "}":
                return

    def _elements(self) -> Iterator[Any]:
        self._expect("[")
        if self._peek() == "]":
            self._at += 1
            return
        while True:
            yield self._value()
            if self._expect(",]") == "]":
                return

    def _peek(self) -> str:
        """The next character that is no space, "" at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _expect(self, wanted: str) -> str:
        found = self._peek()
        if not found or found not in wanted:
            raise self._wrong(" or ".join(wanted))
        self._at += 1
        return found

    def _value(self) -> Any:
        """The next value; it has come whole when something follows it."""
        self._peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
                if (end < len(self._text) and self._text[end] not in ".eE") or not self._more():
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                if len(self._text) - self._at > MAX_VALUE:
                    raise FormatError(f"{self._path}: a value of more than {MAX_VALUE} characters") from None
                if not self._more():
                    at_end = len(self._text) - error.pos < len("-Infinity") or error.msg.startswith("Unterminated")
                    raise self._ended() if at_end else self._wrong(f"JSON ({error.msg})") from None
            except RecursionError:
                raise FormatError(f"{self._path}: JSON nested too deep") from None
            except ValueError as error:  # a number of thousands of digits
                raise FormatError(f"{self._path}: not valid JSON: {error}") from None

    def _more(self) -> bool:
        """Take in more of the file, at least as much again as is waiting."""
        waiting = len(self._text) - self._at
        pieces = [self._text[self._at :]]
        came = 0
        for piece in self._pieces:
            pieces.append(piece)
            came += len(piece)
            if came > waiting:
                break
        self._text, self._at = "".join(pieces), 0
        return came > 0

    def _wrong(self, expected: str) -> FormatError:
        rest = self._text[self._at : self._at + 30]
        return (
            FormatError(f"{self._path}: not valid JSON: expected {expected}, got {rest!r}") if rest else self._ended()
        )

    def _ended(self) -> CutOffError:
        return CutOffError(f"{self._path}: the JSON ends early: the file is cut off; copy or record it again")
