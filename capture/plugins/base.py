"""What a plug-in is made of: operators with shapes only, what they are in the Graph, and how calls reach them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from foretrace.ir import OpKind, Tensor

Geometry = Callable[[Sequence[Tensor], Sequence[Tensor], Mapping[str, Any]], dict[str, Any]]
"""Input tensors, output tensors, literal arguments → the sizes a cost model of the kind reads."""


@dataclass(frozen=True, slots=True)
class OpSpec:
    """What a plug-in's own operator is in the Graph: its kind, its geometry, the name it goes by there.

    `backward` is the name of its backward operator (empty: it has none); `outputs` how many tensors it gives.
    """

    kind: OpKind
    geometry: Geometry
    name: str
    backward: str = ""
    outputs: int = 1

    def of_backward(self) -> "OpSpec":
        """The spec of ``foretrace::<op>_backward``: the forward's geometry and ``backward: True``.

        Its inputs are the forward's, then the forward's results, then their gradients.
        """

        def geometry(ins: Sequence[Tensor], outs: Sequence[Tensor], literals: Mapping[str, Any]) -> dict[str, Any]:
            n = self.outputs
            return {**self.geometry(ins[: -2 * n], ins[-2 * n : -n], literals), "backward": True}

        return OpSpec(self.kind, geometry, self.backward)


def define(name: str, schema: str, shapes: Callable[..., Any], *, differentiable: bool = True) -> Any:
    """The custom operator ``foretrace::<name>``: recorded, never computed.

    *shapes* gives empty tensors like its results. Unless it is not *differentiable* (it writes to an argument), its
    backward is one operator too, ``foretrace::<name>_backward``, that gives a gradient to each input that wants one.
    """
    torch.library.define(f"foretrace::{name}", schema)
    torch.library.register_fake(f"foretrace::{name}", shapes)
    if differentiable:
        _define_backward(name, schema)
    return getattr(torch.ops.foretrace, name).default


def _define_backward(name: str, schema: str) -> None:
    arguments = schema[1 : schema.index(") ->")]
    full = f"foretrace::{name}_backward"
    torch.library.define(full, f"({arguments}, int[] wrt, Tensor[] results, Tensor[] grads) -> Tensor[]")

    def shapes(*args: Any) -> list[torch.Tensor]:
        return [torch.empty_like(args[i]) for i in args[-3]]

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        results = [output] if isinstance(output, torch.Tensor) else list(output)
        tensors = [i for i, value in enumerate(inputs) if isinstance(value, torch.Tensor)]
        ctx.save_for_backward(*(inputs[i] for i in tensors), *results)
        ctx.literals = [None if i in tensors else value for i, value in enumerate(inputs)]
        ctx.tensors = tensors

    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        saved, args = list(ctx.saved_tensors), list(ctx.literals)
        for i in ctx.tensors:
            args[i] = saved.pop(0)
        wrt = [i for i in ctx.tensors if ctx.needs_input_grad[i]]
        made = getattr(torch.ops.foretrace, f"{name}_backward")(*args, wrt, saved, list(grads))
        given: list[Any] = [[None] * len(a) if isinstance(a, list) else None for a in args]
        for i, gradient in zip(wrt, made, strict=True):
            given[i] = gradient
        return tuple(given)

    torch.library.register_fake(full, shapes)
    torch.library.register_autograd(f"foretrace::{name}", backward, setup_context=setup)


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """``owner.name`` is *value* while the context is open."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
