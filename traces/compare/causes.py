"""What to fix first: the differences between two traces, gathered under the modules and operators they come from.

A cause is what one factor explains: all kernels of a module that run 1.5 times as long as predicted are one cause,
whatever their names, and a module in which some run longer and others shorter is several. Candidates are modules
at every depth, with the indices of repeated layers kept or folded, and single operators in them. Each is worth the
absolute difference that one factor for all its operators takes away; the best is taken first, and its operators are
out of the others.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .naming import common_path, fold_indices, short_name

What = Literal["slower", "faster", "missing", "extra"]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEAST_EXPLAINED = 0.5  # part of a module's absolute differences that one factor must explain to make it one cause
NEAR, CLOSE = 0.5, 0.15  # an operator is of a cause if its factor leaves half its difference, or 15 % of its time
ODD = 1.2  # times by which an operator must be slower or faster to be told apart from others of its name and module
NEARLY_ALL = 0.95  # share of a cause's seconds that must be of one name, kind or shape for it to be called so
LEAST_S = 1e-15  # what takes less time has no factor
MOST_CAUSES = 64  # found by worth; what is left over is gathered by module and name
MOST_CELLS = 4000  # beyond it, layers are not told apart


@dataclass(frozen=True)
class Cause:
    """Operators whose times differ in one way. Seconds of both traces; *what* is seen from the second."""

    what: What  #: missing: only in the first trace; extra: only in the second
    name: str  #: the operator, "" where they differ
    module: str  #: the module that holds them all, layer indices that differ folded: "h.*.mlp"
    kind: str  #: "" where they differ
    shapes: str  #: "" where they differ
    ops: int
    predicted_s: float
    measured_s: float

    @property
    def difference_s(self) -> float:
        """Signed: measured - predicted."""
        return self.measured_s - self.predicted_s


@dataclass(frozen=True)
class Part:
    """One compared operator (or group of operators that are compared as one), or one without a partner."""

    name: str
    module: str
    kind: str
    shapes: str
    predicted_s: float
    measured_s: float
    what: Literal["", "missing", "extra"] = ""


def find_causes(parts: Iterable[Part]) -> list[Cause]:
    """Causes of all differences between *parts*, the largest absolute difference first; each part is in one."""
    matched: list[Part] = []
    lonely: dict[tuple[str, ...], list[Part]] = {}
    for part in parts:
        if part.what:
            key = (part.what, short_name(part.name), fold_indices(part.module), part.kind)
            lonely.setdefault(key, []).append(part)
        else:
            matched.append(part)
    causes = [_cause(members) for members in (*lonely.values(), *_explained(matched))]
    causes = [c for c in causes if c.difference_s]
    return sorted(causes, key=lambda c: (-abs(c.difference_s), c.module, c.name, c.what))


def _cause(members: Sequence[Part]) -> Cause:
    predicted_s, measured_s = (math.fsum(p.predicted_s for p in members), math.fsum(p.measured_s for p in members))
    what: What = members[0].what or ("slower" if measured_s > predicted_s else "faster")
    name, kind, shapes = (_most(members, column) for column in ("name", "kind", "shapes"))
    module = common_path({p.module for p in members})
    return Cause(what, name, module, kind, shapes, len(members), predicted_s, measured_s)


def _most(members: Sequence[Part], column: str) -> str:
    """The value of *column* that nearly all seconds of *members* have, "" where there is none."""
    seconds: dict[str, float] = {}
    for p in members:
        value = getattr(p, column)
        seconds[value] = seconds.get(value, 0.0) + p.predicted_s + p.measured_s
    best = max(seconds, key=seconds.__getitem__)
    return best if seconds[best] >= NEARLY_ALL * math.fsum(seconds.values()) else ""


@dataclass
class _Cell:
    """Parts that no candidate tells apart."""

    names: tuple[tuple[str, ...], ...]  #: the candidates it is in, the most general first
    parts: list[Part] = field(default_factory=list)


def _explained(parts: list[Part]) -> Iterable[list[Part]]:
    """Parts by cause."""
    cells = _cells(parts, folded=len({(p.module, p.name, p.shapes) for p in parts}) > MOST_CELLS)
    predicted = np.array([math.fsum(p.predicted_s for p in c.parts) for c in cells])
    measured = np.array([math.fsum(p.measured_s for p in c.parts) for c in cells])
    table: dict[tuple[str, ...], list[int]] = {}
    for i, cell in enumerate(cells):
        for name in cell.names:
            table.setdefault(name, []).append(i)
    names = list(table)
    members = [np.array(rows) for rows in table.values()]
    inside: list[list[int]] = [[] for _ in cells]
    for k, rows in enumerate(members):
        for i in rows.tolist():
            inside[i].append(k)
    left = np.ones(len(cells), np.bool_)
    worth = np.array([_worth(names[k], rows, predicted, measured)[0] for k, rows in enumerate(members)])
    favour = 1 + 1e-9 * np.array([100.0 * (len(n) - 1) + n[1].count(".") for n in names])
    for _ in range(MOST_CAUSES):
        best = int(np.argmax(worth * favour)) if len(worth) else 0
        if not len(worth) or worth[best] <= 0:
            break
        rows = members[best][left[members[best]]]
        factor = _worth(names[best], rows, predicted, measured)[1]
        rest = np.abs(measured[rows] - factor * predicted[rows])
        near = rest <= np.maximum(NEAR * np.abs(measured[rows] - predicted[rows]), CLOSE * predicted[rows])
        taken = rows[near]
        if not len(taken):
            worth[best] = 0.0
            continue
        yield [p for i in taken.tolist() for p in cells[i].parts]
        left[taken] = False
        for k in {k for i in taken.tolist() for k in inside[i]}:
            rows = members[k][left[members[k]]]
            worth[k] = _worth(names[k], rows, predicted, measured)[0]
    yield from _leftover(cells, left)


def _leftover(cells: list[_Cell], left: NDArray[np.bool_]) -> Iterable[list[Part]]:
    table: dict[tuple[str, str, bool], list[Part]] = {}
    for i in np.flatnonzero(left).tolist():
        for p in cells[i].parts:
            key = (fold_indices(p.module), short_name(p.name), p.measured_s > p.predicted_s)
            table.setdefault(key, []).append(p)
    yield from table.values()


def _cells(parts: list[Part], folded: bool) -> list[_Cell]:
    cells: dict[tuple[str, ...], _Cell] = {}
    for p in parts:
        odd = "+" if p.measured_s > ODD * p.predicted_s else "-" if p.predicted_s > ODD * p.measured_s else ""
        path, name = fold_indices(p.module), short_name(p.name)
        key = (path if folded else p.module, name, p.shapes, odd)
        if key not in cells:
            names: list[tuple[str, ...]] = [("*", prefix) for prefix in _prefixes(path)]
            names += [("*", path, name), ("*", path, name, p.shapes), ("*", path, name, odd)]
            if not folded:
                names += [("1", prefix) for prefix in _prefixes(p.module) if prefix != fold_indices(prefix)]
                names += [("1", p.module, name), ("1", p.module, name, p.shapes, odd)]
            cells[key] = _Cell(tuple(dict.fromkeys(names)))
        cells[key].parts.append(p)
    return list(cells.values())


def _prefixes(path: str) -> list[str]:
    words = path.split(".") if path else []
    return [".".join(words[:n]) for n in range(len(words) + 1)]


def _worth(name: tuple[str, ...], rows: Ints, predicted: Floats, measured: Floats) -> tuple[float, float]:
    """How much of the absolute differences of *rows* one factor takes away, and that factor."""
    p, m = predicted[rows], measured[rows]
    some = p > LEAST_S
    p, m = p[some], m[some]
    if not len(p):
        return 0.0, 1.0
    ratio = m / p
    order = np.argsort(ratio, kind="stable")
    total = np.cumsum(p[order])
    factor = float(ratio[order][np.searchsorted(total, total[-1] / 2)])
    before = float(np.abs(m - p).sum())
    worth = before - float(np.abs(m - factor * p).sum())
    whole_module = len(name) == 2
    return (0.0 if whole_module and worth < LEAST_EXPLAINED * before else worth), factor
