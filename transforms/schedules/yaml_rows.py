"""The YAML form of a schedule, read from YAML events one by one: no tags, no aliases, no tree, no recursion."""

from collections.abc import Iterator
from typing import Any, Final

import yaml

from foretrace.hardware.quantity import printable, quoted
from foretrace.ir import FormatError, nearest_names

from .table import ScheduleError

_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_KEYS: Final = ("name", "schedule")


class _Events:
    """The events of one document, with what was expected where something else comes."""

    def __init__(self, text: str, shown: str) -> None:
        self.shown = shown
        self._events = self._checked(text)
        next(self._events, None)  # the start of the stream

    def _checked(self, text: str) -> Iterator[Any]:
        try:
            for event in yaml.parse(text, Loader=_LOADER):
                if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) or getattr(event, "tag", None):
                    raise FormatError(f"{self.place(event)}: anchors, aliases and tags are not read")
                yield event
        except yaml.YAMLError as e:
            mark = getattr(e, "problem_mark", None)
            place = f"{self.shown}:{mark.line + 1}" if mark else self.shown
            reason = getattr(e, "problem", None) or getattr(e, "reason", None) or "unreadable"
            raise FormatError(f"{place}: not YAML: {printable(str(reason), 200)}") from None

    def place(self, event: Any) -> str:
        """``FILE:LINE`` of *event*."""
        return f"{self.shown}:{event.start_mark.line + 1}"

    def take(self, kind: type[Any], expected: str) -> Any:
        """The next event, which is a *kind*; *expected* says so in words."""
        event = next(self._events)
        if not isinstance(event, kind):
            raise ScheduleError(f"{self.place(event)}: expected {expected}")
        return event

    def pairs(self, known: tuple[str, ...]) -> Iterator[str]:
        """The keys of the mapping that has begun, up to its end: each *known* and there once."""
        seen: set[str] = set()
        while isinstance(event := next(self._events), yaml.ScalarEvent):
            if event.value not in known:
                near = nearest_names(event.value[:60], known)
                hint = f"nearest: {', '.join(near)}" if near else f"one of {', '.join(known)}"
                raise ScheduleError(f"{self.place(event)}: unknown key {quoted(event.value)}; {hint}")
            if event.value in seen:
                raise ScheduleError(f"{self.place(event)}: the key {event.value} stands here twice")
            seen.add(event.value)
            yield event.value
        if not isinstance(event, yaml.MappingEndEvent):
            raise ScheduleError(f"{self.place(event)}: expected a key: one of {', '.join(known)}")

    def items(self) -> Iterator[Any]:
        """The start of each mapping in the list that has begun, up to its end."""
        while isinstance(event := next(self._events), yaml.MappingStartEvent):
            yield event
        if not isinstance(event, yaml.SequenceEndEvent):
            raise ScheduleError(f"{self.place(event)}: expected a row such as {{rank: 0, slot: 0, ...}}")


def yaml_rows(
    text: str, shown: str, columns: tuple[str, ...], named: list[str]
) -> Iterator[tuple[int, dict[str, str]]]:
    """Each row of *text* (called *shown* in errors): its line and its cells by column; a ``name`` goes to *named*.

    Raises `FormatError` where the text is no YAML, `ScheduleError` where it is another document than a schedule.
    """
    events = _Events(text, shown)
    events.take(yaml.DocumentStartEvent, "a document with the keys name and schedule")
    events.take(yaml.MappingStartEvent, "a mapping with the keys name and schedule")
    for key in events.pairs(_KEYS):
        if key == "name":
            named.append(printable(events.take(yaml.ScalarEvent, "a name").value, 60))
            continue
        events.take(yaml.SequenceStartEvent, "a list of rows")
        for start in events.items():
            line = start.start_mark.line + 1
            cells = {
                column: events.take(yaml.ScalarEvent, "a number or a pass").value for column in events.pairs(columns)
            }
            missing = [column for column in columns if column not in cells]
            if missing:
                raise ScheduleError(f"{shown}:{line}: the row has no {' and no '.join(missing)}")
            yield line, cells
    events.take(yaml.DocumentEndEvent, "nothing behind the schedule")
    events.take(yaml.StreamEndEvent, "one document")
