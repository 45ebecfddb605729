"""Rows of measured tables as mappings: what a column holds, checked, and what of a model is captured for a row."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from foretrace.ir import ForetraceError, UnknownNameError, parse_dtype

Row = Mapping[str, Any]
"""One row: numbers as floats (NaN where empty), texts as they are."""


class Cell(NamedTuple):
    """One measured quantity of a row."""

    kind: str
    """What the scores call it: ``e2e_forward``, ``infer_decode``..."""
    measured_s: float
    predicted_s: float
    low_s: float
    high_s: float
    bound: str = ""
    """What limits most of its kernels' time."""
    aside: bool = False
    """A figure beside the times (bytes of memory), or a part of the rows scored again: not counted among all rows."""


class Verdict(NamedTuple):
    """Whether something happened to a row, and whether it was predicted."""

    kind: str
    measured: bool
    predicted: bool


class Captured(NamedTuple):
    """What is captured: the arguments of `capture_graph` but for the sizes."""

    model: str
    """A name in `whole_models.MODELS`, what `capture_graph` takes, or a configuration as JSON."""
    phase: str
    dtype: str
    attention: str
    optimizer: str | None = None


class Shape(NamedTuple):
    """The sizes of a step; None: the model's own."""

    batch: int | None = None
    seq: int | None = None
    context: int | None = None


@lru_cache(maxsize=256)
def _parsed(name: str) -> str:
    try:
        return parse_dtype(name).name
    except UnknownNameError as error:
        raise ForetraceError(str(error)) from None


def dtype_of(row: Row) -> str:
    """The format that a row computes in. Raises `ForetraceError` for one that does not exist."""
    return _parsed(str(row.get("dtype") or row.get("precision") or "float32"))


def true(value: Any) -> bool:
    """Whether a column says yes."""
    return value == 1 or str(value).strip().lower() == "true"


def number(row: Row, name: str, absent: float | None = None) -> float:
    """A number; *absent* where the row has none. Raises `ForetraceError` without *absent*."""
    value = row.get(name, absent)
    if not isinstance(value, float | int) or value != value:
        if absent is not None:
            return absent
        raise ForetraceError(f"{name} is empty or no number")
    return float(value)


def size(row: Row, name: str) -> int:
    """A whole number of 1 or more. Raises `ForetraceError`."""
    value = number(row, name)
    if value < 1 or value != round(value) or value > 1e9:
        raise ForetraceError(f"{name} is not a whole number of 1 or more")
    return int(value)


def count(row: Row, name: str, absent: float = 1.0) -> int:
    """How many ways a row is spread; *absent* where it does not say."""
    value = number(row, name, absent)
    return int(value) if 0 <= value < 1e9 else int(absent)


def ms(row: Row, column: str, absent: float | None = None) -> float:
    """Milliseconds of *column* in s. Raises `ForetraceError` for what is not positive, but for *absent*."""
    value = number(row, column, absent)
    if absent is None and not 0 < value < float("inf"):
        raise ForetraceError(f"{column} is not positive")
    return value * 1e-3
