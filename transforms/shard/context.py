"""Context parallel as a pass: the sequence is divided, and attention is what has to see all of it.

A rank's graph is the whole one at a sequence of seq / ranks; only attention changes. Keys and values are gathered in
front of it and their gradients scattered behind its backward (Llama 3, arXiv:2407.21783, section 3.3.2), or passed
around a ring in steps that overlap with the attention of the part that is there (Liu et al. 2023, arXiv:2310.01889).
Tokens lie in 2 · ranks chunks, of which a rank takes the i-th and the i-th from the end, so that causal attention is
as much work for each: half of queries times keys.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

from foretrace.ir import Dim, DimLike, DType, Graph, Op, OpKind, Role, Shape, Tensor, Work, op_work
from foretrace.transforms.plan import PlanError

from .writer import Axis, Writer, bare

_KEYS: Final = (1, 2)
"""Which operands of attention, and which of its gradients, are of keys and values."""


@dataclass(frozen=True)
class ContextParallel:
    """Divide the sequence among `ranks`; bind the symbol ``seq`` of the result to the tokens of one rank."""

    name: ClassVar[str] = "context_parallel"
    ranks: int
    stride: int = 1
    ring: bool = False

    def run(self, graph: Graph) -> Graph:
        """The local graph. Raises `PlanError` where ``seq`` is not open, or what reads all of it is not understood."""
        if self.ranks == 1:
            return graph
        _check(graph, f"plan: cp={self.ranks}")
        return _Division(graph, self).run()


def _check(graph: Graph, plan: str) -> None:
    if "seq" not in graph.symbols:
        raise PlanError(f"{plan}: {graph.name} has no open size seq; capture it with --seq 128")
    if any(t.role is Role.KV_CACHE for t in graph.tensors):
        raise PlanError(f"{plan} of a graph with a KV cache is not modelled; use cp=1")
    if any("algorithm" in op.attributes for op in graph.ops if op.kind is OpKind.SCAN):
        raise PlanError(f"{plan}: {graph.name} hands a state on from token to token, over ranks not modelled; use cp=1")
    attentions = [op for op in graph.ops if op.kind is OpKind.ATTENTION]
    if not attentions:
        raise PlanError(
            f"{plan}: the attention of {graph.name} is not one operator but products and a softmax, "
            "whose keys are not seen as such; capture it with --attention sdpa, or use cp=1"
        )
    for op in attentions:
        sizes = op.attributes["q_len"], op.attributes["kv_len"]
        for size in sizes:
            if others := sorted(_symbols(size) - {"seq", "batch"}):
                raise PlanError(
                    f"{plan}: {op.module} of {graph.name} attends over {others[0]} beside seq (an encoder and a "
                    "decoder), and only seq would be divided; use cp=1"
                )
        operands = [graph.tensors[t].shape for t in op.inputs[3:]]
        if not op.attributes.get("causal") and _symbols(sizes[1]) and any(s[-2:] == sizes for s in operands):
            raise PlanError(
                f"{plan}: {op.module} of {graph.name} reads a mask or bias of queries by keys, which a rank has for "
                "its own keys only; use cp=1"
            )


def _symbols(size: DimLike) -> frozenset[str]:
    return size.symbols if isinstance(size, Dim) else frozenset()


class _Division:
    """One graph being divided."""

    def __init__(self, graph: Graph, how: ContextParallel) -> None:
        self.graph, self.how = graph, how
        self.writer, self.axis = Writer(graph), Axis("cp", how.ranks, how.stride)
        self.whole: dict[tuple[int, str], int] = {}
        """Keys or values gathered in a phase."""
        self.works: dict[int, Work] = {}
        """Of ops of one code: the work over a rank's part of the keys, or over all."""
        self.sums: dict[tuple[Shape, DType], Work] = {}

    def run(self) -> Graph:
        """The graph of one rank."""
        graph = self.graph
        for op, code in zip(graph.ops, graph.op_codes, strict=True):
            attends = op.kind is OpKind.ATTENTION and len(op.inputs) > 2
            if not attends or "seq" not in _symbols(op.attributes["kv_len"]):  # all of what it reads is on every rank
                self.writer.ops.append(op)
            elif self.how.ring:
                self._ring(op, code)
            else:
                self._gathering(op, code)
        return replace(graph, tensors=tuple(self.writer.tensors), ops=tuple(self.writer.ops))

    def _gathering(self, op: Op, code: int) -> None:
        """Attention over gathered keys; in the backward their gradients are scattered to where they belong."""
        keys = [self._gathered(op, t) for t in op.inputs[1:3]]
        of_keys = {t: self.writer.add(self._long(self.writer.tensors[t])) for t in self._gradients(op)}
        attributes = {**op.attributes, "kv_len": op.attributes["kv_len"] * self.how.ranks}
        outs = tuple(of_keys.get(t, t) for t in op.outputs)
        self._attend(op, code, (op.inputs[0], *keys, *op.inputs[3:]), outs, attributes)
        for t, source in of_keys.items():
            bytes_ = self.writer.tensors[source].bytes
            self.writer.collect("reduce_scatter", self.axis, (source,), (t,), bytes_, op)

    def _gathered(self, op: Op, t: int) -> int:
        if (t, op.phase) not in self.whole:
            out = self._long(self.writer.tensors[t])
            self.whole[t, op.phase] = self.writer.collective("all_gather", self.axis, t, out, out.bytes, op)
        return self.whole[t, op.phase]

    def _long(self, tensor: Tensor) -> Tensor:
        """Keys or values [batch, heads, tokens, width] of all ranks."""
        shape = (*tensor.shape[:2], tensor.shape[2] * self.how.ranks, *tensor.shape[3:])
        return replace(tensor, name="", shape=shape, role=Role.ACTIVATION, storage=-1)

    def _gradients(self, op: Op) -> tuple[int, ...]:
        """Of a backward, the results that are gradients of keys and values."""
        if not op.attributes.get("backward"):
            return ()
        wrt = op.attributes.get("wrt", (0, 1, 2))
        return tuple(t for t, i in zip(op.outputs, wrt, strict=False) if i in _KEYS)

    def _ring(self, op: Op, code: int) -> None:
        """One attention a step over the part that is there, while the part of the next step arrives.

        In the backward the gradients of a part follow it around, each rank adding its own, and take one hop more,
        home. What a step finds of the queries' side is not written apart (its kernels add to what is there).
        """
        parts, gradients = op.inputs[1:3], self._gradients(op)
        sums: tuple[int, ...] = ()
        size, total = (sum(self.writer.tensors[t].bytes for t in ts) for ts in (parts, gradients))
        for step in range(self.how.ranks):
            last = step == self.how.ranks - 1
            here = parts
            if not last:
                parts = tuple(self._like(t) for t in here)
                self.writer.collect("send_recv", self.axis, here, parts, size, op, ranks=2)
            outs = tuple(t if last and t not in gradients else self._like(t) for t in op.outputs)
            self._attend(op, code, (op.inputs[0], *here, *op.inputs[3:]), outs, op.attributes)
            found = tuple(outs[op.outputs.index(t)] for t in gradients)
            if sums:
                found = tuple(self._added(a, b, op) for a, b in zip(found, sums, strict=True))
            if found:
                sums = gradients if last else tuple(self._like(t) for t in gradients)
                self.writer.collect("send_recv", self.axis, found, sums, total, op, ranks=2)

    def _like(self, t: int) -> int:
        tensor = self.writer.tensors[t]
        return self.writer.add(Tensor("", tensor.shape, tensor.dtype, Role.ACTIVATION, -1))

    def _added(self, into: int, other: int, at: Op) -> int:
        """*into* with *other* added in place."""
        tensor = self.writer.tensors[into]
        made = self.writer.add(Tensor("", tensor.shape, tensor.dtype, Role.ACTIVATION, tensor.storage))
        key = tensor.shape, tensor.dtype
        if key not in self.sums:
            self.sums[key] = op_work(OpKind.ELEMENTWISE, "add_", {}, [tensor, tensor], [tensor])
        name, work = "aten.add_.Tensor", self.sums[key]
        self.writer.ops.append(Op(OpKind.ELEMENTWISE, name, (into, other), (made,), {}, at.module, at.phase, work))
        return made

    def _attend(self, op: Op, code: int, ins: tuple[int, ...], outs: tuple[int, ...], attributes: Any) -> None:
        """*op* on other tensors; causal attention is half of queries times keys on every rank."""
        if attributes.get("causal"):
            attributes = {**attributes, "balanced": True}
        if code not in self.works:
            read, made = ([self.writer.tensors[t] for t in ts] for ts in (ins, outs))
            self.works[code] = op_work(op.kind, bare(op.name), attributes, read, made)
        work = self.works[code]
        self.writer.ops.append(Op(op.kind, op.name, ins, outs, attributes, op.module, op.phase, work))
