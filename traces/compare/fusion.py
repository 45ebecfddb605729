"""Fused kernels and the operators in their names: runs of operators between neighbours, by dynamic programming."""

import numpy as np
from numpy.typing import NDArray

from .evidence import Evidence
from .kernels import fused_members, fused_text
from .many import Matching, Pairs
from .operators import canonical_name
from .passes import match_in_order

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

LONGEST_RUN = 64  # operators in one kernel (inductor's max_fusion_size)
MOST_CELLS = 1 << 16  # of operators by kernels between two neighbours that are weighed run by run
UNNAMED = 0.5  # what a name in a kernel costs that no operator of the run has
SAME = 0.25  # what module and shapes are worth beside a name


def match_runs(evidence: Evidence, partner: Ints) -> Pairs:
    """Pairs of operators with fused kernels on the other side; sets *partner* of the operators between them.

    First what is never fused (products, attention...) is matched; between these neighbours each kernel takes a run of
    operators that are all in its name, and the others are matched one to one, such that most are. What another best
    solution has elsewhere stays unmatched.
    """
    wide = [t.where(lambda n: fused_text(n) is not None) for t in evidence.texts]
    listed = any(fused_members(v) for t in evidence.texts for v in t.values)  # the first of a prediction's alone
    if listed or wide[0].any() == wide[1].any():
        return []
    structural = [s & ~c for s, c in zip(evidence.structural, evidence.composite, strict=True)]
    match_in_order(evidence, partner, (structural[0], structural[1]), views=False)
    m = Matching(evidence, partner)
    side = int(wide[1].any())  # where the fused kernels are
    pairs: Pairs = []
    for rows in m.gaps():
        single, fused = rows[1 - side], rows[side]
        if not wide[side][fused].any() or len(single) * len(fused) > MOST_CELLS:
            continue
        names = _words(evidence, 1 - side, single)
        texts = [fused_text(n) for n in evidence.texts[side].take(fused).tolist()]
        worth = _worth(evidence, side, single, fused)
        found = set(_best_runs(names, texts, worth))
        back = _best_runs(names[::-1], texts[::-1], worth[::-1, ::-1])
        found &= {(len(single) - 1 - i, len(fused) - 1 - j) for i, j in back}
        for i, j in sorted(found):
            ends = (int(single[i]), int(fused[j]))[:: 1 if side else -1]
            if texts[j] is None:
                partner[ends[0]] = ends[1]
            else:
                pairs.append((ends[0], ends[1]))
        pairs += _named(evidence, side, rows, names, texts, found)
    return pairs


def _named(
    evidence: Evidence,
    side: int,
    rows: tuple[Ints, Ints],
    names: list[str],
    texts: list[str | None],
    found: set[tuple[int, int]],
) -> Pairs:
    """Operators in a kernel's name that its run lacks, where one is left and one kernel lacks it: compilers reorder."""
    taken = {i for i, _ in found}
    left = [i for i in range(len(names)) if i not in taken]
    pairs: Pairs = []
    for name in {names[i] for i in left}:
        ops = [i for i in left if names[i] == name]
        lacking = [
            j
            for j, text in enumerate(texts)
            if text is not None and name in text and not any(names[i] == name for i, k in found if k == j)
        ]
        if len(ops) == len(lacking) == 1 and any(j == lacking[0] for _, j in found):
            ends = (int(rows[1 - side][ops[0]]), int(rows[side][lacking[0]]))[:: 1 if side else -1]
            pairs.append((ends[0], ends[1]))
    return pairs


def _words(evidence: Evidence, side: int, rows: Ints) -> list[str]:
    names = evidence.texts[side].take(rows).map(canonical_name)
    return [f"_{n.removeprefix('aten::')}_" for n in names.tolist()]


def _worth(e: Evidence, side: int, single: Ints, fused: Ints) -> Floats:
    """What a pair is worth if both are plain operators, and 1 where a kernel may hold the operator; 0 by phase."""
    i, j = np.meshgrid(single, fused, indexing="ij")
    a, b = (i, j) if side else (j, i)
    allowed = e.agree("phase", a, b) & e.agree("module", a, b)
    worth = 1.0 + sum(SAME * ((x[a] == y[b]) & (x[a] > 0)) for x, y in (e.module, e.shapes))
    found: Floats = np.where(allowed, worth, 0.0)
    same = (e.name[0][a] == e.name[1][b]) & e.agree("shapes", a, b)
    kernel = e.texts[side].take(fused).where(lambda n: fused_text(n) is not None)
    return np.where(kernel[None, :], allowed.astype(np.float64), np.where(same, found, 0.0))


def _best_runs(names: list[str], texts: list[str | None], worth: Floats) -> Pairs:
    """Pairs (operator, kernel or operator) of the most worth, neither crossing; a kernel's operators in one run."""
    rows, columns = worth.shape
    known = set(names)
    best = np.zeros((rows + 1, columns + 1))
    step = np.zeros((rows + 1, columns + 1), np.int64)  # operators that this column takes, -1: skip the operator
    for j in range(columns):
        text = texts[j]
        wanted = frozenset(n for n in known if text is not None and n in text)
        for i in range(rows + 1):
            value, taken = best[i, j], 0
            if i and best[i - 1, j + 1] > value:
                value, taken = best[i - 1, j + 1], -1
            if text is None:
                if i and worth[i - 1, j] and best[i - 1, j] + worth[i - 1, j] > value:
                    value, taken = best[i - 1, j] + worth[i - 1, j], 1
            else:
                seen: set[str] = set()
                for k in range(1, min(i, LONGEST_RUN) + 1):
                    if names[i - k] not in wanted or not worth[i - k, j]:
                        break
                    seen.add(names[i - k])
                    here = best[i - k, j] + k - UNNAMED * (len(wanted) - len(seen))
                    if here > value:
                        value, taken = here, k
            best[i, j + 1], step[i, j + 1] = value, taken
    pairs: Pairs = []
    i, j = rows, columns
    while i and j:
        taken = int(step[i, j])
        if taken < 0:
            i -= 1
            continue
        pairs += [(r, j - 1) for r in range(i - taken, i)]
        i, j = i - taken, j - 1
    return pairs
