"""Which measured operator is which predicted one: instance by instance, in order, by module, name and shapes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foretrace.traces.strings import StringColumn, aligned_codes
from foretrace.traces.trace import Trace

from .lcs import gap_of, match_sequences
from .operators import VIEWS, canonical_name, find_operators, leaf_names

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
COMPOSITES = frozenset(["aten::scaled_dot_product_attention"])  # beside everything in the namespace foretrace
NAME, SHAPES, MODULE = 0.3, 0.3, 0.4  # what agreement of each adds to the confidence
OUT_OF_ORDER, PART = 0.8, 0.5  # factors: found elsewhere in the sequence; one of several that make up the operator


@dataclass(frozen=True, eq=False)
class Alignment:
    """Pairs of rows (predicted, measured) with a confidence in (0, 1], and what found no partner.

    A predicted row stands in several pairs where what was captured as one operator ran as several. *seconds*
    are per row of each trace what the operator there stands for, 0 for rows that are no operators.
    """

    pairs: Ints  #: shape (n, 2), ordered by predicted row
    confidence: Floats  #: shape (n,)
    unmatched_predicted: Ints
    unmatched_measured: Ints
    predicted_seconds: Floats
    measured_seconds: Floats

    @property
    def matched_share(self) -> float:
        """Part of all measured operator time that has a predicted partner; 0 where nothing was measured."""
        total = float(self.measured_seconds.sum())
        matched = float(self.measured_seconds[self.pairs[:, 1]].sum())
        return min(matched / total, 1.0) if total else 0.0


@dataclass(frozen=True)
class _Keys:
    """Codes of both sides' operators over common tables, 0 where unknown; a[i] is predicted, b[i] measured."""

    name: tuple[Ints, Ints]
    module: tuple[Ints, Ints]
    shapes: tuple[Ints, Ints]
    view: tuple[NDArray[np.bool_], NDArray[np.bool_]]

    def joint(self, use_module: bool, use_shapes: bool) -> tuple[Ints, Ints]:
        """One dense key per operator from the name and whichever else is used."""
        columns = [self.name, *([self.module] if use_module else []), *([self.shapes] if use_shapes else [])]
        key: Ints = np.concatenate(columns[0])
        for column in columns[1:]:
            key = np.unique((key << 32) + np.concatenate(column), return_inverse=True)[1]
        return key[: len(self.name[0])], key[len(self.name[0]) :]


def align_traces(predicted: Trace, measured: Trace) -> Alignment:
    """Match each operator of *predicted* with the *measured* one that is the same instance.

    The measured call tree is cut at the predicted names; then longest common subsequences on (module, name,
    shapes), between what these matched on (module, name), then (name, shapes) and name alone where the rest is
    unknown on a side. Operators that move no data come after the others. What disagrees in a module that both
    sides know, or in a name, is never matched. Of several ranks the lowest that both have is aligned.
    """
    rank = _common_rank(predicted, measured)
    kept = [np.flatnonzero(t.rank == r) for t, r in zip((predicted, measured), rank, strict=True)]
    one_rank = [t if len(k) == len(t) else t.select(k) for t, k in zip((predicted, measured), kept, strict=True)]
    vocabulary = leaf_names(one_rank[0])
    found = [find_operators(t, vocabulary) for t in one_rank]
    keys = _keys(one_rank[0], one_rank[1], found[0].rows, found[1].rows)
    partner = _in_order(keys)
    late = _out_of_order(keys, partner)
    pairs, confidence = _scored(keys, partner, late)
    parts = _composites(one_rank[0], found[0].rows, keys, partner)
    pairs = np.concatenate([pairs, parts])
    confidence = np.concatenate([confidence, np.full(len(parts), PART)])
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    rows_a, rows_b = kept[0][found[0].rows], kept[1][found[1].rows]
    lonely = [np.setdiff1d(np.arange(len(o.rows)), pairs[:, side]) for side, o in enumerate(found)]
    seconds = [np.zeros(len(t)) for t in (predicted, measured)]
    for total, k, o in zip(seconds, kept, found, strict=True):
        total[k] = o.seconds
    return Alignment(
        pairs=np.stack([rows_a[pairs[order, 0]], rows_b[pairs[order, 1]]], axis=1),
        confidence=confidence[order],
        unmatched_predicted=rows_a[lonely[0]],
        unmatched_measured=rows_b[lonely[1]],
        predicted_seconds=seconds[0],
        measured_seconds=seconds[1],
    )


