import networkx as nx
from hypothesis import given
from strategies import graphs, small_graph

from foretrace.ir.network import to_networkx


@given(graphs())
def test_the_view_has_the_edges_of_predecessors(graph):
    view = to_networkx(graph)
    assert list(view) == list(range(len(graph.ops)))
    assert [sorted(view.predecessors(i)) for i in view] == graph.predecessors
    assert nx.is_directed_acyclic_graph(view)
    for a, b, tensors in view.edges(data="tensors"):
        assert set(tensors) == set(graph.ops[a].outputs) & set(graph.ops[b].inputs)
    for i, op in enumerate(graph.ops):
        assert view.nodes[i] == {"kind": op.kind, "name": op.name, "module": op.module, "phase": op.phase, "op": op}


def test_small_graph():
    assert list(to_networkx(small_graph()).edges) == [(0, 1), (1, 2), (2, 4), (3, 4), (4, 5)]
