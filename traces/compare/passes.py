"""Operator by operator: common subsequences on ever weaker evidence, then what moved."""

import numpy as np
from numpy.typing import NDArray

from foretrace.traces.lcs import gap_of, match_sequences

from .evidence import Evidence

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

PASSES = (
    ("name", "module", "shapes"),
    ("name", "module"),
    ("name", "shapes"),
    ("kind", "module"),
    ("name",),
    ("name", "dims"),
)
"""What each pass compares, strongest first; the phase always. A row needs to know one column besides its name.

Kinds are compared where a module has equally many of one left; numbers of dimensions where sizes depend on the data
and equally many of a name are left between two neighbours."""

LEAST_STRONG = 0.3  # share of the operators that can be told apart that must be before weaker evidence counts


def match_in_order(evidence: Evidence, partner: Ints, free: tuple[Bools, Bools], views: bool = True) -> None:
    """Give predicted operators their measured *partner*, increasing; the strongest evidence goes first.

    Only *free* ones on both sides. Operators that move no data come after the others. What disagrees in a phase, or
    a module, that both sides know is never matched; nor in shapes, unless the module agrees and neither is found
    with its shapes on the other side. Where another operator would do as well, only one of the same module and
    shapes is taken.
    """
    phased = all((p > 0).any() for p in evidence.phase)
    whole = phased and all((p > 0).all() for p in evidence.phase)
    for is_view in (False, True) if views else (False,):
        for columns in PASSES:
            if is_view and "kind" in columns:
                continue
            for phase in (True,) if whole else (True, False) if phased else (False,):
                kept = tuple(f & (v == is_view) for f, v in zip(free, evidence.view, strict=True))
                _one_pass(evidence, partner, (kept[0], kept[1]), columns, phase)


def _one_pass(
    evidence: Evidence, partner: Ints, kept: tuple[Bools, Bools], columns: tuple[str, ...], phase: bool
) -> None:
    known = [evidence.column(c) for c in columns if c != "name"]
    joint = evidence.joint((*columns, "phase") if phase else columns)
    matched_a = np.flatnonzero(partner >= 0)
    anchors = matched_a, partner[matched_a]
    gaps = [gap_of(len(evidence.name[side]), anchors[side]) for side in (0, 1)]
    rows, codes = [], []
    for side in (0, 1):
        free = kept[side].copy()
        free[anchors[side]] = False
        if "kind" in columns:
            free &= np.logical_and.reduce([k[side] > 0 for k in known]) & evidence.structural[side]
            free &= evidence.timed[side]
            free &= ~evidence.composite[side]
        elif "dims" in columns:
            free &= ~_elsewhere(evidence, side, ("name", "shapes"))
        elif known:
            free &= np.logical_or.reduce([k[side] > 0 for k in known])
        picked = np.flatnonzero(free)
        rows.append(picked)
        codes.append((gaps[side][picked] << 32) + joint[side][picked])
    dense = np.unique(np.concatenate(codes), return_inverse=True)[1]
    keys = dense[: len(rows[0])], dense[len(rows[0]) :]
    if "kind" in columns or "dims" in columns:
        equal = equally_often(keys)
        rows = [r[equal[k]] for r, k in zip(rows, keys, strict=True)]
        keys = keys[0][equal[keys[0]]], keys[1][equal[keys[1]]]
    i, j = match_sequences(keys[0], keys[1])
    sure = _sure(keys, i, j)
    i, j = rows[0][i], rows[1][j]
    good = evidence.agree("module", i, j) & evidence.agree("phase", i, j)
    good &= sure | (_equal(evidence, "module", i, j) & _equal(evidence, "shapes", i, j))
    if "module" in columns and "shapes" not in columns:
        elsewhere = [_elsewhere(evidence, side, ("name", "module", "shapes")) for side in (0, 1)]
        good &= evidence.agree("shapes", i, j) | ~(elsewhere[0][i] | elsewhere[1][j])
    if "module" not in columns and "dims" not in columns:
        good &= evidence.agree("shapes", i, j)
    if not known:
        good &= evidence.optimizer[0][i] | _mostly_agree(rows, (gaps[0], gaps[1]), i, good)
    partner[i[good]] = j[good]


def _sure(keys: tuple[Ints, Ints], i: Ints, j: Ints) -> Bools:
    """Pairs that are the same read from either end, or of keys that occur once: no other alignment has them apart."""
    if len(i) == len(keys[0]) == len(keys[1]):
        return np.ones(len(i), np.bool_)
    back = match_sequences(keys[0][::-1], keys[1][::-1])
    other = np.full(len(keys[0]), -1, np.int64)
    other[len(keys[0]) - 1 - back[0]] = len(keys[1]) - 1 - back[1]
    size = int(max(keys[0].max(initial=0), keys[1].max(initial=0))) + 1
    once = np.logical_and.reduce([np.bincount(k, minlength=size) == 1 for k in keys])
    sure: Bools = (other[i] == j) | once[keys[0][i]]
    return sure


