"""Symbolic sizes from concrete runs: what every size, written over the symbols, must have been.

A model is run at several points, each a different (batch, seq, context); `points` chooses them. They are chosen so
that different expressions give different numbers; a size is the simplest expression that gives the right number at
all of them, and none is taken that was only just determined: at least one point more confirms it. Where nothing fits,
or two simple expressions fit and differ elsewhere, `SymbolicError` says so: a size is never guessed.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import combinations, combinations_with_replacement
from typing import Any

from foretrace.ir import DimLike, ForetraceError, dim_min, evaluate_dim, symbol

from .points import Point, choose_points

__all__ = ["DimSolver", "Point", "SymbolicError", "choose_points"]

Known = Sequence[tuple[int, int]]
"""(number of the point, value seen there)."""


class SymbolicError(ForetraceError):
    """No one expression fits what was seen at the points: the model specialises on a symbol."""


class DimSolver:
    """Finds the expression behind the sizes seen at the points; remembers what it has solved.

    *steps* are the lengths at which the model's configuration says that it works in windows or chunks.
    """

    def __init__(self, points: Sequence[Point], free: Sequence[str], steps: Sequence[int] = ()) -> None:
        self.points, self.free, self.steps = points, free, steps
        self._free = [symbol(s) for s in free]
        self._lengths = [symbol(s) for s in free if s != "batch"]
        self._solved: dict[tuple[int | None, ...], DimLike] = {}
        self._monomials = [(m, self._at(m)) for m in _monomials(free)]
        self._pairs = [(m, at) for m, at in self._monomials if max(len(t) for t, _ in m.terms) <= 2]
        self._elsewhere = [{s: 3 + (i + 2) * (977 + 41 * n) for n, s in enumerate(free)} for i in range(3)]

    def _at(self, dim: DimLike) -> tuple[int, ...]:
        return tuple(evaluate_dim(dim, p) for p in self.points)

    def solve(self, seen: tuple[int | None, ...]) -> DimLike:
        """The simplest expression with the values *seen* at the points (None: not seen there).

        Raises `SymbolicError` where there is none, where several fit, or where too few points tell.
        """
        known = [(i, v) for i, v in enumerate(seen) if v is not None]
        if all(v == known[0][1] for _, v in known) and (len(known) > 1 or len(self.points) == 1):
            return known[0][1]
        if len(known) < 2:
            raise SymbolicError(f"a size is {known[0][1]} at one point and was not seen at the others")
        if seen not in self._solved:
            self._solved[seen] = self._search(known)
        return self._solved[seen]

    def _search(self, known: Known) -> DimLike:
        for search in (self._linear, self._two_terms, self._window, self._chunks):
            if (found := self._agreed(list(search(known)), known)) is not None:
                return found
        raise SymbolicError("no expression gives " + self._said(known))

    def _said(self, known: Known) -> str:
        return ", ".join(f"{v} at {dict(self.points[p])}" for p, v in known)

    def _agreed(self, found: Sequence[tuple[tuple[int, ...], DimLike]], known: Known) -> DimLike | None:
        """The cheapest of *found*; refused where another as plain differs from it elsewhere."""
        if not found:
            return None
        cost, best = min(found, key=lambda f: f[0])
        rivals = [d for c, d in found if c[0] == cost[0] and d != best]
        if any(evaluate_dim(best, p) != evaluate_dim(d, p) for d in rivals for p in self._elsewhere):
            raise SymbolicError(f"both {best} and {rivals[0]} give " + self._said(known))
        return best

    def _linear(self, known: Known) -> Iterator[tuple[tuple[int, ...], DimLike]]:
        """One term and a constant: two points determine them, the others confirm."""
        if len(known) < min(3, len(self.points)):
            return
        (i, first), (j, second) = known[:2]
        for rank, (monomial, at) in enumerate(self._monomials):
            step = at[i] - at[j]
            if step == 0 or (first - second) % step:
                continue
            scale = (first - second) // step
            offset = first - scale * at[i]
            if all(scale * at[p] + offset == v for p, v in known):
                yield (int(offset != 0), rank, abs(offset)), monomial * scale + offset

    def _two_terms(self, known: Known) -> Iterator[tuple[tuple[int, ...], DimLike]]:
        """Two terms and perhaps a constant, as in ``batch*seq + 576*batch``: one or two points confirm."""
        for rank, ((a, at_a), (b, at_b)) in enumerate(combinations(self._pairs, 2)):
            for constant in (0, 1):
                if len(known) < 4 + constant:
                    continue
                rows = [(at_a[p], at_b[p], constant, v) for p, v in known]
                if (found := _fit(rows, 2 + constant)) is not None and found[0] and found[1]:
                    x, y, offset = (*found, 0)[:3]
                    if constant == 0 or offset:
                        yield (constant, rank, abs(offset)), a * x + b * y + offset

    def _window(self, known: Known) -> Iterator[tuple[tuple[int, ...], DimLike]]:
        """``min(length + c, window)``, alone, times batch or beside a length; both regimes are confirmed by a point."""
        yield from (((0, *cost), d) for cost, d in self._plain_window(known))
        for rank, part in enumerate(self._free):
            at = self._at(part)
            if all(v % at[p] == 0 for p, v in known) and any(at[p] > 1 for p, _ in known):
                less = [(p, v // at[p]) for p, v in known]
                yield from (((1, rank, *c), part * d) for c, d in self._plain_window(less))
            if all(v >= at[p] for p, v in known) and part in self._lengths:
                less = [(p, v - at[p]) for p, v in known]
                yield from (((2, rank, *c), part + d) for c, d in self._plain_window(less))

    def _plain_window(self, known: Known) -> Iterator[tuple[tuple[int, ...], DimLike]]:
        most = max(v for _, v in known)
        below = [(p, v) for p, v in known if v != most]
        flat = [self.points[p] for p, v in known if v == most]
        names = [str(s) for s in self._free]
        if len(below) < 3 or any(len({p[n] for p in flat}) < 2 for n in names):
            return  # the same number at points that share a symbol's value may well depend on it
        for cost, inside in self._linear(below):
            if all(evaluate_dim(inside, p) >= most for p in flat):
                yield cost, dim_min(inside, most)

    def _chunks(self, known: Known) -> Iterator[tuple[tuple[int, ...], DimLike]]:
        """So many whole chunks as a length needs, times what a chunk adds.

        Only for chunks the configuration names: `points` puts a point at a chunk's end and one behind it.
        """
        for chunk in self.steps:
            for length in self._lengths:
                others: list[DimLike] = [s for s in self._free if s not in self._lengths]
                for part in [1, *others]:
                    count = (length + (chunk - 1)) // chunk
                    at = self._at(part * count)
                    if len(set(at)) < 2 or not _tells(chunk, self._at(length)):
                        continue
                    found = _fit([(at[p], 1, 0, v) for p, v in known], 2)
                    if found is not None and found[0]:
                        yield (int(found[1] != 0), abs(found[1])), part * count * found[0] + found[1]

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


def _tells(chunk: int, lengths: Sequence[int]) -> bool:
    """Whether there is a point at the end of a chunk and one right behind it."""
    return any(n % chunk == 0 for n in lengths) and any(n % chunk == 1 and n > chunk for n in lengths)


def _fit(rows: Sequence[tuple[int, int, int, int]], unknowns: int) -> tuple[int, ...] | None:
    """Integers x (and y, z) with x*a + y*b + z*c == v in every row; None where there are none, or many."""
    system = [[Fraction(n) for n in (*row[:unknowns], row[3])] for row in rows]
    for column in range(unknowns):
        pivot = next((r for r in range(column, len(system)) if system[r][column]), None)
        if pivot is None:
            return None
        system[column], system[pivot] = system[pivot], system[column]
        lead = system[column]
        for r, row in enumerate(system):
            if r != column and row[column]:
                factor = row[column] / lead[column]
                system[r] = [n - factor * m for n, m in zip(row, lead, strict=True)]
    if any(row[unknowns] for row in system[unknowns:]):
        return None
    found = [system[i][unknowns] / system[i][i] for i in range(unknowns)]
    return tuple(int(f) for f in found) if all(f.denominator == 1 for f in found) else None


def _monomials(free: Sequence[str]) -> Iterator[Any]:
    """Candidate terms, simplest first: single symbols, sums of two lengths, then products of up to three."""
    lengths = [s for s in free if s != "batch"]
    basis = [symbol(s) for s in free]
    sums = [symbol(a) + symbol(b) for a, b in combinations(lengths, 2)]
    yield from basis
    yield from sums
    yield from (a * b for a, b in combinations_with_replacement(basis + sums, 2))
    yield from (a * b * c for a, b, c in combinations_with_replacement(basis + sums, 3))
