"""Recomputation (activation checkpointing): forward operators that run again in front of the backward they serve."""

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import ClassVar

from foretrace.ir import Graph, Op, OpKind, Role
from foretrace.ir.blocks import split_index
from foretrace.transforms.plan import PlanError


@dataclass(frozen=True)
class Recompute:
    """Run the forward of `what` again in the backward: full (every layer), selective (attention), or a module pattern.

    Only what the backward reads is made again, and what that needs; collectives among it run again too. Selective is
    the core of attention, softmax included (Korthikanti et al. 2022, arXiv:2205.05198, section 5); a flash kernel
    keeps no scores, and only its own result is then made again.
    """

    name: ClassVar[str] = "recompute"
    what: str = "none"

    def run(self, graph: Graph) -> Graph:
        """The graph with the copies, which have the attribute ``recomputed``. Raises `PlanError` for no match."""
        if self.what == "none" or not any(op.phase == "backward" for op in graph.ops):
            return graph
        regions = self._regions(graph)
        if not any(regions):
            raise PlanError(f"plan: recompute={self.what}: no module of {graph.name} fits")
        return _Copies(graph, regions).run()

    def _regions(self, graph: Graph) -> list[str]:
        """For each op the layer that it is recomputed with; empty: none."""
        found = []
        for op in graph.ops:
            place = split_index(op.module) if op.phase == "forward" else None
            region = f"{place[0]}.{place[1]}" if place else ""
            if self.what == "selective":
                region = _attention(op) if place else ""
            elif self.what != "full":
                region = self._matching(op.module) if op.phase == "forward" else ""
            found.append(region)
        return found

    def _matching(self, module: str) -> str:
        """The outermost module around *module* (or itself) that fits the pattern."""
        parts = module.split(".")
        names = (".".join(parts[: i + 1]) for i in range(len(parts)))
        return next((name for name in names if fnmatchcase(name, self.what)), "")


def _attention(op: Op) -> str:
    """The attention module of an op of its core: the products of scores, softmax, dropout, not the projections."""
    last = op.module.rsplit(".", 1)[-1].lower()
    if "attn" not in last and "attention" not in last:
        return ""
    return op.module


class _Copies:
    """A graph with forward operators copied into its backward."""

    def __init__(self, graph: Graph, regions: list[str]) -> None:
        self.graph, self.regions = graph, regions
        self.tensors = list(graph.tensors)
        self.again: dict[int, int] = {}
        """Forward tensor → its copy."""

    def run(self) -> Graph:
        """The graph with copies in front of the first backward op that reads them."""
        graph = self.graph
        region_of = {t: r for op, r in zip(graph.ops, self.regions, strict=True) if r for t in op.outputs}
        members: dict[str, list[int]] = {}
        for i, r in enumerate(self.regions):
            if r:
                members.setdefault(r, []).append(i)
        needed = self._needed(region_of)
        ops: list[Op] = []
        done: set[str] = set()
        for op in graph.ops:
            if op.phase == "backward":
                for region in dict.fromkeys(region_of[t] for t in op.inputs if t in region_of):
                    if region not in done:
                        done.add(region)
                        ops += [self._copy(graph.ops[i]) for i in members[region] if i in needed]
            ins = tuple(self.again.get(t, t) for t in op.inputs) if op.phase == "backward" else op.inputs
            ops.append(op if ins == op.inputs else replace(op, inputs=ins))
        return replace(graph, tensors=tuple(self.tensors), ops=tuple(ops))

    def _needed(self, region_of: dict[int, str]) -> set[int]:
        """The forward ops in regions whose results the backward reads, and those that they need."""
        graph = self.graph
        wanted = {t for op in graph.ops if op.phase == "backward" for t in op.inputs if t in region_of}
        storages = {graph.tensors[t].storage for t in wanted}
        found = set()
        for i in range(len(graph.ops) - 1, -1, -1):
            op = graph.ops[i]
            if self.regions[i] and (wanted.intersection(op.outputs) or storages.intersection(op.outputs)):
                found.add(i)
                wanted.update(t for t in op.inputs if region_of.get(t) == self.regions[i])
        return found

    def _copy(self, op: Op) -> Op:
        ins = tuple(self.again.get(t, t) for t in op.inputs)
        outs = tuple(self._tensor(t) for t in op.outputs)
        attributes = {**op.attributes, "recomputed": True} if op.kind is not OpKind.VIEW else op.attributes
        return replace(op, inputs=ins, outputs=outs, attributes=attributes, phase="backward")

    def _tensor(self, t: int) -> int:
        tensor = self.tensors[t]
        i = len(self.tensors)
        owner = i if tensor.storage == t else self.again.get(tensor.storage, tensor.storage)
        role = Role.ACTIVATION if tensor.role is not Role.PARAMETER else tensor.role
        self.tensors.append(replace(tensor, storage=owner, role=role))
        self.again[t] = i
        return i
