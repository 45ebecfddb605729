"""Symbolic sizes from concrete runs: what every size, written over the symbols, must have been.

A model is run at three points, each a different (batch, seq, context). The points are chosen so that different
expressions give different numbers; a size is the simplest expression that gives the right number at all three: two
points determine it, the third confirms it. Where no expression fits, or the runs differ in structure, the caller
captures one fixed shape instead and says so.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, combinations_with_replacement
from typing import Any

from foretrace.ir import DimLike, ForetraceError, evaluate_dim, symbol

Point = Mapping[str, int]

_PRIMES = {
    "batch": (3, 5, 7),
    "seq": (19, 29, 43),
    "context": (37, 61, 101),
}
_OTHER_PRIMES = ((23, 31, 47), (53, 67, 83), (59, 71, 97))


class SymbolicError(ForetraceError):
    """No one expression fits what was seen at the points: the model specialises on a symbol."""


def choose_points(free: Sequence[str], fixed: Mapping[str, int], confirm: Mapping[str, int]) -> list[dict[str, int]]:
    """Three points over the *free* symbols, *fixed* ones the same in each; the third takes the sizes in *confirm*."""
    others = iter(_OTHER_PRIMES)
    values = {name: _PRIMES[name] if name in _PRIMES else next(others) for name in free}
    points = [dict(fixed) | {name: values[name][i] for name in free} for i in range(3)]
    points[2].update({name: size for name, size in confirm.items() if name in free})
    return points


class DimSolver:
    """Finds the expression behind the sizes seen at the points; remembers what it has solved."""

    def __init__(self, points: Sequence[Point], free: Sequence[str]) -> None:
        self.points = points
        self._solved: dict[tuple[int | None, ...], DimLike] = {}
        self._monomials = [(m, tuple(evaluate_dim(m, p) for p in points)) for m in _monomials(free)]

    def solve(self, seen: tuple[int | None, ...]) -> DimLike:
        """The simplest expression with the values *seen* at the points (None: not seen there).

        Raises `SymbolicError` where there is none, or where fewer than two points tell.
        """
        known = [(i, v) for i, v in enumerate(seen) if v is not None]
        if all(v == known[0][1] for _, v in known) and (len(known) > 1 or len(self.points) == 1):
            return known[0][1]
        if len(known) < 2:
            raise SymbolicError(f"a size is {known[0][1]} at one point and was not seen at the others")
        if seen not in self._solved:
            self._solved[seen] = self._search(known)
        return self._solved[seen]

    def _search(self, known: Sequence[tuple[int, int]]) -> DimLike:
        (i, first), (j, second) = known[:2]
        best: tuple[tuple[int, int, int], DimLike] | None = None
        for rank, (monomial, at) in enumerate(self._monomials):
            step = at[i] - at[j]
            if step == 0 or (first - second) % step:
                continue
            scale = (first - second) // step
            offset = first - scale * at[i]
            if any(scale * at[p] + offset != v for p, v in known):
                continue
            cost = (int(offset != 0), rank, abs(offset))
            if best is None or cost < best[0]:
                best = (cost, monomial * scale + offset)
        if best is None:
            raise SymbolicError("no expression gives " + ", ".join(f"{v} at {dict(self.points[p])}" for p, v in known))
        return best[1]

    def solve_value(self, seen: Sequence[Any]) -> Any:
        """A literal argument seen at the points: ints are solved, sequences item by item, the rest must agree."""
        first = seen[0]
        if isinstance(first, bool) or first is None or not isinstance(first, int | list | tuple):
            if any(s != first and s == s for s in seen):
                raise SymbolicError(f"a literal argument differs between points: {list(seen)}")
            return first
        if isinstance(first, int):
            if not all(isinstance(s, int) for s in seen):
                raise SymbolicError(f"a literal argument differs between points: {list(seen)}")
            return self.solve(tuple(seen))
        if any(len(s) != len(first) for s in seen):
            raise SymbolicError(f"a literal argument differs in length between points: {list(seen)}")
        return tuple(self.solve_value(items) for items in zip(*seen, strict=True))


def _monomials(free: Sequence[str]) -> Iterator[Any]:
    """Candidate terms, simplest first: single symbols, sums of two lengths, then products of up to three."""
    lengths = [s for s in free if s != "batch"]
    basis = [symbol(s) for s in free]
    sums = [symbol(a) + symbol(b) for a, b in combinations(lengths, 2)]
    yield from basis
    yield from sums
    yield from (a * b for a, b in combinations_with_replacement(basis + sums, 2))
    yield from (a * b * c for a, b, c in combinations_with_replacement(basis + sums, 3))
