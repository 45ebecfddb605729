"""Training graphs made by hand, and costs that a test can work out: every kernel takes as long, communication none."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from foretrace.hardware import System
from foretrace.ir import Graph, OpKind, Role
from foretrace.replay import Result, replay_graph
from foretrace.replay.columns import OpColumns
from foretrace.replay.costs import Costs
from tests.replay.models import BATCH, Builder, system

KERNEL_S = 1e-3


def training(layers: int = 4, width: int = 64, ends: bool = True, tied: bool = False, optimizer: bool = True) -> Graph:
    """A stack of products with their backward; *ends*: an embedding before and a head after, of one weight if *tied*.

    A layer is two kernels forward (a product, gelu) and three backward (gelu's, two products). The first layer's input
    has a gradient too, which nothing reads where there is no embedding.
    """
    b = Builder("bfloat16")
    x = b.tensor("x", BATCH, width, role=Role.INPUT)
    names = [f"model.layers.{i}.fc" for i in range(layers)]
    if ends:
        names = ["model.embed", *names, "model.embed" if tied else "head"]
    weights = {name: b.weight(f"{name}.weight", width, width) for name in dict.fromkeys(names)}
    modules = list(names)
    if tied:
        modules[-1] = "head"
    states = [b.tensor(f"optimizer_state.exp_avg.{n}.weight", width, width, role=Role.OPTIMIZER_STATE) for n in weights]
    saved = []
    for name, module in zip(names, modules, strict=True):
        y = b.matmul(x, weights[name], module)
        saved.append((x, y))
        x = b.pointwise("gelu", y, module=module.replace(".fc", ".act"))
    d = b.pointwise("ones_like", x, phase="backward")
    parts: dict[str, int] = {}
    for (x, y), name, module in zip(saved[::-1], names[::-1], modules[::-1], strict=True):
        d = b.pointwise("gelu_backward", d, y, module=module.replace(".fc", ".act"), phase="backward")
        again = names.count(name) > 1
        role = Role.ACTIVATION if again else Role.GRADIENT
        w = b.tensor(f"{name}.weight", width, width, role=role)
        b.op(OpKind.MATMUL, "aten.mm.default", [x, d], [w], module, "backward", b=1, m=width, n=width, k=BATCH)
        if name in parts:
            total = b.tensor(f"{name}.weight", width, width, role=Role.GRADIENT)
            b.op(OpKind.ELEMENTWISE, "aten.add.Tensor", [parts[name], w], [total], module, "backward")
        parts[name] = w
        if not ends or saved[0] != (x, y):
            d = b.matmul(d, weights[name], module, "backward")
    if optimizer:
        gradients = [t for t, tensor in enumerate(b.tensors) if tensor.role is Role.GRADIENT]
        owned = list(weights.values())
        out = [b.tensor(b.tensors[t].name, width, width, role=Role.PARAMETER, storage=t) for t in owned]
        b.op(OpKind.ELEMENTWISE, "aten._foreach_add_.List", [*owned, *gradients, *states], out, "", "optimizer")
    return b.graph("stack", "train")


@dataclass(frozen=True)
class Even:
    """Costs: a kernel takes `KERNEL_S`; the optimizer, sums of gradients, the first one, communication nothing."""

    name: str = "even"
    communication_s: float = 0.0

    def price(self, columns: OpColumns, system: System, software: str = "eager") -> Costs:
        free = columns.of_kind({OpKind.VIEW, OpKind.HOST})
        small = [any(part in n for part in ("foreach", "add_.", "ones_like")) for n in columns.names]
        seconds = np.where(free | np.array(small, np.bool_), 0.0, KERNEL_S)
        seconds = np.where(columns.of_kind({OpKind.COLLECTIVE}), self.communication_s, seconds)
        return Costs(seconds, seconds, seconds, np.zeros(columns.rows, np.int8))


def replay(graph: Graph, plan: str | None, batch: int, on: System | None = None, **options: Any) -> Result:
    """The step of *graph* under *plan* on as many accelerators as it takes, by default with `Even` costs."""
    from foretrace.transforms.plan import Plan

    if on is None:
        ranks = Plan.of(plan).ranks
        on = system(graph_launch_s=1e-12, dispatch_s=1e-12, launch_s=1e-12)
        on = on.model_copy(update={"count": ranks, "node_size": ranks})
    given = {"costs": Even(), "execution": "cudagraph", **options}
    return replay_graph(graph, on, plan=plan, batch=batch, **given)
