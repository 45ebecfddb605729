"""Recomputation (activation checkpointing): forward operators that run again in front of the backward they serve."""

from dataclasses import dataclass, replace
from typing import ClassVar

from foretrace.ir import Graph, Op, OpKind, Role
from foretrace.transforms.plan import RECOMPUTE, PlanError

from .regions import Regions, find_regions, saved_elsewhere
from .shard.writer import Writer


@dataclass(frozen=True)
class Recompute:
    """Run the forward of `what` again in the backward: full (every layer), selective (attention), or a module pattern.

    Selective is the core of attention with both its products (Korthikanti et al. 2022, arXiv:2205.05198, section 5);
    a flash kernel keeps no scores, and only it runs again. Of a layer or a module what the backward reads is made
    again, and what that needs, collectives included: `torch.utils.checkpoint` stops early in the same way. A region
    keeps nothing but what operators outside it read of it, which are the checkpoints of others.
    """

    name: ClassVar[str] = "recompute"
    what: str = "none"
    whole: bool = False
    """Run also what nothing reads again (the last product of a layer and its all-reduce), as Megatron-LM does."""

    def run(self, graph: Graph) -> Graph:
        """The graph with the copies, which have the attribute ``recomputed``. Raises `PlanError` for no match."""
        if self.what == "none" or not any(op.phase == "backward" for op in graph.ops):
            return graph
        regions = find_regions(graph, self.what)
        if not any(regions.forward):
            lacks = "has no attention" if self.what == "selective" else "has no layers"
            fits = f"{graph.name} {lacks}" if self.what in RECOMPUTE else f"no module of {graph.name} fits"
            raise PlanError(f"plan: recompute={self.what}: {fits}; use recompute=none")
        return _Copies(graph, regions, self.whole or self.what == "selective").run()


class _Copies:
    """A graph with forward operators copied into its backward."""

    def __init__(self, graph: Graph, regions: Regions, whole: bool) -> None:
        self.graph, self.regions, self.whole = graph, regions, whole
        self.writer = Writer(graph)
        self.again: dict[int, int] = {}
        """Forward tensor → its copy."""
        self.home = {t: r for op, r in zip(graph.ops, regions.forward, strict=True) if r for t in op.outputs}
        self.kept = saved_elsewhere(graph, regions)

    def run(self) -> Graph:
        """The graph with copies in front of the first backward op that reads them."""
        graph, members, needed = self.graph, self.regions.members, self._needed()
        done: set[str] = set()
        for op, region in zip(graph.ops, self.regions.backward, strict=True):
            if op.phase != "backward":
                self.writer.ops.append(op)
                continue
            for home in dict.fromkeys(self.home[t] for t in self._wanted(op, region)):
                if home not in done:
                    done.add(home)
                    for i in members[home]:
                        if i in needed:
                            self._copy(graph.ops[i], home)
            self._read(op, region)
        return replace(graph, tensors=tuple(self.writer.tensors), ops=tuple(self.writer.ops))

    def _wanted(self, op: Op, region: str) -> list[int]:
        """What a backward *op* reads of copies: all of its own region, of others what they alone made use of."""
        home, tensors = self.home, self.graph.tensors
        return [t for t in op.inputs if t in home and (home[t] == region or tensors[t].storage not in self.kept)]

    def _read(self, op: Op, region: str) -> None:
        """Write a backward op that reads copies; a view that it makes is then one of the copy."""
        wanted = self._wanted(op, region)
        if wanted:
            ins = tuple(self.again[t] if t in wanted else t for t in op.inputs)
            self.writer.ops.append(replace(op, inputs=ins))
        else:
            ins = op.inputs
            self.writer.ops.append(op)
        self.writer.settle_storages(op.inputs, ins, op.outputs, self.graph.tensors)

    def _needed(self) -> set[int]:
        """The forward ops in regions whose results the backward reads, and those that they need."""
        graph, forward, home = self.graph, self.regions.forward, self.home
        wanted: set[int] = set()
        for op, region in zip(graph.ops, self.regions.backward, strict=True):
            if op.phase == "backward":
                wanted.update(self._wanted(op, region))
        regions = {home[t] for t in wanted}
        found = set()
        for i in range(len(graph.ops) - 1, -1, -1):
            op, region = graph.ops[i], forward[i]
            if region not in regions:
                continue
            if not wanted.isdisjoint(op.outputs) or (self.whole and self._makes(op, region)):
                found.add(i)
                wanted.update(t for t in op.inputs if home.get(t) == region)
        return found

    def _makes(self, op: Op, region: str) -> bool:
        """Whether *op* makes something of its own, not a view and nothing written into what lies outside."""
        tensors = self.graph.tensors
        return op.kind is not OpKind.VIEW and all(self.home.get(tensors[t].storage) == region for t in op.outputs)

    def _copy(self, op: Op, region: str) -> None:
        ins = tuple(self.again[t] if self.home.get(t) == region else t for t in op.inputs)
        outs = tuple(self._tensor(t) for t in op.outputs)
        attributes = {**op.attributes, "recomputed": True} if op.kind is not OpKind.VIEW else op.attributes
        self.writer.ops.append(Op(op.kind, op.name, ins, outs, attributes, op.module, "backward", op.work))

    def _tensor(self, t: int) -> int:
        tensor = self.graph.tensors[t]
        role = Role.ACTIVATION if tensor.role is not Role.PARAMETER else tensor.role
        owner = -1 if tensor.storage == t else self.again.get(tensor.storage, tensor.storage)
        self.again[t] = self.writer.add(replace(tensor, storage=owner, role=role))
        return self.again[t]
