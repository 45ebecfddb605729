"""Context parallel as a pass: the sequence is divided, and attention is what has to see all of it.

A rank's graph is the whole one at a sequence of seq / ranks; only attention changes. Keys and values are gathered in
front of it and their gradients scattered behind its backward (Llama 3, arXiv:2407.21783, section 3.3.2), or passed
around a ring in steps that overlap with the attention of the part that is there (Liu et al. 2023, arXiv:2310.01889).
Tokens lie in 2 · ranks chunks, of which a rank takes the i-th and the i-th from the end, so that causal attention is
as much work for each: half of queries times keys.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from foretrace.ir import Graph, Op, OpKind, Role, Tensor, op_work
from foretrace.transforms.plan import PlanError

from .writer import Axis, Writer, bare


@dataclass(frozen=True)
class ContextParallel:
    """Divide the sequence among `ranks`; bind the symbol ``seq`` of the result to the tokens of one rank."""

    name: ClassVar[str] = "context_parallel"
    ranks: int
    stride: int = 1
    ring: bool = False

    def run(self, graph: Graph) -> Graph:
        """The local graph. Raises `PlanError` where ``seq`` is not open, or attention reads a cache."""
        if self.ranks == 1:
            return graph
        if "seq" not in graph.symbols:
            raise PlanError(f"plan: cp={self.ranks}: {graph.name} has no open size seq; capture it with --seq 128")
        if any(t.role is Role.KV_CACHE for t in graph.tensors):
            raise PlanError(f"plan: cp={self.ranks} of a graph with a KV cache is not modelled; use cp=1")
        if not any(op.kind is OpKind.ATTENTION for op in graph.ops):
            raise PlanError(
                f"plan: cp={self.ranks}: the attention of {graph.name} is not one operator but products and a softmax, "
                "whose keys are not seen as such; capture it with --attention sdpa, or use cp=1"
            )
        writer, axis = Writer(graph), Axis("cp", self.ranks, self.stride)
        whole: dict[tuple[int, str], int] = {}
        for op in graph.ops:
            if op.kind is not OpKind.ATTENTION or len(op.inputs) < 3:
                writer.ops.append(op)
            elif op.attributes.get("backward"):
                self._backward(writer, axis, op, whole)
            else:
                self._forward(writer, axis, op, whole)
        return replace(graph, tensors=tuple(writer.tensors), ops=tuple(writer.ops))

    def _forward(self, writer: Writer, axis: Axis, op: Op, whole: dict[tuple[int, str], int]) -> None:
        if self.ring:
            self._ring(writer, axis, op, op.inputs[1:3])
            return
        ins = (op.inputs[0], *(self._gathered(writer, axis, op, t, whole) for t in op.inputs[1:3]), *op.inputs[3:])
        writer.ops.append(self._wide(writer, op, ins, op.outputs))

    def _gathered(self, writer: Writer, axis: Axis, op: Op, t: int, whole: dict[tuple[int, str], int]) -> int:
        if (t, op.phase) not in whole:
            out = self._long(writer.tensors[t])
            whole[t, op.phase] = writer.collective("all_gather", axis, t, out, out.bytes, op)
        return whole[t, op.phase]

    def _long(self, tensor: Tensor) -> Tensor:
        """Keys or values [batch, heads, tokens, width] of all ranks."""
        shape = (*tensor.shape[:2], tensor.shape[2] * self.ranks, *tensor.shape[3:])
        return replace(tensor, name="", shape=shape, role=Role.ACTIVATION, storage=-1)

    def _backward(self, writer: Writer, axis: Axis, op: Op, whole: dict[tuple[int, str], int]) -> None:
        """Operands (query, key, value, ...) → gradients of those that the attribute ``wrt`` lists."""
        if self.ring:
            self._ring(writer, axis, op, op.inputs[1:3])
            return
        keys = [self._gathered(writer, axis, op, t, whole) for t in op.inputs[1:3]]
        wrt = op.attributes.get("wrt", (0, 1, 2))
        of_keys = {
            t: writer.add(self._long(writer.tensors[t])) for t, i in zip(op.outputs, wrt, strict=False) if i in (1, 2)
        }
        ins = (op.inputs[0], *keys, *op.inputs[3:])
        writer.ops.append(self._wide(writer, op, ins, tuple(of_keys.get(t, t) for t in op.outputs)))
        for t, source in of_keys.items():
            self._into(writer, axis, "reduce_scatter", source, t, writer.tensors[source].bytes, op)

    def _into(self, writer: Writer, axis: Axis, sort: str, source: int, t: int, bytes_: Any, at: Op) -> None:
        """A collective whose result is the tensor *t* of the graph."""
        writer.collective(sort, axis, source, writer.tensors[t], bytes_, at)
        made = writer.ops[-1]
        writer.tensors.pop()
        writer.ops[-1] = replace(made, outputs=(t,))

    def _wide(self, writer: Writer, op: Op, ins: tuple[int, ...], outs: tuple[int, ...]) -> Op:
        """*op* over the keys of all ranks."""
        kv_len = op.attributes["kv_len"] * self.ranks
        attributes = {**op.attributes, "kv_len": kv_len}
        if attributes.get("causal"):
            attributes["balanced"] = True
        return self._priced(writer, replace(op, inputs=ins, outputs=outs, attributes=attributes))

    def _priced(self, writer: Writer, op: Op) -> Op:
        ins, outs = ([writer.tensors[t] for t in ts] for ts in (op.inputs, op.outputs))
        return replace(op, work=op_work(op.kind, bare(op.name), op.attributes, ins, outs))

    def _ring(self, writer: Writer, axis: Axis, op: Op, passed: tuple[int, ...]) -> None:
        """One attention a step over the part that is there, while the part of the next step arrives."""
        parts = list(passed)
        size = sum(writer.tensors[t].bytes for t in parts)
        size = size * 2 if op.attributes.get("backward") else size  # gradients travel with their keys
        outs = op.outputs
        attributes = {**op.attributes, **({"balanced": True} if op.attributes.get("causal") else {})}
        for step in range(self.ranks):
            ins = tuple(parts[passed.index(t)] if t in passed else t for t in op.inputs)
            if step < self.ranks - 1:
                tensors = [replace(writer.tensors[t], name="", role=Role.ACTIVATION, storage=-1) for t in parts]
                first = writer.collective("send_recv", axis, parts[0], tensors[0], size, op, ranks=2)
                second = writer.add(tensors[1])
                made = writer.ops[-1]
                writer.ops[-1] = replace(made, inputs=tuple(parts), outputs=(first, second))
                parts = [first, second]
            last = step == self.ranks - 1
            here = (
                outs
                if last
                else tuple(
                    writer.add(replace(writer.tensors[t], name="", role=Role.ACTIVATION, storage=-1)) for t in outs
                )
            )
            writer.ops.append(self._priced(writer, replace(op, inputs=ins, outputs=here, attributes=attributes)))
