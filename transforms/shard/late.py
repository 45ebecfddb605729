"""Sequence parallel: gradients of one tensor that are sums over the ranks meet before they are scattered.

Where a layer has no norm in front (OLMo 2), the residual's gradient, divided along tokens, takes up those of queries,
keys and values one by one; scattered one by one they would travel three times.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from foretrace.ir import Op, OpKind, Role, op_work

from .moves import SUM, Moves
from .rules import ADDS
from .writer import bare


@dataclass(frozen=True, slots=True)
class _Step:
    """An addition of a scattered sum: what it was added to, the sum before it was scattered, and the two ops."""

    kept: int
    total: int
    scatter: Op
    add: Op


class SumsFirst:
    """The additions of one graph whose scatter may still wait for the next."""

    def __init__(self, moves: Moves) -> None:
        self.moves = moves
        self.dropped: set[int] = set()
        """Ops (`id`) that a later addition took the place of."""
        self._steps: dict[int, _Step] = {}

    @cached_property
    def _reads(self) -> Counter[int]:
        """Tensor → how many ops read it."""
        return Counter(t for op in self.moves.graph.ops for t in op.inputs)

    def met(self, op: Op, here: Sequence[int], needs: Sequence[int]) -> tuple[int, ...] | None:
        """The operands of the addition *op* after its sum and the one before it were scattered as one; None: alone."""
        if len(op.inputs) != 2 or sum(p == SUM for p in here) != 1 or bare(op.name) not in ADDS:
            return None
        late = here.index(SUM)
        before = op.inputs[1 - late]
        step = self._steps.get(before)
        if step is None or self._reads[before] != 1 or here[1 - late] != needs[1 - late]:
            return None
        moves, writer = self.moves, self.moves.writer
        mine = moves.id.get(op.inputs[late], op.inputs[late])
        total = writer.add(replace(writer.tensors[mine], name="", role=Role.ACTIVATION, storage=-1))
        work = op_work(
            OpKind.ELEMENTWISE, "add", {}, [writer.tensors[i] for i in (step.total, mine)], [writer.tensors[total]]
        )
        origin = moves.origin[op.inputs[late]]
        self.dropped |= {id(step.scatter), id(step.add)}
        writer.ops.append(
            Op(OpKind.ELEMENTWISE, "aten.add.Tensor", (step.total, mine), (total,), {}, origin, op.phase, work)
        )
        part = replace(writer.tensors[step.scatter.outputs[0]], storage=-1)
        at = replace(op, module=origin)
        made = writer.collective("reduce_scatter", moves.axis, total, part, writer.tensors[total].bytes, at)
        return (step.kept, made) if late else (made, step.kept)

    def note(self, ins: tuple[int, ...], here: Sequence[int]) -> None:
        """Remember the last op of the graph being written, where it adds what the one before it scattered."""
        ops = self.moves.writer.ops
        if len(ops) < 2 or len(ins) != 2 or sum(p == SUM for p in here) != 1 or bare(ops[-1].name) not in ADDS:
            return
        scatter, add, late = ops[-2], ops[-1], list(here).index(SUM)
        if "reduce_scatter" in scatter.name and scatter.outputs == (ins[late],):
            source = scatter.inputs[0]
            known = self.moves.graph.tensors
            if source >= len(known) or self._alone(known[source].storage):
                self._steps[add.outputs[0]] = _Step(ins[1 - late], source, scatter, add)

    def _alone(self, storage: int) -> bool:
        return self._uses[storage] == 1

    @cached_property
    def _uses(self) -> Counter[int]:
        """Storage → how many ops but views read it."""
        graph = self.moves.graph
        return Counter(
            s for op in graph.ops if op.kind is not OpKind.VIEW for s in {graph.tensors[t].storage for t in op.inputs}
        )

    def finish(self) -> None:
        """Leave out what was replaced."""
        if self.dropped:
            writer = self.moves.writer
            writer.ops = [op for op in writer.ops if id(op) not in self.dropped]
