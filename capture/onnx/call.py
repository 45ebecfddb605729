"""One node about to run: its operator, attributes, and what is known of the values it reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from onnx import AttributeProto, NodeProto

from foretrace.ir import Dim, DimLike, DType, ForetraceError, Shape

from .values import OpenSizeError, Value, dtype_of, from_tensor

if TYPE_CHECKING:
    from .scope import Scope

Sized = tuple[Shape, DType]
_REQUIRED: Final = object()
_FIELDS: Final = {
    AttributeProto.INT: "i", AttributeProto.FLOAT: "f", AttributeProto.INTS: "ints", AttributeProto.FLOATS: "floats",
    AttributeProto.GRAPH: "g", AttributeProto.TENSOR: "t",
}  # fmt: skip


class Call:
    """A node with its input values; every question about it that fails does so with the node's name."""

    def __init__(self, node: NodeProto, ins: Sequence[Value | None], scope: Scope) -> None:
        self.node, self.ins, self.scope = node, list(ins), scope
        self.op: str = node.op_type
        self.domain: str = "" if node.domain == "ai.onnx" else node.domain
        self._attributes = {a.name: a for a in node.attribute}
        self._shapes: list[Sized] | None = None

    @property
    def where(self) -> str:
        """The node as an error names it."""
        at = f" in {self.scope.module}" if self.scope.module and not self.node.name else ""
        return f"node {self.node.name or (self.node.output or '?')[0]!r} ({self.op}{at})"

    @property
    def name(self) -> str:
        """The operator's full name: ``onnx::Gemm``, ``com.microsoft::Attention``."""
        return f"{self.domain or 'onnx'}::{self.op}"

    def fail(self, message: str) -> ForetraceError:
        """An error that names this node, to be raised."""
        return ForetraceError(f"{self.where}: {message}")

    def given(self, i: int) -> Value | None:
        """Input *i*, or None where the node leaves it out."""
        return self.ins[i] if i < len(self.ins) else None

    def value(self, i: int) -> Value:
        """Input *i*, which has to be there, a tensor."""
        found = self.given(i)
        if found is None:
            raise self.fail(f"input {i} is missing")
        if found.items is not None:
            raise self.fail(f"input {i} is a sequence, expected a tensor")
        return found

    def has(self, name: str) -> bool:
        """Whether the node states the attribute *name*."""
        return name in self._attributes

    def attr(self, name: str, default: Any = _REQUIRED) -> Any:
        """The attribute *name* as a Python value (a tensor as a `Value`), else *default*."""
        proto = self._attributes.get(name)
        if proto is not None and proto.ref_attr_name:
            proto = self.scope.arguments.get(proto.ref_attr_name)
        if proto is None:
            if default is _REQUIRED:
                raise self.fail(f"the attribute {name} is missing")
            return default
        if proto.type == AttributeProto.STRING:
            return proto.s.decode("utf-8", "replace")
        if proto.type == AttributeProto.STRINGS:
            return [text.decode("utf-8", "replace") for text in proto.strings]
        if proto.type not in _FIELDS:
            raise self.fail(f"the attribute {name} has a type that is not read")
        value = getattr(proto, _FIELDS[proto.type])
        if proto.type == AttributeProto.TENSOR:
            return from_tensor(value, f"{self.where}: {name}")
        return list(value) if proto.type in (AttributeProto.INTS, AttributeProto.FLOATS) else value

    def attr_dtype(self, name: str, default: int = 1) -> DType:
        """The number format that the attribute *name* holds."""
        return dtype_of(self.attr(name, default), self.where)

    def literals(self) -> dict[str, Any]:
        """The plain attributes, as an `Op` keeps them."""
        found: dict[str, Any] = {}
        for name, proto in sorted(self._attributes.items()):
            kind = self.scope.arguments.get(proto.ref_attr_name, proto).type if proto.ref_attr_name else proto.type
            if kind not in (AttributeProto.GRAPH, AttributeProto.TENSOR) and (
                kind in _FIELDS or kind == AttributeProto.STRING
            ):
                value = self.attr(name, None)
                if not isinstance(value, list) or len(value) <= 64:
                    found[name] = tuple(value) if isinstance(value, list) else value
        return found

    def data(self, i: int) -> np.ndarray[Any, Any]:
        """The data of input *i*, on which a shape depends. Raises where they are not known, saying what would help."""
        value = self.value(i)
        if value.data is None:
            what = f"{self.where}: a size depends on the data of its input {i} ({value.source or 'computed'})"
            if symbols := self.scope.symbols_behind(value):
                raise OpenSizeError(f"{what}, which is not known while sizes are open", symbols)
            raise ForetraceError(f"{what}, which are not known before the model runs or not in the file")
        return value.data

    def sizes(self, i: int) -> list[DimLike]:
        """The data of input *i* as sizes."""
        return [v if isinstance(v, Dim) else int(v) for v in self.data(i).ravel()]

    def ints(self, name: str, i: int, default: Iterable[int] | None = None) -> list[int]:
        """The integers in the attribute *name* or, in later operator sets, in input *i*."""
        if self.has(name):
            found = self.attr(name)
            return found if isinstance(found, list) else [found]
        if self.given(i) is None:
            if default is None:
                raise self.fail(f"{name} is missing")
            return list(default)
        dims = self.sizes(i)
        if symbols := {s for d in dims if isinstance(d, Dim) for s in d.symbols}:
            raise OpenSizeError(f"{self.where}: its {name} depend on a size", symbols)
        return [d for d in dims if isinstance(d, int)]

    def axis(self, axis: int, rank: int) -> int:
        """*axis* counted from the front."""
        if not -rank <= axis < max(rank, 1):
            raise self.fail(f"axis {axis} of a tensor of rank {rank}")
        return axis + rank if axis < 0 else axis

    def shapes(self) -> list[Sized]:
        """Shape and format of every output (worked out once)."""
        if self._shapes is None:
            from .operators import infer

            self._shapes = infer(self)
        return self._shapes

    def equal(self, a: DimLike, b: DimLike) -> DimLike:
        """The size that *a* and *b* both have to be."""
        return self.scope.equal(a, b, self.where)

    def broadcast(self, *shapes: Shape) -> Shape:
        """The shape that *shapes* broadcast to."""
        rank = max((len(s) for s in shapes), default=0)
        out: list[DimLike] = []
        for axis in range(-rank, 0):
            dims = {s[axis] for s in shapes if len(s) >= -axis} - {1}
            size: DimLike = 1
            for d in sorted(dims, key=lambda d: (isinstance(d, Dim), str(d))):
                size = d if size == 1 else self.equal(size, d)
            out.append(size)
        return tuple(out)
