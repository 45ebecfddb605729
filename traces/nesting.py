"""Which event belongs to which: parents from times, values handed down from ancestors, rows found by their keys."""

import sys
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foretrace.ir import compiled

COMPILE_FROM = 500_000  # below this many events plain Python is sooner done than importing numba
COMPILED_FROM = 20_000  # the same where numba is at hand already


def compute_parents(
    start_s: NDArray[np.float64],
    duration_s: NDArray[np.float64],
    group: NDArray[np.int64],
    tolerance_s: float = 1e-9,
) -> NDArray[np.int64]:
    """Index of the smallest event of the same *group* that encloses each event, -1 where none does.

    An event may end up to *tolerance_s* after the one that encloses it (profilers round). Of two events
    with the same times the earlier row encloses the later; one that starts where another ends is outside;
    partly overlapping events enclose nothing of each other.
    """
    end = start_s + duration_s
    order = nesting_order(group, start_s, end)
    return stack_pass(order, group, start_s, end, tolerance_s)[0]


def nesting_order(group: NDArray[Any], start: NDArray[Any], end: NDArray[Any]) -> NDArray[np.int64]:
    """Rows sorted so that in each group an enclosing event comes before what it encloses."""
    return np.lexsort((np.arange(len(group)), -end, start, group))


def stack_pass(
    order: NDArray[np.int64],
    group: NDArray[Any],
    start: NDArray[Any],
    end: NDArray[Any],
    tolerance: float = 0.0,
    set_aside: bool = False,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Parents of the rows in *order*, and a mask of those that partly overlap an earlier event.

    With *set_aside* such a row is left out, as if it were not there; else it closes the earlier event.
    """
    exact = np.issubdtype(start.dtype, np.integer) or not len(end)
    noise = 0.0 if exact else 4 * float(np.spacing(np.abs(end).max()))
    rest = (max(tolerance, noise), noise, set_aside)
    if len(order) >= (COMPILED_FROM if "numba" in sys.modules else COMPILE_FROM):
        parent, clash = _fast_stack_pass()(order, group, start, end, *rest)
    else:
        parent, clash = _stack_pass(order.tolist(), group.tolist(), start.tolist(), end.tolist(), *rest)  # type: ignore[no-untyped-call]
    return parent, clash


@cache
def _fast_stack_pass():  # type: ignore[no-untyped-def]
    return compiled(_stack_pass)


def _stack_pass(order, group, start, end, tolerance, noise, set_aside):  # type: ignore[no-untyped-def]
    parent = np.full(len(group), -1, np.int64)
    clash = np.zeros(len(group), np.bool_)
    stack = [0] * len(order)
    depth = 0
    for row in order:
        if depth and group[stack[0]] != group[row]:
            depth = 0
        while depth and end[stack[depth - 1]] - noise <= start[row]:
            depth -= 1
        while depth and end[stack[depth - 1]] + tolerance < end[row]:
            clash[row] = True
            if set_aside:
                break
            depth -= 1
        if clash[row] and set_aside:
            continue
        if depth:
            parent[row] = stack[depth - 1]
        stack[depth] = row
        depth += 1
    return parent, clash


def resolve(parent: NDArray[np.int64], known: NDArray[np.bool_], strict: bool = False) -> NDArray[np.int64]:
    """For each row the nearest row, itself included unless *strict*, that is *known*; -1 where none is.

    Pointer doubling: log2(depth) passes, and a cycle of parents (a corrupt file) ends too.
    """
    n = len(parent)
    if not known.any():
        return np.full(n, -1)
    answer = np.where(known, np.arange(n), -1)
    jump = parent.copy()
    for _ in range(max(n, 1).bit_length() + 1):
        rows = np.flatnonzero((answer < 0) & (jump >= 0))
        if not len(rows):
            break
        above = jump[rows]
        answer[rows], jump[rows] = answer[above], jump[above]
    if strict:
        return np.where(parent >= 0, answer[parent], -1) if n else answer
    return answer


def lookup(keys: NDArray[np.int64], rows: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first of *rows* with each *wanted* key, -1 where none has it."""
    if not len(rows):
        return np.full(len(wanted), -1, np.int64)
    order = rows[np.argsort(keys[rows], kind="stable")]
    place = np.minimum(np.searchsorted(keys[order], wanted), len(order) - 1)
    return np.where(keys[order[place]] == wanted, order[place], -1)
