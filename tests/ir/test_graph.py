import pytest
from hypothesis import given
from strategies import bindings, graphs, shapes

from foretrace.ir import (
    DTYPES,
    Graph,
    GraphError,
    Op,
    OpKind,
    Role,
    Symbol,
    Tensor,
    UnknownNameError,
    Work,
    evaluate_dim,
    nearest_names,
    parse_dtype,
    symbol,
)

B = symbol("batch")


def tensor(shape, dtype="float32", role=Role.PARAMETER, storage=0):
    return Tensor("t", shape, DTYPES[dtype], role, storage)


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [
        ("float32", (2, 3), 24),
        ("bfloat16", (), 2),
        ("bool", (3,), 3),
        ("complex128", (2,), 32),
        ("int4", (3,), 2),
        ("float4_e2m1", (), 1),
        ("float6_e3m2", (3,), 3),
        ("float6_e2m3", (4,), 3),
        ("int4", (0, 5), 0),
        ("float4_e2m1", (B, 64), 32 * B),
        ("float6_e3m2", (B, 4), 3 * B),
        ("int4", (B,), (4 * B + 7) // 8),
        ("float16", (B, B), 2 * B * B),
    ],
)
def test_bytes_of_a_tensor(dtype, shape, size):
    assert tensor(shape, dtype).bytes == size


@given(shapes, bindings)
def test_bytes_are_the_bits_rounded_up(shape, at):
    for dtype in DTYPES.values():
        t = tensor(shape, dtype.name)
        elements = evaluate_dim(t.elements, at)
        assert evaluate_dim(t.bytes, at) == -(-elements * dtype.bits // 8)


def test_dtypes():
    assert parse_dtype(" torch.BFloat16 ") is DTYPES["bfloat16"]
    assert parse_dtype("fp8") is DTYPES["float8_e4m3"]
    assert all(parse_dtype(name) is d and d.name == name and str(d) == name for name, d in DTYPES.items())
    assert DTYPES["float4_e2m1"].is_float
    assert not DTYPES["uint8"].is_float
    with pytest.raises(UnknownNameError, match=r"unknown dtype 'bflot16'; nearest: bfloat16"):
        parse_dtype("bflot16")


def test_nearest_names():
    assert nearest_names("BATHC", ["batch", "seq", "Batches"])[0] == "batch"
    assert nearest_names("zzz", ["batch"]) == []
    assert str(UnknownNameError("symbol", "zzz", ["batch"])) == "unknown symbol 'zzz'"


def opened(**metadata):
    symbols = {"batch": Symbol("batch", 2, 1, 64), "seq": Symbol("seq", 128, 16)}
    return Graph("g", "forward", symbols, (), (), {k.replace("_", "."): v for k, v in metadata.items()})


def test_bind():
    assert opened().bind({}) == {"batch": 2, "seq": 128}
    assert opened().bind({"seq": 64, "batch": None}) == {"batch": 2, "seq": 64}
    assert opened().bind({"context": None}) == {"batch": 2, "seq": 128}
    assert opened(fixed_context="32").bind({"context": 32}) == {"batch": 2, "seq": 128}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seq": 8}, r"seq=8: this graph was captured for seq of at least 16; capture it again with seq=8"),
        ({"batch": 65}, r"batch=65: .* of at least 1 and at most 64; capture it again with batch=65"),
        ({"batch": 0}, r"batch=0: this graph was captured for batch of at least 1 and at most 64$"),
        ({"batch": -3}, r"batch=-3: this graph was captured for batch of at least 1 and at most 64$"),
    ],
)
def test_bind_outside_the_range(given, message):
    with pytest.raises(GraphError, match=message):
        opened().bind(given)


def test_bind_unknown_symbols():
    with pytest.raises(UnknownNameError, match=r"unknown symbol 'bacth'; nearest: batch \(graph g leaves open: batch"):
        opened().bind({"bacth": 1})
    with pytest.raises(UnknownNameError, match=r"captured with context=32; capture it again with --context 64"):
        opened(fixed_context="32").bind({"context": 64})
    with pytest.raises(UnknownNameError, match="captured with context=many"):
        opened(fixed_context="many").bind({"context": 64})  # a stranger's file
    with pytest.raises(UnknownNameError, match="graph e leaves open: nothing"):
        Graph("e", "forward", {}, (), ()).bind({"batch": 1})


def test_parameters_count_once():
    tensors = (
        tensor((4, 8)),
        tensor((8, 4)),  # a view of the first
        tensor((3,), "int4", storage=2),
        tensor((100,), role=Role.BUFFER, storage=3),
    )
    graph = Graph("g", "forward", {}, tensors, ())
    assert graph.parameter_count == 35
    assert graph.parameter_bytes == 4 * 32 + 2
    assert graph.with_role(Role.PARAMETER) == [tensors[0], tensors[2]]
    with pytest.raises(GraphError, match="a parameter's size depends on a symbol: batch"):
        _ = Graph("g", "forward", {}, (tensor((B,)),), ()).parameter_count


def test_flops_are_exact():
    ops = [Op(kind, "f", (), (), work=Work(B * 3, B, B, 1, 2)) for kind in (OpKind.MATMUL, OpKind.MATMUL, OpKind.NORM)]
    graph = Graph("g", "forward", {"batch": Symbol("batch")}, (), tuple(ops))
    assert graph.flops({"batch": 10**20}) == 6 * 10**20
    assert graph.flops({"batch": 1}, OpKind) == 9
    assert ops[0].work.bytes == 3


@given(graphs())
def test_producers_and_predecessors(graph):
    for i, op in enumerate(graph.ops):
        assert all(graph.producers[t] == i for t in op.outputs)
        assert graph.predecessors[i] == sorted({graph.producers[t] for t in op.inputs if t in graph.producers})
        assert all(p < i for p in graph.predecessors[i])
