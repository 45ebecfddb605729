"""What a placement rule sees of an operator, and what it decides."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from foretrace.ir import Op, Tensor

from .placement import REPLICATE, Placement


@dataclass(frozen=True, slots=True)
class Call:
    """One operator with how its operands lie."""

    op: Op
    function: str
    """Its bare name: ``mm``, ``native_layer_norm_backward``."""
    ins: tuple[Tensor, ...]
    places: tuple[Placement, ...]
    outs: tuple[Tensor, ...]
    summing: tuple[bool, ...]
    """Whether each operand, where it is Partial, is still inside the module that made it: sums may wait."""
    near: tuple[bool, ...]
    """Whether each Partial operand was made inside the op's own module (two branches of a layer)."""
    fallback: Placement
    """What a Partial sum becomes where nothing else decides: Replicate, or divided along the sequence."""
    weight: Placement
    """Of the parameter ``weight`` of the op's module."""
    gradient: Placement = REPLICATE
    """Where the result is a parameter's gradient in the parameter's own shape: how the parameter lies."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The placements that an operator needs and gives."""

    needs: tuple[Placement, ...]
    gives: tuple[Placement, ...]
    divided: tuple[str, ...] = ()
    """Attributes that shrink with the part: ``n``, ``heads``."""
    exchanges: int = 0
    """All-reduces of one value a row that the operator makes itself (a softmax over a divided dim)."""
    whole: bool = False
    """No rule: everything is gathered."""


Rule = Callable[[Call], Decision | None]
"""None: the rule has no answer for how the operands lie."""


def gathered(call: Call) -> Decision:
    """Whole operands, whole results."""
    return Decision((REPLICATE,) * len(call.ins), (REPLICATE,) * len(call.outs), whole=True)


def settled(place: Placement, call: Call) -> Placement:
    """*place* with a Partial sum resolved."""
    return call.fallback if place.partial else place


def target_of(places: Sequence[Placement], fallback: Placement) -> Placement:
    """The placement that operands which must agree agree on: features before tokens; sums are resolved."""
    shards = [p for p in places if p.shards]
    if not shards:
        return fallback if any(p.partial for p in places) else REPLICATE
    return next((p for p in shards if not p.tokens), shards[0])
