"""Pipeline stages: which consecutive layers each stage holds, and which pass of a micro-batch every op belongs to.

A layer is an instance of the numbered container with the most ops (``model.layers.3``). What runs before the first
layer belongs to the first stage, what runs after the last one to the last; a backward follows the module of its
forward. The optimizer's ops run on every stage, each over its own parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from foretrace.ir import Graph, Role
from foretrace.ir.blocks import split_index

from .plan import PlanError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class OpPass(IntEnum):
    """The part of a micro-batch that an op runs in; the first three as `schedules.Pass` numbers them."""

    FORWARD = 0
    BACKWARD_INPUT = 2
    """What the stage before waits for."""
    BACKWARD_WEIGHT = 3
    """What only gradients of parameters come from."""
    OPTIMIZER = 4


@dataclass(frozen=True, eq=False)
class Layers:
    """The layers that a pipeline is cut between."""

    container: str
    """Module path of the numbered container; empty where the graph has none (and `count` is 0)."""
    count: int
    place: Ints
    """[ops] the layer of each op; -1: before the first, `count`: after the last."""


def find_layers(graph: Graph) -> Layers:
    """The layers of *graph*, and where every op stands among them.

    An op without a layer goes by program order: a forward before the first layer is before it, a backward after all
    layers' backwards too; one between two layers goes with the one before.
    """
    place: dict[str, tuple[str, int] | None] = {}
    for op in graph.ops:
        if op.module not in place:
            found = split_index(op.module)
            place[op.module] = found[:2] if found else None
    sizes: dict[str, int] = {}
    for op in graph.ops:
        if (at := place[op.module]) is not None:
            sizes[at[0]] = sizes.get(at[0], 0) + 1
    if not sizes:
        return Layers("", 0, np.full(len(graph.ops), -1))
    container = max(sizes, key=lambda name: sizes[name])
    numbers = sorted({at[1] for at in place.values() if at is not None and at[0] == container})
    index = {number: i for i, number in enumerate(numbers)}
    of_module = {m: index[at[1]] if at is not None and at[0] == container else -2 for m, at in place.items()}
    layer = np.array([of_module[op.module] for op in graph.ops], np.int64)
    backward = np.array([op.phase == "backward" for op in graph.ops], np.bool_)
    whole = len(numbers)
    for ops, before, after in ((np.flatnonzero(~backward), -1, whole), (np.flatnonzero(backward), whole, -1)):
        layer[ops] = _filled(layer[ops], before, after)
    return Layers(container, whole, layer)


def _filled(layer: Ints, before: int, after: int) -> Ints:
    """*layer* [n] in program order, with a place for each -2."""
    known = np.flatnonzero(layer >= 0)
    if not known.size:
        return np.full(layer.size, min(before, after) if before < 0 else before)
    last = np.maximum.accumulate(np.where(layer >= 0, np.arange(layer.size), -1))
    filled = np.where(last < 0, before, layer[last])
    filled[known[-1] + 1 :] = after
    return filled


def cut(
    graph: Graph,
    stages: int,
    weights: Floats,
    split: Sequence[int] | None = None,
    layers: Layers | None = None,
    ranks: int = 0,
) -> Ints:
    """[ops] the stage of every op, where the slowest rank is as fast as consecutive layers allow.

    *weights* [ops] are the seconds of each op. *split* gives the layers of each stage instead. Of *ranks* (0: as many
    as stages) rank r runs the stages r, r + ranks... The optimizer's ops are -1: they belong to all. Raises
    `PlanError` where there are fewer layers than stages.
    """
    layers = layers or find_layers(graph)
    optimizer = np.array([op.phase == "optimizer" for op in graph.ops], np.bool_)
    if stages == 1:
        return np.where(optimizer, -1, 0)
    if layers.count < stages:
        where = f"{layers.count} layers ({layers.container}.*)" if layers.count else "no numbered layers"
        raise PlanError(
            f"plan: pp · interleave = {stages} stages and {graph.name} has {where}: nearest is "
            f"pp · interleave = {max(layers.count, 1)}"
        )
    if split is None:
        seconds: Floats = np.bincount(
            layers.place[~optimizer] + 1, weights[~optimizer], minlength=layers.count + 2
        ).astype(np.float64)
        split = balance(seconds[1:-1], stages, float(seconds[0]), float(seconds[-1]))
        if 0 < ranks < stages:
            split = _even_ranks(seconds, split, ranks)
    elif len(split) != stages or sum(split) != layers.count or min(split[:-1]) < 1 or split[-1] < 0:
        raise PlanError(
            f"plan: split={list(split)}: expected {stages} numbers of layers above 0 (the last may be 0: what follows "
            f"the layers) that sum to {layers.count}"
        )
    of_layer = np.repeat(np.arange(stages), split)
    of_place = np.concatenate([[0], of_layer, [stages - 1]])
    return np.where(optimizer, -1, of_place[layers.place + 1])


def balance(seconds: Floats, stages: int, first_s: float = 0.0, last_s: float = 0.0) -> list[int]:
    """How many consecutive layers each of *stages* takes: the slowest stage the fastest, then the most even.

    *seconds* [layers]; *first_s* and *last_s* are what the first and the last stage do besides. Dynamic programming
    over contiguous partitions, twice: for the least maximum, then for the least sum of squares under it.
    """
    layers = seconds.size
    total = np.concatenate([[0.0], np.cumsum(seconds)])
    span = total[None, :] - total[:, None]  # [i, j] seconds of layers i to j - 1
    span[np.tril_indices(layers + 1)] = np.inf  # a stage has a layer
    extra = np.zeros(stages)
    extra[0] += first_s
    extra[-1] += last_s
    worst = _partition(span, extra, np.maximum)[0]
    limit = worst * (1 + 1e-9)
    squares = [np.where(span + e > limit, np.inf, (span + e) ** 2) for e in extra]
    return _partition(squares, np.zeros(stages), np.add)[1]


def _even_ranks(seconds: Floats, split: list[int], ranks: int) -> list[int]:
    """*split* with layers moved, one at a time, from stages of the slowest rank while that makes the slowest faster.

    *seconds* [layers + 2] with what stands before and after the layers.
    """
    total = np.concatenate([[0.0], np.cumsum(seconds[1:-1])])

    def loads(counts: Ints) -> Floats:
        ends = np.cumsum(counts, axis=-1)
        of_stage = total[ends] - total[ends - counts]
        of_stage[..., 0] += seconds[0]
        of_stage[..., -1] += seconds[-1]
        return np.asarray(of_stage.reshape(*counts.shape[:-1], -1, ranks).sum(axis=-2))

    now = np.array(split, np.int64)
    stages = now.size
    if stages % ranks:
        return split
    for _ in range(4 * int(now.sum())):
        load = loads(now)
        givers = [s for s in range(int(load.argmax()), stages, ranks) if now[s] > 1]
        moves = [(s, t) for s in givers for t in range(stages) if t % ranks != s % ranks]
        if not moves:
            break
        tried = np.repeat(now[None], len(moves), axis=0)
        at = np.arange(len(moves))
        tried[at, [s for s, _ in moves]] -= 1
        tried[at, [t for _, t in moves]] += 1
        worst = loads(tried)
        key = np.lexsort(((worst**2).sum(axis=1), worst.max(axis=1)))[0]
        if worst[key].max() >= load.max() * (1 - 1e-9):
            break
        now = tried[key]
    return [int(n) for n in now]


def _partition(cost: "Floats | list[Floats]", extra: Floats, join: np.ufunc) -> tuple[float, list[int]]:
    """The least *join* over stages of their costs [i, j], and the number of layers of each stage."""
    stages = extra.size
    size = cost[0].shape[0] if isinstance(cost, list) else cost.shape[0]
    best = np.full(size, np.inf)
    best[0] = 0.0
    came = np.zeros((stages, size), np.int64)
    for s in range(stages):
        of_stage = cost[s] if isinstance(cost, list) else cost + extra[s]
        joined = join(best[:, None], of_stage)
        came[s] = joined.argmin(axis=0)
        best = joined.min(axis=0)
    at, split = size - 1, []
    for s in reversed(range(stages)):
        split.append(at - int(came[s, at]))
        at = int(came[s, at])
    return float(best[-1]), split[::-1]


def phase_of(graph: Graph) -> Ints:
    """[ops] the `OpPass` of every op, backwards undivided: all of them input halves."""
    codes = {"backward": int(OpPass.BACKWARD_INPUT), "optimizer": int(OpPass.OPTIMIZER)}
    return np.array([codes.get(op.phase, 0) for op in graph.ops], np.int64)


_NOT, _ANYWHERE = -9, -8
"""Where a result goes, if not to gradients inside one layer: to more than these, or straight into a gradient's sum."""


