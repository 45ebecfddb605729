"""Placement propagation over one axis of the mesh: local shapes, and collectives where placements disagree."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

from foretrace.ir import DTYPES, Graph, Op, OpKind, Role, Shape, Tensor, Work, op_work, prod
from foretrace.transforms.plan import PlanError, nearest_divisor

from .call import Call, Decision, gathered
from .matrix import MATRIX_RULES
from .placement import PARTIAL, REPLICATE, Placement, local_shape, shard, token_dim, token_sizes
from .rules import RULES
from .writer import COLLECTIVE_NAMES, Axis, Writer, bare

_RULES: Final = {**RULES, **MATRIX_RULES}
_WHOLE, _SUM = 0, 1
"""The codes of Replicate and of Partial."""


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


@dataclass
class Propagation:
    """Shards *graph* along *axis*, with *seeds* as placements of parameters by tensor id."""

    graph: Graph
    axis: Axis
    seeds: Mapping[int, Placement]
    padded: frozenset[int] = frozenset()
    """Parameters whose divided dim is filled up where it does not divide (vocabularies)."""
    regather: bool = True
    """What was gathered in the forward is gathered again in the backward, not kept."""
    gathered: dict[str, int] = field(default_factory=dict)
    """Operators without a rule for what they met, by name: how many were run whole."""

    def __post_init__(self) -> None:
        graph = self.graph
        self.writer = Writer(graph)
        self._code: dict[Placement, int] = {REPLICATE: _WHOLE, PARTIAL: _SUM}
        self._placements = [REPLICATE, PARTIAL]
        self._place = [_WHOLE] * len(graph.tensors)
        self._id: dict[int, int] = {}
        """Tensor → what stands for it from now on."""
        self._origin: dict[int, str] = {}
        """Of a sum, the module that made it."""
        self._pad: set[int] = set()
        self._moved: dict[tuple[int, int, str, int, str], int] = {}
        self._written: dict[int, int] = {}
        """How often each storage was written in place so far: what was gathered of it before is stale."""
        self._memo: dict[Any, _Worked] = {}
        self._parts: dict[Any, tuple[Shape, Any, Any]] = {}
        """Of what is asked for of a tensor: its shape, elements and the bytes of the whole."""
        names = {i: graph.tensors[i].name.removesuffix(".weight") for i in self.seeds}
        self._weights = {name: self.seeds[i] for i, name in names.items()}
        self._padded_weights = {names[i] for i in self.padded}
        self._tokens = token_sizes(graph.tensors) if self.axis.sequence else None

    def run(self) -> Graph:
        """The graph of one rank. Raises `PlanError` where a size does not divide."""
        graph = self.graph
        self._seed()
        optimizing = False
        for op, code in zip(graph.ops, graph.op_codes, strict=True):
            if op.phase == "optimizer" and not optimizing:
                optimizing = True
                self._sum_gradients()
            self._op(op, code)
        if not optimizing:
            self._sum_gradients()
        return replace(graph, tensors=tuple(self.writer.tensors), ops=tuple(self.writer.ops))

    def _seed(self) -> None:
        by_name = {self.graph.tensors[i].name: (p, i in self.padded) for i, p in self.seeds.items()}
        for i, tensor in enumerate(self.graph.tensors):
            if tensor.role is Role.OPTIMIZER_STATE and tensor.name.startswith("optimizer_state."):
                name = tensor.name.split(".", 2)[-1]
                if name in by_name and len(tensor.shape) > by_name[name][0].dim:
                    self._set(i, *by_name[name])
            elif i in self.seeds and tensor.storage == i:
                self._set(i, self.seeds[i], i in self.padded)
            elif tensor.role is Role.KV_CACHE and tensor.storage == i and self._by_heads(tensor):
                self._set(i, shard(1), False)

    def _by_heads(self, cache: Tensor) -> bool:
        """Whether a KV cache [batch, heads, tokens, width] is divided with attention's heads."""
        return len(cache.shape) == 4 and cache.shape[1] in self._cached_heads

    @cached_property
    def _cached_heads(self) -> set[Any]:
        return {op.attributes.get("kv_heads") for op in self.graph.ops if op.kind is OpKind.ATTENTION}

    def _set(self, i: int, place: Placement, padded: bool) -> None:
        tensor = self.graph.tensors[i]
        self.writer.tensors[i] = replace(tensor, shape=self._local(tensor, place, padded))
        self._place[i] = self._coded(place)
        if padded:
            self._pad.add(i)

    def _coded(self, place: Placement) -> int:
        if place not in self._code:
            self._code[place] = len(self._placements)
            self._placements.append(place)
        return self._code[place]

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
        ins = tuple(
            [
                self._id.get(t, t) if have == need else self._as(t, have, need, op)
                for t, have, need in zip(op.inputs, here, found.needs, strict=True)
            ]
        )
        if found.whole:
            self.gathered[op.name] = self.gathered.get(op.name, 0) + 1
        for _ in range(found.exchanged):
            ins = (*ins, self._exchange(ins[0], self._placements[found.needs[0]].dim, op))
        for t, gives, shape in zip(op.outputs, found.gives, found.shapes, strict=True):
            if gives:
                self._give(op, t, gives, shape, padded)
        self._settle_storages(op, ins)
        self.writer.ops.append(Op(op.kind, op.name, ins, op.outputs, found.attributes, op.module, op.phase, found.work))

    def _reached(self, op: Op) -> bool:
        """Whether an op of whole operands is divided all the same: embeddings look up what their rank keeps."""
        return (op.kind is OpKind.EMBEDDING and self.axis.sequence) or "embedding_dense_backward" in op.name

    def _give(self, op: Op, t: int, place: int, shape: Shape, padded: bool) -> None:
        self._place[t] = place
        if place == _SUM:
            born = [self._origin[i] for i in op.inputs if i in self._origin]
            self._origin[t] = born[0] if born else op.module
            return
        tensor = self.graph.tensors[t]
        self.writer.tensors[t] = Tensor(tensor.name, shape, tensor.dtype, tensor.role, tensor.storage)
        if padded:
            self._pad.add(t)

    def _settle_storages(self, op: Op, ins: tuple[int, ...]) -> None:
        """A result that shares memory with an operand shares it with what the operand became."""
        tensors, now = self.graph.tensors, self.writer.tensors
        shared = [t for t in op.outputs if tensors[t].storage != t]
        if not shared:
            return
        became = {tensors[t].storage: now[i].storage for t, i in zip(op.inputs, ins, strict=False)}
        for t in shared:
            storage = became.get(tensors[t].storage, now[t].storage)
            if op.kind is not OpKind.VIEW:
                self._written[storage] = self._written.get(storage, 0) + 1
            if storage != now[t].storage:
                tensor = now[t]
                now[t] = Tensor(tensor.name, tensor.shape, tensor.dtype, tensor.role, storage)

    # --- what is found once for equal ops -------------------------------------------------------------------------

    def _worked(self, op: Op, code: int, here: tuple[int, ...], padded: bool) -> _Worked:
        none = (False,) * len(here)
        summing, near = self._born(op, here) if _SUM in here else (none, none)
        weight = self._weights.get(op.module, REPLICATE)
        key = (code, here, summing, near, weight is REPLICATE, padded)
        if (found := self._memo.get(key)) is not None:
            return found
        ins = tuple([self.graph.tensors[t] for t in op.inputs])
        outs = tuple([self.graph.tensors[t] for t in op.outputs])
        places = tuple([self._placements[p] for p in here])
        call = Call(op, bare(op.name), ins, places, outs, summing, near, self._fallback(ins, outs), weight)
        rule = _RULES.get(op.kind)
        decision = (rule(call) if rule else None) or gathered(call)
        shapes = tuple([self._local(t, p, padded, op) for t, p in zip(outs, decision.gives, strict=True)])
        found = self._memo[key] = _Worked(
            tuple([self._coded(p) for p in decision.needs]),
            tuple([self._coded(p) for p in decision.gives]),
            shapes,
            *self._shrunk(op, decision, ins, outs, padded),
            decision.exchanges,
            decision.whole,
        )
        return found

    def _born(self, op: Op, here: tuple[int, ...]) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
        """Of each operand that is a sum, whether *op* is inside the module that made it, and whether that is inside
        *op*'s."""
        born = [self._origin[t] if p == _SUM else None for t, p in zip(op.inputs, here, strict=True)]
        inside = op.module + "."
        return (
            tuple([b is not None and op.module.startswith(b) for b in born]),
            tuple([b is not None and b.startswith(inside) for b in born]),
        )

    def _fallback(self, ins: tuple[Tensor, ...], outs: tuple[Tensor, ...]) -> Placement:
        """What a sum over the ranks becomes in front of an op that needs all of it."""
        if self._tokens is None:
            return REPLICATE
        widest = max((*outs, *ins), key=lambda t: len(t.shape), default=None)
        found = token_dim(widest.shape, self._tokens) if widest is not None else None
        return found or REPLICATE

    def _shrunk(
        self, op: Op, decision: Decision, ins: tuple[Tensor, ...], outs: tuple[Tensor, ...], padded: bool
    ) -> tuple[Mapping[str, Any], Work]:
        """Attributes and work of a rank's part of *op*."""
        ranks = self.axis.ranks
        if not any(p.shards for p in (*decision.needs, *decision.gives)):
            return op.attributes, op.work
        attributes = dict(op.attributes)
        for name in decision.divided:
            attributes[name] = self._divided(op, name, padded)
        local = [replace(t, shape=self._local(t, p, padded, op)) for t, p in zip(ins, decision.needs, strict=True)]
        function, w = bare(op.name), op.work
        if function.startswith("_foreach_"):  # long lists: in proportion
            whole, mine = (sum(prod(t.shape) for t in tensors) for tensors in (ins, local))
            return attributes, _scaled(w, mine, whole)
        if op_work(op.kind, function, op.attributes, ins, outs) == w:
            made = [replace(t, shape=self._local(t, p, padded, op)) for t, p in zip(outs, decision.gives, strict=True)]
            return attributes, op_work(op.kind, function, attributes, local, made)
        return attributes, _scaled(w, 1, ranks)  # a front end knew better what is read

    def _divided(self, op: Op, name: str, padded: bool) -> Any:
        size, ranks = op.attributes[name], self.axis.ranks
        if not isinstance(size, int):
            return size // ranks
        if size % ranks and not padded:
            raise PlanError(
                f"plan: {self.axis.name}={ranks} does not divide {name}={size} of {bare(op.name)} in {op.module}; "
                f"nearest is {self.axis.name}={nearest_divisor(size, ranks)}"
            )
        return -(-size // ranks)

    def _local(self, tensor: Tensor, place: Placement, padded: bool, at: Op | None = None) -> Any:
        """The shape of a rank's part of *tensor*."""
        if not place.shards:
            return tensor.shape
        try:
            return local_shape(tensor.shape, place, self.axis.ranks, padded)
        except PlanError as error:
            size = tensor.shape[place.dim]
            near = nearest_divisor(size, self.axis.ranks) if isinstance(size, int) else 1
            shape = ", ".join(map(str, tensor.shape))
            where = tensor.name or (f"a result of {bare(at.name)} in {at.module}" if at else "a tensor")
            raise PlanError(
                f"plan: {self.axis.name}={self.axis.ranks}: {error}: dim {place.dim} of {where} [{shape}]; "
                f"nearest is {self.axis.name}={near}"
            ) from None

    # --- collectives ----------------------------------------------------------------------------------------------

    def _as(self, t: int, have: int, need: int, op: Op) -> int:
        """The tensor that holds *t* in the placement *need*, made once a phase."""
        at, place = self._id.get(t, t), self._placements[need]
        now, whole = self.writer.tensors[at], self.graph.tensors[t]
        role = whole.role if whole.role in (Role.GRADIENT, Role.OUTPUT) else Role.ACTIVATION
        wanted = (whole.shape, whole.dtype, need, t in self._pad)
        if wanted not in self._parts:
            shape = self._local(whole, place, t in self._pad, op)
            self._parts[wanted] = shape, prod(shape), whole.bytes
        shape, elements, size = self._parts[wanted]
        made = Tensor(whole.name, shape, whole.dtype, role, -1)
        if have == _WHOLE:
            return self.writer.view(at, made, "aten.narrow.default", op)
        sort = _collective(self._placements[have], place)
        again = self.regather and sort == "all_gather"  # sums are kept for the backward
        key = (now.storage, self._written.get(now.storage, 0), sort, need if place.shards else -1, op.phase * again)
        done = self._moved.get(key, -1)
        if done >= 0 and self.writer.tensors[done].shape == shape:
            return done
        if done >= 0 and self.writer.tensors[done].elements == elements:
            return self.writer.view(done, made, "aten.view.default", op)
        if have == _SUM:
            op = replace(op, module=self._origin[t])  # a sum belongs to the module that makes it
        size = now.bytes if sort == "all_to_all" else size
        self._moved[key] = self.writer.collective(sort, self.axis, at, made, size, op)
        return self._moved[key]

    def _exchange(self, source: int, dim: int, op: Op) -> int:
        """One float32 value a row, all-reduced: what a softmax over the divided *dim* needs of the other ranks."""
        tensor = self.writer.tensors[source]
        shape = tuple(1 if i == dim else size for i, size in enumerate(tensor.shape))
        stat = Tensor("", shape, DTYPES["float32"], Role.ACTIVATION, -1)
        return self.writer.collective("all_reduce", self.axis, source, stat, stat.bytes, op)

    def _sum_gradients(self) -> None:
        """One all-reduce of all gradients that are still sums over the ranks, as Megatron-LM's of its norms."""
        last: dict[int, int] = {}
        known = len(self._place)
        for op in self.writer.ops:
            for t in op.outputs:
                if t < known and self._place[t] == _SUM and self.graph.tensors[t].role is Role.GRADIENT:
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
        for i, place in enumerate(self._place):
            if place == _SUM and (new := of_storage.get(self.writer.tensors[i].storage)) is not None:
                self._place[i] = _WHOLE
                self._id[i] = new


def _scaled(w: Work, part: Any, whole: Any) -> Work:
    sizes = (w.matrix_flops, w.vector_flops, w.special_flops, w.bytes_read, w.bytes_written)
    return Work(*(size * part // whole for size in sizes))


def _collective(have: Placement, need: Placement) -> str:
    """What turns one placement into another."""
    if have.partial:
        return "reduce_scatter" if need.shards else "all_reduce"
    if need.partial:
        raise PlanError("a divided tensor cannot become a sum")
    return "all_to_all" if need.shards else "all_gather"
