"""Tensor (and sequence) parallel as a pass."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Final

from foretrace.ir import Graph, OpKind, Role, evaluate_dim
from foretrace.transforms.plan import PlanError

from .moves import SUM, Moves
from .placement import Placement, token_sizes
from .propagate import Propagation
from .seeds import Seeds, seeds_of, styles_of
from .writer import Axis

_MUCH: Final = 1.1
"""Times the FLOPs of an even division from where a note says so: routers, positions and small heads stay whole."""


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
        if self.sequence:
            self._check_sequence(graph)
        seeds = seeds_of(graph, styles_of(graph, self.styles))
        if not seeds.places:
            raise PlanError(
                f"plan: tp={self.ranks}: no parameter of {graph.name} has a name that says how to divide it; "
                "give a file of patterns (*.my_proj: colwise) with --shard"
            )
        axis = Axis("tp", self.ranks, 1, self.sequence)
        work = Propagation(graph, axis, seeds, self.regather)
        local = work.run()
        if more := _also(work.moves, seeds):
            seeds = Seeds(
                seeds.places | {i: p for i, (p, _) in more.items()},
                seeds.padded | {i for i, (_, padded) in more.items() if padded},
                seeds.gathered,
            )
            work = Propagation(graph, axis, seeds, self.regather)
            local = work.run()
        return replace(local, metadata={**graph.metadata, **self._notes(graph, local, work)})

    def _check_sequence(self, graph: Graph) -> None:
        if graph.phase == "decode":
            raise PlanError("plan: sp=1: a decode step has one token, no sequence to divide; use sp=0")
        if token_sizes(graph.tensors) is None:
            raise PlanError(f"plan: sp=1: {graph.name} takes no token ids [batch, seq] to divide along; use sp=0")

    def _notes(self, graph: Graph, local: Graph, work: Propagation) -> dict[str, str]:
        """What is not divided. Raises `PlanError` where that is all of the products."""
        notes = {}
        if work.gathered:
            worst = sorted(work.gathered.items(), key=lambda item: -item[1])
            notes["tp_gathered"] = ", ".join(f"{n} x {name}" for name, n in worst)
        share = _matrix_flops(local) / max(_matrix_flops(graph), 1)
        if share == 1:
            raise PlanError(
                f"plan: tp={self.ranks}: no product of {graph.name} reads a parameter that is divided; "
                "give a file of patterns (*.my_proj: colwise) with --shard"
            )
        if share * self.ranks > _MUCH:
            notes["tp_whole"] = (
                f"tp={self.ranks} leaves each rank {share:.0%} of the matrix FLOPs, not {1 / self.ranks:.0%}: "
                "parameters whose names are not known stay whole; name them with --shard"
            )
        return notes


def check_sizes(graph: Graph, ranks: int, sequence: bool, sizes: Mapping[str, int]) -> None:
    """Raise `PlanError` where the tokens of *graph* at *sizes* do not divide among *ranks* of sequence parallel."""
    tokens = token_sizes(graph.tensors) if sequence else None
    seq = evaluate_dim(tokens[1], sizes) if tokens else 0
    if seq % ranks:
        raise PlanError(
            f"plan: tp={ranks},sp=1 does not divide the {seq} tokens of a rank's sequence: "
            f"nearest is {-(-seq // ranks) * ranks}"
        )


def _matrix_flops(graph: Graph) -> int:
    """FLOPs of products and attention at the sizes' defaults."""
    sizes = {name: symbol.default for name, symbol in graph.symbols.items()}
    times: dict[int, int] = {}
    works = {}
    for op in graph.ops:
        if op.kind is OpKind.MATMUL or op.kind is OpKind.GROUPED_MATMUL or op.kind is OpKind.ATTENTION:
            works[id(op.work)] = op.work
            times[id(op.work)] = times.get(id(op.work), 0) + 1
    return sum(evaluate_dim(works[i].matrix_flops, sizes) * n for i, n in times.items())


def _also(moves: Moves, seeds: Seeds) -> dict[int, tuple[Placement, bool]]:
    """Parameters and caches of which every op took the same part: a rank needs no more, so they are divided too.

    Sinks, norms over all heads, biases of a divided vocabulary, caches of an attention that is no operator; and
    parameters of whose gradient a rank makes a part (tables of position biases). Gives their placements, and whether
    they are padded.
    """
    graph = moves.graph
    found: dict[int, tuple[Placement, bool]] = {}
    for root, parts in moves.narrowed.items():
        places = {_of_root(graph, root, n.tensor, n.place) for n in parts.values()}
        place = places.pop()
        if len(places) == 0 and place is not None and root not in graph.producers:
            found[root] = place, any(n.padded for n in parts.values())
    for op in graph.ops if found else ():
        if op.kind is not OpKind.VIEW and op.phase != "optimizer":
            for t in op.inputs:
                root = graph.tensors[t].storage
                if root in found and id(op) not in moves.narrowed[root]:
                    del found[root]
    return _of_gradients(moves, seeds) | found


def _of_gradients(moves: Moves, seeds: Seeds) -> dict[int, tuple[Placement, bool]]:
    """Whole parameters whose gradients are divided, with the gradients' placements."""
    tensors = moves.graph.tensors
    divided: dict[str, int] = {}
    for t, code in enumerate(moves.place):
        if code > SUM and tensors[t].role is Role.GRADIENT:
            divided[tensors[t].name] = t
    found = {}
    for i, tensor in enumerate(tensors):
        if tensor.role is Role.PARAMETER and tensor.storage == i and i not in seeds.places and tensor.name in divided:
            t = divided[tensor.name]
            place = moves.placements[moves.place[t]]
            if tensors[t].shape == tensor.shape and place.extent is None and not place.tokens:
                found[i] = place, t in moves.pad
    return found


def _of_root(graph: Graph, root: int, t: int, place: Placement) -> Placement | None:
    """*place* of a view *t* as one of the tensor *root* that it shows: the dim of that size, if there is one."""
    shape, size = graph.tensors[root].shape, graph.tensors[t].shape[place.dim]
    if place.extent is not None:
        return None
    if shape == graph.tensors[t].shape:
        return place
    dims = [d for d, s in enumerate(shape) if s == size]
    return place.at(dims[0]) if len(dims) == 1 else None
