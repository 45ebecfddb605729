"""The rows of a CSV file from anyone, with their lines, and cells as numbers or an error that names the line."""

import csv
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from foretrace.ir import FormatError
from foretrace.traces.formats.text_stream import read_text

BLOCK: Final = 1 << 11  # rows held as text: they and what is made of them stay in the cache
MAX_LINE: Final = 1 << 24  # characters


def read_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of each row that is not blank; commas, semicolons or tabs apart, as the first line has them.

    Raises FormatError, naming file and line, for a quote that is not closed and for a line beyond `MAX_LINE`.
    """
    lines = _lines(path)
    start: list[str] = []
    for line in lines:
        start.append(line)
        if line.strip():
            break
    else:
        raise FormatError(f"{path}: the file is empty")
    delimiter = max(",;\t", key=start[-1].count)
    reader = csv.reader(chain(start, lines), delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            if any(cells):
                yield reader.line_num, cells
    except csv.Error as error:
        hint = "; a quote is not closed: is the file cut off?" if "end of data" in str(error) else ""
        raise FormatError(f"{path}: line {reader.line_num}: not valid CSV: {error}{hint}") from None


def read_blocks(
    rows: Iterator[tuple[int, list[str]]], width: int, path: Path
) -> Iterator[tuple[list[int], list[list[str]]]]:
    """(lines, cells) of *rows* in blocks. Raises FormatError, naming the line, for a row that has not *width* cells."""
    while block := list(islice(rows, BLOCK)):
        lines, cells = [line for line, _ in block], [row for _, row in block]
        for line, row in block:
            if len(row) != width:
                raise FormatError(
                    f"{path}: line {line}: expected {width} cells as in the header, got {len(row)}; "
                    "is the file cut off?"
                )
        yield lines, cells


class Codes(dict[str, int]):
    """A code per distinct text, counted up as texts come."""

    def __missing__(self, text: str) -> int:
        code = self[text] = len(self)
        return code

    def of(self, cells: Sequence[str]) -> NDArray[np.int32]:
        """The codes of *cells*."""
        return np.fromiter(map(self.__getitem__, cells), np.int32, len(cells))


def parse_cells(
    cells: Sequence[str], lines: Sequence[int], convert: Callable[[str], Any], dtype: Any, what: str, empty: Any = None
) -> NDArray[Any]:
    """*cells* as numbers, *empty* for one that is empty (an error where it is None).

    Raises FormatError that starts with the line and says *what* was expected.
    """
    if empty is not None:
        if not any(cells):
            return np.full(len(cells), empty, dtype)
        cells = [cell or str(empty) for cell in cells] if "" in cells else cells
    try:
        return np.fromiter(map(float if dtype is np.float64 else int, cells), dtype, len(cells))
    except (ValueError, OverflowError):
        pass
    try:
        return np.fromiter(map(convert, cells), dtype, len(cells))
    except (ValueError, OverflowError):
        pass
    for cell, line in zip(cells, lines, strict=True):
        try:
            np.fromiter([convert(cell)], dtype, 1)
        except (ValueError, OverflowError):
            raise FormatError(f"line {line}: {what}, got {cell!r:.60}") from None
    raise AssertionError("every cell converts, all together do not")


def _lines(path: Path) -> Iterator[str]:
    waiting = ""
    for piece in read_text(path):
        *whole, waiting = (waiting + piece).split("\n")
        for line in whole:
            yield line + "\n"
        if len(waiting) > MAX_LINE:
            raise FormatError(f"{path}: a line of more than {MAX_LINE} characters: not a CSV file")
    if waiting:
        yield waiting
