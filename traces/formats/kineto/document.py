"""The text of a trace file, read once from start to end, a block of events at a time."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from foretrace.ir import FormatError
from foretrace.traces.formats.unpack import PIECE, Source

from .events import DecodeErrors, Event, decode_event, decode_events, read_entry
from .structure import likely_cut, scan, whole_escapes

MAX_INFO = 1 << 20  # bytes of JSON kept of one top-level entry
MAX_ENTRY = 64 << 20  # bytes of one event
_MARK = b"\xef\xbb\xbf"
_SPACE = re.compile(rb"[ \t\r\n]*")
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


class _EndError(Exception):
    """The text ends too early, or (not *cut*) goes on as no JSON does."""

    def __init__(self, reason: str, cut: bool) -> None:
        super().__init__(reason)
        self.cut = cut


class Document:
    """A JSON object with a list of traceEvents anywhere in it, or that list alone.

    Iterating `blocks` gives the events; when it is through, `head` has the other entries of up to `MAX_INFO`, `keys`
    the names of all, `count` the number of entries of the list, and `warnings` how far the text is sound.
    """

    def __init__(self, source: Source) -> None:
        self.head: dict[str, Any] = {}
        self.keys: list[str] = []
        self.found = False
        self.count = 0
        self.warnings: list[str] = []
        self.unsound: Counter[str] = Counter()
        self._source = source
        self._text, self._at = b"", 0
        while len(self._text) < len(_MARK) and self._more():
            pass
        self._text = self._text.removeprefix(_MARK)

    def blocks(self) -> Iterator[list[Event]]:
        """The events in blocks, in the order of the file; entries that are none are counted in `unsound`.

        Raises FormatError where the text is no JSON before any event came.
        """
        try:
            yield from self._top()
        except _EndError as error:
            if not self.count:
                reason = self._source.damage or str(error)
                raise FormatError(f"{self._source.label}: not valid JSON (cut off?): {reason}") from None
            reason = self._source.damage or str(error)
            how = "cut off" if error.cut else "no valid JSON any more"
            self.warnings.append(f"{how} after {self.count} events: {reason}")

    def _top(self) -> Iterator[list[Event]]:
        if self._peek() == b"[":
            self._at += 1
            self.found = True
            yield from self._entries()
            return
        self._expect(b"{")
        if self._peek() == b"}":
            return
        while True:
            key = self._key()
            self.keys.append(key)
            if key == "nodes" and "schema" in self.keys and not self.found:
                return  # a PyTorch execution trace, which may be long
            if key == "traceEvents" and self._peek() == b"[":
                self._at += 1
                self.found = True
                yield from self._entries()
            elif (text := self._value()) is not None:
                try:
                    self.head[key] = json.loads(text.decode("utf-8", "replace"), strict=False)
                except (ValueError, RecursionError):
                    self.warnings.append(f"top-level entry {key[:100]!r} is no valid JSON: left out")
            if self._expect(b",}") == b"}":
                return

    def _entries(self) -> Iterator[list[Event]]:
        """The events of the list whose opening bracket has just come, to its end."""
        self._at -= 1  # before the entries that wait stands the bracket, later the comma
        want = PIECE
        while True:
            while len(self._text) - self._at < want and self._more():
                pass
            text = self._text[self._at :]
            cut = likely_cut(text)
            events = _decode(text, cut) if cut > 0 else None
            if events is not None:
                self._text, self._at = text[cut:], 0
                self.count += len(events)
                yield events
                want = PIECE
                continue
            commas, end, _, _ = scan(text[1:])
            commas += 1
            stop = end + 1 if end >= 0 else int(commas[-1]) if len(commas) else -1
            if stop >= 0:
                self._text, self._at = text[stop:], int(end >= 0)
                yield self._odd(text, [0, *commas[commas < stop].tolist(), stop])
                want = PIECE
            if end >= 0:
                return
            if stop >= 0:
                continue
            if len(text) > MAX_ENTRY:
                raise _EndError(f"an event of more than {MAX_ENTRY >> 20} MiB", cut=False)
            want = 2 * len(text)
            if not self._more():
                events = _decode(text + b"]", len(text)) or []  # an event that is whole, and then nothing
                self.count += len(events)
                yield events
                raise _EndError("the list of events does not end", cut=True)

    def _odd(self, text: bytes, stops: list[int]) -> list[Event]:
        """The events between the *stops* in *text*; one by one where they do not decode together."""
        events = _decode(text, stops[-1])
        if events is not None:
            self.count += len(events)
            return events
        events = []
        for start, stop in pairwise(stops):
            entry = text[start + 1 : stop]
            if stop == stops[-1] and not entry.strip():
                break  # a comma after the last event
            self.count += 1
            try:
                events.append(decode_event(entry))
                continue
            except DecodeErrors:
                pass
            try:
                event = read_entry(entry)
            except (ValueError, RecursionError):
                self.unsound["entries that are not valid JSON: left out"] += 1
                continue
            if event is None:
                self.unsound["entries that are not objects: left out"] += 1
            else:
                events.append(event)
        return events

    def _key(self) -> str:
        self._peek()
        while (found := _STRING.match(self._text, self._at)) is None:
            waiting = self._text[self._at : self._at + MAX_INFO]
            if len(waiting) == MAX_INFO or not (b'"' + waiting).startswith(b'""') or not self._more():
                raise _EndError(f"expected a key, got {waiting[:20]!r}", cut=waiting[:1] in (b"", b'"'))
        self._at = found.end()
        self._expect(b":")
        try:
            return str(json.loads(found[0].decode("utf-8", "replace"), strict=False))
        except ValueError as error:
            raise _EndError(str(error), cut=False) from None

    def _value(self) -> bytes | None:
        """The text of the value that comes next, up to the comma or bracket after it; None beyond `MAX_INFO`."""
        kept: list[bytes] = []
        size, depth, inside, step = 0, 0, False, 4096
        self._peek()
        while True:
            piece = self._text[self._at : self._at + step]
            piece = piece[: whole_escapes(piece)]
            commas, end, depth, inside = scan(piece, depth, inside)
            stop = int(commas[0]) if len(commas) else end
            part = piece if stop < 0 else piece[:stop]
            self._at += len(part)
            size += len(part)
            if size <= MAX_INFO:
                kept.append(part)
            if stop >= 0:
                return b"".join(kept) if size <= MAX_INFO else None
            if not part and not self._more():
                raise _EndError("the text ends inside a value", cut=True)
            step = min(4 * step, PIECE)

    def _more(self) -> bool:
        """Take in the next piece; whether there was one."""
        piece = self._source.read()
        self._text, self._at = self._text[self._at :] + piece, 0
        return bool(piece)

    def _peek(self) -> bytes:
        """The next character that is no space, empty at the end."""
        while True:
            found = _SPACE.match(self._text, self._at)
            self._at = found.end() if found else self._at
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def _expect(self, wanted: bytes) -> bytes:
        found = self._peek()
        if not found or found not in wanted:
            got = self._text[self._at : self._at + 20]
            raise _EndError(f"expected one of {wanted.decode()}, got {got!r}", cut=not found)
        self._at += 1
        return found


def _decode(text: bytes, end: int) -> list[Event] | None:
    """The events between the first character and that at *end*, None where that is no list of them."""
    buffer = bytearray(text)
    buffer[0], buffer[end] = b"[]"
    try:
        return decode_events(memoryview(buffer)[: end + 1])
    except DecodeErrors:
        return None
