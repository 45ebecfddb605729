"""One operator on a side that is several on the other: fused kernels, composites, optimizers, compiled regions."""

import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from foretrace.traces.lcs import gap_of, match_sequences

from .evidence import Evidence
from .kernels import fused_members, fused_rest, fused_text, is_part
from .operators import REGION, canonical_name

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Pairs = list[tuple[int, int]]

MOST_CELLS = 1 << 22  # of predicted by measured operators in one gap that are weighed against each other
LEAST_ORDERED = 0.9  # share of the longer side that kinds in their order must pair, where nothing else is known
LEAST_INREGION = 0.5  # share of the operator time beside a compiled region that must be matched
_FUSED_OPTIMIZER = re.compile(
    r".*(_fused_(adam|adamw|sgd|adagrad)_?$|(fused|multi_tensor).*(adam|sgd|lamb|adagrad))", re.I
)


class Matching:
    """Who is taken, while stages add pairs of positions; `partner` has the one-to-one pairs."""

    def __init__(self, evidence: Evidence, partner: Ints) -> None:
        """Start from what is matched one to one."""
        self.evidence = evidence
        self.anchors = np.flatnonzero(partner >= 0)
        self.partner = partner
        self.taken = (partner >= 0, np.zeros(len(evidence.name[1]), np.bool_))
        self.taken[1][partner[self.anchors]] = True

    def free(self, side: int) -> Bools:
        """Operators of *side* that are not taken and move data."""
        return ~self.taken[side] & ~self.evidence.view[side]

    def take(self, pairs: Pairs) -> Pairs:
        """Mark both ends of *pairs* as taken."""
        for i, j in pairs:
            self.taken[0][i] = self.taken[1][j] = True
        return pairs

    def gaps(self) -> Iterator[tuple[Ints, Ints]]:
        """Free positions of both sides between pairs that are in order, where both have any."""
        at = self.anchors
        ahead = self.partner[at]
        kept = at[(ahead >= np.maximum.accumulate(ahead)) & (ahead <= np.minimum.accumulate(ahead[::-1])[::-1])]
        sides = []
        for side, anchors in enumerate((kept, self.partner[kept])):
            rows = np.flatnonzero(self.free(side))
            sides.append((rows, gap_of(len(self.taken[side]), anchors)[rows]))
        for gap in np.intersect1d(sides[0][1], sides[1][1]).tolist():
            found = [rows[np.searchsorted(g, gap) : np.searchsorted(g, gap, side="right")] for rows, g in sides]
            yield found[0], found[1]

    def modules(self) -> Iterator[tuple[Ints, Ints]]:
        """Positions of both sides in one module and phase, wherever they are: free ones, and all fused ones."""
        key = self.evidence.joint(("module", "phase"))
        fused = [t.where(lambda n: fused_text(n) is not None) for t in self.evidence.texts]
        rows = [np.flatnonzero((self.free(s) | fused[s]) & (self.evidence.module[s] > 0)) for s in (0, 1)]
        rows = [r[np.argsort(k[r], kind="stable")] for r, k in zip(rows, key, strict=True)]
        found = [k[r] for r, k in zip(rows, key, strict=True)]
        for value in np.intersect1d(found[0], found[1]).tolist():
            left, right = (
                r[np.searchsorted(f, value) : np.searchsorted(f, value, side="right")]
                for r, f in zip(rows, found, strict=True)
            )
            yield left, right


def match_composites(m: Matching) -> Pairs:
    """Pairs for operators captured as one that run as several (attention, experts, scans).

    To such an operator go the measured ones without a partner, of its module, between its neighbours' partners;
    neighbours that move data, as views are found inside it too.
    """
    e = m.evidence
    anchors = m.anchors[~e.view[0][m.anchors]]
    pairs: Pairs = []
    for i in np.flatnonzero(e.composite[0] & (e.module[0] > 0) & ~m.taken[0]).tolist():
        at = int(np.searchsorted(anchors, i))
        low = int(m.partner[anchors[at - 1]]) + 1 if at else 0
        high = int(m.partner[anchors[at]]) if at < len(anchors) else len(m.taken[1])
        inside = np.arange(low, max(high, low))
        inside = inside[~m.taken[1][inside] & (e.module[1][inside] == e.module[0][i])]
        inside = inside[e.agree("phase", np.full(len(inside), i), inside) & e.timed[1][inside]]
        if not e.structural[0][i]:
            inside = inside[~e.structural[1][inside]]  # a dropout is no product
        elif len(inside) and not e.structural[1][inside].any():
            continue  # nothing of what an attention or an expert is made of
        pairs += m.take([(i, j) for j in inside.tolist()])
    return pairs


