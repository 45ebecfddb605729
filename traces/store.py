"""Traces on disk: saved by file ending, loaded by what the file holds."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from foretrace.ir import ForetraceError, FormatError, write_atomically

from .formats.parquet import decode_table, encode_table
from .formats.unpack import Progress, Source
from .trace import Trace

SQLITE = b"SQLite format 3\0"


def save_trace(trace: Trace, path: str | Path) -> None:
    """Write *trace* in the format that the ending of *path* names; `load_trace` gives it back unchanged.

    ``.trace`` or ``.parquet`` (Parquet), ``.json`` or ``.json.gz`` (Chrome), ``.pftrace`` or ``.perfetto-trace``
    (Perfetto), ``.csv`` or ``.csv.gz``. Raises ForetraceError for another ending or a file that cannot be written, and
    leaves nothing behind then.
    """
    path = Path(path)
    write_atomically(path, writer_of(path)(trace))


def writer_of(path: Path) -> Callable[[Trace], bytes]:
    """What makes a trace the bytes of a file called *path*; raises ForetraceError for an ending that none writes."""
    ending = next((e for e in _WRITERS if path.name.lower().endswith(e)), None)
    if ending is None:
        raise ForetraceError(f"{path}: unknown ending; expected one of {', '.join(_WRITERS)}")
    return _WRITERS[ending]


def load_trace(path: str | Path, progress: Progress | None = None) -> Trace:
    """Read a trace that we wrote, or anyone's Kineto or Chrome JSON (gzipped or not), Chakra, PyTorch execution trace,
    Nsight Systems SQLite or CSV file.

    The format is told by content, CSV by its ending. *path* may also be a folder of Kineto files, one per rank, the
    PREFIX of Chakra's ``PREFIX.RANK.et``, or a folder of those: the trace then has all ranks. Kineto files of any size
    are read in blocks; *progress* is called with the fraction that was read. JSON and Chakra files of others that are
    cut off give what is sound, and a warning in `info`. Raises FormatError, naming the file, for any other that is cut
    off, one that is corrupt, or none of these, and ForetraceError for one that cannot be opened.
    """
    path = Path(path)
    trace = _load(path, progress)
    if progress is not None:
        progress(1.0)
    return trace


def _load(path: Path, progress: Progress | None) -> Trace:
    if not path.is_file() or path.suffix == ".et":
        from .formats.chakra.events import load_events
        from .formats.chakra.read import is_chakra

        if is_chakra(path):
            return load_events(path)
    if path.is_dir():
        from .formats.kineto import is_folder, read_folder

        if is_folder(path):
            return read_folder(path, progress)
        raise FormatError(f"{path}: a folder without Kineto (.json, .json.gz) or Chakra (.et) files")
    try:
        with path.open("rb") as file:
            return _load_file(path, file, progress)
    except (OSError, ValueError) as error:
        raise FormatError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _load_file(path: Path, file: BinaryIO, progress: Progress | None) -> Trace:
    from .formats.perfetto import MAGIC, table_bytes

    source = Source(file, str(path), progress)
    start = source.start
    if start.startswith(b"PAR1"):
        return decode_table(source.read_all(), str(path))
    if start.startswith(MAGIC):
        return decode_table(table_bytes(source.read_all(), str(path)), str(path))
    if start.startswith(SQLITE):
        _check_file(path, "SQLite")
        from .formats.nsight import read_nsight

        return read_nsight(path)
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    named_csv = path.name.lower().endswith((".csv", ".csv.gz"))
    if text[:1] in (b"{", b"[") or (start and not text and not named_csv):
        return _load_json(path, file, source, progress)
    if named_csv:
        _check_file(path, "CSV")
        from .formats.csv import read_csv

        return read_csv(path)
    if not start:
        raise FormatError(f"{path}: {source.damage or 'the file is empty'}")
    from .formats.chakra.read import looks_like_chakra

    if looks_like_chakra(start[:64]):
        from .formats.chakra.events import read_events

        return read_events(io.BytesIO(source.read_all()), str(path))
    hint = "; a Perfetto file that Foretrace did not write" if start[:1] == b"\n" else ""
    hint = "; UTF-16 or UTF-32 text: save it as UTF-8" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else hint
    known = "a Foretrace trace, Kineto or Chrome JSON, Chakra, a PyTorch execution trace, Nsight SQLite, nor CSV (.csv)"
    raise FormatError(f"{path}: neither {known}{hint}")


def _load_json(path: Path, file: BinaryIO, source: Source, progress: Progress | None) -> Trace:
    from .formats.kineto import NoEventsError, read_source

    sources = iter([source])

    def open_source() -> Source:
        if (first := next(sources, None)) is not None:
            return first
        if not file.seekable():
            raise FormatError(f"{path}: this has to be read twice, which a pipe cannot be: save it to a file first")
        file.seek(0)
        return Source(file, str(path), progress)

    try:
        return read_source(open_source)
    except NoEventsError as error:
        if "nodes" not in error.keys:
            raise
    _check_file(path, "a PyTorch execution trace")
    from .formats.execution_trace import read_execution_trace

    return read_execution_trace(path)


def _check_file(path: Path, what: str) -> None:
    """Refuse what cannot be opened a second time."""
    if not path.is_file():
        raise FormatError(f"{path}: {what} from a pipe, which can be read only once: save it to a file first")


def _write_chrome(trace: Trace) -> bytes:
    from .formats.chrome import encode_chrome

    return encode_chrome(trace)


def _write_chrome_gzip(trace: Trace) -> bytes:
    import gzip

    from .formats.chrome import encode_chrome

    return gzip.compress(encode_chrome(trace), 6, mtime=0)


def _write_perfetto(trace: Trace) -> bytes:
    from .formats.perfetto import encode_perfetto

    return encode_perfetto(trace)


def _write_csv(trace: Trace) -> bytes:
    from .formats.csv import encode_csv

    return encode_csv(trace)


def _write_csv_gzip(trace: Trace) -> bytes:
    import gzip

    return gzip.compress(_write_csv(trace), 6, mtime=0)


_WRITERS: dict[str, Callable[[Trace], bytes]] = {
    ".trace": encode_table,
    ".parquet": encode_table,
    ".json": _write_chrome,
    ".json.gz": _write_chrome_gzip,
    ".pftrace": _write_perfetto,
    ".perfetto-trace": _write_perfetto,
    ".csv": _write_csv,
    ".csv.gz": _write_csv_gzip,
}