def _common_rank(a: Trace, b: Trace) -> tuple[int, int]:
    ranks = np.unique(a.rank), np.unique(b.rank)
    common = np.intersect1d(ranks[0], ranks[1])
    if len(common):
        return int(common[0]), int(common[0])
    return int(ranks[0].min(initial=1 << 30)), int(ranks[1].min(initial=1 << 30))


def _keys(a: Trace, b: Trace, rows_a: Ints, rows_b: Ints) -> _Keys:
    names = [t.name.take(r).map(canonical_name) for t, r in ((a, rows_a), (b, rows_b))]
    modules = _without_wrapper(a.module.take(rows_a), b.module.take(rows_b))
    shapes = [t.shapes.take(r).map(lambda s: s.replace("[]", "")) for t, r in ((a, rows_a), (b, rows_b))]

    def codes(x: StringColumn, y: StringColumn) -> tuple[Ints, Ints]:
        # "" comes first in both tables, so that its common code is 0
        left, right = aligned_codes(*(StringColumn(c.codes + 1, ("", *c.values)) for c in (x, y)))
        return left.astype(np.int64), right.astype(np.int64)

    return _Keys(
        name=codes(names[0], names[1]),
        module=codes(modules[0], modules[1]),
        shapes=codes(shapes[0], shapes[1]),
        view=(names[0].isin(VIEWS), names[1].isin(VIEWS)),
    )


def _without_wrapper(a: StringColumn, b: StringColumn) -> tuple[StringColumn, StringColumn]:
    """Module paths of both sides, less the outer names (``model.``, DDP's ``module.``) that only one side has."""

    def shared(x: StringColumn, y: StringColumn) -> int:
        return len((set(x.used()) & set(y.used())) - {""})

    def inner(column: StringColumn) -> StringColumn:
        return column.map(lambda path: path.partition(".")[2])

    choices = [(a, b), (inner(a), b), (a, inner(b)), (inner(inner(a)), b), (a, inner(inner(b)))]
    return max(choices, key=lambda pair: shared(*pair))


def _in_order(keys: _Keys) -> Ints:
    """Per predicted operator its measured partner or -1, increasing; the strongest evidence goes first."""
    size = len(keys.name[0])
    partner = np.full(size, -1, np.int64)
    for is_view in (False, True):
        for use_module, use_shapes in ((True, True), (True, False), (False, True), (False, False)):
            joint = keys.joint(use_module, use_shapes)
            matched_a = np.flatnonzero(partner >= 0)
            matched_b = partner[matched_a]
            rows, codes = [], []
            for side, anchors in enumerate((matched_a, matched_b)):
                free = keys.view[side] == is_view
                free[anchors] = False
                if use_module or use_shapes:
                    free &= (use_module & (keys.module[side] > 0)) | (use_shapes & (keys.shapes[side] > 0))
                picked = np.flatnonzero(free)
                rows.append(picked)
                codes.append((gap_of(len(free), anchors)[picked] << 32) + joint[side][picked])
            dense = np.unique(np.concatenate(codes), return_inverse=True)[1]
            i, j = match_sequences(dense[: len(rows[0])], dense[len(rows[0]) :])
            i, j = rows[0][i], rows[1][j]
            good = _compatible(keys, i, j, strict_shapes=not use_module)
            if not (use_module or use_shapes):
                good &= _mostly_agree(rows, gap_of(size, matched_a), gap_of(len(keys.name[1]), matched_b), i, good)
            partner[i[good]] = j[good]
    return partner