def match_fused(m: Matching) -> Pairs:
    """What a prediction fused with the kernels or operators that its names overlap: between the same neighbours and
    in order, then in the same module. Its names list the first operators alone."""
    texts = [[fused_text(v) for v in t.values] for t in m.evidence.texts]
    if not any(fused_members(v) for side in m.evidence.texts for v in side.values):
        return []
    plain = [[f"_{canonical_name(v).removeprefix('aten::')}_" for v in t.values] for t in m.evidence.texts]
    pairs: Pairs = []
    for rows in [*m.gaps(), *m.modules()]:
        if not 0 < len(rows[0]) * len(rows[1]) <= MOST_CELLS:
            continue
        fused = [[texts[s][c] for c in m.evidence.texts[s].codes[r].tolist()] for s, r in enumerate(rows)]
        single = [[plain[s][c] for c in m.evidence.texts[s].codes[r].tolist()] for s, r in enumerate(rows)]
        phase = [m.evidence.phase[s][r] for s, r in enumerate(rows)]
        clash = (phase[0][:, None] != phase[1]) & (phase[0][:, None] > 0) & (phase[1] > 0)
        inside = np.array([[_overlap(p, q, x, y) for q, y in zip(fused[1], single[1], strict=True)]
                           for p, x in zip(fused[0], single[0], strict=True)])  # fmt: skip
        taken = m.taken[0][rows[0]], m.taken[1][rows[1]]
        inside[clash | (taken[0][:, None] & taken[1])] = 0.0
        wide = [np.array([text is not None for text in side]) for side in fused]
        found = _assign(np.where(wide[1][None, :], inside, 0.0))
        left = ~taken[1]
        left[[j for _, j in found]] = False
        found += [(i, j) for j, i in _assign(np.where(wide[0][None, :] & left[:, None], inside.T, 0.0))]
        pairs += m.take([(int(rows[0][i]), int(rows[1][j])) for i, j in found])
    return pairs + _unlisted(m)


def _unlisted(m: Matching) -> Pairs:
    """What is left in the module of a fused operator that has more members than its name lists, if it is alone."""
    pairs: Pairs = []
    for side in (0, 1):
        rest = m.evidence.texts[side].map(lambda n: str(fused_rest(n)))
        if rest.isin(["0"]).all():
            continue
        for rows in m.modules():
            more = [(r, int(rest[r])) for r in rows[side].tolist() if rest[r] != "0"]
            other = rows[1 - side][~m.taken[1 - side][rows[1 - side]]]
            if len(more) == 1 and len(other) <= more[0][1]:
                pairs += m.take([(more[0][0], j)[:: -1 if side else 1] for j in other.tolist()])
    return pairs


def _overlap(fused_a: str | None, fused_b: str | None, plain_a: str, plain_b: str) -> float:
    """How much of the smaller one's operators the other's name has."""
    if fused_a is None and fused_b is None:
        return 0.0
    if fused_a is None:
        return float(plain_a in str(fused_b))
    if fused_b is None:
        return float(plain_b in fused_a)
    parts = [_words(fused_a), _words(fused_b)]
    return len(parts[0] & parts[1]) / min(len(parts[0]), len(parts[1]))


def _words(text: str) -> frozenset[str]:
    return frozenset(word for word in text.split("_") if word)


def _assign(weight: Floats) -> Pairs:
    """To each row at most one column, never going back, such that the weights add up to the most."""
    rows, columns = weight.shape
    best = np.zeros(columns)
    choice = np.zeros(weight.shape, np.bool_)
    at = np.zeros(weight.shape, np.int64)
    for i in range(rows):
        use = np.where(weight[i] > 0, best + weight[i], -1.0)
        top = np.maximum.accumulate(use)
        where = np.maximum.accumulate(np.where(use >= top, np.arange(columns), 0))
        choice[i] = top > best
        at[i] = where
        best = np.maximum(best, top)
    pairs: Pairs = []
    j = columns - 1
    for i in reversed(range(rows)):
        if j >= 0 and choice[i, j]:
            j = int(at[i, j])
            pairs.append((i, j))
    return pairs[::-1]


def match_optimizer(m: Matching) -> Pairs:
    """An optimizer's step in other pieces: per parameter against per list of them, or all in one kernel."""
    e = m.evidence
    rows = [np.flatnonzero(m.free(s) & e.optimizer[s]) for s in (0, 1)]
    whole = [r[e.texts[s].take(r).where(lambda n: _FUSED_OPTIMIZER.match(n) is not None)] for s, r in enumerate(rows)]
    if all(len(r) for r in rows) and (len(whole[0]) == 0) != (len(whole[1]) == 0):
        one = [w if len(w) else r for w, r in zip(whole, rows, strict=True)]
        pairs = [(i, int(one[1][0])) for i in one[0].tolist()] + [(int(one[0][0]), j) for j in one[1][1:].tolist()]
        return m.take(pairs)
    return m.take(_lists(m, rows, 0) + [(i, j) for j, i in _lists(m, rows[::-1], 1)])