def _equal(evidence: Evidence, column: str, i: Ints, j: Ints) -> Bools:
    x, y = evidence.column(column)
    equal: Bools = (x[i] == y[j]) & (x[i] > 0)
    return equal


def _elsewhere(evidence: Evidence, side: int, columns: tuple[str, ...]) -> Bools:
    """Operators whose very *columns*, shapes included, occur on the other side: no matter of sizes that vary."""
    joint = evidence.joint(columns)
    return np.isin(joint[side], joint[1 - side]) & (evidence.shapes[side] > 0)


def equally_often(keys: tuple[Ints, Ints]) -> Bools:
    """Per key whether it occurs equally often on both sides."""
    size = int(max(keys[0].max(initial=0), keys[1].max(initial=0))) + 1
    counts = [np.bincount(k, minlength=size) for k in keys]
    equal: Bools = counts[0] == counts[1]
    return equal


def _mostly_agree(rows: list[Ints], gaps: tuple[Ints, Ints], i: Ints, good: Bools) -> Bools:
    """Names alone count only in gaps where they pair at least half of the longer side."""
    size = int(max(gaps[0].max(initial=0), gaps[1].max(initial=0))) + 1
    paired = np.bincount(gaps[0][i[good]], minlength=size)
    longer = np.maximum(*(np.bincount(g[r], minlength=size) for g, r in zip(gaps, rows, strict=True)))
    return (2 * paired >= longer)[gaps[0][i]]


def match_moved(evidence: Evidence, partner: Ints) -> Ints:
    """Match leftovers found elsewhere in the sequence; returns their predicted positions.

    A full key (name, shapes, phase and a known module) must occur equally often on both sides; without a module
    once, with shapes.
    """
    joint = evidence.joint(("name", "module", "shapes", "phase"))
    taken = np.zeros(len(joint[1]), np.bool_)
    taken[partner[partner >= 0]] = True
    moved = []
    for column in ("module", "shapes"):
        known = evidence.column(column)
        free_a = np.flatnonzero((partner < 0) & (known[0] > 0))
        free_b = np.flatnonzero(~taken & (known[1] > 0))
        keys = joint[0][free_a], joint[1][free_b]
        equal = equally_often(keys)
        if column == "shapes":
            size = len(equal)
            equal &= np.bincount(joint[0], minlength=size)[:size] == 1
            equal &= np.bincount(joint[1], minlength=size)[:size] == 1
        free_a, free_b = free_a[equal[keys[0]]], free_b[equal[keys[1]]]
        rows = free_a[np.argsort(joint[0][free_a], kind="stable")]
        partner[rows] = free_b[np.argsort(joint[1][free_b], kind="stable")]
        taken[partner[rows]] = True
        moved.append(rows)
    return np.concatenate(moved)


def match_collectives(evidence: Evidence, partner: Ints) -> None:
    """Match collectives one by one where both sides issue equally many of a name in a phase, whatever their sizes.

    All ranks of a group issue them in one order.
    """
    joint = evidence.joint(("name", "phase"))
    rows = [np.flatnonzero(c & t) for c, t in zip(evidence.collective, evidence.timed, strict=True)]
    rows = [r[np.argsort(k[r], kind="stable")] for r, k in zip(rows, joint, strict=True)]
    equal = equally_often((joint[0][rows[0]], joint[1][rows[1]]))
    i, j = (r[equal[k[r]]] for r, k in zip(rows, joint, strict=True))
    free = (partner[i] < 0) & ~np.isin(j, partner[partner >= 0]) & evidence.agree("module", i, j)
    partner[i[free]] = j[free]


def drop_weak(evidence: Evidence, partner: Ints) -> bool:
    """Unmatch what only a name speaks for, or whose shapes differ, where hardly any of what is known agrees.

    Such a trace is of another model: whether it is one.
    """
    known = [
        ((evidence.module[s] > 0) | (evidence.shapes[s] > 0)) & evidence.timed[s] & ~evidence.view[s] for s in (0, 1)
    ]
    i = np.flatnonzero(partner >= 0)
    j = partner[i]
    strong = (evidence.module[0][i] == evidence.module[1][j]) & (evidence.module[0][i] > 0)
    strong |= (evidence.shapes[0][i] == evidence.shapes[1][j]) & (evidence.shapes[0][i] > 0)
    strong &= evidence.name[0][i] == evidence.name[1][j]
    told = min(int(known[0].sum()), int(known[1].sum()))  # of the two: what is fused is fewer
    other = int((known[0][i] & known[1][j])[strong].sum()) < LEAST_STRONG * told
    if other:
        partner[i[~strong | ~evidence.agree("shapes", i, j)]] = -1
    return other
