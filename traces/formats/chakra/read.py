"""Chakra files in: node by node within bounded memory, one rank, or all ranks of a run."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final

from foretrace.ir import FormatError, read_file, without_collector

from .nodes import ChakraNode, ChakraRank, ChakraTrace, Value, topological_order
from .wire import CutOffError, Decoder, read_messages

MAX_NODES: Final = 5_000_000  # that are held; a node takes about a kilobyte
MAX_GROUPS_BYTES: Final = 64 << 20
MAX_RANKS: Final = 100_000
_NAME: Final = re.compile(r"(?:(.*)\.)?(\d{1,9})\.et")
_START: Final = re.compile(rb"[\x80-\xff]*[\x02-\x7f]\x0a[\x03-\x20]\d+\.\d")


def looks_like_chakra(data: bytes) -> bool:
    """Whether *data*, the start of a file, is a length and then metadata with a version such as ``0.0.4``."""
    return _START.match(data) is not None


class RankReader:
    """One rank's file, already open: `version` and `metadata`, then the nodes as it is iterated, one held at a time.

    *label* names the file in errors. Raises `FormatError`, naming the byte offset, where the first message is no
    metadata, and while iterating for a message that is too long or no node; `CutOffError` where the file ends early,
    after what is sound has come.
    """

    def __init__(self, stream: IO[bytes], label: str) -> None:
        self.label = label
        self._decoder = Decoder(label)
        self._messages = read_messages(stream, label)
        _, body = next(self._messages, (0, None))
        if body is None:
            raise FormatError(f"{label}: the file is empty")
        self.version, self.metadata = self._decoder.head(body)

    def __iter__(self) -> Iterator[ChakraNode]:
        for offset, body in self._messages:
            yield self._decoder.node(body, offset)


def read_sound(reader: RankReader, warnings: list[str]) -> Iterator[ChakraNode]:
    """The nodes of *reader*; where the file ends early a warning is added instead of an error."""
    count = 0
    try:
        for node in reader:
            count += 1
            yield node
    except CutOffError as error:
        warnings.append(f"{error}; the {count} nodes before it are read")


def load_rank(path: str | Path, rank: int | None = None) -> ChakraRank:
    """The rank in the file *path*; its number from the name (``PREFIX.RANK.et``) where none is given.

    A file that is cut off gives the nodes before the cut and a warning. Raises `FormatError`, naming the file and the
    byte offset, for one that is damaged or no Chakra trace.
    """
    path = Path(path)
    warnings: list[str] = []
    nodes: list[ChakraNode] = []
    with _open(path) as stream, without_collector():
        reader = RankReader(stream, str(path))
        for node in read_sound(reader, warnings):
            nodes.append(node)
            if len(nodes) > MAX_NODES:
                raise FormatError(f"{path}: more than the {MAX_NODES} nodes that are held")
    warnings += _doubts(nodes, str(path))
    number = rank_number(path, reader.metadata) if rank is None else rank
    return ChakraRank(number, tuple(nodes), reader.metadata, reader.version, tuple(warnings))


def load_chakra(path: str | Path) -> ChakraTrace:
    """The trace at *path*: one file, a folder of them, or the PREFIX of ``PREFIX.RANK.et``, with its groups.

    Raises `FormatError` as `load_rank` does, and for a folder with the files of several runs.
    """
    files = rank_files(path)
    ranks = [load_rank(file) for file in files]
    if len({r.rank for r in ranks}) != len(ranks):
        ranks = [load_rank(file, i) for i, file in enumerate(files)]
    return ChakraTrace(tuple(sorted(ranks, key=lambda r: r.rank)), load_groups(files[0]))


def rank_files(path: str | Path) -> list[Path]:
    """The files of a trace (see `load_chakra`), by rank. Raises `FormatError` where there is none."""
    path = Path(path)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [p for p in path.iterdir() if p.suffix == ".et" and p.is_file()]
        runs = sorted({prefix_of(p) for p in found})
        if len(runs) > 1 and any(_NAME.fullmatch(p.name) for p in found):
            raise FormatError(f"{path}: the traces of several runs; expected one of: {', '.join(map(str, runs[:5]))}")
    else:
        parent = path.parent if path.parent.is_dir() else None
        start = path.name + "."
        found = [p for p in parent.iterdir() if p.name.startswith(start) and prefix_of(p) == path] if parent else []
        found = [p for p in found if _NAME.fullmatch(p.name)]
    if not found:
        raise FormatError(f"cannot read {path}: no such file, and no Chakra trace {path.name}.0.et ...")
    if len(found) > MAX_RANKS:
        raise FormatError(f"{path}: {len(found)} ranks, at most {MAX_RANKS} are read")
    return sorted(found, key=lambda p: (rank_number(p, {}), p.name))


def is_chakra(path: Path) -> bool:
    """Whether *path* names Chakra files: one by its ending, or a folder or a prefix of some."""
    if path.is_file():
        return path.suffix == ".et"
    try:
        return bool(rank_files(path))
    except (FormatError, OSError, ValueError):
        return False


def prefix_of(path: Path) -> Path:
    """``PREFIX`` of ``PREFIX.RANK.et``."""
    match = _NAME.fullmatch(path.name)
    return path.with_name(match[1]) if match and match[1] else path.with_suffix("")


def rank_number(path: Path, metadata: Mapping[str, Value]) -> int:
    """The rank that the file's name says, else its metadata, else 0."""
    match = _NAME.fullmatch(path.name)
    said = metadata.get("rank")
    return int(match[2]) if match else said if isinstance(said, int) and 0 <= said < 10**9 else 0


def load_groups(path: Path) -> dict[str, tuple[int, ...]]:
    """The communicator groups beside a rank's file, in ``PREFIX.groups.json``; none where there is no such file.

    Raises `FormatError` for one that does not say {"group id": [ranks]}.
    """
    file = groups_file(prefix_of(path))
    if not file.is_file():
        return {}
    try:
        value: Any = json.loads(read_file(file, MAX_GROUPS_BYTES))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file}: no JSON: {error}") from None
    if not isinstance(value, dict):
        raise FormatError(f'{file}: expected {{"group id": [ranks]}}, got {type(value).__name__}')
    for name, ranks in value.items():
        if not isinstance(ranks, list) or any(type(r) is not int or r < 0 for r in ranks):
            raise FormatError(f"{file}: group {name!r:.40}: expected a list of ranks, got {ranks!r:.60}")
    return {name: tuple(ranks) for name, ranks in value.items()}


def groups_file(prefix: Path) -> Path:
    """Where the groups of the trace *prefix* stand."""
    return prefix.with_name(prefix.name + ".groups.json")


def _doubts(nodes: list[ChakraNode], label: str) -> list[str]:
    """What is odd in the dependencies of *nodes*. Raises `FormatError` for an id that two nodes have."""
    known = {node.id for node in nodes}
    if len(known) != len(nodes):
        raise FormatError(f"{label}: damaged: two nodes have one id")
    waits_for = [(*n.data_deps, *n.ctrl_deps) for n in nodes]
    found = []
    if missing := sum(d not in known for deps in waits_for for d in deps):
        found.append(f"{label}: {missing} dependencies on nodes that the file does not hold")
    if stuck := len(nodes) - len(topological_order([n.id for n in nodes], waits_for)):
        found.append(f"{label}: {stuck} nodes wait for each other in a circle")
    return found


def _open(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except (OSError, ValueError) as e:
        raise FormatError(f"cannot read {path}: {getattr(e, 'strerror', None) or e}") from e
