"""An operator of a captured graph as a call on a real device: its function, its literals, its inputs as laid out there.

A graph's views carry no literals, so the layout of an input (the transposed weight of a linear, a head cut out of
query, key and value) is found again from the shapes on both sides of the views it comes through.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any, Final

import torch

from foretrace.ir import Dim, ForetraceError, Graph, Op, OpKind, Role, evaluate_dim

RESIDENT: Final = frozenset({Role.PARAMETER, Role.BUFFER, Role.KV_CACHE})
"""Roles of what stays in memory from step to step: a step finds it cold."""
_RESHAPED: Final = frozenset("view _unsafe_view reshape unsqueeze squeeze detach alias flatten _reshape_alias".split())
_NARROWED: Final = frozenset("slice split split_with_sizes select narrow chunk".split())
_NAMED: Final = (torch.dtype, torch.layout, torch.memory_format)
_BACKWARD: Final = "_scaled_dot_product"


class NotCallable(ForetraceError):  # noqa: N818 - a reason, not a failure of the program
    """Why an operator cannot be run by itself."""


@dataclass(frozen=True)
class Call:
    """One operator, ready to run: `function` of the tensors that `make` gives."""

    function: Callable[..., Any]
    make: Callable[[], list[torch.Tensor]]
    """New inputs, each on memory of its own."""
    fresh: Callable[[list[torch.Tensor]], list[torch.Tensor]]
    """The same inputs with copies of those that a step finds cold."""
    cold_bytes: int
    """Of the inputs that a step finds cold."""
    input_bytes: int
    outputs: tuple[tuple[int, ...], ...]
    """Shapes that the graph says it gives."""

    def check(self, result: Any) -> None:
        """Raise `NotCallable` where *result* is not of the graph's shapes: then it is another operator."""
        found = [x for x in (result if isinstance(result, tuple | list) else [result]) if torch.is_tensor(x)]
        shapes = tuple(tuple(x.shape) for x in found)
        if result is not None and self.outputs and shapes[: len(self.outputs)] != self.outputs:
            raise NotCallable(f"gives {shapes or 'nothing'} by itself, and {self.outputs} in the graph")


