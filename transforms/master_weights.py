"""Mixed-precision training: the optimizer works on float32 masters of the parameters and writes those back."""

from dataclasses import dataclass, replace
from typing import ClassVar, Final

from foretrace.ir import DTYPES, DimLike, Graph, Op, OpKind, Role, Tensor, Work, parse_dtype, prod

STATES: Final = ("master", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class MasterWeights:
    """Adam as Megatron-LM, DeepSpeed and nanotron run it: one multi-tensor kernel over float32 masters and moments.

    Of an element it reads the gradient and three states, and writes the states and the parameter (Micikevicius et al.
    2018, arXiv:1710.03740); the norm of all gradients is taken before (clipping, and the check of a loss scale). The
    captured optimizer, if there is one, makes way.
    """

    name: ClassVar[str] = "master_weights"
    gradient: str = "float32"
    """Format of the gradients that it reads."""

    def run(self, graph: Graph) -> Graph:
        """The graph with the new optimizer; itself where no gradients of parameters are in it."""
        tensors = [t for t in graph.tensors]
        parameters = {t.name: i for i, t in enumerate(tensors) if t.role is Role.PARAMETER and t.storage == i}
        gradients: dict[str, int] = {}
        kept = tuple(op for op in graph.ops if op.phase != "optimizer")
        for op in kept:
            for t in op.outputs:
                if tensors[t].role is Role.GRADIENT and tensors[t].name in parameters:
                    gradients[tensors[t].name] = t
        if not gradients:
            return graph
        states, after = [], []
        elements: DimLike = 0
        for name in gradients:
            own = tensors[parameters[name]]
            elements = elements + prod(own.shape)
            for state in STATES:
                place = len(tensors)
                whole = Tensor(
                    f"optimizer_state.{state}.{name}", own.shape, DTYPES["float32"], Role.OPTIMIZER_STATE, place
                )
                tensors += [whole, replace(whole)]
                states.append(place)
                after.append(place + 1)
            tensors.append(replace(own))
            after.append(len(tensors) - 1)
        gone = {t for op in graph.ops if op.phase == "optimizer" for t in op.outputs}
        gone |= {i for i, t in enumerate(tensors[: len(graph.tensors)]) if t.role is Role.OPTIMIZER_STATE}
        found = tuple(gradients.values())
        read = elements * parse_dtype(self.gradient).bits // 8
        width = max((tensors[p].dtype.bits for p in parameters.values()), default=16) // 8
        norm = len(tensors)
        tensors.append(Tensor("", (), DTYPES["float32"], Role.ACTIVATION, norm))
        adam = Work(0, 12 * elements, elements, read + 12 * elements, (12 + width) * elements)
        ops = (
            Op(
                OpKind.REDUCTION,
                "multi_tensor.l2_norm",
                found,
                (norm,),
                {},
                "",
                "optimizer",
                Work(0, 2 * elements, 0, read, 4),
            ),
            Op(OpKind.ELEMENTWISE, "multi_tensor.adam", (*found, *states), tuple(after), {}, "", "optimizer", adam),
        )
        # states of the captured optimizer take no room: a scalar stands where each was
        plain = [replace(t, shape=(), role=Role.ACTIVATION) if i in gone else t for i, t in enumerate(tensors)]
        return replace(graph, ops=(*kept, *ops), tensors=tuple(plain))
