"""The loop of `in_order` in numba."""

import numpy as np
from numpy.typing import NDArray

from foretrace.ir import compiled

_I32 = NDArray[np.int32]
_I64 = NDArray[np.int64]


@compiled
def starts_of(
    duration: _I64, not_before: _I64, behind: _I64, waits: _I64, successor_offsets: _I64, successors: _I32
) -> _I64:
    """[n] the starts; *waits* [n] counts what each node waits for, *behind* [n] is the next in its queue."""
    n = duration.size
    start, ready, waiting = np.full(n, -1, np.int64), not_before.copy(), waits.copy()
    free, waits_for_none = np.empty(n, np.int64), 0
    for node in range(n):
        if waiting[node] == 0:
            free[waits_for_none] = node
            waits_for_none += 1
    while waits_for_none > 0:
        waits_for_none -= 1
        node = free[waits_for_none]
        start[node] = ready[node]
        end = ready[node] + duration[node]
        first, last = successor_offsets[node], successor_offsets[node + 1]
        for edge in range(first, last + 1):
            other = behind[node] if edge == last else np.int64(successors[edge])
            if other < 0:
                continue
            if ready[other] < end:
                ready[other] = end
            waiting[other] -= 1
            if waiting[other] == 0:
                free[waits_for_none] = other
                waits_for_none += 1
    return start
