"""Longest common subsequences of long integer sequences: near-linear where they agree, exact where they do not.

First anchors: keys that occur once on each side, the longest increasing run of them (Cohen's patience diff),
again between the anchors until none is left. Then each gap exactly, by bit-parallel dynamic programming (Hyyrö
2004, a bit per column in one Python integer) with Hirschberg's split to keep memory small.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
TRACEBACK_CELLS = 1 << 24  # a gap up to this many bits keeps every row: 2 MiB
EXACT_CELLS = 1 << 34  # a larger gap is first cut in the middle of both sides


def match_sequences(a: Ints, b: Ints) -> tuple[Ints, Ints]:
    """Positions in *a* and in *b* of a common subsequence, both increasing; keys lie in [0, 2**31)."""
    if np.array_equal(a, b):
        return np.arange(len(a)), np.arange(len(b))
    pairs = np.zeros((2, 0), np.int64)
    while True:
        rows_a, keys_a = _between(a, pairs[0])
        rows_b, keys_b = _between(b, pairs[1])
        kept_a, kept_b = np.isin(keys_a, keys_b), np.isin(keys_b, keys_a)
        rows_a, keys_a, rows_b, keys_b = rows_a[kept_a], keys_a[kept_a], rows_b[kept_b], keys_b[kept_b]
        found = _unique_anchors(keys_a, keys_b)
        if not found.shape[1]:
            break
        pairs = _merged(pairs, np.stack([rows_a[found[0]], rows_b[found[1]]]))
    exact: list[tuple[int, int]] = []
    rest_a, rest_b = keys_a.tolist(), keys_b.tolist()
    a0 = b0 = 0
    ends_a, ends_b = np.searchsorted(rows_a, pairs[0]), np.searchsorted(rows_b, pairs[1])
    for a1, b1 in zip([*ends_a.tolist(), len(rows_a)], [*ends_b.tolist(), len(rows_b)], strict=True):
        if a0 < a1 and b0 < b1:
            exact += [(a0 + i, b0 + j) for i, j in exact_pairs(rest_a[a0:a1], rest_b[b0:b1])]
        a0, b0 = a1, b1
    more = np.array(exact, np.int64).reshape(-1, 2).T
    result = _merged(pairs, np.stack([rows_a[more[0]], rows_b[more[1]]]))
    return result[0], result[1]


def gap_of(length: int, anchors: Ints) -> Ints:
    """For each position below *length* how many *anchors* (increasing) lie before it."""
    return np.searchsorted(anchors, np.arange(length), side="left")


def _between(keys: Ints, anchors: Ints) -> tuple[Ints, Ints]:
    """Positions that are no anchors, and their keys made distinct per gap between anchors."""
    free = np.ones(len(keys), np.bool_)
    free[anchors] = False
    rows = np.flatnonzero(free)
    return rows, (gap_of(len(keys), anchors)[rows] << 31) + keys[rows]


def _merged(pairs: Ints, more: Ints) -> Ints:
    both = np.concatenate([pairs, more], axis=1)
    return both[:, np.argsort(both[0], kind="stable")]


def _unique_anchors(a: Ints, b: Ints) -> Ints:
    """Positions of keys that occur once in each, thinned to the longest run increasing in both."""
    (keys_a, at_a), (keys_b, at_b) = (_singles(a), _singles(b))
    common, ia, ib = np.intersect1d(keys_a, keys_b, assume_unique=True, return_indices=True)
    if not len(common):
        return np.zeros((2, 0), np.int64)
    pairs = np.stack([at_a[ia], at_b[ib]])
    pairs = pairs[:, np.argsort(pairs[0])]
    return pairs[:, _longest_increasing(pairs[1].tolist())]


def _singles(keys: Ints) -> tuple[Ints, Ints]:
    values, at, counts = np.unique(keys, return_index=True, return_counts=True)
    return values[counts == 1], at[counts == 1]


def _longest_increasing(values: list[int]) -> list[int]:
    """Indices of a longest strictly increasing subsequence."""
    tops: list[int] = []
    rows: list[int] = []
    before = [0] * len(values)
    for i, value in enumerate(values):
        pile = bisect_left(tops, value)
        before[i] = rows[pile - 1] if pile else -1
        tops[pile : pile + 1] = [value]
        rows[pile : pile + 1] = [i]
    chain: list[int] = []
    i = rows[-1] if rows else -1
    while i >= 0:
        chain.append(i)
        i = before[i]
    return chain[::-1]


def exact_pairs(a: list[int], b: list[int]) -> list[tuple[int, int]]:
    """A longest common subsequence of *a* and *b* as pairs of positions, in no particular order."""
    pairs: list[tuple[int, int]] = []
    work = [(0, len(a), 0, len(b))]
    while work:
        a0, a1, b0, b1 = work.pop()
        while a0 < a1 and b0 < b1 and a[a0] == b[b0]:
            pairs.append((a0, b0))
            a0, b0 = a0 + 1, b0 + 1
        while a0 < a1 and b0 < b1 and a[a1 - 1] == b[b1 - 1]:
            a1, b1 = a1 - 1, b1 - 1
            pairs.append((a1, b1))
        cells = (a1 - a0) * (b1 - b0)
        if not cells:
            continue
        if cells <= TRACEBACK_CELLS or a1 - a0 == 1:
            pairs += [(a0 + i, b0 + j) for i, j in _trace_back(a[a0:a1], b[b0:b1])]
            continue
        middle = (a0 + a1) // 2
        if cells > EXACT_CELLS:
            split = (b0 + b1) // 2
        else:
            left = _lengths(a[a0:middle], b[b0:b1])
            right = _lengths(a[middle:a1][::-1], b[b0:b1][::-1])
            split = b0 + int(np.argmax(left + right[::-1]))
        work += [(a0, middle, b0, split), (middle, a1, split, b1)]
    return pairs


def _bit_rows(a: list[int], b: list[int]) -> Iterator[int]:
    """After each key of *a*: bit j is 0 where the common subsequence with ``b[:j + 1]`` is one longer than without."""
    masks: dict[int, int] = {}
    for j, key in enumerate(b):
        masks[key] = masks.get(key, 0) | 1 << j
    full = (1 << len(b)) - 1
    row = full
    for key in a:
        hit = row & masks.get(key, 0)
        row = ((row + hit) | (row - hit)) & full
        yield row


def _lengths(a: list[int], b: list[int]) -> Ints:
    """Length of the longest common subsequence of *a* with each prefix of *b*, len(b) + 1 of them."""
    row = deque(_bit_rows(a, b), maxlen=1)[0]
    bits = np.unpackbits(np.frombuffer(row.to_bytes(len(b) // 8 + 1, "little"), np.uint8), bitorder="little")
    return np.concatenate([[0], np.cumsum(1 - bits[: len(b)].astype(np.int64))])


def _trace_back(a: list[int], b: list[int]) -> Iterator[tuple[int, int]]:
    rows = [-1, *_bit_rows(a, b)]
    i, j = len(a), len(b)
    while i and j:
        if rows[i] >> (j - 1) & 1:
            j -= 1
        else:
            i -= 1
            if rows[i] >> (j - 1) & 1:
                j -= 1
                yield i, j
