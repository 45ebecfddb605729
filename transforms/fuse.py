"""Fusion: what a compiler such as torch.compile's inductor does at its simplest.

Pointwise ops, norms, softmaxes, reductions, copies and the views between them, joined by data flow, become one
kernel. What only the kernel itself reads is neither written nor read any more, what several of its ops read is read
once; FLOPs stay exactly what they were.

Left out: fusing into matmuls and attention (prologues, epilogues), fusing ops that only share an input, splitting a
group where a reduction over the whole tensor needs a second kernel, recomputing an intermediate in two kernels.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from heapq import heapify, heappop, heappush
from typing import ClassVar, Final

from foretrace.ir import FREE_KINDS, DimLike, DType, Graph, Op, OpKind, Role, Shape, Tensor, Work

_SIGNIFICANCE: Final = (OpKind.COPY, OpKind.ELEMENTWISE, OpKind.REDUCTION, OpKind.NORM, OpKind.SOFTMAX)
FUSABLE: Final = frozenset({*_SIGNIFICANCE, OpKind.VIEW})
"""Kinds that merge; a fused op takes the most significant kind of its members (softmax first, copy last)."""

_NAMED: Final = 4  # members in a fused op's name


@dataclass(frozen=True)
class Fuse:
    """Merge chains of memory-bound ops of one phase into kernels of at most `max_ops` launching ops.

    A fused op is called ``fused(add, layer_norm)``, carries the attribute ``fused`` (the names of its launching
    members in order), and stands in the module of the first of them.
    """

    name: ClassVar[str] = "fuse"
    max_ops: int = 64
    """torch._inductor.config.max_fusion_size (torch 2.13)."""
    inside: bool = False
    """Only what stands in one and the same module (a norm, an activation): kernels that people wrote by hand."""

    def run(self, graph: Graph) -> Graph:
        """The fused graph; tensor ids stay, those of vanished intermediates belong to no op any more."""
        before = order_constraints(graph)
        groups = [g for g in _group(graph, before, self.max_ops, self.inside) if _kernels(graph, g) > 1]
        if not groups:
            return graph
        outside = _Outside(graph)
        unit_of = {i: -1 - n for n, group in enumerate(groups) for i in group}  # fused: -1 - group, else the op id
        fused = [_merge(graph, group, outside.visible(graph, group)) for group in groups]
        order = _order(graph, before, unit_of)
        return replace(graph, ops=tuple(fused[-1 - u] if u < 0 else graph.ops[u] for u in order))


def order_constraints(graph: Graph) -> list[set[int]]:
    """For each op those it must follow: producers of what it reads, and, where storage is written in place, every
    earlier access to it (a reader must come before the next writer, a writer before the next reader).
    """
    before = [set(p) for p in graph.predecessors]
    writers: dict[int, int] = {}
    for op in graph.ops:
        if op.kind not in FREE_KINDS:
            for s in {graph.tensors[t].storage for t in op.outputs}:
                writers[s] = writers.get(s, 0) + (1 if s in op.outputs else 2)
    rewritten = {s for s, count in writers.items() if count > 1}
    if not rewritten:
        return before
    last_writer: dict[int, int] = {}
    readers: dict[int, list[int]] = {}
    for i, op in enumerate(graph.ops):
        if op.kind in FREE_KINDS:
            continue
        writes = rewritten & {graph.tensors[t].storage for t in op.outputs}
        for s in writes | (rewritten & {graph.tensors[t].storage for t in op.inputs}):
            if s in last_writer:
                before[i].add(last_writer[s])
            if s in writes:
                before[i].update(readers.pop(s, ()))
                last_writer[s] = i
            else:
                readers.setdefault(s, []).append(i)
    return before


def _fusable(op: Op) -> bool:
    """Ops of a loop's body stay apart: theirs are other trips than their neighbours'. So do views that claim work."""
    return op.kind in FUSABLE and "repeat" not in op.attributes and (op.kind is not OpKind.VIEW or op.work == Work())


def _group(graph: Graph, before: list[set[int]], max_ops: int, inside: bool) -> list[list[int]]:
    """Groups of op ids, each ascending and of two or more; *inside*: each of one module, none of the model's own.

    Every op has a level, one above all it must follow, or equal to it within its group. What depends on a group
    from outside stands at a higher level, so ops of one level can merge without a cycle.
    """
    level: list[int] = []
    leader = list(range(len(graph.ops)))  # union-find
    members: dict[int, list[int]] = {}

    def find(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    for i, op in enumerate(graph.ops):
        top = max((level[p] for p in before[i]), default=-1)
        joined = {find(p) for p in before[i] if level[p] == top}
        merged = [m for g in sorted(joined) for m in members.get(g, ())] + [i]
        if (
            joined
            and _fusable(op)
            and all(_fusable(graph.ops[g]) and graph.ops[g].phase == op.phase for g in joined)
            and (not inside or (op.module and all(graph.ops[g].module == op.module for g in joined)))
            and _kernels(graph, merged) <= max_ops
        ):
            level.append(top)
            for g in joined:
                leader[g] = i
                members.pop(g, None)
            members[i] = merged
        else:
            level.append(top + 1)
            members[i] = [i]
    return [sorted(group) for group in members.values() if len(group) > 1]


def _kernels(graph: Graph, group: Iterable[int]) -> int:
    return sum(graph.ops[i].kind is not OpKind.VIEW for i in group)


class _Outside:
    """Which tensors something outside a group reads, by storage."""

    def __init__(self, graph: Graph) -> None:
        self.readers: dict[int, list[int]] = {}  # storage to the ops that read it
        self.makers: dict[int, list[int]] = {}
        for i, op in enumerate(graph.ops):
            for t in op.inputs:
                self.readers.setdefault(graph.tensors[t].storage, []).append(i)
            for t in op.outputs:
                self.makers.setdefault(graph.tensors[t].storage, []).append(i)
        self.kept = {t.storage for t in graph.tensors if t.role is not Role.ACTIVATION}

    def visible(self, graph: Graph, group: list[int]) -> set[int]:
        """The storages that *group* writes and that stay: others touch them, the model returns or keeps them, or
        nobody reads them at all (what a front end did not mark as an output).
        """
        inside = set(group)
        written = {graph.tensors[t].storage for i in group for t in graph.ops[i].outputs}
        return {
            s
            for s in written
            if s in self.kept
            or s not in self.readers
            or not inside.issuperset(self.readers[s])
            or not inside.issuperset(self.makers[s])
            or not any(s in graph.ops[i].outputs for i in group)
        }


def _merge(graph: Graph, group: list[int], visible: set[int]) -> Op:
    ops = [graph.ops[i] for i in group]
    kernels = [op for op in ops if op.kind is not OpKind.VIEW]
    tensors = graph.tensors
    made = {t for op in ops for t in op.outputs}
    inputs = tuple(dict.fromkeys(t for op in ops for t in op.inputs if t not in made))
    outputs = tuple(t for op in ops for t in op.outputs if tensors[t].storage in visible)
    names = [op.name for op in kernels]
    short = [_short(n) for n in names]
    shown = ", ".join(short if len(short) <= _NAMED else [*short[: _NAMED - 1], f"{len(short) - _NAMED + 1} more"])
    return Op(
        max((op.kind for op in kernels), key=_SIGNIFICANCE.index),
        f"fused({shown})",
        inputs,
        outputs,
        {"fused": tuple(names)},
        kernels[0].module,
        kernels[0].phase,
        _sum_work(tuple(_traffic(kernels, _in_registers(kernels, made, tensors), visible, tensors))),
    )


def _short(name: str) -> str:
    """``aten.native_layer_norm.default`` → ``native_layer_norm``."""
    parts = name.split("::")[-1].split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "aten" else parts[0]


def _in_registers(kernels: list[Op], made: set[int], tensors: tuple[Tensor, ...]) -> set[int]:
    """The tensors that a member computes, and the views of them; a view of what came from outside is still read."""
    computed = {t for op in kernels for t in op.outputs}
    return computed | {t for t in made if tensors[t].storage in computed}


_Traffic = tuple[Work, tuple[tuple[DimLike, bool], ...], tuple[tuple[DimLike, bool], ...]]
"""An op's work, and the bytes of each tensor it reads and writes with whether they still move once it is fused."""


