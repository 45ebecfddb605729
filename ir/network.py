"""A networkx view of a Graph, for anyone's own graph algorithms."""

import networkx as nx

from .graph import Graph


def to_networkx(graph: Graph) -> "nx.DiGraph[int]":
    """A DiGraph: a node an op id (attributes kind, name, module, phase, op), an edge a producer → consumer pair.

    The edge attribute ``tensors`` lists the tensor ids that flow along it, in the consumer's order.
    """
    view: nx.DiGraph[int] = nx.DiGraph(name=graph.name)
    for i, op in enumerate(graph.ops):
        view.add_node(i, kind=str(op.kind), name=op.name, module=op.module, phase=op.phase, op=op)
    flows: dict[tuple[int, int], list[int]] = {}
    for i, op in enumerate(graph.ops):
        for t in op.inputs:
            if (made_by := graph.producers.get(t)) is not None:
                flows.setdefault((made_by, i), []).append(t)
    view.add_edges_from((a, b, {"tensors": tuple(ts)}) for (a, b), ts in flows.items())
    return view
