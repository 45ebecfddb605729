"""Placement propagation over one axis of the mesh: local shapes, and collectives where placements disagree."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from foretrace.ir import DTYPES, Graph, Op, OpKind, Role, Shape, Tensor, Work, op_work
from foretrace.transforms.plan import PlanError, nearest_divisor

from .call import Call, Decision, gathered
from .matrix import MATRIX_RULES
from .placement import REPLICATE, Placement, local_shape, shard, token_dim, token_sizes
from .rules import RULES
from .writer import COLLECTIVE_NAMES, Axis, Writer, bare

_RULES: Final = {**RULES, **MATRIX_RULES}

_Worked = tuple[Decision, Mapping[str, Any], Work, tuple[Shape, ...]]


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
    _place: dict[int, Placement] = field(default_factory=dict)
    _id: dict[int, int] = field(default_factory=dict)
    _origin: dict[int, str] = field(default_factory=dict)
    _pad: set[int] = field(default_factory=set)
    _moved: dict[tuple[int, int, str, Placement | None, str], int] = field(default_factory=dict)
    _written: dict[int, int] = field(default_factory=dict)
    """How often each storage was written in place so far: what was gathered of it before is stale."""
    _memo: dict[Any, "_Worked"] = field(default_factory=dict)
    gathered: dict[str, int] = field(default_factory=dict)
    """Operators without a rule for what they met, by name: how many were run whole."""

    def run(self) -> Graph:
        """The graph of one rank. Raises `PlanError` where a size does not divide."""
        graph = self.graph
        self.writer = Writer(graph)
        formats: dict[Any, int] = {}
        self._format = [formats.setdefault((t.shape, t.dtype.name), len(formats)) for t in graph.tensors]
        self._weights = {
            t.name.removesuffix(".weight"): self.seeds[i]
            for i, t in enumerate(graph.tensors)
            if i in self.seeds and t.role is Role.PARAMETER and t.name.endswith(".weight")
        }
        self._padded_weights = {graph.tensors[i].name.removesuffix(".weight") for i in self.padded}
        self._tokens = token_sizes(graph.tensors) if self.axis.sequence else None
        self._seed()
        optimizing = False
        for op in graph.ops:
            if op.phase == "optimizer" and not optimizing:
                optimizing = True
                self._sum_gradients()
            self._op(op)
        if not optimizing:
            self._sum_gradients()
        return replace(graph, tensors=tuple(self.writer.tensors), ops=tuple(self.writer.ops))

    def _seed(self) -> None:
        by_name = {self.graph.tensors[i].name: (p, i in self.padded) for i, p in self.seeds.items()}
        for i, tensor in enumerate(self.graph.tensors):
            if tensor.role is Role.OPTIMIZER_STATE and tensor.name.startswith("optimizer_state."):
                name = tensor.name.split(".", 2)[-1]
                if name in by_name and len(tensor.shape) > by_name[name][0].dim:
                    self._set(i, by_name[name][0], by_name[name][1])
            elif i in self.seeds and tensor.storage == i:
                self._set(i, self.seeds[i], i in self.padded)
            elif tensor.role is Role.KV_CACHE and tensor.storage == i and len(tensor.shape) == 4:
                heads = self._cache_heads
                if tensor.shape[1] in heads:
                    self._set(i, shard(1))

    @property
    def _cache_heads(self) -> set[Any]:
        if not hasattr(self, "_heads"):
            self._heads = (
                {op.attributes.get("kv_heads") for op in self.graph.ops if op.kind is OpKind.ATTENTION}
                if any(p.shards for p in self.seeds.values())
                else set()
            )
        return self._heads

    def _set(self, i: int, place: Placement, padded: bool = False) -> None:
        tensor = self.graph.tensors[i]
        self.writer.tensors[i] = replace(tensor, shape=self._local(tensor, place, padded))
        self._place[i] = place
        if padded:
            self._pad.add(i)

    def _local(self, tensor: Tensor, place: Placement, padded: bool, at: Op | None = None) -> Any:
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

    def _op(self, op: Op) -> None:
        places = tuple([self._place.get(t, REPLICATE) for t in op.inputs])
        if not any(p is not REPLICATE for p in places) and not self._reached(op):
            self._keep(op)
            return
        decision, attributes, work, shapes = self._decided(op, places)
        ins = tuple(
            [
                self._as(t, have, need, op) if have != need else self._id.get(t, t)
                for t, have, need in zip(op.inputs, places, decision.needs, strict=True)
            ]
        )
        if decision.whole:
            self.gathered[op.name] = self.gathered.get(op.name, 0) + 1
        for _ in range(decision.exchanges):
            ins = (*ins, self._exchange(ins[0], decision, op))
        padded = self._is_padded(op)
        for t, place, shape in zip(op.outputs, decision.gives, shapes, strict=True):
            if place is not REPLICATE:
                self._give(op, t, place, shape, padded)
        self._settle_storages(op, ins)
        self.writer.ops.append(Op(op.kind, op.name, ins, op.outputs, attributes, op.module, op.phase, work))

    def _is_padded(self, op: Op) -> bool:
        return op.module in self._padded_weights or any(t in self._pad for t in op.inputs)

    def _reached(self, op: Op) -> bool:
        """Whether an op of whole operands is divided all the same: embeddings look up what their rank keeps."""
        return (op.kind is OpKind.EMBEDDING and self.axis.sequence) or "embedding_dense_backward" in op.name

    def _keep(self, op: Op) -> None:
        ins = tuple([self._id.get(t, t) for t in op.inputs]) if self._id else op.inputs
        self._settle_storages(op, ins)
        self.writer.ops.append(op if ins == op.inputs else replace(op, inputs=ins))

    def _give(self, op: Op, t: int, place: Placement, shape: Shape, padded: bool) -> None:
        self._place[t] = place
        if place.partial:
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
                now[t] = replace(now[t], storage=storage)

    def _decided(self, op: Op, places: tuple[Placement, ...]) -> _Worked:
        """The decision, attributes, work and shapes of results of *op*; equal ops are worked out once."""
        module = op.module
        summing = tuple(
            [p.partial and module.startswith(self._origin.get(t, "?")) for t, p in zip(op.inputs, places, strict=True)]
        )
        inside = module + "."
        near = tuple(
            [p.partial and self._origin.get(t, "").startswith(inside) for t, p in zip(op.inputs, places, strict=True)]
        )
        weight = self._weights.get(module, REPLICATE)
        padded = self._is_padded(op)
        key = (
            op.kind, op.name, op.work, tuple(op.attributes.items()), places, summing, near, weight, padded,
            tuple([self._format[t] for t in op.inputs]), tuple([self._format[t] for t in op.outputs]),
        )  # fmt: skip
        if (found := self._memo.get(key)) is not None:
            return found
        ins = tuple([self.graph.tensors[t] for t in op.inputs])
        outs = tuple([self.graph.tensors[t] for t in op.outputs])
        call = Call(op, bare(op.name), ins, places, outs, summing, near, self._fallback(ins, outs), weight)
        rule = _RULES.get(op.kind)
        decision = (rule(call) if rule else None) or gathered(call)
        shapes = tuple(self._local(t, p, padded, op) for t, p in zip(outs, decision.gives, strict=True))
        found = (decision, *self._shrunk(op, decision, ins, outs, padded), shapes)
        self._memo[key] = found
        return found

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
        ranks = self.axis.ranks
        if not any(p.shards for p in (*decision.needs, *decision.gives)):
            return op.attributes, op.work
        attributes = dict(op.attributes)
        for name in decision.divided:
            size = attributes[name]
            if isinstance(size, int) and size % ranks and not padded:
                near = nearest_divisor(size, ranks)
                raise PlanError(
                    f"plan: {self.axis.name}={ranks} does not divide {name}={size} of {bare(op.name)} in {op.module}; "
                    f"nearest is {self.axis.name}={near}"
                )
            attributes[name] = -(-size // ranks) if isinstance(size, int) else size // ranks
        local = [replace(t, shape=self._local(t, p, padded, op)) for t, p in zip(ins, decision.needs, strict=True)]
        made = [replace(t, shape=self._local(t, p, padded, op)) for t, p in zip(outs, decision.gives, strict=True)]
        function = bare(op.name)
        if op_work(op.kind, function, op.attributes, ins, outs) == op.work:
            return attributes, op_work(op.kind, function, attributes, local, made)
        w = op.work  # a front end that knew better what is read
        return attributes, Work(
            *(x // ranks for x in (w.matrix_flops, w.vector_flops, w.special_flops, w.bytes_read, w.bytes_written))
        )

    def _as(self, t: int, have: Placement, need: Placement, op: Op) -> int:
        """The tensor that holds *t* in the placement *need*, made once a phase."""
        at = self._id.get(t, t)
        now, whole = self.writer.tensors[at], self.graph.tensors[t]
        made = Tensor(whole.name, self._local(whole, need, t in self._pad, op), whole.dtype, _role(whole), -1)
        if have == REPLICATE:
            return self.writer.view(at, made, "aten.narrow.default", op)
        sort = _collective(have, need)
        again = self.regather and sort == "all_gather"  # sums are kept for the backward
        phase = op.phase if again else ""
        key = (now.storage, self._written.get(now.storage, 0), sort, need if need.shards else None, phase)
        if key in self._moved:
            done = self._moved[key]
            if self.writer.tensors[done].elements == made.elements:
                same = self.writer.tensors[done].shape == made.shape
                return done if same else self.writer.view(done, made, "aten.view.default", op)
        new = self._redistributed(at, sort, made, whole, op, self._origin.get(t) if have.partial else None)
        self._moved[key] = new
        return new

    def _redistributed(self, at: int, sort: str, made: Tensor, whole: Tensor, op: Op, born: str | None) -> int:
        if born is not None:  # a sum belongs to the module that makes it
            op = replace(op, module=born)
        if sort == "shard_to_shard":
            return self.writer.collective("all_to_all", self.axis, at, made, self.writer.tensors[at].bytes, op)
        return self.writer.collective(sort, self.axis, at, made, whole.bytes, op)

    def _exchange(self, source: int, decision: Decision, op: Op) -> int:
        """One float32 value a row, all-reduced: what a softmax over a divided dim needs of the other ranks."""
        tensor = self.writer.tensors[source]
        dim = decision.needs[0].dim
        shape = tuple(1 if i == dim else size for i, size in enumerate(tensor.shape))
        stat = Tensor("", shape, DTYPES["float32"], Role.ACTIVATION, -1)
        return self.writer.collective("all_reduce", self.axis, source, stat, stat.bytes, op)

    def _sum_gradients(self) -> None:
        """One all-reduce of all gradients that are still sums over the ranks, as Megatron-LM's of its norms."""
        last: dict[int, int] = {}
        for op in self.writer.ops:
            for t in op.outputs:
                if self.writer.tensors[t].role is Role.GRADIENT and self._place.get(t, REPLICATE).partial:
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
        storages = {self.writer.tensors[t].storage for t in sums}
        for i in range(len(self.graph.tensors)):
            if self.writer.tensors[i].storage in storages and self._place.get(i, REPLICATE).partial:
                self._place[i] = REPLICATE
                self._id[i] = made[sums.index(last[self.writer.tensors[i].storage])]


def _role(tensor: Tensor) -> Role:
    return tensor.role if tensor.role in (Role.GRADIENT, Role.OUTPUT) else Role.ACTIVATION


def _collective(have: Placement, need: Placement) -> str:
    """What turns one placement into another."""
    if have.partial:
        return "reduce_scatter" if need.shards else "all_reduce"
    if need.partial:
        raise PlanError("a divided tensor cannot become a sum")
    return "shard_to_shard" if need.shards else "all_gather"
