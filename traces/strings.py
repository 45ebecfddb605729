"""A dictionary-coded column of strings: small at a million rows, fast to group by."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from foretrace.ir import ForetraceError

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class StringColumn:
    """``values[codes[i]]`` is row i; *codes* is int32 and *values* holds each string once."""

    codes: NDArray[np.int32]
    values: tuple[str, ...]

    @classmethod
    def of(cls, strings: Iterable[str]) -> Self:
        """Code *strings*; what UTF-8 cannot hold (lone surrogates) becomes ``?``."""
        strings = strings if isinstance(strings, list) else list(strings)
        try:
            table = {s: code for code, s in enumerate(dict.fromkeys(strings))}
        except TypeError:
            raise ForetraceError("a string column was given something that is not a string") from None
        codes = np.fromiter(map(table.__getitem__, strings), np.int32, len(strings))
        column = cls(codes, tuple(table))
        column.check("a string column")
        try:
            "".join(table).encode()
        except UnicodeEncodeError:
            return column.map(lambda s: s.encode(errors="replace").decode())
        return column

    @classmethod
    def constant(cls, value: str, length: int) -> Self:
        """*length* rows of the one *value*."""
        return cls(np.zeros(length, np.int32), (value,))

    def check(self, label: str) -> None:
        """Raise ForetraceError, naming *label*, unless codes and values fit together."""
        odd = next((v for v in self.values if not isinstance(v, str)), None)
        if odd is not None:
            raise ForetraceError(f"{label}: expected strings, got {type(odd).__name__} {odd!r:.40}")
        codes = self.codes
        if len(codes) and not (codes.min() >= 0 and codes.max() < len(self.values)):
            raise ForetraceError(f"{label}: a code lies outside its {len(self.values)} values")

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: int) -> str:
        return self.values[int(self.codes[index])]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StringColumn):
            return NotImplemented
        return len(self) == len(other) and bool(np.array_equal(*aligned_codes(self, other)))

    __hash__ = None  # type: ignore[assignment]

    def take(self, rows: NDArray[Any]) -> Self:
        """The *rows* (a boolean mask or indices)."""
        return type(self)(self.codes[rows], self.values)

    def tolist(self) -> list[str]:
        """Every row as a plain string."""
        values = self.values
        return [values[c] for c in self.codes.tolist()]

    def used(self) -> list[str]:
        """The distinct strings that rows have, in table order."""
        return [self.values[c] for c in np.unique(self.codes).tolist()]

    def where(self, test: Callable[[str], bool]) -> BoolArray:
        """Mask of the rows whose string passes *test*, which runs once per distinct value."""
        passed = np.array([test(v) for v in self.values], np.bool_)
        return passed[self.codes] if len(self.values) else np.zeros(len(self), np.bool_)

    def isin(self, wanted: Iterable[str]) -> BoolArray:
        """Mask of the rows whose string is one of *wanted*."""
        return self.where(frozenset(wanted).__contains__)

    def map(self, change: Callable[[str], str]) -> Self:
        """*change* applied to every row, computed once per distinct value."""
        table: dict[str, int] = {}
        new = [table.setdefault(change(v), len(table)) for v in self.values]
        return type(self)(np.array(new, np.int32)[self.codes] if new else self.codes, tuple(table))


def aligned_codes(a: StringColumn, b: StringColumn) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Codes of *a* and *b* over one common table, so that equal strings have equal codes."""
    table = {v: i for i, v in enumerate(dict.fromkeys(a.values + b.values))}
    both = [np.array([table[v] for v in c.values], np.int32) for c in (a, b)]
    x, y = (t[c.codes] if len(t) else c.codes for t, c in zip(both, (a, b), strict=True))
    return x, y
