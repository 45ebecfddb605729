"""Placement propagation over one axis of the mesh: local shapes, and collectives where placements disagree."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import gcd
from typing import Any, Final

from foretrace.ir import Graph, Op, OpKind, Role, Shape, Tensor, Work

from .call import Call, gathered
from .late import SumsFirst
from .matrix import MATRIX_RULES
from .moves import SUM, WHOLE, Moves
from .placement import REPLICATE, Placement, shard, token_dim, token_sizes
from .rules import RULES
from .seeds import Seeds
from .sizes import Sizes
from .views import PARTS
from .writer import Axis, bare

_RULES: Final = {**RULES, **MATRIX_RULES}


@dataclass(frozen=True, slots=True)
class _Worked:
    """What was found for ops that are equal and whose operands lie alike; placements as codes."""

    needs: tuple[int, ...]
    gives: tuple[int, ...]
    shapes: tuple[Shape, ...]
    """Of the results."""
    attributes: Mapping[str, Any]
    work: Work
    exchanged: int
    """How many values a row the ranks exchange."""
    whole: bool
    cuts: bool
    """A view of a part of a tensor."""


@dataclass
class Propagation:
    """Shards *graph* along *axis*, with *seeds* as placements of parameters by tensor id."""

    graph: Graph
    axis: Axis
    seeds: Seeds
    regather: bool = True
    """What was gathered in the forward is gathered again in the backward, not kept."""
    gathered: dict[str, int] = field(default_factory=dict)
    """Operators without a rule for what they met, by name: how many were run whole."""

    def __post_init__(self) -> None:
        graph, places = self.graph, self.seeds.places
        names = {i: graph.tensors[i].name for i in places}
        self._of_name = {name: i for i, name in names.items()}
        self._padded_weights = {names[i].removesuffix(".weight") for i in self.seeds.padded}
        self.moves = moves = Moves(graph, Sizes(self.axis, self._common()), self.regather)
        self.writer, self._place, self._id, self._pad = moves.writer, moves.place, moves.id, moves.pad
        self._weights = {name.removesuffix(".weight"): moves.coded(places[i]) for i, name in names.items()}
        self._makes = {
            t: moves.coded(places[i])
            for t, tensor in enumerate(graph.tensors)
            if tensor.role is Role.GRADIENT
            and (i := self._of_name.get(tensor.name, -1)) >= 0
            and graph.tensors[i].shape == tensor.shape
        }
        """Gradients in their parameters' own shapes → the parameters' placements."""
        self._late = SumsFirst(moves)
        self._memo: dict[Any, _Worked] = {}
        self._tokens = token_sizes(graph.tensors) if self.axis.sequence else None

    def run(self) -> Graph:
        """The graph of one rank. Raises `PlanError` where a size does not divide."""
        graph = self.graph
        self._seed()
        optimizing = False
        for op, code in zip(graph.ops, graph.op_codes, strict=True):
            if op.phase == "optimizer" and not optimizing:
                optimizing = True
                self.moves.sum_gradients()
            self._op(op, code)
        if not optimizing:
            self.moves.sum_gradients()
        if graph.phase != "train":
            self.moves.whole_outputs()
        self._late.finish()
        self.moves.unread_constants()
        return replace(graph, tensors=tuple(self.writer.tensors), ops=tuple(self.writer.ops))

    # --- what is divided from the start ---------------------------------------------------------------------------

    def _seed(self) -> None:
        places, padded, tensors = self.seeds.places, self.seeds.padded, self.graph.tensors
        for i, tensor in enumerate(tensors):
            if tensor.role is Role.OPTIMIZER_STATE and tensor.name.startswith("optimizer_state."):
                of = self._of_name.get(tensor.name.split(".", 2)[-1], -1)
                if of >= 0 and _same_dim(tensor.shape, tensors[of].shape, places[of].dim):
                    self._set(i, places[of], of in padded)
            elif i in places and tensor.storage == i:
                self._set(i, places[i], i in padded)
            elif tensor.role is Role.KV_CACHE and tensor.storage == i and self._by_heads(i):
                self._set(i, shard(1), False)

    def _by_heads(self, i: int) -> bool:
        """Whether a KV cache [batch, heads, tokens, width] that is there from the start divides with the heads."""
        shape = self.graph.tensors[i].shape
        return len(shape) == 4 and shape[1] in self._cached_heads and i not in self.graph.producers

    @cached_property
    def _cached_heads(self) -> set[Any]:
        return {op.attributes.get("kv_heads") for op in self.graph.ops if op.kind is OpKind.ATTENTION}

    def _common(self) -> int:
        """The greatest number of ranks that divides all that is to be divided."""
        tensors, seeds = self.graph.tensors, self.seeds
        sizes = {tensors[i].shape[p.dim] for i, p in seeds.places.items() if i not in seeds.padded}
        heads = {op.attributes.get("heads") for op in self.graph.ops if op.kind is OpKind.ATTENTION}
        return gcd(*(size for size in (*sizes, *heads, *self._cached_heads) if isinstance(size, int)))

    def _set(self, i: int, place: Placement, padded: bool) -> None:
        tensor = self.graph.tensors[i]
        self.writer.tensors[i] = replace(tensor, shape=self.moves.sizes.shape(tensor, place, padded))
        self._place[i] = self.moves.coded(place)
        if padded:
            self._pad.add(i)

    # --- one op ---------------------------------------------------------------------------------------------------

    def _op(self, op: Op, code: int) -> None:
        place = self._place
        here = tuple([place[t] for t in op.inputs])
        if not any(here) and not self._reached(op):
            ins = tuple([self._id.get(t, t) for t in op.inputs]) if self._id else op.inputs
            self._settle_storages(op, ins)
            self.writer.ops.append(op if ins == op.inputs else replace(op, inputs=ins))
            return
        padded = op.module in self._padded_weights or not self._pad.isdisjoint(op.inputs)
        found = self._worked(op, code, here, padded)
        meets = SUM in here and self._tokens is not None and op.phase == "backward"
        ins = (self._late.met(op, here, found.needs) if meets else None) or tuple(
            [
                self._id.get(t, t) if have == need else self.moves.lying(t, have, need, op, padded)
                for t, have, need in zip(op.inputs, here, found.needs, strict=True)
            ]
        )
        if found.whole:
            self.gathered[op.name] = self.gathered.get(op.name, 0) + 1
        for _ in range(found.exchanged):
            ins = (*ins, self.moves.exchange(ins[0], self.moves.placements[found.needs[0]].dim, op))
        for t, gives, shape in zip(op.outputs, found.gives, found.shapes, strict=True):
            if gives:
                self._give(op, t, gives, shape, padded)
        self._settle_storages(op, ins)
        if op.kind is OpKind.VIEW and (found.cuts or self.moves.region):
            self._note_part(op, found.cuts)
        self.writer.ops.append(Op(op.kind, op.name, ins, op.outputs, found.attributes, op.module, op.phase, found.work))
        if meets and SUM not in found.gives:
            self._late.note(ins, here)
        if self.seeds.gathered and op.phase == "forward" and op.module in self.seeds.gathered:
            self._gather_behind(op)

    def _note_part(self, op: Op, cuts: bool) -> None:
        """Of a view: which part of its storage it shows."""
        region = self.moves.region
        for t in op.outputs:
            if cuts:
                region[t] = t
            elif op.inputs[0] in region:
                region[t] = region[op.inputs[0]]

    def _gather_behind(self, op: Op) -> None:
        """From here on every rank has all of what a module gives whose style says so."""
        for t in op.outputs if op.kind is OpKind.MATMUL else ():
            if (have := self._place[t]) != WHOLE:
                self._id[t] = self.moves.lying(t, have, WHOLE, op)
                self._place[t] = WHOLE

    def _reached(self, op: Op) -> bool:
        """Whether an op of whole operands is divided all the same.

        Embeddings look up what their rank keeps; of a gradient a rank makes the part of its parameter.
        """
        if op.kind is OpKind.MATMUL or op.kind is OpKind.GROUPED_MATMUL:
            return bool(op.outputs) and op.outputs[0] in self._makes
        return (op.kind is OpKind.EMBEDDING and self.axis.sequence) or "embedding_dense_backward" in op.name

    def _give(self, op: Op, t: int, place: int, shape: Shape, padded: bool) -> None:
        self._place[t] = place
        if place == SUM:
            origin = self.moves.origin
            born = [origin[i] for i in op.inputs if i in origin]
            origin[t] = born[0] if born else op.module
            return
        tensor = self.graph.tensors[t]
        self.writer.tensors[t] = Tensor(tensor.name, shape, tensor.dtype, tensor.role, tensor.storage)
        if padded:
            self._pad.add(t)

    def _settle_storages(self, op: Op, ins: tuple[int, ...]) -> None:
        """A result that shares memory with an operand shares it with what the operand became."""
        tensors = self.graph.tensors
        for t in op.outputs:
            if tensors[t].storage != t:
                break
        else:
            return
        self.writer.settle_storages(op.inputs, ins, op.outputs, tensors)
        if op.kind is OpKind.VIEW:
            return
        for t in op.outputs:
            if tensors[t].storage != t:
                storage = self.writer.tensors[t].storage
                self.moves.written[storage] = self.moves.written.get(storage, 0) + 1

    # --- what is found once for equal ops -------------------------------------------------------------------------

    def _worked(self, op: Op, code: int, here: tuple[int, ...], padded: bool) -> _Worked:
        none = (False,) * len(here)
        summing, near = self._born(op, here) if SUM in here else (none, none)
        weight = self._weights.get(op.module, WHOLE)
        gradient = self._makes.get(op.outputs[0], WHOLE) if op.outputs else WHOLE
        key = (code, here, summing, near, weight, gradient, padded, op.phase)
        if (found := self._memo.get(key)) is not None:
            return found
        tensors, placements, sizes = self.graph.tensors, self.moves.placements, self.moves.sizes
        ins = tuple([tensors[t] for t in op.inputs])
        outs = tuple([tensors[t] for t in op.outputs])
        places = tuple([placements[p] for p in here])
        fallback = self._fallback(ins, outs)
        of = placements[weight], placements[gradient]
        call = Call(op, bare(op.name), ins, places, outs, summing, near, fallback, *of)
        rule = _RULES.get(op.kind)
        decision = (rule(call) if rule else None) or gathered(call)
        found = self._memo[key] = _Worked(
            self.moves.all_coded(decision.needs),
            self.moves.all_coded(decision.gives),
            tuple([sizes.shape(t, p, padded, op) for t, p in zip(outs, decision.gives, strict=True)]),
            *sizes.shrunk(op, decision, ins, outs, padded),
            decision.exchanges,
            decision.whole,
            call.function in PARTS and outs[0].shape != ins[0].shape,
        )
        return found

    def _born(self, op: Op, here: tuple[int, ...]) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
        """Of each operand that is a sum, whether *op* is inside the module that made it, and whether that is inside
        *op*'s."""
        origin = self.moves.origin
        born = [origin[t] if p == SUM else None for t, p in zip(op.inputs, here, strict=True)]
        inside = op.module + "."
        return (
            tuple([b is not None and op.module.startswith(b) for b in born]),
            tuple([b is not None and b.startswith(inside) for b in born]),
        )

    def _fallback(self, ins: tuple[Tensor, ...], outs: tuple[Tensor, ...]) -> Placement:
        """What a sum over the ranks becomes in front of an op that needs all of it.

        One value a row is a statistic of divided features, which every rank needs of every row.
        """
        if self._tokens is None:
            return REPLICATE
        widest = max((*outs, *ins), key=lambda t: len(t.shape), default=None)
        if widest is None or (len(widest.shape) > 2 and widest.shape[-1] == 1):
            return REPLICATE
        return token_dim(widest.shape, self._tokens) or REPLICATE


def _same_dim(state: Shape, parameter: Shape, dim: int) -> bool:
    """Whether an optimizer's state has the parameter's dim *dim*: factored ones (Adafactor) keep a row or a column."""
    return len(state) == len(parameter) and state[dim] == parameter[dim]