def call_of(op: Op, graph: Graph, bindings: Mapping[str, int], device: str) -> Call:
    """*op* with its symbols bound, on *device*. Raises `NotCallable` where its arguments cannot be found again."""
    maker = _Maker(graph, bindings, device)
    shapes = [maker.shape(t) for t in op.inputs]
    bases = [maker.base(t) for t in op.inputs]
    cold = [graph.tensors[base].role in RESIDENT and base not in graph.producers for base in bases]
    sizes = [evaluate_dim(graph.tensors[t].bytes, bindings) for t in op.inputs]
    high = _index_limit(op, shapes)

    def make() -> list[torch.Tensor]:
        return [maker.make(t, high) for t in op.inputs]

    def fresh(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        return [_copied(x) if c else x for x, c in zip(inputs, cold, strict=True)]

    function = _attention_backward(op) if _is_attention_backward(op) else _bound(op, bindings, device)
    cold_bytes = int(sum(s for s, c in zip(sizes, cold, strict=True) if c))
    outputs = () if _is_attention(op) else tuple(maker.shape(t) for t in op.outputs)
    return Call(function, make, fresh, cold_bytes, int(sum(sizes)), outputs)


def _copied(x: torch.Tensor) -> torch.Tensor:
    """*x* with its strides on memory of its own."""
    found = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
    return found.copy_(x) if all(s for s, n in zip(x.stride(), x.shape, strict=True) if n > 1) else x


def _index_limit(op: Op, shapes: Sequence[tuple[int, ...]]) -> int:
    """What every index of *op* is under: one out of bounds would end the work of a GPU for good."""
    if op.name.startswith("aten.embedding_dense_backward"):
        return int(op.attributes.get("num_weights", 1))
    first = shapes[0] if shapes else ()
    if not first:
        return 1
    dim = 0 if op.kind is OpKind.EMBEDDING else op.attributes.get("dim")
    along = first[dim] if isinstance(dim, int) and -len(first) <= dim < len(first) else min(first)
    return max(along, 1)


class _Maker:
    """Tensors of a graph on a device."""

    def __init__(self, graph: Graph, bindings: Mapping[str, int], device: str) -> None:
        self.graph, self.bindings, self.device = graph, bindings, device

    def shape(self, tensor: int) -> tuple[int, ...]:
        return tuple(int(evaluate_dim(d, self.bindings)) for d in self.graph.tensors[tensor].shape)

    def base(self, tensor: int) -> int:
        """What *tensor* is a view of."""
        made_by = self.graph.producers.get(tensor)
        if made_by is None or self.graph.ops[made_by].kind is not OpKind.VIEW or not self.graph.ops[made_by].inputs:
            return tensor
        return self.base(self.graph.ops[made_by].inputs[0])

    def make(self, tensor: int, high: int) -> torch.Tensor:
        """*tensor* with values, strided as the views that it comes through leave it."""
        made_by, shape = self.graph.producers.get(tensor), self.shape(tensor)
        op = None if made_by is None else self.graph.ops[made_by]
        if op is not None and op.kind is OpKind.VIEW and op.inputs:
            whole = self.make(op.inputs[0], high)
            with_strides = viewed(whole, op.name.split(".")[1], shape)
            if with_strides is not None:
                return with_strides
        return self.filled(tensor, shape, high)

    def filled(self, tensor: int, shape: tuple[int, ...], high: int) -> torch.Tensor:
        dtype = getattr(torch, self.graph.tensors[tensor].dtype.name, None)
        if not isinstance(dtype, torch.dtype):
            raise NotCallable(f"torch has no dtype {self.graph.tensors[tensor].dtype.name}")
        if dtype.is_floating_point:
            return torch.rand(shape, device=self.device).add_(0.5).to(dtype)
        if dtype is torch.bool:
            return torch.ones(shape, dtype=dtype, device=self.device)
        return torch.randint(0, high, shape, device=self.device).to(dtype)


def viewed(whole: torch.Tensor, name: str, shape: tuple[int, ...]) -> torch.Tensor | None:
    """*whole* as the view called *name* of *shape*; None where shapes do not say which."""
    if name in ("t", "transpose", "numpy_T", "mT", "permute"):
        return _swapped(whole, shape)
    if name in _RESHAPED:
        try:
            return whole.view(shape)
        except RuntimeError:
            return None
    if name in _NARROWED:
        if len(shape) == whole.dim() - 1:  # a select: of the first dim that it can be
            at = next((i for i in range(whole.dim()) if whole.shape[:i] + whole.shape[i + 1 :] == shape), None)
            return None if at is None else whole.select(at, 0)
        if len(shape) == whole.dim() and all(a <= b for a, b in zip(shape, whole.shape, strict=True)):
            for dim, size in enumerate(shape):
                whole = whole.narrow(dim, 0, size)
            return whole
    if name == "expand":
        try:
            return whole.expand(shape)
        except RuntimeError:
            return None
    return None


def _swapped(whole: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor | None:
    """Two dims of *whole* exchanged so that it has *shape*."""
    if whole.dim() != len(shape):
        return None
    found = (whole.transpose(i, j) for i, j in combinations(range(whole.dim()), 2))
    return next((x for x in found if tuple(x.shape) == shape), None)


def _bound(op: Op, bindings: Mapping[str, int], device: str) -> Callable[..., Any]:
    """The function of *op* with its literals: what is left are its tensors, in order."""
    namespace, _, rest = op.name.partition(".")
    packet = getattr(getattr(torch.ops, namespace, None), rest.partition(".")[0], None)
    function = getattr(packet, rest.partition(".")[2] or "default", None)
    if function is None:
        raise NotCallable("torch has no function of this name to call")
    arguments = list(function._schema.arguments)
    literals = {
        a.name: _literal(op.attributes[a.name], bindings, str(a.type))
        for a in arguments
        if a.name in op.attributes and not _lists(a)
    }
    if not op.inputs and any(a.name == "device" for a in arguments):
        literals["device"] = torch.device(device)
    open_slots = [a for a in arguments if "Tensor" in str(a.type) and a.name not in literals]
    lists = [a for a in open_slots if _lists(a)]
    singles = len(open_slots) - len(lists)
    given = len(op.inputs)
    if lists and (given - singles) % len(lists):
        raise NotCallable("its inputs cannot be dealt out to its lists of tensors")
    length = (given - singles) // len(lists) if lists else 0
    optional = [a.name for a in open_slots if "Optional" in str(a.type)]
    for name in [a.name for a in arguments if str(a.type) == "List[number]" and a.name in literals]:
        if not isinstance(literals[name], list):  # one for each tensor, and all the same
            literals[name] = [literals[name]] * length
    surplus = 0 if lists else len(open_slots) - given
    if not 0 <= surplus <= len(optional) or length < 0:
        raise NotCallable(f"{given} tensors for the arguments {', '.join(a.name for a in open_slots)}")
    absent = optional[len(optional) - surplus :]  # the last ones were not given
    literals |= dict.fromkeys(absent)
    used = [a for a in open_slots if a.name not in absent]
    places = [(a.name, length if _lists(a) else 0) for a in used]
    return partial(_call, function, places, literals)


def _call(
    function: Callable[..., Any], places: Sequence[tuple[str, int]], literals: Mapping[str, Any], *tensors: torch.Tensor
) -> Any:
    if not any(length for _, length in places):
        return function(**{name: x for (name, _), x in zip(places, tensors, strict=True)}, **literals)
    named: dict[str, Any] = {}
    at = 0
    for name, length in places:
        named[name] = list(tensors[at : at + length]) if length else tensors[at]
        at += length or 1
    return function(**named, **literals)


def _lists(argument: Any) -> bool:
    return "List[Tensor]" in str(argument.type) or "List[Optional[Tensor]]" in str(argument.type)


def _literal(value: Any, bindings: Mapping[str, int], kind: str = "") -> Any:
    """An attribute as torch takes it."""
    if isinstance(value, Dim):
        return int(evaluate_dim(value, bindings))
    if isinstance(value, tuple | list):
        return [_literal(v, bindings) for v in value]
    if isinstance(value, str) and kind != "str" and isinstance(found := getattr(torch, value, None), _NAMED):
        return found
    return value


def _is_attention(op: Op) -> bool:
    return op.kind is OpKind.ATTENTION  # torch's own give what a backward needs as well


def _is_attention_backward(op: Op) -> bool:
    return _is_attention(op) and bool(op.attributes.get("backward"))


def _attention_backward(op: Op) -> Callable[..., Any]:
    """The gradients of attention, whose own operator takes what only its forward gives."""
    if not op.name.startswith(f"aten.{_BACKWARD}") or len(op.inputs) < 4:
        raise NotCallable("the backward of this attention cannot be called by itself")
    known: dict[int, tuple[torch.Tensor, tuple[torch.Tensor, ...]]] = {}
    options: dict[str, Any] = {name: op.attributes[name] for name in ("is_causal", "scale") if name in op.attributes}
    options["enable_gqa"] = op.attributes.get("heads") != op.attributes.get("kv_heads")

    def run(*tensors: torch.Tensor) -> Any:
        gradient = tensors[-1]  # of the result's shape, as the result is
        first = 0 if tensors[1].shape == tensors[2].shape else 1
        if id(gradient) not in known:
            with torch.enable_grad():
                q, k, v = (x.detach().requires_grad_() for x in tensors[first : first + 3])
                known[id(gradient)] = torch.nn.functional.scaled_dot_product_attention(q, k, v, **options), (q, k, v)
        out, of = known[id(gradient)]
        return torch.autograd.grad(out, of, gradient, retain_graph=True)

    return run
