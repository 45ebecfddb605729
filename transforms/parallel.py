"""From a captured graph and a plan to the graph of one rank."""

from collections.abc import Mapping

from foretrace.ir import ForetraceError, Graph, GraphError

from .base import Pass
from .plan import Plan, PlanError
from .recompute import Recompute
from .shard import ContextParallel, ExpertParallel, TensorParallel
from .shard.dispatch import ShareDispatch


def passes_of(plan: Plan, styles: Mapping[str, str] | None = None) -> tuple[Pass, ...]:
    """What *plan* does to a graph, in order: experts, context, tensors, then recomputation of what is local by now."""
    steps: list[Pass] = []
    if plan.ep > 1:
        steps.append(ExpertParallel(plan.ep, plan.stride("ep"), plan.skew))
    if plan.cp > 1:
        steps.append(ContextParallel(plan.cp, plan.stride("cp"), plan.ring))
    if plan.tp > 1:
        steps.append(TensorParallel(plan.tp, plan.sp, styles=styles))
    if plan.ep > 1 and plan.sp:
        steps.append(ShareDispatch(plan.tp))
    if plan.recompute != "none":
        steps.append(Recompute(plan.recompute))
    return tuple(steps)


def parallelise(graph: Graph, plan: Plan, styles: Mapping[str, str] | None = None) -> Graph:
    """The graph that any rank of *plan* would run if it held every pipeline stage: local shapes, collectives inserted.

    Bind ``batch`` to the plan's micro-batch and ``seq`` to the sequence over `Plan.cp`. Data parallel and pipeline
    ranks do not change it. *styles* say how modules are divided (`shard.seeds`), by default the model's own plan.
    Raises `PlanError` for what does not divide, `GraphError` that names the pass for any other fault. Nothing is
    verified in between: a search sharding hundreds of times would do little else.
    """
    local = graph
    for step in passes_of(plan, styles):
        try:
            local = step.run(local)
        except PlanError:
            raise
        except ForetraceError as e:
            raise GraphError(f"pass {step.name} of plan {plan}: {e}") from e
    return local