def pass_of(graph: Graph, layers: Layers | None = None) -> Ints:
    """[ops] the `OpPass` of every op.

    A backward op is a weight half if all that comes of it inside its layer, views and sums included, are gradients of
    parameters; what another layer or nothing reads is an input half. A gradient that two layers sum (a tied
    embedding) counts as a gradient in both.
    """
    place = (layers or find_layers(graph)).place.tolist()
    found = phase_of(graph).tolist()
    tensors = graph.tensors
    goes: dict[int, int] = {}  # tensor to the layer inside which it only leads to gradients, or to one of the above
    for i in range(len(graph.ops) - 1, -1, -1):
        if found[i] != OpPass.BACKWARD_INPUT:
            continue
        op, here = graph.ops[i], place[i]
        gradient = any(tensors[t].role is Role.GRADIENT for t in op.outputs)
        if op.outputs and all(
            goes.get(t, _ANYWHERE if tensors[t].role is Role.GRADIENT else _NOT) in (here, _ANYWHERE)
            for t in op.outputs
        ):
            found[i] = int(OpPass.BACKWARD_WEIGHT)
        else:
            here = _NOT
        for t in op.inputs:
            to = here
            if gradient and here != _NOT and tensors[t].shape == tensors[op.outputs[0]].shape:
                to = _ANYWHERE
            before = goes.get(t, _ANYWHERE)
            goes[t] = to if before in (_ANYWHERE, to) else before if to == _ANYWHERE else _NOT
    return np.array(found, np.int64)
