"""Tables of measured rows, read a piece at a time: Parquet and CSV, numbers as float64, texts as codes."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from foretrace.ir import FormatError
from foretrace.replay.columns import Floats, Ints, Mask

ROWS_AT_ONCE: Final = 1 << 17
"""Rows of one piece: what bounds the memory of a table of any length."""

MIXED: Final = "table"
"""Column that says which table a row is of, where one file holds several: a row has the cells of its table alone."""
MOST_PARTS: Final = 1000
"""Parts of one piece of such a file, each of rows of one table that stand together."""

NAMED: Final = 8
"""Texts of one column that reasons name one by one."""

NUMBERS: Final = frozenset(
    "b m n k batch q_len kv_len n_heads n_kv_heads head_dim v_dim window tokens hidden inter topk experts moe_tp "
    "moe_ep c_in c_out image stride padding groups rows cols n_in n_gpus n_nodes bytes seq bytes_read bytes_written "
    "vector_flops special_flops backward count spread_us latency_s latency_ms latency_us latency_ns measured_ms fw_ms "
    "bw_ms prefill_ms decode_ms total_ms ttft_ms itl_ms e2e_ms step_ms".split()
)
"""Columns that hold numbers: in a CSV file the first lines do not decide whether whole ones."""


@dataclass(frozen=True, eq=False)
class Text:
    """A column of n texts: `values`, each once, and the place of each row's in it."""

    codes: NDArray[np.int32]
    values: tuple[str, ...]

    def is_in(self, wanted: Collection[str]) -> Mask:
        """[n] True where the text is one of *wanted*."""
        return self.are(lambda value: value in wanted)

    def are(self, of: Callable[[str], object]) -> Mask:
        """[n] whether *of* is true of each text, worked out once a distinct one."""
        return np.array([bool(of(value)) for value in self.values], np.bool_)[self.codes]

    def numbers(self, of: Callable[[str], float]) -> Floats:
        """[n] *of* each text, worked out once a distinct one."""
        return np.array([of(value) for value in self.values], np.float64)[self.codes]

    def map(self, of: Callable[[str], str]) -> "Text":
        """*of* each text."""
        changed: dict[str, int] = {}
        codes = [changed.setdefault(of(value), len(changed)) for value in self.values]
        return Text(np.array(codes, np.int32)[self.codes], tuple(changed))

    def take(self, rows: "Ints | Mask") -> "Text":
        """The texts of some rows, without the values that none of them has."""
        used, codes = np.unique(self.codes[rows], return_inverse=True)
        return Text(codes.astype(np.int32), tuple(self.values[i] for i in used.tolist()))

    def at(self, row: int) -> str:
        """The text of one row."""
        return self.values[int(self.codes[row])]

    def joined(self, other: "Text", join: Callable[[str, str], str]) -> "Text":
        """*join* of each pair of texts, worked out once a distinct pair."""
        width = max(len(other.values), 1)
        used, codes = np.unique(self.codes.astype(np.int64) * width + other.codes, return_inverse=True)
        changed: dict[str, int] = {}
        pairs = [join(self.values[i // width], other.values[i % width]) for i in used.tolist()]
        place = [changed.setdefault(pair, len(changed)) for pair in pairs]
        return Text(np.array(place, np.int32)[codes], tuple(changed))


def unfit(said: Text, fits: Callable[[str], bool], why: Callable[[str], str]) -> list[tuple[str, Mask]]:
    """(*why*, rows) of each text that does not fit; those past the first `NAMED` are one reason together."""
    wrong = [code for code, value in enumerate(said.values) if not fits(value)]
    found = [(why(repr(said.values[code][:40])), said.codes == code) for code in wrong[:NAMED]]
    if rest := wrong[NAMED:]:
        found.append((why("one of many others"), np.isin(said.codes, rest)))
    return found


def same_text(value: str, rows: int) -> Text:
    """*rows* times the same text."""
    return Text(np.zeros(rows, np.int32), (value,))


@dataclass(frozen=True, eq=False)
class Table:
    """Some rows of one file, in columns."""

    path: str
    first: int
    """The place in the file of the first row here, from 0."""
    rows: int
    columns: Mapping[str, Floats | Text]

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def number(self, name: str, absent: float | None = None) -> Floats:
        """[n] The numbers of a column, NaN where a cell is empty; *absent* throughout where there is no such column.

        Raises `FormatError` for a column that is not there (and has no *absent*) or that holds text.
        """
        column = self.columns.get(name)
        if column is None:
            if absent is None:
                raise missing(self.path, name, self.columns)
            return np.full(self.rows, absent)
        if isinstance(column, Text):
            raise FormatError(f"{self.path}: column {name!r}: expected numbers, got text such as {_example(column)!r}")
        return column

    def text(self, name: str, absent: str | None = None) -> Text:
        """[n] The texts of a column, "" where a cell is empty; *absent* throughout where there is no such column.

        Raises `FormatError` for a column that is not there and has no *absent*.
        """
        column = self.columns.get(name)
        if column is None:
            if absent is None:
                raise missing(self.path, name, self.columns)
            return same_text(absent, self.rows)
        if isinstance(column, Text):
            return column
        values, codes = np.unique(column, return_inverse=True)
        return Text(codes.astype(np.int32), tuple(f"{v:g}" for v in values.tolist()))


def missing(path: str, name: str, columns: Collection[str]) -> FormatError:
    """The error for a column that a table lacks."""
    return FormatError(f"{path}: column {name!r} is missing; there are: {', '.join(columns)}")


def _example(column: Text) -> str:
    return next((v for v in column.values if v), "")[:40]


def read_tables(path: str | Path) -> Iterator[Table]:
    """The rows of the .parquet or .csv file at *path*, up to `ROWS_AT_ONCE` at a time; at least one piece.

    Raises `FormatError` for a file that is neither or is damaged, `OSError` where it cannot be opened.
    """
    import pyarrow as pa

    shown, suffix = str(path), Path(path).suffix.lower()
    if suffix not in (".parquet", ".csv"):
        raise FormatError(f"{shown}: expected a table ending in .parquet or .csv")
    with open(path, "rb"):  # an error that names the file, in the words of the system
        pass
    first = 0
    try:
        for batch in _parquet(shown) if suffix == ".parquet" else _csv(shown):
            if batch.num_rows or not first:
                yield from _parts(_table(shown, first, batch))
            first += batch.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{shown}: cannot be read as {suffix[1:]}: {_one_line(error)}") from None


def count_rows(path: str | Path) -> int | None:
    """How many rows the file holds; None where that takes reading it."""
    if Path(path).suffix.lower() != ".parquet":
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.ParquetFile(path).metadata.num_rows)
    except (pa.ArrowException, OSError):
        return None  # reading it will say why


def _one_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]


def _parquet(path: str) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if doubled := {name for name in names if names.count(name) > 1}:
            raise FormatError(f"{path}: column {sorted(doubled)[0]!r} is there twice")
        batches = 0
        for batch in file.iter_batches(batch_size=ROWS_AT_ONCE):
            batches += 1
            yield batch
        if not batches:
            yield pa.RecordBatch.from_pylist([], schema=file.schema_arrow)


def _csv(path: str) -> Iterator[Any]:
    import pyarrow as pa
    from pyarrow import csv

    options = csv.ReadOptions(block_size=1 << 24)
    types = csv.ConvertOptions(column_types=dict.fromkeys(sorted(NUMBERS), pa.float64()))
    with csv.open_csv(path, read_options=options, convert_options=types) as reader:
        names = reader.schema.names
        if doubled := {name for name in names if names.count(name) > 1}:
            raise FormatError(f"{path}: column {sorted(doubled)[0]!r} is there twice")
        for batch in reader:
            for at in range(0, max(batch.num_rows, 1), ROWS_AT_ONCE):
                yield batch.slice(at, ROWS_AT_ONCE)


def _table(path: str, first: int, batch: Any) -> Table:
    columns = {str(name): _column(batch.column(i)) for i, name in enumerate(batch.schema.names)}
    return Table(path, first, batch.num_rows, {name: c for name, c in columns.items() if c is not None})


def _parts(table: Table) -> Iterator[Table]:
    """*table*, or its rows by what the column `MIXED` says, each part without the columns that are empty there."""
    said = table.columns.get(MIXED)
    if not isinstance(said, Text) or not table.rows:
        yield table
        return
    ends = [0, *(np.flatnonzero(np.diff(said.codes)) + 1).tolist(), table.rows]
    if len(ends) > MOST_PARTS:
        raise FormatError(f"{table.path}: rows of one {MIXED} stand in over {MOST_PARTS} places: sort by that column")
    for begin, end in pairwise(ends):
        rows = np.arange(begin, end)
        some = {n: c.take(rows) if isinstance(c, Text) else c[rows] for n, c in table.columns.items() if n != MIXED}
        held = {n: c for n, c in some.items() if not _is_empty(c)}
        yield Table(table.path, table.first + begin, rows.size, held)


def _is_empty(column: Floats | Text) -> bool:
    return not any(column.values) if isinstance(column, Text) else bool(np.isnan(column).all())


def _column(array: Any) -> Floats | Text | None:
    """One column; None for a type that no table of ours has (nested, binary, dates)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return np.asarray(pc.cast(array, pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False), np.float64)
    if pa.types.is_null(kind):
        return np.full(len(array), np.nan)
    if pa.types.is_dictionary(kind):
        if not pa.types.is_string(kind.value_type) and not pa.types.is_large_string(kind.value_type):
            return _column(array.dictionary_decode())
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        array = array.dictionary_encode()
    else:
        return None
    values = [v or "" for v in array.dictionary.to_pylist()]
    codes = pc.cast(array.indices, pa.int32()).fill_null(len(values)).to_numpy(zero_copy_only=False)
    return Text(np.asarray(codes, np.int32), (*values, ""))
