"""Tensors in another placement: narrowed where they are whole, made again where they are constants, else moved."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from foretrace.ir import DTYPES, Graph, Op, OpKind, Role, Shape, Tensor, op_work, prod
from foretrace.transforms.plan import PlanError

from .placement import PARTIAL, REPLICATE, Placement
from .sizes import Sizes
from .views import PARTS
from .writer import COLLECTIVE_NAMES, Writer, bare

WHOLE, SUM = 0, 1
"""The codes of Replicate and of Partial."""

_CONSTANTS: Final = ("new_zeros", "new_empty", "new_ones", "new_full", "zeros", "ones", "full", "empty")


@dataclass(frozen=True, slots=True)
class Narrowed:
    """A whole parameter, or a view of it, of which an op took a rank's part."""

    tensor: int
    place: Placement
    padded: bool


class Moves:
    """How every tensor of *graph* lies by now, and how it comes to lie otherwise."""

    def __init__(self, graph: Graph, sizes: Sizes, regather: bool) -> None:
        self.graph, self.sizes, self.axis, self.regather = graph, sizes, sizes.axis, regather
        self.writer = Writer(graph)
        self.placements = [REPLICATE, PARTIAL]
        self._code: dict[Placement, int] = {REPLICATE: WHOLE, PARTIAL: SUM}
        self.place = [WHOLE] * len(graph.tensors)
        """Tensor → the code of its placement."""
        self.id: dict[int, int] = {}
        """Tensor → what stands for it from now on."""
        self.origin: dict[int, str] = {}
        """Of a sum, the module that made it."""
        self.pad: set[int] = set()
        self.written: dict[int, int] = {}
        """How often each storage was written in place so far: what was gathered of it before is stale."""
        self.region: dict[int, int] = {}
        """Of a part of a tensor (one of a split), which: parts share their storage, not what is gathered of them."""
        self.narrowed: dict[int, dict[int, Narrowed]] = {}
        """Parameter or cache → op (`id`) → what it took of it."""
        self._moved: dict[tuple[Any, ...], int] = {}
        self._parts: dict[Any, tuple[Shape, Any, Any]] = {}
        """Of what is asked for of a tensor: its shape, elements and the bytes of the whole."""
        self._constants = dict(_constants(graph))
        self._again: dict[tuple[int, int], int] = {}

    def coded(self, place: Placement) -> int:
        """The code of *place*."""
        if place not in self._code:
            self._code[place] = len(self.placements)
            self.placements.append(place)
        return self._code[place]

    def all_coded(self, places: Sequence[Placement]) -> tuple[int, ...]:
        """The codes of *places*; lists of parameters are long and have few."""
        known: dict[int, int] = {}
        found = []
        for place in places:
            code = known.get(id(place))
            if code is None:
                code = known[id(place)] = self.coded(place)
            found.append(code)
        return tuple(found)

    def lying(self, t: int, have: int, need: int, op: Op, padding: bool = False) -> int:
        """The tensor that holds *t* in the placement *need* for *op*; what travels does so once a phase.

        With *padding* a part of what is whole may be filled up, as the other operands are.
        """
        at, place = self.id.get(t, t), self.placements[need]
        now, whole = self.writer.tensors[at], self.graph.tensors[t]
        role = whole.role if whole.role in (Role.GRADIENT, Role.OUTPUT) else Role.ACTIVATION
        padded = t in self.pad or (padding and have == WHOLE)
        wanted = (whole.shape, whole.dtype, need, padded)
        if wanted not in self._parts:
            shape = self.sizes.shape(whole, place, padded, op)
            self._parts[wanted] = shape, prod(shape), whole.bytes
        shape, elements, size = self._parts[wanted]
        made = Tensor(whole.name, shape, whole.dtype, role, -1)
        if t in self._constants and not self.written.get(now.storage):
            return self._made_again(t, need, made, op)
        if have == WHOLE:
            self._note(t, place, op, padded)
            return self.writer.view(at, made, "aten.narrow.default", op)
        sort = _collective(self.placements[have], place)
        again = self.regather and sort == "all_gather"  # sums are kept for the backward
        version = self.written.get(now.storage, 0)
        part = self.region.get(t, -1)
        key = (now.storage, part, version, sort, need if place.shards else -1, op.phase * again)
        done = self._moved.get(key, -1)
        if done >= 0 and self.writer.tensors[done].shape == shape:
            return done
        if done >= 0 and self.writer.tensors[done].elements == elements:
            return self.writer.view(done, made, "aten.view.default", op)
        if sort == "all_gather" and (larger := self._enlarged(t, op)):
            self._moved[key] = self._gathered_before(larger, op)
            return self._moved[key]
        if have == SUM:
            op = replace(op, module=self.origin[t])  # a sum belongs to the module that makes it
        size = now.bytes if sort == "all_to_all" else size
        self._moved[key] = self.writer.collective(sort, self.axis, at, made, size, op)
        return self._moved[key]

    def _note(self, t: int, place: Placement, op: Op, padded: bool) -> None:
        root = self.graph.tensors[t].storage
        if not place.tokens and self.graph.tensors[root].role in (Role.PARAMETER, Role.KV_CACHE):
            self.narrowed.setdefault(root, {})[id(op)] = Narrowed(t, place, padded)

    # --- constants ------------------------------------------------------------------------------------------------

    def _made_again(self, t: int, need: int, made: Tensor, op: Op) -> int:
        """A constant is not moved but made in the placement that is needed."""
        if (t, need) not in self._again:
            source = self._constants[t]
            out = self._again[t, need] = self.writer.add(made)
            ins = tuple(self.id.get(i, i) for i in source.inputs)
            tensors = self.writer.tensors
            work = op_work(source.kind, bare(source.name), source.attributes, [tensors[i] for i in ins], [tensors[out]])
            self.writer.ops.append(replace(source, inputs=ins, outputs=(out,), phase=op.phase, work=work))
        return self._again[t, need]

    def unread_constants(self) -> None:
        """Leave out the constants that were all made again in other placements."""
        replaced = {t for t, _ in self._again}
        if not replaced:
            return
        owners = {self.writer.tensors[t].storage for op in self.writer.ops for t in op.outputs if t not in replaced}
        unread = replaced - {t for op in self.writer.ops for t in op.inputs} - owners
        self.writer.ops = [op for op in self.writer.ops if unread.isdisjoint(op.outputs)]

    # --- collectives ----------------------------------------------------------------------------------------------

    def _enlarged(self, t: int, at: Op) -> list[Op]:
        """The views and copies that *t* was made by, from the first that made it larger (repeated rows, more bits)."""
        chain: list[Op] = []
        larger = 0
        while (i := self.graph.producers.get(t)) is not None:
            op = self.graph.ops[i]
            if op.kind not in (OpKind.VIEW, OpKind.COPY) or len(op.inputs) != 1 or len(op.outputs) != 1:
                break
            before, after = self.graph.tensors[op.inputs[0]], self.graph.tensors[t]
            function = bare(op.name)
            if function in PARTS or not self.placements[self.place[op.inputs[0]]].shards:
                break
            chain.append(op)
            t = op.inputs[0]
            if (function == "expand" and before.shape != after.shape) or before.dtype.bits < after.dtype.bits:
                larger = len(chain)
            elif op.kind is OpKind.COPY and before.shape != after.shape:
                chain.pop()
                break
        chain = chain[:larger][::-1]
        return [] if chain and self._rewritten(chain[0], at) else chain

    def _rewritten(self, op: Op, at: Op) -> bool:
        """Whether the operand of *op* was written in place before *at*: what was made of it is not made again."""
        tensors = self.graph.tensors
        storage = tensors[op.inputs[0]].storage
        for i in range(self.graph.producers[op.outputs[0]] + 1, len(self.graph.ops)):
            between = self.graph.ops[i]
            if between is at:
                return False
            if between.kind is not OpKind.VIEW and any(tensors[t].storage == storage for t in between.outputs):
                return True
        return True

    def _gathered_before(self, chain: list[Op], at: Op) -> int:
        """What *chain* makes of its gathered operand: fewer bytes travel than of its result."""
        first = chain[0].inputs[0]
        have = self.place[first]
        now = first if have == WHOLE else self.lying(first, have, WHOLE, at)
        for op in chain:
            out = replace(self.graph.tensors[op.outputs[0]], storage=-1)
            if op.kind is OpKind.VIEW:
                out = replace(out, storage=self.writer.tensors[now].storage)
            made = self.writer.add(out)
            self.writer.ops.append(replace(op, inputs=(now,), outputs=(made,)))
            now = made
        return now

    def exchange(self, source: int, dim: int, op: Op) -> int:
        """One float32 value a row, all-reduced: what a softmax over the divided *dim* needs of the other ranks."""
        tensor = self.writer.tensors[source]
        shape = tuple(1 if i == dim else size for i, size in enumerate(tensor.shape))
        stat = Tensor("", shape, DTYPES["float32"], Role.ACTIVATION, -1)
        return self.writer.collective("all_reduce", self.axis, source, stat, stat.bytes, op)

    def sum_gradients(self) -> None:
        """One all-reduce of all gradients that are still sums over the ranks, as Megatron-LM's of its norms."""
        last: dict[int, int] = {}
        known = len(self.place)
        for op in self.writer.ops:
            for t in op.outputs:
                if t < known and self.place[t] == SUM and self.graph.tensors[t].role is Role.GRADIENT:
                    last[self.writer.tensors[t].storage] = t
        if not last:
            return
        sums = list(last.values())
        made = tuple(self.writer.add(self.writer.tensors[t]) for t in sums)
        tensors = [self.writer.tensors[t] for t in sums]
        total = sum(t.bytes for t in tensors)
        attributes = {"bytes": total, "group": self.axis.name, "ranks": self.axis.ranks, "stride": self.axis.stride}
        work = op_work(OpKind.COLLECTIVE, "all_reduce", attributes, tensors, tensors)
        name = COLLECTIVE_NAMES["all_reduce"]
        self.writer.ops.append(Op(OpKind.COLLECTIVE, name, tuple(sums), made, attributes, "", "optimizer", work))
        of_storage = {self.writer.tensors[t].storage: new for t, new in zip(sums, made, strict=True)}
        for i, place in enumerate(self.place):
            if place == SUM and (new := of_storage.get(self.writer.tensors[i].storage)) is not None:
                self.place[i] = WHOLE
                self.id[i] = new

    def whole_outputs(self) -> None:
        """What is handed out is whole: sums are completed and features gathered; of tokens a rank gives its own."""
        last = {t: op for op in self.writer.ops for t in op.outputs}
        for t, tensor in enumerate(self.graph.tensors):
            if tensor.role is Role.OUTPUT and self.place[t] != WHOLE and t in last:
                if self.placements[self.place[t]].tokens:
                    continue
                self.lying(t, self.place[t], WHOLE, last[t])
                self.writer.tensors[t] = replace(self.writer.tensors[t], role=Role.ACTIVATION)


def _constants(graph: Graph) -> Iterator[tuple[int, Op]]:
    """Tensors whose values no other decides, with the ops that make them."""
    known: dict[str, bool] = {}
    for op in graph.ops:
        if op.name not in known:
            function = bare(op.name)
            known[op.name] = function.startswith(_CONSTANTS) or function in tuple(f"{c}_like" for c in _CONSTANTS)
        if known[op.name] and len(op.outputs) == 1:
            yield op.outputs[0], op


def _collective(have: Placement, need: Placement) -> str:
    """What turns one placement into another."""
    if have.partial:
        return "reduce_scatter" if need.shards else "all_reduce"
    if need.partial:
        raise PlanError("a divided tensor cannot become a sum")
    return "all_to_all" if need.shards else "all_gather"
