"""Mixed-precision training: the optimizer works on float32 masters of the parameters and writes those back."""

from dataclasses import dataclass, replace
from typing import ClassVar, Final

from foretrace.ir import DTYPES, DimLike, Graph, GraphError, Op, OpKind, Role, Tensor, Work, parse_dtype, prod

STATES: Final = ("master", "exp_avg", "exp_avg_sq")
FLOAT32: Final = DTYPES["float32"]


@dataclass(frozen=True)
class MasterWeights:
    """Adam as Megatron-LM, DeepSpeed and nanotron run it: one multi-tensor kernel over float32 masters and moments.

    Of an element it reads the gradient and three states, and writes the states and the parameter (Micikevicius et al.
    2018, arXiv:1710.03740); the norm of all gradients is taken before (clipping, and the check of a loss scale).
    """

    name: ClassVar[str] = "master_weights"
    gradient: str = "float32"
    """Format of the gradients that it reads."""

    def run(self, graph: Graph) -> Graph:
        """The graph with the optimizer behind it; itself without gradients of parameters.

        Raises `GraphError` where it has an optimizer already.
        """
        if any(op.phase == "optimizer" and op.kind is not OpKind.COLLECTIVE for op in graph.ops):
            raise GraphError("the graph has an optimizer already: capture it without one")
        tensors = list(graph.tensors)
        parameters = {t.name: i for i, t in enumerate(tensors) if t.role is Role.PARAMETER and t.storage == i}
        gradients = {
            tensors[t].name: t
            for op in graph.ops
            for t in op.outputs
            if tensors[t].role is Role.GRADIENT and tensors[t].name in parameters
        }
        if not gradients:
            return graph
        states: list[int] = []
        after: list[int] = []
        for name in gradients:
            own = tensors[parameters[name]]
            for state in STATES:
                place = len(tensors)
                whole = Tensor(f"optimizer_state.{state}.{name}", own.shape, FLOAT32, Role.OPTIMIZER_STATE, place)
                tensors += [whole, replace(whole)]
                states.append(place)
                after.append(place + 1)
            tensors.append(replace(own))
            after.append(len(tensors) - 1)
        tensors.append(Tensor("", (), FLOAT32, Role.ACTIVATION, len(tensors)))
        elements: DimLike = 0
        for name in gradients:
            elements = elements + prod(tensors[parameters[name]].shape)
        read = elements * parse_dtype(self.gradient).bits // 8
        width = max(tensors[parameters[name]].dtype.bits for name in gradients) // 8
        given = tuple(gradients.values())
        norm = Work(0, 2 * elements, 0, read, FLOAT32.bits // 8)
        adam = Work(0, 12 * elements, elements, read + 12 * elements, (12 + width) * elements)
        ops = (
            Op(OpKind.REDUCTION, "multi_tensor.l2_norm", given, (len(tensors) - 1,), {}, "", "optimizer", norm),
            Op(OpKind.ELEMENTWISE, "multi_tensor.adam", (*given, *states), tuple(after), {}, "", "optimizer", adam),
        )
        return replace(graph, ops=(*graph.ops, *ops), tensors=tuple(tensors))
