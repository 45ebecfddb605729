"""Dims: integer expressions over named symbols (`batch`, `seq`, `context`, ...).

A shape is a tuple of `DimLike`: plain ints where the size is known, `Dim` where it depends on a symbol.
A `Dim` is a polynomial in canonical form, so equal expressions are equal objects by value; what a polynomial
cannot say (``floordiv``, ``mod``, ``min``, ``max``) is an atom of it. A `Dim` is never constant: arithmetic that
cancels every symbol gives back an int.
"""

from __future__ import annotations

import ast
import keyword
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from .errors import GraphError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Monomial = tuple[Any, ...]  # atoms, sorted by their text; an atom to the n-th power stands n times
MAX_EXPRESSION_CHARS: Final = 10_000
MAX_ATOM_CHARS: Final = 1_500  # nests at most 187 calls deep, which Python's parser still reads
MAX_DEGREE: Final = 16
MAX_TERMS: Final = 256
MAX_BITS: Final = 1_000  # of a coefficient; still a float64


class Call:
    """An atom no polynomial can express: ``floordiv(a, b)``, ``mod(a, b)``, ``min(a, b)`` or ``max(a, b)``."""

    __slots__ = ("args", "function", "text")

    def __init__(self, function: str, args: tuple[DimLike, ...]) -> None:
        self.function = function
        self.args = args
        self.text = f"{function}({', '.join(map(str, args))})"
        if len(self.text) > MAX_ATOM_CHARS:
            raise GraphError(f"the dim {self.text[:60]}... is more than {MAX_ATOM_CHARS} characters long")

    def __str__(self) -> str:
        return self.text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Call) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


class Dim:
    """An integer expression over symbols; immutable, hashable, equal by value.

    Two dims that differ as polynomials are unequal even where they agree for some symbol values.
    """

    __slots__ = ("_hash", "terms")

    terms: tuple[tuple[Monomial, int], ...]

    def __init__(self, terms: tuple[tuple[Monomial, int], ...]) -> None:
        """Use `symbol`, `parse_dim` or arithmetic instead: *terms* must already be canonical."""
        self.terms = terms
        self._hash = hash(terms)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dim) and self._hash == other._hash and self.terms == other.terms

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[type[Dim], tuple[Any, ...]]:
        return Dim, (self.terms,)  # the hash of a string differs from process to process

    def __bool__(self) -> bool:
        raise GraphError(f"the truth of the symbolic dim {self} is not known before its symbols are bound")

    def __add__(self, other: DimLike) -> DimLike:
        if not isinstance(other, int | Dim):
            return NotImplemented
        total = dict(self.terms)
        for monomial, coefficient in _terms(other):
            total[monomial] = total.get(monomial, 0) + coefficient
        return _build(total)

    __radd__ = __add__

    def __neg__(self) -> DimLike:
        return Dim(tuple((m, -c) for m, c in self.terms))

    def __sub__(self, other: DimLike) -> DimLike:
        return self + (-other)

    def __rsub__(self, other: DimLike) -> DimLike:
        return -self + other

    def __mul__(self, other: DimLike) -> DimLike:
        if not isinstance(other, int | Dim):
            return NotImplemented
        total: dict[Monomial, int] = {}
        for m1, c1 in self.terms:
            for m2, c2 in _terms(other):
                product = m1 + m2 if not m1 or not m2 else tuple(sorted(m1 + m2, key=str))
                total[product] = total.get(product, 0) + c1 * c2
        return _build(total)

    __rmul__ = __mul__

    def __floordiv__(self, other: DimLike) -> DimLike:
        if not isinstance(other, int | Dim):
            return NotImplemented
        return _floordiv(self, other)

    def __rfloordiv__(self, other: DimLike) -> DimLike:
        if not isinstance(other, int | Dim):
            return NotImplemented
        return _floordiv(other, self)

    def __mod__(self, other: DimLike) -> DimLike:
        if not isinstance(other, int | Dim):
            return NotImplemented
        return _mod(self, other)

    def __rmod__(self, other: DimLike) -> DimLike:
        if not isinstance(other, int | Dim):
            return NotImplemented
        return _mod(other, self)

    @property
    def symbols(self) -> frozenset[str]:
        """Names of the symbols the expression depends on."""
        return frozenset(s for monomial, _ in self.terms for atom in monomial for s in _atom_symbols(atom))

    def __str__(self) -> str:
        parts: list[str] = []
        for monomial, coefficient in self.terms:
            factors = [str(a) for a in monomial]
            size = abs(coefficient)
            if size != 1 or not factors:
                factors.insert(0, str(size))
            sign = "-" if coefficient < 0 else "+"
            parts.append(
                f" {sign} {'*'.join(factors)}" if parts else ("-" if coefficient < 0 else "") + "*".join(factors)
            )
        return "".join(parts)

    __repr__ = __str__


