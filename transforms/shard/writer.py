"""What the sharding passes write with: an axis of the mesh, and a graph that grows by collectives."""

from collections.abc import Hashable
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
        now = self.tensors[source]
        made = self.add(out)
        key = (sort, axis, now.shape, now.dtype, out.shape, out.dtype, bytes_, *more.items())
        if key not in self._worked:
            attributes = {"bytes": bytes_, "group": axis.name, "ranks": axis.ranks, "stride": axis.stride, **more}
            self._worked[key] = attributes, op_work(OpKind.COLLECTIVE, sort, attributes, [now], [out])
        attributes, work = self._worked[key]
        name = COLLECTIVE_NAMES[sort]
        self.ops.append(Op(OpKind.COLLECTIVE, name, (source,), (made,), attributes, at.module, at.phase, work))
        return made

    def view(self, source: int, out: Tensor, name: str, at: Op) -> int:
        """A view of *source* of the shape of *out*."""
        made = self.add(replace(out, storage=self.tensors[source].storage))
        self.ops.append(Op(OpKind.VIEW, name, (source,), (made,), {}, at.module, at.phase))
        return made
