"""The plans that a model and a system allow: what a search goes through."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import gcd

from foretrace.ir import Graph, OpKind, count_layers

from .plan import Plan, PlanError


@dataclass(frozen=True, kw_only=True)
class Space:
    """The values of each key that are tried; every combination that the model and the system allow is a plan."""

    tp: Sequence[int] = (1, 2, 4, 8)
    pp: Sequence[int] = (1, 2, 4, 8, 16)
    cp: Sequence[int] = (1,)
    ep: Sequence[int] = (1,)
    interleave: Sequence[int] = (1,)
    zero: Sequence[int] = (0, 1)
    microbatch: Sequence[int] = (1, 2, 4, 8)
    recompute: Sequence[str] = ("none", "selective", "full")
    schedule: Sequence[str] = ("",)
    sp: bool | None = None
    """Sequence parallel; None: wherever tp is more than one."""


@dataclass(frozen=True)
class Sizes:
    """What of a model limits how it is divided."""

    heads: int
    """Greatest number that every attention's heads and KV heads divide by; 0: no attention."""
    layers: int
    experts: int
    """0: none."""
    trains: bool

    @classmethod
    def of(cls, graph: Graph) -> "Sizes":
        """Those of *graph*."""
        counts = {
            op.attributes[name]
            for op in graph.ops
            if op.kind is OpKind.ATTENTION
            for name in ("heads", "kv_heads")
            if isinstance(op.attributes.get(name), int)
        }
        experts = {op.attributes.get("groups") for op in graph.ops if op.kind is OpKind.GROUPED_MATMUL}
        known = [n for n in experts if isinstance(n, int)]
        trains = any(op.phase == "backward" for op in graph.ops)
        return cls(gcd(*counts) if counts else 0, count_layers(graph), max(known, default=0), trains)

    def allows(self, plan: Plan) -> bool:
        """Whether heads, layers and experts divide as *plan* has it."""
        if self.heads and self.heads % plan.tp:
            return False
        if plan.ep > 1 and (not self.experts or self.experts % plan.ep):
            return False
        return plan.stages <= max(self.layers, 1)


def plans_for(graph: Graph, count: int, batch: int, space: Space | None = None) -> list[Plan]:
    """The plans of *space* for *graph* on *count* accelerators with *batch* samples a step, in the space's order.

    Raises `PlanError` where there is none.
    """
    space, sizes = space or Space(), Sizes.of(graph)
    found = list(dict.fromkeys(p for p in _combinations(space, count, sizes.trains) if _fits(p, sizes, batch)))
    if not found:
        raise PlanError(
            f"no plan of the space divides {graph.name} ({sizes.layers} layers, heads in multiples of {sizes.heads}) "
            f"and {batch} samples over {count} accelerators; try another --batch"
        )
    return found


def _combinations(space: Space, count: int, trains: bool) -> Iterator[Plan]:
    once = (space.zero, space.recompute) if trains else ((0,), ("none",))
    for tp, cp, pp in product(space.tp, space.cp, space.pp):
        dp, rest = divmod(count, tp * cp * pp)
        if rest or not dp:
            continue
        for recompute, microbatch, zero, interleave, ep, schedule in product(
            once[1], space.microbatch, once[0], space.interleave, space.ep, space.schedule
        ):
            try:
                yield Plan(
                    tp=tp,
                    sp=tp > 1 and space.sp is not False,
                    cp=cp,
                    pp=pp,
                    dp=dp,
                    ep=ep,
                    zero=0 if dp * cp == 1 else zero,
                    interleave=interleave if pp > 1 else 1,
                    schedule=schedule if pp > 1 else "",
                    microbatch=microbatch,
                    recompute=recompute,
                )
            except PlanError:
                continue


def _fits(plan: Plan, sizes: Sizes, batch: int) -> bool:
    if not sizes.allows(plan) or batch % (plan.dp * plan.microbatch):
        return False
    micro_batches = batch // (plan.dp * plan.microbatch)
    return plan.interleave == 1 or micro_batches % plan.pp == 0
