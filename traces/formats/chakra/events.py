"""The nodes of a Chakra trace as events of a `Trace`, taken in one by one."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from foretrace.ir import ForetraceError, FormatError, without_collector
from foretrace.traces.trace import MAX_EVENTS, Trace

from .nodes import ChakraNode, NodeType, Value, topological_order
from .read import RankReader, rank_files, rank_number, read_sound

SAID: Final = ("title", "system", "model")
NUMBERS: Final = ("rank", "op_id", "correlation", "external_id", "start_s", "duration_s", "bytes_moved", "flops")
FILLED: Final = ("name", "kind", "stream", "module", "phase", "shapes", *NUMBERS)
NO_TIMES: Final = "no start times in the file: each node stands where what it waits for has ended"


class Events:
    """Collects the events of several ranks; the nodes themselves are not kept."""

    def __init__(self) -> None:
        self._columns: dict[str, list[Any]] = {name: [] for name in FILLED}
        self._metadata: Mapping[str, Value] = {}
        self._ours = True
        self._laid_out = False

    def add(self, rank: int, metadata: Mapping[str, Value], nodes: Iterable[ChakraNode]) -> None:
        """The events of one rank. A file without start times is laid out by its dependencies."""
        before = len(self._columns["name"])
        self._metadata = self._metadata or metadata
        self._ours &= metadata.get("source") == "predicted" and "foretrace" in metadata
        waits: list[tuple[int, tuple[int, ...]]] = []
        appends = [self._columns[name].append for name in FILLED]
        for node in nodes:
            if node.type == NodeType.METADATA:
                continue
            for append, value in zip(appends, _event(rank, node), strict=True):
                append(value)
            waits.append((node.id, (*node.data_deps, *node.ctrl_deps)))
            if before + len(waits) > MAX_EVENTS:
                raise FormatError(f"rank {rank}: more than the {MAX_EVENTS} events that are read")
        start, duration = self._columns["start_s"], self._columns["duration_s"]
        if any(duration[before:]) and not any(start[before:]) and len(waits) > 1 and any(w for _, w in waits):
            start[before:] = _lay_out(waits, duration[before:])
            self._laid_out = True

    def trace(self, label: str, warnings: Sequence[str] = ()) -> Trace:
        """All events by their start; with *warnings* it is not all that was predicted, and not called that.

        Raises `FormatError`, naming *label*, for times that no trace holds.
        """
        ours = self._ours and not warnings
        found = self._metadata
        said = {key: _text(found.get(key)) for key in SAID}
        step = found.get("step_s")
        info = _info(found.get("info")) if self._ours else {}
        notes = [*info.get("warnings", []), *warnings, *([NO_TIMES] if self._laid_out else [])]
        if notes:
            info["warnings"] = notes
        try:
            made = Trace.from_columns(
                self._columns,
                source="predicted" if ours else "foreign",
                step_s=step if ours and isinstance(step, float) and 0 <= step < np.inf else None,
                info=info,
                **said,
            )
        except ForetraceError as error:
            raise FormatError(f"{label}: {error}") from None
        made = made.select(np.lexsort((made.rank, made.start_s)))
        return made if self._ours or self._laid_out else made.with_parents()


def load_events(path: str | Path) -> Trace:
    """The trace at *path* (a file, a folder or a prefix, as for `load_chakra`) without holding its nodes."""
    events, warnings = Events(), list[str]()
    files = rank_files(path)
    numbered = len({rank_number(file, {}) for file in files}) == len(files)
    for i, file in enumerate(files):
        try:
            with file.open("rb") as stream, without_collector():
                reader = RankReader(stream, str(file))
                rank = rank_number(file, reader.metadata) if numbered else i
                events.add(rank, reader.metadata, read_sound(reader, warnings))
        except OSError as error:
            raise FormatError(f"cannot read {file}: {error.strerror or error}") from error
    return events.trace(str(path), warnings)


def read_events(stream: BinaryIO, label: str) -> Trace:
    """The trace of the one rank in *stream*, a file called *label*."""
    events, warnings = Events(), list[str]()
    reader = RankReader(stream, label)
    events.add(rank_number(Path(label), reader.metadata), reader.metadata, read_sound(reader, warnings))
    return events.trace(label, warnings)


def _event(rank: int, node: ChakraNode) -> tuple[Any, ...]:
    """What goes into the columns `FILLED`."""
    get = node.attributes.get
    stream, op = get("stream"), _integer(get("op_id"))
    if not isinstance(stream, str) or not stream:
        stream = f"stream {stream}" if type(stream) is int else "host" if get("is_cpu_op") else "compute"
    return (
        node.name,
        node.kind,
        stream,
        _text(get("module")),
        _text(get("phase")),
        _text(get("shapes")),
        rank,
        op,
        op,
        _integer(get("external_id")),
        node.start_s,
        node.duration_s,
        _amount(get("tensor_size")),
        _amount(get("num_ops")),
    )


def _lay_out(waits: Sequence[tuple[int, tuple[int, ...]]], duration: Sequence[float]) -> list[float]:
    """Starts: each node when all that it waits for has ended, 0 where it waits for nothing or in a circle."""
    ids = [i for i, _ in waits]
    start = [0.0] * len(ids)
    place = {id_: i for i, id_ in enumerate(ids)}
    if len(place) != len(ids):
        return start
    for i in topological_order(ids, [w for _, w in waits]):
        start[i] = max((start[j] + duration[j] for d in waits[i][1] if (j := place.get(d)) is not None), default=0.0)
    return start


def _text(value: Value) -> str:
    return value if isinstance(value, str) else ""


def _integer(value: Value) -> int:
    return value if type(value) is int and -1 <= value < 1 << 62 else -1


def _amount(value: Value) -> float:
    return max(float(value), 0.0) if type(value) in (int, float) and value < np.inf else 0.0


def _info(text: Value) -> dict[str, Any]:
    try:
        value = json.loads(text) if isinstance(text, str) else {}
    except (ValueError, RecursionError):
        return {}
    value = value if isinstance(value, dict) else {}
    return value if isinstance(value.get("warnings", []), list) else {}
