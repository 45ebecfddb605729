"""Memory over time: what is alive on one device at each moment of a replayed step, by storage.

A storage (a tensor and its views) lives from the start of the op that makes it to the end of the last one that
touches it. What is there before the step stays, and so do outputs, gradients of parameters, and the KV cache;
a KV cache that an op reads to write a longer one is let go after its last reader. Where a release and an allocation
fall on one instant, the op earlier in the program goes first: an allocator hands the memory of a finished op on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from foretrace.ir import FREE_KINDS, RESIDENT_ROLES, Graph, Role

from .columns import Ints, Mask
from .table import OpTable

CATEGORIES: Final = (
    "parameters",
    "gradients",
    "optimizer",
    "activations",
    "kv_cache",
    "communication",
    "workspace",
)
_CATEGORY_OF: Final = {
    Role.PARAMETER: "parameters",
    Role.BUFFER: "parameters",
    Role.GRADIENT: "gradients",
    Role.OPTIMIZER_STATE: "optimizer",
    Role.KV_CACHE: "kv_cache",
    Role.ACTIVATION: "activations",
    Role.INPUT: "activations",
    Role.OUTPUT: "activations",
}
_CATEGORY: Final = {role: CATEGORIES.index(name) for role, name in _CATEGORY_OF.items()}
_STAYING: Final = RESIDENT_ROLES | {Role.OUTPUT, Role.GRADIENT}


class Allocation(NamedTuple):
    """One storage alive at the peak."""

    name: str
    bytes: int
    category: str


@dataclass(frozen=True, eq=False)
class Footprint:
    """The memory of one device over a step."""

    ticks: Ints
    """[events] when the memory in use changes; the first entry is the state before the step, at 0."""
    bytes: Ints
    """[events] bytes in use from then on."""
    peak_bytes: int
    peak_tick: int
    peak_op: int | None
    """The op whose allocation makes the peak; None where nothing tops the state before the step."""
    by_category_bytes: Mapping[str, int]
    """Bytes at the peak, for each of `CATEGORIES`; they sum to `peak_bytes`."""
    largest: tuple[Allocation, ...]
    """The largest storages alive at the peak, largest first, then by name."""


def measure_footprint(table: OpTable, start: Ints, end: Ints, largest: int = 10) -> Footprint:
    """The memory of *table*'s graph when its ops run from *start* to *end* [n] (ticks)."""
    storages = _storages(table.graph)
    size = table.tensor_bytes[storages.owner].astype(np.int64)
    made, last = storages.made, storages.last
    resident, stays = made < 0, last < 0
    before = int(size[resident].sum())
    allocated, freed = np.flatnonzero(~resident), np.flatnonzero(~stays)
    time = np.concatenate([start[made[allocated]], end[last[freed]]])
    order_key = np.concatenate([2 * made[allocated], 2 * last[freed] + 1])
    change = np.concatenate([size[allocated], -size[freed]])
    order = np.lexsort((order_key, time))
    in_use = before + np.concatenate([[0], np.cumsum(change[order])])
    peak = int(in_use.argmax())
    place = np.empty(order.size, np.int64)
    place[order] = np.arange(1, order.size + 1)
    born, dies = np.zeros(size.size, np.int64), np.full(size.size, order.size + 1)
    born[allocated], dies[freed] = place[: allocated.size], place[allocated.size :]
    alive = (born <= peak) & (peak < dies)
    sums = np.zeros(len(CATEGORIES), np.int64)
    np.add.at(sums, storages.category[alive], size[alive])
    return Footprint(
        np.concatenate([[0], time[order]]).astype(np.int64),
        in_use,
        int(in_use[peak]),
        int(time[order[peak - 1]]) if peak else 0,
        int(order_key[order[peak - 1]]) // 2 if peak else None,
        dict(zip(CATEGORIES, sums.tolist(), strict=True)),
        _largest(table.graph, storages, size, alive, largest),
    )


class _Storages(NamedTuple):
    owner: Ints
    """The tensor that owns each storage."""
    made: Ints
    """The op that makes it; -1: it is there before the step."""
    last: Ints
    """The last op that touches it; -1: it stays."""
    category: Ints


def _storages(graph: Graph) -> _Storages:
    """Every storage that is on the device at some time."""
    made: dict[int, int] = {}
    last: dict[int, int] = {}
    grown: set[int] = set()
    tensors = graph.tensors
    for i, op in enumerate(graph.ops):
        caches = {s for t in op.outputs if tensors[s := tensors[t].storage].role is Role.KV_CACHE}
        for t in op.outputs:
            made.setdefault(tensors[t].storage, i)
        touched = {tensors[t].storage for t in op.inputs}
        for s in touched.union(tensors[t].storage for t in op.outputs) if op.kind not in FREE_KINDS else ():
            last[s] = i
        if caches - touched:
            grown |= {s for s in touched - caches if tensors[s].role is Role.KV_CACHE}
    produced = graph.producers
    for t, tensor in enumerate(tensors):
        if tensor.role in RESIDENT_ROLES and t not in produced and tensor.storage == t:
            made[t] = -1
    stays = {t.storage for t in tensors if t.role in _STAYING} - grown
    owner = sorted(made)
    return _Storages(
        np.array(owner, np.int64),
        np.array([made[s] for s in owner], np.int64),
        np.array([-1 if s in stays else last.get(s, made[s]) for s in owner], np.int64),
        np.array([_CATEGORY[tensors[s].role] for s in owner], np.int64),
    )


def _largest(graph: Graph, storages: _Storages, size: Ints, alive: Mask, count: int) -> tuple[Allocation, ...]:
    ids = np.flatnonzero(alive)
    ids = ids[np.argsort(-size[ids], kind="stable")][:count]
    return tuple(
        Allocation(graph.tensors[storages.owner[i]].name, int(size[i]), CATEGORIES[storages.category[i]])
        for i in ids.tolist()
    )
