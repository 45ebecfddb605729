"""PyTorch's record function ids, kept beside external ids: an execution trace knows operators by the first only."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
MAX_RUNS = 1 << 16
MAX_ID = 1 << 62


def pack_ids(external_id: Ids, record_function: Ids) -> list[list[int]]:
    """Runs [first external id, last external id, what to add]; empty where the two ids are equal throughout.

    PyTorch counts both up, each thread of a run in blocks, so runs are few. -1 means unknown. Beyond `MAX_RUNS`
    the rest is left out.
    """
    known = (external_id >= 0) & (record_function >= 0)
    external, first = np.unique(external_id[known], return_index=True)
    difference = record_function[known][first] - external
    if not difference.any():
        return []
    starts = np.flatnonzero(np.diff(difference, prepend=difference[:1] - 1))
    ends = np.append(starts[1:], len(external)) - 1
    runs = np.stack([external[starts], external[ends], difference[starts]], axis=1)
    return runs[:MAX_RUNS].tolist()  # type: ignore[no-any-return]


def unpack_ids(external_id: Ids, runs: Any) -> Ids:
    """The record function id of each *external_id*, -1 where the *runs* of `pack_ids` have none.

    Without runs the external id is the record function id, as in files of old versions.
    """
    if not runs:
        return external_id
    table = read_runs(runs)
    at = np.searchsorted(table[:, 0], external_id, side="right") - 1
    inside = (at >= 0) & (external_id <= table[at, 1]) if len(table) else np.zeros(len(external_id), np.bool_)
    return np.where(inside, external_id + table[at, 2], -1) if inside.any() else np.full(len(external_id), -1)


def read_runs(runs: Any) -> Ids:
    """What a file has for the *runs* of `pack_ids`, three columns; no row where it is nothing of the kind."""
    nothing = np.zeros((0, 3), np.int64)
    try:
        table = np.array(runs, np.int64)
    except (TypeError, ValueError, OverflowError):
        return nothing
    return table if table.ndim == 2 and table.shape[1] == 3 and (np.abs(table) < MAX_ID).all() else nothing
