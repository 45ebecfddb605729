"""Our own file: a trace as Parquet, a column per column, what is known of the run in the schema's metadata."""

import io
import json
from typing import Any

from foretrace.ir import ForetraceError, FormatError
from foretrace.traces.strings import StringColumn
from foretrace.traces.trace import COLUMNS, MAX_EVENTS, STRING_COLUMNS, Trace

FORMAT_VERSION = 1
META_KEY = b"foretrace.trace"


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
    try:
        json.dumps(value["info"], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise FormatError(f"{label}: trace description: info: a text that is no UTF-8") from None
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
