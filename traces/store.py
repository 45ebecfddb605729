"""Traces on disk: saved by file ending, loaded by what the file holds."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foretrace.ir import ForetraceError, FormatError, read_file, write_atomically

from .strings import StringColumn
from .trace import COLUMNS, MAX_EVENTS, STRING_COLUMNS, Trace
from .unpack import MAX_BYTES, gunzip

FORMAT_VERSION = 1
META_KEY = b"foretrace.trace"


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
    from .perfetto import MAGIC, table_bytes

    path = Path(path)
    if not path.is_file() or path.suffix == ".et":
        from .chakra.events import load_events
        from .chakra.read import is_chakra

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
        from .kineto import read_json

        return read_json(data, str(path))
    if not data:
        raise FormatError(f"{path}: the file is empty")
    from .chakra.read import looks_like_chakra

    if looks_like_chakra(data[:64]):
        from .chakra.events import read_events

        return read_events(io.BytesIO(data), str(path))
    hint = "; a Perfetto file that Foretrace did not write" if data[:1] == b"\n" else ""
    raise FormatError(f"{path}: neither a Foretrace trace nor Kineto or Chrome JSON nor Chakra{hint}")


def encode_meta(trace: Trace) -> bytes:
    """The meta fields as JSON with the format version. Raises ForetraceError where info is not JSON."""
    try:
        return json.dumps({"version": FORMAT_VERSION, **trace.meta()}, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ForetraceError(f"trace info: expected JSON values: {error}") from None


def decode_meta(value: Any, label: str) -> dict[str, Any]:
    """The keyword arguments of a Trace from what `encode_meta` wrote, parsed; raises FormatError."""
    if not isinstance(value, dict) or not isinstance(value.get("version"), int):
        raise FormatError(f"{label}: no readable trace description")
    if value["version"] > FORMAT_VERSION:
        raise FormatError(f"{label}: trace format {value['version']}; this Foretrace reads up to {FORMAT_VERSION}")
    expected = {"title": str, "source": str, "system": str, "model": str, "info": dict}
    for key, kind in expected.items():
        if not isinstance(value.get(key), kind):
            raise FormatError(f"{label}: trace description: {key}: expected {kind.__name__}")
    step = value.get("step_s")
    if step is not None and (isinstance(step, bool) or not isinstance(step, int | float)):
        raise FormatError(f"{label}: trace description: step_s: expected a number")
    return {key: value.get(key) for key in (*expected, "step_s")}


def encode_table(trace: Trace, compression: str = "zstd") -> bytes:
    """The trace as one Parquet file: a column per column, meta fields in the schema's metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def array(values: Any) -> Any:
        if isinstance(values, StringColumn):
            return pa.DictionaryArray.from_arrays(values.codes, pa.array(values.values, pa.string()))
        return pa.array(values)

    table = pa.table({c: array(v) for c, v in trace.columns().items()})
    table = table.replace_schema_metadata({META_KEY: encode_meta(trace)})
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        compression=compression,
        use_dictionary=list(STRING_COLUMNS),
        row_group_size=max(len(trace), 1),
        write_page_checksum=True,
        write_statistics=False,
    )
    return sink.getvalue()


def decode_table(data: bytes, label: str) -> Trace:
    """A trace from what `encode_table` wrote; raises FormatError, naming *label*, for anything else."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        if file.metadata.num_rows > MAX_EVENTS:
            raise FormatError(f"{label}: {file.metadata.num_rows} rows; at most {MAX_EVENTS} are read")
        description = (file.schema_arrow.metadata or {}).get(META_KEY)
        missing = [c for c in COLUMNS if c not in file.schema_arrow.names]
        if description is None or missing:
            what = f"columns missing: {', '.join(missing)}" if missing else "no trace description"
            raise FormatError(f"{label}: a Parquet file, but not a Foretrace trace: {what}")
        meta = decode_meta(json.loads(description), label)
        table = file.read(columns=list(COLUMNS)).unify_dictionaries().combine_chunks()
        columns = {c: _column(table.column(c), c in STRING_COLUMNS) for c in COLUMNS}
        return Trace.from_columns(columns, **meta)
    except FormatError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise FormatError(
            f"{label}: cut off or corrupt: {str(error).splitlines()[0] if str(error) else error!r}"
        ) from None
    except ForetraceError as error:
        raise FormatError(f"{label}: {error}") from None


def _column(chunked: Any, is_string: bool) -> Any:
    """One column as the Trace wants it; a null anywhere is an error."""
    import pyarrow as pa

    if chunked.null_count:
        raise ValueError("a column holds nulls")
    array = chunked.combine_chunks() if chunked.num_chunks != 1 else chunked.chunk(0)
    if not is_string:
        return array.to_numpy(zero_copy_only=False)
    if not pa.types.is_dictionary(array.type):
        array = array.cast(pa.string()).dictionary_encode()
    codes = array.indices.cast(pa.int32()).to_numpy(zero_copy_only=False)
    return StringColumn(codes, tuple(array.dictionary.cast(pa.string()).to_pylist()))


def _write_chrome(trace: Trace) -> bytes:
    from .chrome import encode_chrome

    return encode_chrome(trace)


def _write_chrome_gzip(trace: Trace) -> bytes:
    import gzip

    from .chrome import encode_chrome

    return gzip.compress(encode_chrome(trace), 6, mtime=0)


def _write_perfetto(trace: Trace) -> bytes:
    from .perfetto import encode_perfetto

    return encode_perfetto(trace)


_WRITERS: dict[str, Callable[[Trace], bytes]] = {
    ".trace": encode_table,
    ".parquet": encode_table,
    ".json": _write_chrome,
    ".json.gz": _write_chrome_gzip,
    ".pftrace": _write_perfetto,
    ".perfetto-trace": _write_perfetto,
}
