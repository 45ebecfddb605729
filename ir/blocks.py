"""Repeated blocks: the layers of a transformer, found from module paths and structure.

Two instances of a block are equal when their ops agree in kind, name, attributes (literal arguments included), the
shapes and dtypes they touch, and in how they are wired to each other: a sliding-window layer is not a full one.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .graph import FREE_KINDS, Graph, Op, Tensor


@dataclass(frozen=True, slots=True)
class Block:
    """A run of equal instances: `path` with ``*`` for the index, the indices, and each instance's op ids in order."""

    path: str
    indices: tuple[int, ...]
    ops: tuple[tuple[int, ...], ...]

    @property
    def repeats(self) -> int:
        """How many instances the block has."""
        return len(self.indices)

    @property
    def representative(self) -> tuple[int, ...]:
        """Op ids of the first instance."""
        return self.ops[0]


def split_index(module: str) -> tuple[str, int, str] | None:
    """The outermost numbered module, or None: ``model.layers.3.mlp`` → (``model.layers``, 3, ``mlp``)."""
    parts = module.split(".")
    for i, part in enumerate(parts):
        if part.isdecimal() and len(part) < 10:
            return ".".join(parts[:i]), int(part), ".".join(parts[i + 1 :])
    return None


def find_blocks(graph: Graph) -> list[Block]:
    """Blocks in program order: for each numbered container, its instances grouped by equal structure."""
    instances: dict[tuple[str, int], list[int]] = {}
    for i, op in enumerate(graph.ops):
        if (place := split_index(op.module)) is not None:
            instances.setdefault(place[:2], []).append(i)
    groups: dict[tuple[str, Hashable], list[tuple[int, tuple[int, ...]]]] = {}
    for (container, index), ops in instances.items():
        groups.setdefault((container, _signature(graph, ops)), []).append((index, tuple(ops)))
    return [
        Block(
            f"{container}.*" if container else "*",
            tuple(i for i, _ in members),
            tuple(ops for _, ops in members),
        )
        for (container, _), members in groups.items()
    ]


def count_layers(graph: Graph) -> int:
    """Instances of every block that repeats or that stands in a container of two instances or more, views left out."""
    containers: dict[str, int] = {}
    for block in find_blocks(graph):
        if any(graph.ops[i].kind not in FREE_KINDS for i in block.representative):
            containers[block.path] = containers.get(block.path, 0) + block.repeats
    return sum(n for n in containers.values() if n > 1)


@dataclass(frozen=True, slots=True)
class Part:
    """A module inside blocks that several of them have in common, as a dense and an expert layer have their attention.

    `path` has ``*`` for every index; `ops` are the op ids of its first instance; `stated` says how often it would
    stand if every block were written out, `repeats` how often it runs.
    """

    path: str
    ops: tuple[int, ...]
    stated: int
    repeats: int


def find_parts(graph: Graph, blocks: Sequence[Block]) -> list[Part]:
    """What the different *blocks* of *graph* (of `find_blocks`) share: equal modules of one name, in program order.

    Of modules that differ it is what is equal inside them: the projections of two kinds of attention, the blocks of
    a stage.
    """
    found: dict[tuple[str, Hashable], tuple[list[int], list[int]]] = {}
    for block in blocks:
        depth = block.path.count(".") + 1
        _add_parts(graph, block.representative, depth, block.repeats, found)
    return [
        Part(path, tuple(ops), len(repeats), sum(repeats))
        for (path, _), (ops, repeats) in found.items()
        if len(repeats) > 1
    ]


def _add_parts(
    graph: Graph,
    ops: Sequence[int],
    depth: int,
    repeats: int,
    found: dict[tuple[str, Hashable], tuple[list[int], list[int]]],
) -> None:
    """Enter the modules *depth* names below the root that *ops* run in, each with how often its block *repeats*."""
    inner: dict[tuple[str, ...], list[int]] = {}
    for i in ops:
        place = graph.ops[i].module.split(".")
        if len(place) > depth:
            numbered = len(place) > depth + 1 and place[depth + 1].isdecimal()
            inner.setdefault(tuple(place[: depth + 1 + numbered]), []).append(i)
    for names, members in inner.items():
        path = ".".join("*" if n.isdecimal() else n for n in names)
        key = (path, _signature(graph, members, len(names)))
        if key in found:
            found[key][1].append(repeats)
            continue
        found[key] = (members, [repeats])
        _add_parts(graph, members, len(names), repeats, found)


def folded_size(graph: Graph) -> int:
    """Ops left when every block stands once, and every part of blocks too: a program with a function for each."""
    blocks = find_blocks(graph)
    repeated = sum(len(ops) for block in blocks for ops in block.ops[1:])
    return len(graph.ops) - repeated - sum(len(p.ops) * (p.stated - 1) for p in find_parts(graph, blocks))


def op_signature(op: Op, tensors: Sequence[Tensor]) -> Hashable:
    """What makes two ops the same to a cost model: everything but where they stand in the model."""
    return (
        op.kind,
        op.name,
        _frozen(op.attributes),
        tuple((tensors[t].shape, tensors[t].dtype.name) for t in op.inputs),
        tuple((tensors[t].shape, tensors[t].dtype.name) for t in op.outputs),
        op.phase,
        op.work,
    )


def _frozen(attributes: Mapping[str, Any]) -> Hashable:
    return tuple(sorted(attributes.items(), key=lambda item: item[0])) if attributes else ()


def _signature(graph: Graph, ops: Sequence[int], depth: int | None = None) -> Hashable:
    """An instance's ops and wiring, with what comes from outside numbered in the order it is first read.

    Modules below it are told apart by the names behind the first *depth*, by default behind the outermost index.
    """
    made = {t: (n, k) for n, i in enumerate(ops) for k, t in enumerate(graph.ops[i].outputs)}
    outside: dict[int, tuple[int, int]] = {}
    parts = []
    for i in ops:
        op = graph.ops[i]
        if depth is None:
            place = split_index(op.module)
            inside = place[2] if place else ""
        else:
            inside = ".".join(op.module.split(".")[depth:])
        wiring = tuple(made.get(t) or outside.setdefault(t, (-1, len(outside))) for t in op.inputs)
        parts.append((op_signature(op, graph.tensors), wiring, inside))
    return tuple(parts)