def _traffic(kernels: list[Op], held: set[int], visible: set[int], tensors: tuple[Tensor, ...]) -> Iterator[_Traffic]:
    """What moves of each of *kernels*: nothing held in registers or read before, nothing written that vanishes."""
    seen = set(held)
    for op in kernels:
        reads = []
        for t in op.inputs:
            reads.append((_size(tensors[t].shape, tensors[t].dtype), t not in seen))
            seen.add(t)
        writes = [(_size(tensors[t].shape, tensors[t].dtype), tensors[t].storage in visible) for t in op.outputs]
        yield op.work, tuple(reads), tuple(writes)


@lru_cache(maxsize=4096)  # equal layers fuse alike
def _sum_work(traffic: tuple[_Traffic, ...]) -> Work:
    """FLOPs summed; bytes summed less what no longer moves.

    An op whose bytes are not just those of its tensors (broadcast or partial reads) keeps its own figure.
    """
    total: dict[str, DimLike] = {f.name: 0 for f in fields(Work)}
    for work, reads, writes in traffic:
        for name in total:
            total[name] = total[name] + getattr(work, name)
        for name, moves in (("bytes_read", reads), ("bytes_written", writes)):
            if getattr(work, name) == _sum(size for size, _ in moves):
                total[name] = total[name] - _sum(size for size, still in moves if not still)
    return Work(**total)


def _sum(sizes: Iterable[DimLike]) -> DimLike:
    total: DimLike = 0
    for size in sizes:
        total = total + size
    return total


@lru_cache(maxsize=4096)
def _size(shape: Shape, dtype: DType) -> DimLike:
    return Tensor("", shape, dtype, Role.ACTIVATION, 0).bytes


def _order(graph: Graph, before: list[set[int]], unit_of: dict[int, int]) -> list[int]:
    """The units (ops, fused groups) in an order they can run in, the earliest first op first among the ready."""
    waits: dict[int, set[int]] = {}
    place: dict[int, int] = {}
    for i in range(len(graph.ops)):
        unit = unit_of.get(i, i)
        place.setdefault(unit, i)
        waits.setdefault(unit, set()).update(unit_of.get(p, p) for p in before[i])
    followers: dict[int, list[int]] = {}
    for unit, needed in waits.items():
        needed.discard(unit)
        for p in needed:
            followers.setdefault(p, []).append(unit)
    ready = [(place[u], u) for u, needed in waits.items() if not needed]
    heapify(ready)
    order = []
    while ready:
        unit = heappop(ready)[1]
        order.append(unit)
        for f in followers.get(unit, ()):
            waits[f].discard(unit)
            if not waits[f]:
                heappush(ready, (place[f], f))
    return order
