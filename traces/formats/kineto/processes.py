"""Several processes in one file: the ids that each counts for itself, kept apart."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .events import Event

Rows = NDArray[np.int64]
_FLOW = ("ac2g", "async")  # categories of the arrows from launches to kernels begin so


class Flows:
    """The arrows from launches to what they started; `process` says from which process one comes."""

    def __init__(self, blocks: Iterable[list[Event]]) -> None:
        self._pids: dict[Any, set[Any]] = {}
        self._ids: dict[tuple[Any, Any, float], Any] = {}
        for block in blocks:
            for event in block:
                if event.ph in ("s", "f") and event.cat.startswith(_FLOW):
                    if event.ph == "s":
                        self._pids.setdefault(event.id, set()).add(event.pid)
                    else:
                        self._ids[event.pid, event.tid, event.ts] = event.id

    def process(self, pid: Any, tid: Any, ts: float) -> Any:
        """The process whose arrow alone ends at *ts* on the device thread (*pid*, *tid*), None where it is unclear."""
        pids = self._pids.get(self._ids.get((pid, tid, ts)), ())
        return next(iter(pids)) if len(pids) == 1 else None


def shared(correlation: Rows, process: Rows, launch: NDArray[np.bool_]) -> bool:
    """Whether launches of several processes have one correlation."""
    known = launch & (correlation >= 0)
    pairs = np.unique(np.stack([correlation[known], process[known]]), axis=1)
    return bool(len(np.unique(pairs[0])) < pairs.shape[1])


def sole_process(correlation: Rows, process: Rows, launch: NDArray[np.bool_]) -> Rows:
    """Per row the one process whose launches have its correlation, -1 where none has or several have."""
    known = np.flatnonzero(launch & (correlation >= 0))
    pairs = np.unique(np.stack([correlation[known], process[known]]), axis=1)
    ids, first, count = np.unique(pairs[0], return_index=True, return_counts=True)
    at = np.minimum(np.searchsorted(ids, correlation), len(ids) - 1)
    return np.where((ids[at] == correlation) & (count[at] == 1), pairs[1][first[at]], -1)


def apart(ids: dict[str, Rows], process: Rows) -> dict[str, Rows]:
    """*ids* counted anew so that those of two processes differ, equal ones of one process alike; -1 where the id or
    the process is unknown."""
    distinct = np.unique(np.concatenate(list(ids.values())))
    return {
        key: np.where((v >= 0) & (process >= 0), process * len(distinct) + np.searchsorted(distinct, v), -1)
        for key, v in ids.items()
    }