def _lists(m: Matching, rows: list[Ints], side: int) -> Pairs:
    """Pairs (operator over a list, one of its parameters' operators); the lists are on *side*."""
    names = [m.evidence.texts[s].take(r).map(_stem).tolist() for s, r in zip((side, 1 - side), rows, strict=True)]
    pairs: Pairs = []
    for name in dict.fromkeys(n for n in names[0] if n.startswith("_foreach_")):
        lists = [int(r) for r, n in zip(rows[0], names[0], strict=True) if n == name]
        stem = name.removeprefix("_foreach_")
        singles = [int(r) for r, n in zip(rows[1], names[1], strict=True) if n == stem]
        if singles and len(singles) % len(lists) == 0:  # each parameter runs the steps in the order of the lists
            pairs += [(lists[k % len(lists)], r) for k, r in enumerate(singles)]
    return pairs


def _stem(name: str) -> str:
    return canonical_name(name).removeprefix("aten::").rstrip("_")


def match_kinds(m: Matching) -> Pairs:
    """Kernels that no operator claims with operators of their kind, in order: first what shows structure.

    A kernel that only finishes the one before it goes with that. Nothing is matched between neighbours where the
    structure of the two sides differs.
    """
    e = m.evidence
    if not (e.kernel[0] & m.free(0)).any() and not (e.kernel[1] & m.free(1)).any():
        return []
    part = [t.where(is_part) & k for t, k in zip(e.texts, e.kernel, strict=True)]
    pairs: Pairs = []
    for rows in m.gaps():
        kept = [r[~p[r] & (e.kind[s][r] > 0)] for s, (r, p) in enumerate(zip(rows, part, strict=True))]
        if not (e.kernel[0][kept[0]].any() or e.kernel[1][kept[1]].any()):
            continue
        structural = [r[e.structural[s][r]] for s, r in enumerate(kept)]
        i, j = match_sequences(e.kind[0][structural[0]], e.kind[1][structural[1]])
        longer = max(map(len, structural))
        if len(i) < LEAST_ORDERED * longer:
            continue
        i, j = structural[0][i], structural[1][j]
        others = [r[~e.structural[s][r]] for s, r in enumerate(kept)]
        keys = [
            (np.searchsorted(a, f) << 32) + e.kind[s][f] for s, (a, f) in enumerate(zip((i, j), others, strict=True))
        ]
        dense = np.unique(np.concatenate(keys), return_inverse=True)[1]
        k, n = match_sequences(dense[: len(keys[0])], dense[len(keys[0]) :])
        i, j = np.concatenate([i, others[0][k]]), np.concatenate([j, others[1][n]])
        good = e.agree("phase", i, j) & e.agree("module", i, j) & (e.kernel[0][i] | e.kernel[1][j])
        pairs += m.take(list(zip(i[good].tolist(), j[good].tolist(), strict=True)))
    return pairs + _parts(m, part, pairs)


def _parts(m: Matching, part: list[Bools], pairs: Pairs) -> Pairs:
    found: Pairs = []
    before = [{p[s]: p for p in pairs} for s in (0, 1)]
    for side in (0, 1):
        for row in np.flatnonzero(part[side] & ~m.taken[side]).tolist():
            owner = row - 1
            while owner >= 0 and part[side][owner]:
                owner -= 1
            if owner in before[side]:
                other = before[side][owner][1 - side]
                found += m.take([(row, other) if side == 0 else (other, row)])
    return found


def match_regions(m: Matching, seconds: Floats) -> Pairs:
    """A compiled region's own time, where its kernels leave no events, with the operators that nothing else has.

    Only beside operators of the same phase that are matched for the most part.
    """
    e = m.evidence
    region = e.texts[1].where(lambda n: REGION.match(n) is not None) & (seconds > 0) & ~m.taken[1]
    pairs: Pairs = []
    for phase in np.unique(e.phase[1][region]).tolist():
        here = (e.phase[1] == phase) & (seconds > 0)
        rows = np.flatnonzero(region & here)
        beside = here & ~region & ~e.view[1]
        if seconds[beside & m.taken[1]].sum() < LEAST_INREGION * seconds[beside].sum() or not beside.any():
            continue
        left = np.flatnonzero(m.free(0) & ((e.phase[0] == phase) | (e.phase[0] == 0) | (phase == 0)))
        if len(left):
            found = [(i, int(rows[0])) for i in left.tolist()] + [(int(left[0]), j) for j in rows[1:].tolist()]
            pairs += m.take(found)
    return pairs
