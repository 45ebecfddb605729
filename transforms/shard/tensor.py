"""Tensor (and sequence) parallel as a pass."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from foretrace.ir import Graph
from foretrace.transforms.plan import PlanError

from .placement import token_sizes
from .propagate import Propagation
from .seeds import seeds_of, styles_of
from .writer import Axis


@dataclass(frozen=True)
class TensorParallel:
    """Divide parameters among `ranks`, and along with them the operators that read them.

    The result is the graph of any one rank (they are equal) with collectives where placements disagree. Sums of
    row-parallel products are all-reduced, or with `sequence` scattered along the sequence and gathered again in
    front of the next product (Korthikanti et al. 2022, arXiv:2205.05198).
    """

    name: ClassVar[str] = "tensor_parallel"
    ranks: int
    sequence: bool = False
    regather: bool = True
    """With `sequence`: gather inputs again in the backward, as Megatron-LM does; DTensor keeps what it gathered."""
    styles: Mapping[str, str] | None = None
    """Module pattern → style (`seeds.STYLES`); None: the model's own, or the usual names."""

    def run(self, graph: Graph) -> Graph:
        """The local graph. Raises `PlanError` where something does not divide, or nothing would."""
        if self.ranks == 1:
            return graph
        if self.sequence and token_sizes(graph.tensors) is None:
            raise PlanError(f"plan: sp=1: {graph.name} takes no token ids [batch, seq] to divide along; use sp=0")
        seeds, padded = seeds_of(graph, styles_of(graph, self.styles))
        if not seeds:
            raise PlanError(
                f"plan: tp={self.ranks}: no parameter of {graph.name} has a name that says how to divide it; "
                "give a file of patterns (*.my_proj: colwise) with --shard"
            )
        axis = Axis("tp", self.ranks, 1, self.sequence)
        work = Propagation(graph, axis, seeds, padded, self.regather)
        local = work.run()
        notes = {}
        if work.gathered:
            worst = sorted(work.gathered.items(), key=lambda item: -item[1])
            notes["tp_gathered"] = ", ".join(f"{n} x {name}" for name, n in worst)
        return replace(local, metadata={**graph.metadata, **notes})
