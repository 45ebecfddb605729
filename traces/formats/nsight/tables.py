"""The tables of an Nsight Systems SQLite export: what is there is read, in bounded pieces, nothing is trusted."""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from foretrace.ir import FormatError
from foretrace.traces.strings import StringColumn
from foretrace.traces.trace import MAX_EVENTS

MAGIC: Final = b"SQLite format 3\x00"
EXPORT: Final = "nsys export --type sqlite REPORT.nsys-rep"
PIECE: Final = 1 << 12  # rows held as Python objects
MAX_TEXT: Final = 1 << 16  # characters kept of one string
Ints = NDArray[np.int64]


class Database:
    """One export, opened read-only. Reading raises FormatError, naming the file, where it is cut off or corrupt."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.path = path
        self._connection = connection
        found = self._run("SELECT name, sql FROM sqlite_master WHERE type = 'table'")
        self._tables = {name for name, sql in found if isinstance(sql, str) and not _is_virtual(sql)}

    def columns(self, table: str) -> set[str]:
        """The columns of *table*; none where there is no such table (a view or a virtual table is none)."""
        if table not in self._tables:
            return set()
        return {row[1] for row in self._run(f'PRAGMA table_info("{table}")')}

    def read(self, table: str, integers: Iterable[str], text: str = "") -> tuple[dict[str, Ints], StringColumn]:
        """The columns *integers* of *table*, -1 where absent or no integer, and the column *text*, "" likewise."""
        wanted = tuple(integers)
        have = self.columns(table)
        found = [c for c in wanted if c in have]
        chosen = [f'CASE typeof("{c}") WHEN \'integer\' THEN "{c}" ELSE -1 END' for c in found]
        chosen.append(f"CASE typeof(\"{text}\") WHEN 'text' THEN \"{text}\" ELSE '' END" if text in have else "''")
        numbers, codes = [np.zeros((0, len(found)), np.int64)], [np.zeros(0, np.int32)]
        table_of_texts: dict[str, int] = {}
        if have:
            for piece in self._pieces(f'SELECT {", ".join(chosen)} FROM "{table}"'):
                numbers.append(np.array([row[:-1] for row in piece], np.int64).reshape(len(piece), -1))
                shorts = [row[-1][:MAX_TEXT] for row in piece]
                codes.append(np.array([table_of_texts.setdefault(t, len(table_of_texts)) for t in shorts], np.int32))
        values = dict(zip(found, np.concatenate(numbers).T, strict=True))
        texts = StringColumn(np.concatenate(codes), tuple(table_of_texts))
        return {c: np.ascontiguousarray(values.get(c, np.full(len(texts), -1, np.int64))) for c in wanted}, texts

    def strings(self, ids: Ints) -> dict[int, str]:
        """What StringIds says of *ids*."""
        wanted = set(np.unique(ids).tolist())
        if not {"id", "value"} <= self.columns("StringIds"):
            return {}
        query = "SELECT id, value FROM \"StringIds\" WHERE typeof(id) = 'integer' AND typeof(value) = 'text'"
        return {i: text[:MAX_TEXT] for piece in self._pieces(query) for i, text in piece if i in wanted}

    def tables(self) -> list[str]:
        """The names of the tables, sorted."""
        return sorted(self._tables)

    def _run(self, query: str) -> list[tuple[Any, ...]]:
        return [row for piece in self._pieces(query) for row in piece]

    def _pieces(self, query: str) -> Iterator[list[tuple[Any, ...]]]:
        count = 0
        try:
            cursor = self._connection.execute(query)
            while piece := cursor.fetchmany(PIECE):
                count += len(piece)
                if count > MAX_EVENTS:
                    raise FormatError(f"{self.path}: a table of more than the {MAX_EVENTS} rows that are read")
                yield piece
        except (sqlite3.Error, OverflowError) as error:
            raise FormatError(f"{self.path}: cut off or corrupt ({error}); export it again: {EXPORT}") from None


@contextmanager
def open_database(path: Path) -> Iterator[Database]:
    """The export at *path*: read-only, without locks or files beside it, nothing of its schema run."""
    try:
        with path.open("rb") as file:
            head = file.read(len(MAGIC))
    except (OSError, ValueError) as error:
        raise FormatError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if head != MAGIC:
        what = "the file is empty" if not head else "no SQLite database"
        raise FormatError(f"{path}: {what}; make one with {EXPORT}")
    try:
        connection = sqlite3.connect(path.absolute().as_uri() + "?mode=ro&immutable=1", uri=True)
    except sqlite3.Error as error:
        raise FormatError(f"cannot read {path}: {error}") from None
    try:
        connection.text_factory = lambda data: data.decode("utf-8", "replace")
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA query_only = ON")
        yield Database(connection, path)
    except sqlite3.Error as error:
        raise FormatError(f"{path}: cut off or corrupt ({error}); export it again: {EXPORT}") from None
    finally:
        connection.close()


def _is_virtual(sql: str) -> bool:
    return sql.lstrip().upper().startswith("CREATE VIRTUAL")
