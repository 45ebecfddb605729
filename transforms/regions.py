"""Which operators of a forward are computed again together: layers, modules of a pattern, cores of attention.

A region is named by its module. The core of attention is found by structure, not by what a model calls it: an
attention operator, or the softmax between the product of queries and keys and the product with the values.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from foretrace.ir import Graph, OpKind, Role
from foretrace.ir.blocks import split_index


@dataclass(frozen=True)
class Regions:
    """For each op of a graph the region that it belongs to; empty: none."""

    forward: list[str]
    """Of ops of the forward: with what they are computed again."""
    backward: list[str]
    """Of ops of the backward: the region whose saved tensors they are the readers of."""

    @property
    def members(self) -> dict[str, list[int]]:
        """The forward ops of each region."""
        found: dict[str, list[int]] = {}
        for i, region in enumerate(self.forward):
            if region:
                found.setdefault(region, []).append(i)
        return found


def find_regions(graph: Graph, what: str) -> Regions:
    """Regions of *graph*: full (the layers), selective (cores of attention), or the modules that fit a pattern."""
    if what == "selective":
        cores = _cores(graph)
        places = {graph.ops[i].module: region for i, region in cores.items() if graph.ops[i].kind is not OpKind.VIEW}
        forward = [cores.get(i, "") for i in range(len(graph.ops))]
        return Regions(forward, _of_phase(graph, "backward", lambda module: places.get(module, "")))
    region_of = _layer if what == "full" else lambda module: _matching(module, what)
    return Regions(_of_phase(graph, "forward", region_of), _of_phase(graph, "backward", region_of))


def _of_phase(graph: Graph, phase: str, region_of: Callable[[str], str]) -> list[str]:
    known: dict[str, str] = {}
    found = []
    for op in graph.ops:
        if op.phase != phase:
            found.append("")
            continue
        if op.module not in known:
            known[op.module] = region_of(op.module)
        found.append(known[op.module])
    return found


def _layer(module: str) -> str:
    place = split_index(module)
    return f"{place[0]}.{place[1]}" if place else ""


def _matching(module: str, pattern: str) -> str:
    """The outermost module around *module* (or itself) that fits the pattern."""
    parts = module.split(".")
    names = (".".join(parts[: i + 1]) for i in range(len(parts)))
    return next((name for name in names if fnmatchcase(name, pattern)), "")


def _cores(graph: Graph) -> dict[int, str]:
    """Op → region, of the ops of the cores of attention in the forward."""
    readers: dict[int, list[int]] = {}
    for i, op in enumerate(graph.ops):
        if op.phase == "forward":
            for t in op.inputs:
                readers.setdefault(t, []).append(i)
    parameters = {i for i, t in enumerate(graph.tensors) if graph.tensors[t.storage].role is Role.PARAMETER}
    found: dict[int, str] = {}
    for i, op in enumerate(graph.ops):
        if op.phase != "forward":
            continue
        if op.kind is OpKind.ATTENTION and not op.attributes.get("backward"):
            for member in _with_arrivals(graph, i):
                found[member] = op.module
        elif op.kind is OpKind.SOFTMAX and "log" not in op.name:
            for member in _around_softmax(graph, i, readers, parameters):
                found[member] = op.module
    for i in sorted(found):
        _add_views(graph, i, readers, found)
    return found


def _add_views(graph: Graph, of: int, readers: dict[int, list[int]], found: dict[int, str]) -> None:
    """Views of what a core makes belong to it, wherever they are taken: what is saved is often one."""
    waiting = [of]
    while waiting:
        i = waiting.pop()
        for r in (r for t in graph.ops[i].outputs for r in readers.get(t, ())):
            if graph.ops[r].kind is OpKind.VIEW and r not in found:
                found[r] = found[of]
                waiting.append(r)


def _with_arrivals(graph: Graph, attention: int) -> list[int]:
    """An attention operator and what brings it keys of other ranks."""
    op = graph.ops[attention]
    found = [attention]
    made_by = graph.producers
    for t in op.inputs:
        while (i := made_by.get(t, -1)) >= 0:
            brings = graph.ops[i]
            if brings.kind is not OpKind.COLLECTIVE or brings.module != op.module:
                break
            found.append(i)
            t = brings.inputs[brings.outputs.index(t)] if len(brings.inputs) == len(brings.outputs) else -1
    return found


def _around_softmax(graph: Graph, softmax: int, readers: dict[int, list[int]], parameters: set[int]) -> set[int]:
    """From the product of queries and keys to the product with the values; empty where there are no two such.

    A product with one of *parameters* is a projection: of a router, or of the logits.
    """
    made_by = graph.producers

    def before(i: int) -> Iterable[int]:
        return [made_by[t] for t in graph.ops[i].inputs if t in made_by]

    def behind(i: int) -> Iterable[int]:
        return [r for t in graph.ops[i].outputs for r in readers.get(t, ())]

    above, scores = _until_product(graph, softmax, before)
    scores = {i for i in scores if parameters.isdisjoint(graph.ops[i].inputs)}
    if not scores:
        return set()
    below, context = _until_product(graph, softmax, behind)
    context = {i for i in context if parameters.isdisjoint(graph.ops[i].inputs)}
    if not context:
        return set()
    inside = {softmax} | scores | context
    for i in sorted(above):  # of all that softmax reads (masks, positions), what depends on the scores
        if any(b in inside for b in before(i)):
            inside.add(i)
    for i in sorted(below, reverse=True):
        if any(b in inside for b in behind(i)):
            inside.add(i)
    return inside


def _until_product(graph: Graph, start: int, step: Callable[[int], Iterable[int]]) -> tuple[set[int], set[int]]:
    """The ops reached from *start* by *step* up to matrix products, and those products."""
    seen: set[int] = set()
    products: set[int] = set()
    waiting = list(step(start))
    while waiting:
        i = waiting.pop()
        if i in seen or i in products:
            continue
        if graph.ops[i].kind in (OpKind.MATMUL, OpKind.GROUPED_MATMUL, OpKind.ATTENTION):
            products.add(i)
            continue
        seen.add(i)
        waiting += step(i)
    return seen, products


def saved_elsewhere(graph: Graph, regions: Regions) -> set[int]:
    """Storages made in a region that the forward outside it reads: they are kept whatever is computed again."""
    home = {
        graph.tensors[t].storage: region
        for op, region in zip(graph.ops, regions.forward, strict=True)
        if region
        for t in op.outputs
    }
    return {
        s
        for op, region in zip(graph.ops, regions.forward, strict=True)
        if op.phase == "forward" and op.kind is not OpKind.VIEW  # what reads the view counts
        for s in [graph.tensors[t].storage for t in op.inputs]
        if home.get(s, region) != region
    }
