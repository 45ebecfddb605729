"""What is known of an expression whatever its open sizes are: between which bounds it lies, which of two is larger."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, Final

from foretrace.ir import Dim, DimLike, dim_max, dim_min

MAX_OPEN: Final = 10**9 - 1
"""The largest value of an open size: what files write for "to the end" is above it (2**31 - 1, 10**9)."""

_RELATIONS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "==": operator.eq, "<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge,
}  # fmt: skip


class Unknown(Exception):  # noqa: N818 - not an error: something stays unknown
    """It depends on the open sizes, or cannot be worked out."""


def bounds(value: DimLike) -> tuple[float, float]:
    """The least and the largest that *value* can be, symbols being 1 to `MAX_OPEN`; not always the tightest."""
    if isinstance(value, int):
        return value, value
    low = high = 0.0
    for monomial, coefficient in value.terms:
        least = most = 1.0
        for atom in monomial:
            a, b = (1.0, float(MAX_OPEN)) if isinstance(atom, str) else _call_bounds(atom)
            if a < 0:
                return -math.inf, math.inf
            least, most = least * a, most * b
        low += coefficient * (least if coefficient > 0 else most)
        high += coefficient * (most if coefficient > 0 else least)
    return low, high


def _call_bounds(call: Any) -> tuple[float, float]:
    (a, b), (c, d) = (bounds(x) for x in call.args)
    if call.function == "min":
        return min(a, c), min(b, d)
    if call.function == "max":
        return max(a, c), max(b, d)
    if c <= 0:
        return -math.inf, math.inf
    return (0, d - 1) if call.function == "mod" else (a // (d if a >= 0 else c), b // (c if b >= 0 else d))


def compare(a: DimLike, b: DimLike, relation: str) -> bool:
    """Whether ``a RELATION b`` at all sizes. Raises `Unknown` where it depends on them."""
    low, high = bounds(a - b)
    answers = {_RELATIONS[relation](v, 0) for v in (low, high)}
    if relation == "==" and low < 0 < high:
        raise Unknown
    if len(answers) > 1 or math.isnan(low + high):
        raise Unknown
    return answers.pop()


def smaller(a: DimLike, b: DimLike) -> DimLike:
    """The smaller of two, an expression only where it depends on the sizes."""
    try:
        return a if compare(a, b, "<=") else b
    except Unknown:
        return dim_min(a, b)


def larger(a: DimLike, b: DimLike) -> DimLike:
    """The larger of two, an expression only where it depends on the sizes."""
    try:
        return a if compare(a, b, ">=") else b
    except Unknown:
        return dim_max(a, b)


def symbols_of(*dims: Any) -> frozenset[str]:
    """Names of the symbols in *dims*."""
    return frozenset(s for d in dims if isinstance(d, Dim) for s in d.symbols)


def limit_of(cut: DimLike, whole: DimLike) -> DimLike | None:
    """The *x* of a *cut* that is ``min(x, whole)``."""
    if not isinstance(cut, Dim) or len(cut.terms) != 1:
        return None
    (atoms, coefficient), *_ = cut.terms
    if coefficient != 1 or len(atoms) != 1 or isinstance(atoms[0], str) or atoms[0].function != "min":
        return None
    a, b = atoms[0].args
    return a if b == whole else b if a == whole else None