def _compatible(keys: _Keys, i: Ints, j: Ints, strict_shapes: bool) -> NDArray[np.bool_]:
    """Whether pairs contradict each other in nothing that both sides know."""
    good = np.ones(len(i), np.bool_)
    for column in (keys.module, keys.shapes) if strict_shapes else (keys.module,):
        x, y = column[0][i], column[1][j]
        good &= (x == y) | (x == 0) | (y == 0)
    return good


def _mostly_agree(rows: list[Ints], gap_a: Ints, gap_b: Ints, i: Ints, good: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Names alone count only in gaps where they pair at least half of the longer side."""
    size = int(max(gap_a.max(initial=0), gap_b.max(initial=0))) + 1
    paired = np.bincount(gap_a[i[good]], minlength=size)
    longer = np.maximum(*(np.bincount(g[r], minlength=size) for g, r in ((gap_a, rows[0]), (gap_b, rows[1]))))
    return (2 * paired >= longer)[gap_a[i]]


def _out_of_order(keys: _Keys, partner: Ints) -> Ints:
    """Match what moved: leftovers whose full key, module included, occurs equally often on both sides."""
    joint = keys.joint(True, True)
    free_a = np.flatnonzero((partner < 0) & (keys.module[0] > 0))
    taken = np.zeros(len(joint[1]), np.bool_)
    taken[partner[partner >= 0]] = True
    free_b = np.flatnonzero(~taken & (keys.module[1] > 0))
    size = int(max(joint[0].max(initial=0), joint[1].max(initial=0))) + 1
    count_a, count_b = (np.bincount(k[r], minlength=size) for k, r in zip(joint, (free_a, free_b), strict=True))
    equal = count_a == count_b
    free_a, free_b = free_a[equal[joint[0][free_a]]], free_b[equal[joint[1][free_b]]]
    moved: Ints = free_a[np.argsort(joint[0][free_a], kind="stable")]
    partner[moved] = free_b[np.argsort(joint[1][free_b], kind="stable")]
    return moved


def _scored(keys: _Keys, partner: Ints, moved: Ints) -> tuple[Ints, Floats]:
    """Pairs of operator positions and their confidence."""
    i = np.flatnonzero(partner >= 0)
    j = partner[i]
    confidence = np.full(len(i), NAME)
    for (x, y), weight in ((keys.shapes, SHAPES), (keys.module, MODULE)):
        confidence += weight * ((x[i] == y[j]) & (x[i] > 0))
    confidence[np.isin(i, moved)] *= OUT_OF_ORDER
    return np.stack([i, j], axis=1), confidence


def _composites(predicted: Trace, rows: Ints, keys: _Keys, partner: Ints) -> Ints:
    """Pairs for operators captured as one that run as several (attention, experts, scans).

    To such an operator go the measured ones without a partner, of its module, between its neighbours' partners.
    """
    composite = predicted.name.take(rows).map(canonical_name)
    wanted = composite.where(lambda n: n.startswith("foretrace::") or n in COMPOSITES) & (keys.module[0] > 0)
    taken = np.zeros(len(keys.name[1]), np.bool_)
    taken[partner[partner >= 0]] = True
    matched = np.flatnonzero(partner >= 0)
    pairs: list[tuple[int, int]] = []
    for i in np.flatnonzero(wanted & (partner < 0)).tolist():
        at = int(np.searchsorted(matched, i))
        low = int(partner[matched[at - 1]]) + 1 if at else 0
        high = int(partner[matched[at]]) if at < len(matched) else len(taken)
        inside = np.arange(low, max(high, low))
        inside = inside[~taken[inside] & (keys.module[1][inside] == keys.module[0][i])]
        taken[inside] = True
        pairs += [(i, j) for j in inside.tolist()]
    return np.array(pairs, np.int64).reshape(-1, 2)
