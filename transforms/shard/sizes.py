"""A rank's part of an op: shapes, attributes and work."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import Any

from foretrace.ir import DimLike, Op, Shape, Tensor, Work, op_work, prod
from foretrace.transforms.plan import PlanError, nearest_divisor

from .call import Decision
from .placement import Placement, local_shape
from .writer import Axis, bare


@dataclass(frozen=True)
class Sizes:
    """What is left of a size on one rank of `axis`."""

    axis: Axis
    common: int = 0
    """What all sizes that are to be divided have in common: the nearest number of ranks is one of its divisors."""

    def shape(self, tensor: Tensor, place: Placement, padded: bool, at: Op | None = None) -> Shape:
        """The shape of a rank's part of *tensor*. Raises `PlanError` where it does not divide."""
        if not place.shards:
            return tensor.shape
        try:
            return local_shape(tensor.shape, place, self.axis.ranks, padded)
        except PlanError as error:
            size = tensor.shape[place.dim]
            shape = ", ".join(map(str, tensor.shape))
            where = tensor.name or (f"a result of {bare(at.name)} in {at.module}" if at else "a tensor")
            raise PlanError(
                f"plan: {self.axis.name}={self.axis.ranks}: {error}: dim {place.dim} of {where} [{shape}]; "
                f"{self._nearest(size if isinstance(size, int) else 1)}"
            ) from None

    def shrunk(
        self, op: Op, decision: Decision, ins: Sequence[Tensor], outs: Sequence[Tensor], padded: bool
    ) -> tuple[Mapping[str, Any], Work]:
        """Attributes and work of a rank's part of *op*."""
        if not any(p.shards for p in (*decision.needs, *decision.gives)):
            return op.attributes, op.work
        attributes = dict(op.attributes)
        for name in decision.divided:
            attributes[name] = self._divided(op, name, padded)
        function, w = bare(op.name), op.work
        if function.startswith("_foreach_"):
            return attributes, _scaled(w, *self._elements(op, decision.needs, ins, padded))
        local = [replace(t, shape=self.shape(t, p, padded, op)) for t, p in zip(ins, decision.needs, strict=True)]
        if op_work(op.kind, function, op.attributes, ins, outs) == w:
            made = [replace(t, shape=self.shape(t, p, padded, op)) for t, p in zip(outs, decision.gives, strict=True)]
            return attributes, op_work(op.kind, function, attributes, local, made)
        return attributes, _scaled(w, 1, self.axis.ranks)  # a front end knew better what is read

    def _elements(
        self, op: Op, needs: Sequence[Placement], ins: Sequence[Tensor], padded: bool
    ) -> tuple[DimLike, DimLike]:
        """(A rank's, all) elements of long lists, which have few shapes."""
        times: dict[tuple[Shape, int], int] = {}
        of: dict[tuple[Shape, int], tuple[Tensor, Placement]] = {}
        for tensor, place in zip(ins, needs, strict=True):
            key = tensor.shape, id(place)
            times[key] = times.get(key, 0) + 1
            of.setdefault(key, (tensor, place))
        mine: DimLike = 0
        whole: DimLike = 0
        for key, n in times.items():
            tensor, place = of[key]
            mine, whole = mine + prod(self.shape(tensor, place, padded, op)) * n, whole + prod(tensor.shape) * n
        return mine, whole

    def _divided(self, op: Op, name: str, padded: bool) -> Any:
        size, ranks = op.attributes[name], self.axis.ranks
        if not isinstance(size, int):
            return size // ranks
        if size % ranks and not padded:
            raise PlanError(
                f"plan: {self.axis.name}={ranks} does not divide {name}={size} of {bare(op.name)} in {op.module}; "
                f"{self._nearest(size)}"
            )
        return -(-size // ranks)

    def _nearest(self, size: int) -> str:
        return f"nearest is {self.axis.name}={nearest_divisor(gcd(self.common, size) or 1, self.axis.ranks)}"


def _scaled(w: Work, part: Any, whole: Any) -> Work:
    sizes = (w.matrix_flops, w.vector_flops, w.special_flops, w.bytes_read, w.bytes_written)
    return Work(*(size * part // whole for size in sizes))
