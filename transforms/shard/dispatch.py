"""Expert parallel with sequence parallel: every tensor parallel rank sends its share of the rows.

Without it all of them would send the same rows. As Megatron-LM's all-to-all dispatcher does, a rank sends the rows of
its own tokens, and what arrives is gathered among the ranks that divide the experts' matrices; on the way home their
sums are scattered first. What is done with rows at home (weighing, adding up) is left as wide as it is.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from foretrace.ir import Graph, Op, OpKind, Tensor

from .writer import Axis, Writer


@dataclass(frozen=True)
class ShareDispatch:
    """Divide what each of `ranks` tensor parallel ranks sends to experts; runs behind both their passes."""

    name: ClassVar[str] = "share_dispatch"
    ranks: int

    def run(self, graph: Graph) -> Graph:
        """The graph with smaller all-to-alls, and with gathers and scatters beside them."""
        writer, axis = Writer(graph), Axis("tp", self.ranks)
        for op in graph.ops:
            dispatches = op.attributes.get("dispatches") if op.kind is OpKind.COLLECTIVE else None
            if dispatches is None:
                writer.ops.append(op)
            elif dispatches:
                part = self._exchanged(writer, op, self._narrowed(writer, op))
                bytes_ = writer.tensors[op.outputs[0]].bytes
                writer.collect("all_gather", axis, (part,), op.outputs, bytes_, op)
            else:
                self._home(writer, axis, op, _is_sum(graph, op.inputs[0]))
            writer.settle_storages(op.inputs, op.inputs, op.outputs, graph.tensors)
        return replace(graph, tensors=tuple(writer.tensors), ops=tuple(writer.ops))

    def _home(self, writer: Writer, axis: Axis, op: Op, is_sum: bool) -> None:
        """Rows on their way back; a rank's own, where others have theirs, are its part of a sum over the ranks."""
        (source,), (out,) = op.inputs, op.outputs
        if is_sum:
            own = self._part(writer.tensors[source])
            mine = writer.collective("reduce_scatter", axis, source, own, writer.tensors[source].bytes, op)
        else:
            mine = self._narrowed(writer, op)
        made = self._exchanged(writer, op, mine)
        writer.tensors[out] = replace(writer.tensors[out], storage=made)
        writer.ops.append(Op(OpKind.VIEW, "foretrace.own_rows.default", (made,), (out,), {}, op.module, op.phase))

    def _narrowed(self, writer: Writer, op: Op) -> int:
        part = self._part(writer.tensors[op.inputs[0]])
        return writer.view(op.inputs[0], part, "aten.narrow.default", op)

    def _exchanged(self, writer: Writer, op: Op, part: int) -> int:
        """The all-to-all *op* of a *part* of its operand."""
        axis = Axis(op.attributes["group"], op.attributes["ranks"], op.attributes["stride"])
        out = self._part(writer.tensors[op.outputs[0]])
        return writer.collective("all_to_all", axis, part, out, op.attributes["bytes"] // self.ranks, op)

    def _part(self, tensor: Tensor) -> Tensor:
        return replace(tensor, name="", shape=(tensor.shape[0] // self.ranks, *tensor.shape[1:]), storage=-1)


def _is_sum(graph: Graph, t: int) -> bool:
    """Whether rows come from a product that left a sum over the tensor parallel ranks, with no collective since."""
    made_by = graph.producers
    while (i := made_by.get(t, -1)) >= 0:
        op = graph.ops[i]
        if op.kind is OpKind.GROUPED_MATMUL:
            return True
        if op.kind is OpKind.COLLECTIVE or not op.inputs:
            return False
        t = op.inputs[0]
    return False