DimLike = int | Dim
"""A size: a plain int, or an expression over symbols."""
Shape = tuple[DimLike, ...]


def _terms(value: DimLike) -> tuple[tuple[Monomial, int], ...]:
    return value.terms if isinstance(value, Dim) else (((), value),)


def _build(terms: Mapping[Monomial, int]) -> DimLike:
    kept = [(m, c) for m, c in terms.items() if c]
    if not kept:
        return 0
    if len(kept) == 1 and not kept[0][0]:
        return kept[0][1]
    if len(kept) > 1:  # highest degree first, the constant last
        kept.sort(key=lambda t: (-len(t[0]), [str(a) for a in t[0]]))
    if len(kept) > MAX_TERMS or len(kept[0][0]) > MAX_DEGREE or any(c.bit_length() > MAX_BITS for _, c in kept):
        raise GraphError(
            f"a dim of {len(kept)} terms, degree {len(kept[0][0])}, is more than the {MAX_TERMS} terms, "
            f"degree {MAX_DEGREE} and {MAX_BITS}-bit coefficients that a size may have"
        )
    return Dim(tuple(kept))


def _atom(atom: str | Call) -> Dim:
    return Dim((((atom,), 1),))


def _atom_symbols(atom: str | Call) -> Iterable[str]:
    if isinstance(atom, str):
        return (atom,)
    return (s for a in atom.args if isinstance(a, Dim) for s in a.symbols)


def _floordiv(a: DimLike, b: DimLike) -> DimLike:
    if isinstance(a, int) and isinstance(b, int) and b:
        return a // b
    if a == b:
        return 1
    whole, rest = _divide(a, b)
    if rest == 0 or (isinstance(rest, int) and isinstance(b, int)):
        return whole
    return whole + _atom(Call("floordiv", (rest, b)))


def _mod(a: DimLike, b: DimLike) -> DimLike:
    if isinstance(a, int) and isinstance(b, int) and b:
        return a % b
    if a == b:
        return 0
    _, rest = _divide(a, b)
    return rest if rest == 0 or (isinstance(rest, int) and isinstance(b, int)) else _atom(Call("mod", (rest, b)))


def _divide(a: DimLike, b: DimLike) -> tuple[DimLike, DimLike]:
    """(whole, rest) with ``a == whole*b + rest``: the terms of *a* that a one-term *b* divides, and the others."""
    if b == 0:
        raise GraphError(f"the dim {a} is divided by zero")
    divisor = _terms(b)
    if len(divisor) > 1:
        return 0, a
    by, factor = divisor[0]
    whole: dict[Monomial, int] = {}
    rest: dict[Monomial, int] = {}
    for monomial, coefficient in _terms(a):
        left = _without(monomial, by)
        if left is None or (coefficient % factor and left):
            rest[monomial] = coefficient
        else:
            whole[left] = coefficient // factor
            rest[monomial] = coefficient % factor
    return _build(whole), _build(rest)


def _without(monomial: Monomial, factors: Monomial) -> Monomial | None:
    left = list(monomial)
    for atom in factors:
        if atom not in left:
            return None
        left.remove(atom)
    return tuple(left)


def _extreme(name: str, choose: Callable[[int, int], int], a: DimLike, b: DimLike) -> DimLike:
    if isinstance(a, int) and isinstance(b, int):
        return choose(a, b)
    if a == b:
        return a
    first, second = sorted((a, b), key=str)
    return _atom(Call(name, (first, second)))


def dim_min(a: DimLike, b: DimLike) -> DimLike:
    """The smaller of two sizes; an expression where it depends on symbols."""
    return _extreme("min", min, a, b)


def dim_max(a: DimLike, b: DimLike) -> DimLike:
    """The larger of two sizes; an expression where it depends on symbols."""
    return _extreme("max", max, a, b)


_SYMBOL: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_RESERVED: Final = frozenset("floordiv mod min max none true false inf nan".split())


@lru_cache(maxsize=4096)
def symbol(name: str) -> Dim:
    """The symbol called *name*: ASCII letters, digits, underscores; no keyword (`GraphError` otherwise)."""
    if not _SYMBOL.fullmatch(name) or keyword.iskeyword(name) or name in _RESERVED:
        raise GraphError(f"symbol names are ASCII identifiers such as 'batch', got {name[:120]!r}")
    return _atom(name)


def prod(dims: Iterable[DimLike]) -> DimLike:
    """The product of sizes (1 for none): the element count of a shape. Constant sizes multiply first, cheaply."""
    constant = 1
    symbolic: list[Dim] = []
    for d in dims:
        if isinstance(d, int):
            constant *= d
        else:
            symbolic.append(d)
    product: DimLike = constant
    for s in symbolic:
        product = s * product
    return product


