"""Which measured operator is which predicted one: instance by instance, by phase, module, order, name and shapes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foretrace.traces.trace import Trace

from .evidence import Evidence, gather_evidence
from .fusion import match_runs
from .many import Matching, Pairs, match_composites, match_fused, match_kinds, match_optimizer, match_regions
from .operators import Operators, find_operators, leaf_names
from .passes import drop_weak, match_collectives, match_in_order, match_moved

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
NAME, SHAPES, MODULE = 0.3, 0.3, 0.4  # what agreement of each adds to the confidence
LATER = ("backward", "optimizer")
KIND = 0.15  # instead of the name's
OUT_OF_ORDER, PART = 0.8, 0.5  # factors: found elsewhere in the sequence; one of several that make up the operator
ORDER, REGION = 0.2, 0.2  # kinds in their order alone; what is left of a compiled region


@dataclass(frozen=True, eq=False)
class Alignment:
    """Pairs of rows (predicted, measured) with a confidence in (0, 1], and what found no partner.

    A row stands in several pairs where what is one operator on its side is several on the other; what pairs connect
    is compared as one. *seconds* are per row of each trace what the operator there stands for, 0 for rows that are
    no operators.
    """

    pairs: Ints  #: shape (n, 2), ordered by predicted row
    confidence: Floats  #: shape (n,)
    unmatched_predicted: Ints
    unmatched_measured: Ints
    predicted_seconds: Floats
    measured_seconds: Floats
    ranks: Ints  #: shape (r, 2), which rank of the first was aligned with which of the second

    @property
    def matched_share(self) -> float:
        """Part of all measured operator time that has a predicted partner; 0 where nothing was measured."""
        total = float(self.measured_seconds.sum())
        matched = float(self.measured_seconds[np.unique(self.pairs[:, 1])].sum())
        return min(matched / total, 1.0) if total else 0.0


def align_traces(predicted: Trace, measured: Trace) -> Alignment:
    """Match each operator of *predicted* with the *measured* one that is the same instance.

    The measured call tree is cut at the predicted names; then longest common subsequences on (module, name,
    shapes), between what these matched on (module, name), then (name, shapes) and name alone where the rest is
    unknown on a side. Operators that move no data come after the others. What disagrees in a phase or a module that
    both sides know is never matched. What is several operators on a side follows: fused kernels by the
    operators in their names, the steps of an optimizer, kernels without operators by their kinds in order. Every
    rank that both traces have is aligned on its own; where they share none, the lowest of each.
    """
    seconds = np.zeros(len(predicted)), np.zeros(len(measured))
    ranks = _common_ranks(predicted, measured)
    parts = [_align_rank(predicted, measured, a, b, seconds) for a, b in ranks]
    pairs, confidence, *lonely = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    only = [np.sort(rows) for rows in lonely]
    return Alignment(pairs[order], confidence[order], only[0], only[1], seconds[0], seconds[1], np.array(ranks))


def _common_ranks(a: Trace, b: Trace) -> list[tuple[int, int]]:
    ranks = np.unique(a.rank), np.unique(b.rank)
    common = np.intersect1d(ranks[0], ranks[1]).tolist()
    return [(r, r) for r in common] or [(int(ranks[0].min(initial=1 << 30)), int(ranks[1].min(initial=1 << 30)))]


def _align_rank(
    predicted: Trace, measured: Trace, rank_a: int, rank_b: int, seconds: tuple[Floats, Floats]
) -> tuple[Ints, Floats, Ints, Ints]:
    kept = [np.flatnonzero(t.rank == r) for t, r in ((predicted, rank_a), (measured, rank_b))]
    sides = [t if len(k) == len(t) else t.select(k) for t, k in zip((predicted, measured), kept, strict=True)]
    vocabulary = leaf_names(sides[0])
    found = [find_operators(t, vocabulary) for t in sides]
    if all(t.phase.isin(LATER).any() for t in sides):
        found = [_by_phase(t, o) for t, o in zip(sides, found, strict=True)]
    evidence = gather_evidence(sides[0], sides[1], found[0], found[1])
    pairs, confidence = match_operators(evidence, found[1].seconds[found[1].rows])
    lonely = [np.setdiff1d(np.arange(len(o.rows)), pairs[:, side]) for side, o in enumerate(found)]
    for total, k, o in zip(seconds, kept, found, strict=True):
        total[k] = o.seconds
    rows = [k[o.rows] for k, o in zip(kept, found, strict=True)]
    matched = np.stack([rows[0][pairs[:, 0]], rows[1][pairs[:, 1]]], axis=1)
    return matched, confidence, rows[0][lonely[0]], rows[1][lonely[1]]


def _by_phase(trace: Trace, operators: Operators) -> Operators:
    """Forward, backward, optimizer, each in its order: they run on several threads, and overlap in a pipeline."""
    place = np.array([LATER.index(v) + 1 if v in LATER else 0 for v in trace.phase.values])
    order = np.argsort(place[trace.phase.codes[operators.rows]], kind="stable")
    return Operators(operators.rows[order], operators.seconds)


def match_operators(evidence: Evidence, seconds: Floats) -> tuple[Ints, Floats]:
    """Pairs of operator positions and their confidence; *seconds* are the measured operators'."""
    partner = np.full(len(evidence.name[0]), -1, np.int64)
    runs = match_runs(evidence, partner)
    free = tuple(np.ones(len(v), np.bool_) for v in evidence.view)
    for side, rows in enumerate(zip(*runs, strict=True)):
        free[side][list(rows)] = False
    match_in_order(evidence, partner, (free[0], free[1]))
    match_collectives(evidence, partner)
    moved = match_moved(evidence, partner)
    another_model = drop_weak(evidence, partner)
    matching = Matching(evidence, partner)
    stages: list[tuple[Pairs, float]] = []
    if not another_model:
        stages.append((matching.take(runs), PART))
        stages += [(match(matching), PART) for match in (match_composites, match_fused, match_optimizer)]
        stages.append((match_kinds(matching), ORDER))
        stages.append((match_regions(matching, seconds), REGION))
    one_to_one, confidence = _scored(evidence, partner, moved)
    pairs = [one_to_one, *(_array(found) for found, _ in stages)]
    return np.concatenate(pairs), np.concatenate([confidence, *(np.full(len(f), c) for f, c in stages)])


def _array(pairs: Sequence[tuple[int, int]]) -> Ints:
    return np.array(pairs, np.int64).reshape(-1, 2)


def _scored(evidence: Evidence, partner: Ints, moved: Ints) -> tuple[Ints, Floats]:
    """One-to-one pairs of operator positions and their confidence."""
    i = np.flatnonzero(partner >= 0)
    j = partner[i]
    confidence = np.where(evidence.name[0][i] == evidence.name[1][j], NAME, KIND)
    for (x, y), weight in ((evidence.shapes, SHAPES), (evidence.module, MODULE)):
        confidence += weight * ((x[i] == y[j]) & (x[i] > 0))
    confidence[np.isin(i, moved)] *= OUT_OF_ORDER
    return np.stack([i, j], axis=1), confidence
