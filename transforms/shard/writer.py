"""What the sharding passes write with: an axis of the mesh, and a graph that grows by collectives."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from foretrace.ir import Graph, Op, OpKind, Tensor, Work, op_work

COLLECTIVE_NAMES: Final = {
    "all_reduce": "_c10d_functional.all_reduce.default",
    "all_gather": "_c10d_functional.all_gather_into_tensor.default",
    "reduce_scatter": "_c10d_functional.reduce_scatter_tensor.default",
    "all_to_all": "_c10d_functional.all_to_all_single.default",
    "send_recv": "c10d.send_recv",
}
"""The names that torch's functional collectives have."""


@dataclass(frozen=True)
class Axis:
    """The axis of the mesh that is divided along."""

    name: str
    ranks: int
    stride: int = 1
    sequence: bool = False
    """Sequence parallel: sums are scattered along the sequence."""


def bare(name: str) -> str:
    """``aten.addmm.default`` → ``addmm``."""
    parts = name.split("::")[-1].split(".")
    return parts[1] if len(parts) > 1 else parts[0]


class Writer:
    """A graph being rewritten: tensors keep their ids, new ones are added behind them."""

    def __init__(self, graph: Graph) -> None:
        self.tensors = list(graph.tensors)
        self.ops: list[Op] = []
        self._worked: dict[Hashable, tuple[dict[str, Any], Work]] = {}

    def add(self, tensor: Tensor) -> int:
        """A new tensor; a storage of -1 is its own."""
        i = len(self.tensors)
        self.tensors.append(replace(tensor, storage=i) if tensor.storage < 0 else tensor)
        return i

    def collective(self, sort: str, axis: Axis, source: int, out: Tensor, bytes_: Any, at: Op, **more: Any) -> int:
        """The result of a collective of *sort* on tensor *source*, in the module and phase of *at*."""
        made = self.add(out)
        self.collect(sort, axis, (source,), (made,), bytes_, at, **more)
        return made

    def collect(
        self, sort: str, axis: Axis, sources: tuple[int, ...], made: tuple[int, ...], bytes_: Any, at: Op, **more: Any
    ) -> None:
        """A collective of *sort* from tensors that are there into tensors that are there, in one operator."""
        ins, outs = [self.tensors[t] for t in sources], [self.tensors[t] for t in made]
        formats = tuple([(t.shape, t.dtype) for t in (*ins, *outs)])
        key = (sort, axis, len(ins), formats, bytes_, *more.items())
        if key not in self._worked:
            attributes = {"bytes": bytes_, "group": axis.name, "ranks": axis.ranks, "stride": axis.stride, **more}
            self._worked[key] = attributes, op_work(OpKind.COLLECTIVE, sort, attributes, ins, outs)
        attributes, work = self._worked[key]
        name = COLLECTIVE_NAMES[sort]
        self.ops.append(Op(OpKind.COLLECTIVE, name, sources, made, attributes, at.module, at.phase, work))

    def settle_storages(
        self,
        op_inputs_before: tuple[int, ...],
        inputs_now: tuple[int, ...],
        outputs: tuple[int, ...],
        original_tensors: Sequence[Tensor],
    ) -> None:
        """Give *outputs* that share memory with an operand the storage that the operand has by now.

        What an op makes as a view of an operand, or writes into one, lies in the tensor that stands for that operand;
        left with the old owner it would keep alive what nothing reads. *inputs_now* may go on beyond
        *op_inputs_before*. *original_tensors* are the graph's before this rewriting: who shared what with whom.
        """
        shared = [t for t in outputs if original_tensors[t].storage != t]
        if not shared:
            return
        now = self.tensors
        became: dict[int, int] = {}
        for t, i in zip(op_inputs_before, inputs_now, strict=False):
            became[original_tensors[t].storage] = now[i].storage
        for t in shared:
            tensor = now[t]
            storage = became.get(original_tensors[t].storage, tensor.storage)
            if storage != tensor.storage:
                now[t] = Tensor(tensor.name, tensor.shape, tensor.dtype, tensor.role, storage)

    def view(self, source: int, out: Tensor, name: str, at: Op) -> int:
        """A view of *source* of the shape of *out*."""
        made = self.add(replace(out, storage=self.tensors[source].storage))
        self.ops.append(Op(OpKind.VIEW, name, (source,), (made,), {}, at.module, at.phase))
        return made