# Only these tokens reach Python's parser: no strings, comments or malformed numbers that it would warn about.
_TOKENS: Final = re.compile(r"(?:\s*+(?:[A-Za-z_][A-Za-z0-9_]*+|[0-9]++(?![A-Za-z0-9_.])|[-+*/(),]))*+\s*+", re.ASCII)


@lru_cache(maxsize=65536)
def parse_dim(text: str) -> DimLike:
    """Read what ``str(dim)`` printed: ``+ - * //`` and the functions floordiv, mod, min, max over symbols and ints.

    Raises `GraphError` on anything else; nothing is evaluated as Python.
    """
    if len(text) > MAX_EXPRESSION_CHARS:
        raise GraphError(f"a dim of {len(text)} characters is longer than {MAX_EXPRESSION_CHARS}")
    shown = text if len(text) <= 60 else text[:60] + "..."
    try:
        if not _TOKENS.fullmatch(text):
            raise ValueError("not a dim")
        return _from_ast(ast.parse(text.strip(), mode="eval").body)
    except GraphError as e:
        raise GraphError(f"cannot read the dim {shown!r}: {e}") from e
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        raise GraphError(f"cannot read the dim {shown!r}: expected e.g. 'batch*seq + 1'") from e


_BINARY: Final[dict[type, Callable[[Any, Any], DimLike]]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: _floordiv,
}
_FUNCTIONS: Final[dict[str, Callable[[Any, Any], DimLike]]] = {
    "floordiv": _floordiv,
    "mod": _mod,
    "min": dim_min,
    "max": dim_max,
}


def _from_ast(node: ast.expr) -> DimLike:
    match node:
        case ast.Constant(value=int() as value) if not isinstance(value, bool):
            result: DimLike = value
        case ast.Name(id=name):
            result = symbol(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            result = -_from_ast(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            result = _BINARY[type(op)](_from_ast(left), _from_ast(right))
        case ast.Call(func=ast.Name(id=name), args=[a, b], keywords=[]) if name in _FUNCTIONS:
            result = _FUNCTIONS[name](_from_ast(a), _from_ast(b))
        case _:
            raise ValueError("not a dim")
    if isinstance(result, int) and result.bit_length() > MAX_BITS:
        raise GraphError(f"a number of more than {MAX_BITS} bits")
    return result


def evaluate_dim(dim: DimLike, bindings: Mapping[str, Any]) -> Any:
    """The value of *dim* with symbols bound to ints (exact) or to float/int arrays (one value per point).

    Raises `GraphError` naming a symbol that is not bound.
    """
    if isinstance(dim, int):
        return dim
    total: Any = 0
    for monomial, coefficient in dim.terms:
        value: Any = coefficient
        for atom in monomial:
            value = value * (_lookup(atom, bindings) if isinstance(atom, str) else _call(atom, bindings))
        total = total + value
    return total


def _lookup(name: str, bindings: Mapping[str, Any]) -> Any:
    try:
        return bindings[name]
    except KeyError:
        raise GraphError(f"the symbol {name!r} has no value; give it one with --dim {name}=VALUE") from None


def _call(call: Call, bindings: Mapping[str, Any]) -> Any:
    a, b = (evaluate_dim(x, bindings) for x in call.args)
    if call.function in ("floordiv", "mod"):
        if np.any(np.equal(b, 0)):
            raise GraphError(f"{call} divides by zero at the given sizes")
        return a // b if call.function == "floordiv" else a % b
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b) if call.function == "min" else max(a, b)
    return np.minimum(a, b) if call.function == "min" else np.maximum(a, b)


def evaluate_dims(dims: Sequence[DimLike], bindings: Mapping[str, Any]) -> NDArray[np.float64]:
    """All *dims* at once as float64, each distinct expression worked out once.

    Shape ``(len(dims),)`` for scalar bindings, ``(len(dims), points)`` where a binding is an array of points.
    Integers stay exact up to 2**53. Raises `GraphError` where a symbol is not bound or a value leaves float64.
    """
    index: dict[DimLike, int] = {}
    positions = [index.setdefault(d, len(index)) for d in dims]
    arrays = {k: np.asarray(v, np.float64) if np.ndim(v) else _python_number(v) for k, v in bindings.items()}
    points = np.broadcast_shapes(*(np.shape(v) for v in arrays.values()))
    distinct = np.empty((len(index), *points), np.float64)
    for dim, i in index.items():
        try:
            distinct[i] = evaluate_dim(dim, arrays)
        except OverflowError as e:
            raise GraphError(f"the dim {str(dim)[:60]} is too large for a float64 at the given sizes") from e
    return distinct[positions]


def _python_number(value: Any) -> Any:
    # numpy's own integers wrap around at 2**63
    return value.item() if isinstance(value, np.generic | np.ndarray) else value
