"""How far predictions are from measurements: the figures of a group of rows, and the rows a report shows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

POINTS_OF_A_GROUP: Final = 150
"""Rows of a group that a scatter picture shows: a random sample, the same for the same input."""


class Group(NamedTuple):
    """What rows are scored together."""

    gpu: str
    dtype: str
    kind: str


@dataclass(frozen=True)
class Score:
    """Errors of n rows as fractions of the measured time."""

    n: int
    mape: float
    """Mean of |predicted - measured| / measured."""
    median_ape: float
    p90_ape: float
    bias: float
    """Geometric mean of predicted / measured."""
    coverage: float
    """Share of the rows whose measured time lies inside the interval."""


@dataclass(frozen=True)
class Verdicts:
    """Yes or no predicted of n rows: what came of them, by (measured, predicted)."""

    both: int = 0
    only_predicted: int = 0
    only_measured: int = 0
    neither: int = 0

    def counted(self, measured: bool, predicted: bool) -> "Verdicts":
        """One row more."""
        name = ("neither", "only_predicted", "only_measured", "both")[2 * measured + predicted]
        return replace(self, **{name: getattr(self, name) + 1})

    def joined(self, other: "Verdicts") -> "Verdicts":
        """The rows of both."""
        return Verdicts(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def n(self) -> int:
        """How many rows."""
        return self.both + self.only_predicted + self.only_measured + self.neither

    @property
    def right(self) -> float:
        """Share of the rows predicted as measured."""
        return (self.both + self.neither) / max(self.n, 1)

    @property
    def precision(self) -> float:
        """Of the rows predicted so, the share measured so; 1 without any."""
        said = self.both + self.only_predicted
        return self.both / said if said else 1.0

    @property
    def recall(self) -> float:
        """Of the rows measured so, the share predicted so; 1 without any."""
        true = self.both + self.only_measured
        return self.both / true if true else 1.0

    def to_json(self) -> dict[str, Any]:
        """The counts and what follows of them."""
        return {"n": self.n, "right": self.right, "precision": self.precision, "recall": self.recall} | asdict(self)


def score(predicted: Floats, measured: Floats, inside: NDArray[np.bool_]) -> Score:
    """The `Score` of rows of *predicted* and *measured* seconds; at least one."""
    ratio = predicted / measured
    ape = np.abs(ratio - 1)
    return Score(
        int(ratio.size),
        float(ape.mean()),
        float(np.median(ape)),
        float(np.quantile(ape, 0.9)),
        float(np.exp(np.log(ratio).mean())),
        float(inside.mean()),
    )


@dataclass(frozen=True)
class Point:
    """One row as a report shows it."""

    group: Group
    table: str
    row: int
    """Its place in the file, from 0."""
    what: str
    """Its sizes."""
    predicted_s: float
    measured_s: float
    bound: str
    """What limits it, as the cost model says; of a whole model, most of its time."""

    @property
    def ratio(self) -> float:
        """Predicted over measured."""
        return self.predicted_s / self.measured_s

    def to_json(self) -> dict[str, Any]:
        """The point as plain values."""
        data = asdict(self)
        return self.group._asdict() | {k: v for k, v in data.items() if k != "group"} | {"error": self.ratio - 1}


@dataclass(frozen=True, eq=False)
class Rows:
    """All rows scored, in columns; what they are is in `Validation.points` and `.worst` for some of them."""

    group: NDArray[np.int32]
    """[n] index into `groups`."""
    groups: tuple[Group, ...]
    predicted_s: Floats
    measured_s: Floats
    inside: NDArray[np.bool_]
    bytes: Floats
    """[n] bytes read and written; NaN for whole models."""

    def where(self, chosen: NDArray[np.bool_]) -> Score | None:
        """The score of some rows; None where there is none."""
        if not chosen.any():
            return None
        return score(self.predicted_s[chosen], self.measured_s[chosen], self.inside[chosen])


@dataclass(frozen=True, eq=False)
class Validation:
    """Tables held against a cost model."""

    costs: str
    tables: tuple[str, ...]
    rows: Rows
    skipped: Mapping[str, int]
    """Reason → rows that were not scored for it."""
    worst: Sequence[Point]
    points: Sequence[Point]
    """A sample of each group."""
    unmodelled: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    """What is wrong with a table as a whole."""
    notes: tuple[str, ...] = ()
    """What the cost model says of its own prices: formats and chips that it extrapolates to."""
    scores: Mapping[Group, Score] = field(default_factory=dict)
    beside: Mapping[Group, Score] = field(default_factory=dict)
    """Figures that are no times (bytes of memory), and parts of the rows again: not among `rows`."""
    verdicts: Mapping[Group, Verdicts] = field(default_factory=dict)

    @property
    def overall(self) -> Score | None:
        """The score of all rows; None where none could be scored."""
        return self.rows.where(np.ones(self.rows.group.size, np.bool_))

    def to_json(self) -> dict[str, Any]:
        """The object that ``validate --json`` prints: `groups`, `overall`, `skipped`, and more."""
        overall = self.overall
        return {
            "costs": self.costs,
            "tables": list(self.tables),
            "groups": [g._asdict() | asdict(s) for g, s in {**self.scores, **self.beside}.items()]
            + [g._asdict() | dict.fromkeys(_FIGURES) | v.to_json() for g, v in self.verdicts.items()],
            "overall": {"n": 0} | dict.fromkeys(_FIGURES) if overall is None else asdict(overall),
            "skipped": [{"reason": reason, "count": count} for reason, count in self.skipped.items()],
            "worst": [point.to_json() for point in self.worst],
            "unmodelled_ops": list(self.unmodelled),
            "warnings": list(self.warnings),
            "notes": list(self.notes),
        }


_FIGURES: Final = ("mape", "median_ape", "p90_ape", "bias", "coverage")


@dataclass
class Collector:
    """Gathers rows a piece at a time: columns of all, descriptions only of the worst and of a sample."""

    worst: int
    sample: int = POINTS_OF_A_GROUP
    groups: dict[Group, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    verdicts: dict[Group, Verdicts] = field(default_factory=dict)
    _beside: dict[Group, list[tuple[float, float, bool]]] = field(default_factory=dict)
    _columns: list[tuple[NDArray[Any], ...]] = field(default_factory=list)
    _worst: list[tuple[float, Point]] = field(default_factory=list)
    _sampled: dict[Group, list[tuple[float, Point]]] = field(default_factory=dict)
    _random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def skip(self, reason: str, count: int) -> None:
        """Count rows that are not scored."""
        if count:
            self.skipped[reason] = self.skipped.get(reason, 0) + count

    def put_beside(self, group: Group, predicted: float, measured: float, inside: bool) -> None:
        """A figure of a row that does not count among all rows."""
        self._beside.setdefault(group, []).append((predicted, measured, inside))

    def judge(self, group: Group, measured: bool, predicted: bool) -> None:
        """A verdict on a row."""
        self.verdicts[group] = self.verdicts.get(group, Verdicts()).counted(measured, predicted)

    def add(
        self,
        group: NDArray[np.int32],
        predicted_s: Floats,
        measured_s: Floats,
        inside: NDArray[np.bool_],
        nbytes: Floats,
        describe: Callable[[int], Point],
    ) -> None:
        """Rows of one piece; *group* are codes of `groups`, *describe* makes a row's `Point`."""
        self._columns.append((group, predicted_s, measured_s, inside, nbytes))
        wrong = np.abs(np.log(predicted_s / measured_s))
        far = np.argsort(-wrong, kind="stable")[: self.worst]
        self._worst += [(float(wrong[i]), describe(i)) for i in far.tolist()]
        self._worst.sort(key=lambda w: -w[0])
        del self._worst[self.worst :]
        key = self._random.random(group.size)
        for code in np.unique(group).tolist():
            rows = np.flatnonzero(group == code)
            chosen = rows[np.argsort(key[rows], kind="stable")[: self.sample]]
            held = self._sampled.setdefault(self._group(code), [])
            limit = held[-1][0] if len(held) == self.sample else np.inf
            held += [(float(key[i]), describe(i)) for i in chosen.tolist() if key[i] < limit]
            held.sort(key=lambda k: k[0])
            del held[self.sample :]

    def _group(self, code: int) -> Group:
        return list(self.groups)[code]

    def finish(
        self,
        costs: str,
        tables: Sequence[str],
        unmodelled: set[str],
        warnings: Sequence[str],
        notes: Sequence[str],
    ) -> Validation:
        """The `Validation` of all that was added."""
        order = sorted(self.groups, key=lambda g: (g.kind, g.gpu, g.dtype))
        place = np.empty(len(order), np.int32)
        place[[self.groups[g] for g in order]] = np.arange(len(order))
        empty = [np.empty(0, kind) for kind in (np.int32, float, float, bool, float)]
        columns = [np.concatenate(c) for c in zip(*self._columns, strict=True)] if self._columns else empty
        group, predicted, measured, inside, nbytes = columns
        rows = Rows(place[group], tuple(order), predicted, measured, inside, nbytes)
        scores = {g: s for i, g in enumerate(order) if (s := rows.where(rows.group == i)) is not None}
        points = [p for g in order for _, p in self._sampled.get(g, [])]
        return Validation(
            costs,
            tuple(tables),
            rows,
            dict(sorted(self.skipped.items(), key=lambda kv: -kv[1])),
            [p for _, p in self._worst],
            points,
            tuple(sorted(unmodelled)),
            tuple(warnings),
            tuple(notes),
            scores,
            {g: _score_of(rows) for g, rows in sorted(self._beside.items(), key=lambda kv: kv[0][::-1])},
            dict(sorted(self.verdicts.items())),
        )


def _score_of(rows: Sequence[tuple[float, float, bool]]) -> Score:
    predicted, measured, inside = (np.array(column) for column in zip(*rows, strict=True))
    return score(predicted, measured, inside)
