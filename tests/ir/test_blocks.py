import dataclasses

import pytest
from hypothesis import given
from strategies import graphs, small_graph

from foretrace.ir import (
    DTYPES,
    Graph,
    Op,
    OpKind,
    Role,
    Symbol,
    Tensor,
    count_layers,
    find_blocks,
    folded_size,
    op_signature,
    split_index,
    symbol,
)


@pytest.mark.parametrize(
    ("module", "place"),
    [
        ("model.layers.3.mlp", ("model.layers", 3, "mlp")),
        ("model.layers.3", ("model.layers", 3, "")),
        ("layers.3.experts.7.w1", ("layers", 3, "experts.7.w1")),
        ("0.1", ("", 0, "1")),
        ("7", ("", 7, "")),
        ("model.layer1.conv2d", None),
        ("", None),
        ("a.².b", None),
        ("a." + "9" * 5000, None),
    ],
)
def test_split_index(module, place):
    assert split_index(module) == place


def layered(*layers, container="model.layers"):
    """Layers of ops (kind, attributes, inputs, shape); an input counts back: -1 the last op's output, None a weight."""
    batch, f32 = symbol("batch"), DTYPES["float32"]
    tensors = [Tensor("x", (batch, 8), f32, Role.INPUT, 0)]
    ops: list[Op] = []
    made = [0]

    def add(shape, role):
        tensors.append(Tensor("", shape, f32, role, len(tensors)))
        return len(tensors) - 1

    for i, layer in enumerate(layers):
        for kind, attributes, inputs, shape in layer:
            ins = tuple(add((8, 8), Role.PARAMETER) if k is None else made[k] for k in inputs)
            made.append(add(shape, Role.ACTIVATION))
            ops.append(Op(OpKind(kind), "f", ins, (made[-1],), attributes, f"{container}.{i}.mlp"))
    return Graph("g", "forward", {"batch": Symbol("batch")}, tuple(tensors), tuple(ops))


def layer(window=0, inputs=(-1, -2), n=8):
    shape = (symbol("batch"), n)
    return (
        ("norm", {"eps": 1e-5}, (-1,), shape),
        ("elementwise", {"window": window}, (-1, None), shape),
        ("elementwise", {}, inputs, shape),
    )


def test_equal_layers_fold():
    blocks = find_blocks(layered(*[layer()] * 4))
    assert [(b.path, b.indices, b.repeats) for b in blocks] == [("model.layers.*", (0, 1, 2, 3), 4)]
    assert blocks[0].representative == (0, 1, 2)
    assert blocks[0].ops[3] == (9, 10, 11)
    assert count_layers(layered(*[layer()] * 4)) == 4


@pytest.mark.parametrize(
    "other",
    [
        layer(window=4096),
        layer(inputs=(-1, -1)),
        layer(inputs=(-2, -1)),
        layer(inputs=(-1, None)),
        layer()[:2],
        layer()[1:],
    ],
    ids=["literal", "wiring", "order of inputs", "weight for activation", "an op less", "first op less"],
)
def test_a_layer_that_differs_does_not_fold(other):
    blocks = find_blocks(layered(layer(), other, layer(), other))
    assert [b.indices for b in blocks] == [(0, 2), (1, 3)]
    assert count_layers(layered(layer(), other, layer(), other)) == 4


def test_a_layer_of_another_shape_does_not_fold():
    assert [b.indices for b in find_blocks(layered(layer(), layer(), layer(n=16)))] == [(0, 1), (2,)]


def test_one_outside_tensor_twice_is_not_two_tensors():
    two = [("elementwise", {}, (0, -1), (symbol("batch"), 8))]
    first = [("norm", {}, (-1,), (symbol("batch"), 8))]
    twice = [("elementwise", {}, (-1, -1), (symbol("batch"), 8))]
    graph = layered(first, two, twice)
    assert [b.indices for b in find_blocks(graph)] == [(0,), (1,), (2,)]


def test_module_below_the_index_and_phase_matter():
    g = layered(layer(), layer())
    moved = dataclasses.replace(
        g, ops=(*g.ops[:3], dataclasses.replace(g.ops[3], module="model.layers.1.x"), *g.ops[4:])
    )
    assert len(find_blocks(moved)) == 2
    later = dataclasses.replace(g, ops=(*g.ops[:3], dataclasses.replace(g.ops[3], phase="backward"), *g.ops[4:]))
    assert len(find_blocks(later)) == 2


def test_containers_stand_apart_and_nested_ones_belong_to_the_outer():
    g = layered(layer(), layer())
    names = ["encoder.0.experts.0", "encoder.0.experts.1", "encoder.1.experts.0", "decoder.0", "decoder.1", "head"]
    ops = tuple(dataclasses.replace(op, module=name) for op, name in zip(g.ops, names, strict=True))
    blocks = find_blocks(dataclasses.replace(g, ops=ops))
    assert [(b.path, b.indices) for b in blocks] == [
        ("encoder.*", (0,)),
        ("encoder.*", (1,)),
        ("decoder.*", (0,)),
        ("decoder.*", (1,)),
    ]
    assert count_layers(dataclasses.replace(g, ops=ops)) == 4


def test_what_is_no_layer_is_not_counted():
    views = layered(*[[("view", {}, (-1,), (symbol("batch"), 8))]] * 5)
    assert len(find_blocks(views)[0].indices) == 5
    assert count_layers(views) == 0
    assert count_layers(layered(layer())) == 0  # one instance is no repetition
    assert find_blocks(Graph("g", "forward", {}, (), ())) == []
    assert count_layers(small_graph()) == 2


@given(graphs())
def test_blocks_partition_the_numbered_ops(graph):
    ids = sorted(i for b in find_blocks(graph) for ops in b.ops for i in ops)
    assert ids == [i for i, op in enumerate(graph.ops) if split_index(op.module)]


@given(graphs())
def test_signatures_are_hashable_and_ignore_the_place(graph):
    for op in graph.ops:
        moved = dataclasses.replace(op, module="elsewhere", attributes=dict(reversed(op.attributes.items())))
        assert hash(op_signature(op, graph.tensors)) == hash(op_signature(moved, graph.tensors))
        assert op_signature(op, graph.tensors) == op_signature(moved, graph.tensors)


def test_folding_keeps_one_instance_of_each_block():
    one = layer()
    graph = layered(one, one, one, layer(window=4))
    assert folded_size(graph) == 2 * len(one)
    assert folded_size(layered(one)) == len(one)
