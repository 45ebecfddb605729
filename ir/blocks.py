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


def folded_size(graph: Graph) -> int:
    """Ops left when every block stands once: those outside blocks, and one instance of each."""
    return len(graph.ops) - sum(len(ops) for block in find_blocks(graph) for ops in block.ops[1:])


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


def _signature(graph: Graph, ops: list[int]) -> Hashable:
    """An instance's ops and wiring, with what comes from outside numbered in the order it is first read."""
    made = {t: (n, k) for n, i in enumerate(ops) for k, t in enumerate(graph.ops[i].outputs)}
    outside: dict[int, tuple[int, int]] = {}
    parts = []
    for i in ops:
        op = graph.ops[i]
        place = split_index(op.module)
        wiring = tuple(made.get(t) or outside.setdefault(t, (-1, len(outside))) for t in op.inputs)
        parts.append((op_signature(op, graph.tensors), wiring, place[2] if place else ""))
    return tuple(parts)
