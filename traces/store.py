"""Traces on disk: saved by file ending, loaded by what the file holds."""

import io
from collections.abc import Callable
from pathlib import Path

from foretrace.ir import ForetraceError, FormatError, read_file, write_atomically

from .formats.parquet import decode_table, encode_table
from .formats.unpack import MAX_BYTES, gunzip
from .trace import Trace


def save_trace(trace: Trace, path: str | Path) -> None:
    """Write *trace* in the format that the ending of *path* names; `load_trace` gives it back unchanged.

    ``.trace`` or ``.parquet`` (Parquet), ``.json`` or ``.json.gz`` (Chrome), ``.pftrace`` or
    ``.perfetto-trace`` (Perfetto). Raises ForetraceError for another ending or a file that cannot be
    written, and leaves nothing behind then.
    """
    path = Path(path)
    ending = next((e for e in _WRITERS if path.name.lower().endswith(e)), None)
    if ending is None:
        raise ForetraceError(f"{path}: unknown ending; expected one of {', '.join(_WRITERS)}")
    write_atomically(path, _WRITERS[ending](trace))


def load_trace(path: str | Path) -> Trace:
    """Read a trace that we wrote, or a Kineto, Chrome JSON or Chakra file of anyone's, gzipped or not.

    The format is told by content. *path* may also be the PREFIX of Chakra's ``PREFIX.RANK.et``, or a folder of such
    files: the trace then has all ranks. A Chakra file that is cut off gives what is sound, and a warning in `info`.
    Raises FormatError, naming the file, for one that is cut off, corrupt,
    or none of these, and ForetraceError for one that cannot be opened.
    """
    from .formats.perfetto import MAGIC, table_bytes

    path = Path(path)
    if not path.is_file() or path.suffix == ".et":
        from .formats.chakra.events import load_events
        from .formats.chakra.read import is_chakra

        if is_chakra(path):
            return load_events(path)
    data = read_file(path, MAX_BYTES)
    if data.startswith(b"\x1f\x8b"):
        data = gunzip(data, str(path))
    if data.startswith(b"PAR1"):
        return decode_table(data, str(path))
    if data.startswith(MAGIC):
        return decode_table(table_bytes(data, str(path)), str(path))
    if data[:64].lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
        from .formats.kineto import read_json

        return read_json(data, str(path))
    if not data:
        raise FormatError(f"{path}: the file is empty")
    from .formats.chakra.read import looks_like_chakra

    if looks_like_chakra(data[:64]):
        from .formats.chakra.events import read_events

        return read_events(io.BytesIO(data), str(path))
    hint = "; a Perfetto file that Foretrace did not write" if data[:1] == b"\n" else ""
    raise FormatError(f"{path}: neither a Foretrace trace nor Kineto or Chrome JSON nor Chakra{hint}")


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


_WRITERS: dict[str, Callable[[Trace], bytes]] = {
    ".trace": encode_table,
    ".parquet": encode_table,
    ".json": _write_chrome,
    ".json.gz": _write_chrome_gzip,
    ".pftrace": _write_perfetto,
    ".perfetto-trace": _write_perfetto,
}
