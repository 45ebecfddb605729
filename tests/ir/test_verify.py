import dataclasses
import math

import pytest
from hypothesis import given
from strategies import graphs, small_graph

from foretrace.ir import DTYPES, Graph, GraphError, Op, OpKind, Role, Symbol, Tensor, Work, symbol, verify

B, S = symbol("batch"), symbol("seq")
F32 = DTYPES["float32"]


def tensor(shape=(4,), role=Role.ACTIVATION, storage=0, name="t"):
    return Tensor(name, shape, F32, role, storage)


def graph(ops=(), tensors=None, symbols=("batch",), **fields):
    """Tensors: an input, then activations, each owning its storage."""
    if tensors is None:
        tensors = [tensor(role=Role.ACTIVATION if i else Role.INPUT, storage=i, name=f"t{i}") for i in range(4)]
    declared = {s: Symbol(s, 8) for s in symbols} if isinstance(symbols, tuple) else symbols
    return Graph("g", fields.pop("phase", "forward"), declared, tuple(tensors), tuple(ops), **fields)


def op(inputs, outputs, kind=OpKind.VIEW, name="f", module="m", **fields):
    return Op(kind, name, tuple(inputs), tuple(outputs), fields.pop("attributes", {}), module, **fields)


def refused(message, *args, **fields):
    with pytest.raises(GraphError, match=message):
        verify(graph(*args, **fields))


@given(graphs())
def test_valid_graphs_pass_and_come_back_themselves(valid):
    assert verify(valid) is valid


def test_phases():
    refused("graph g: phase 'training' is none of forward, prefill, decode, train", phase="training")
    refused(r"op 0 \(f in m\): phase 'fwd' is none of forward, backward, optimizer", [op([0], [1], phase="fwd")])


def test_metadata_is_text():
    refused("graph g: metadata maps text to text", metadata={"layers": 3})


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"batch": Symbol("seq")}, "symbol batch: declared under that name but calls itself 'seq'"),
        ({"no-name": Symbol("no-name")}, "symbol names are ASCII identifiers"),
        ({"batch": Symbol("batch", 1, 2)}, "symbol batch: expected 0 <= minimum <= default <= maximum, got minimum 2"),
        ({"batch": Symbol("batch", 9, 1, 8)}, "symbol batch: expected .* default 9, maximum 8"),
        ({"batch": Symbol("batch", 1, -1)}, "symbol batch: expected .* got minimum -1"),
        ({"batch": Symbol("batch", 1, 1, 1 << 64)}, "symbol batch: expected"),
        ({"batch": Symbol("batch", 1.5)}, "symbol batch: expected .* default 1.5"),
    ],
)
def test_symbols(declared, message):
    refused(message, symbols=declared)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, -3), r"tensor 0 \(t\): the size -3 is negative"),
        ((B - 20,), r"tensor 0 \(t\): the size batch - 20 is negative \(-12\) at the symbols' defaults"),
        ((B * S,), r"tensor 0 \(t\): batch\*seq uses undeclared symbols: seq"),
        ((4 // (B - 8),), r"tensor 0 \(t\): floordiv\(4, batch - 8\) divides by zero"),
        ((2.5,), r"tensor 0 \(t\): a size is an int or a Dim, got 2.5"),
        (("batch",), r"tensor 0 \(t\): a size is an int or a Dim, got 'batch'"),
        ((True,), r"tensor 0 \(t\): a size is an int or a Dim, got True"),
    ],
)
def test_shapes(shape, message):
    refused(message, tensors=[tensor(shape)])


def test_each_tensor_is_checked_also_where_sizes_repeat():
    good, bad = (B, 4), (B, S)
    refused(r"tensor 2 \(t\): seq uses undeclared", tensors=[tensor(good), tensor(good), tensor(bad), tensor(bad)])


def test_storage():
    refused(r"tensor 0 \(t\): storage 7 is no tensor of this graph of 1 tensors", tensors=[tensor(storage=7)])
    refused(r"tensor 0 \(t\): storage -1 is no tensor", tensors=[tensor(storage=-1)])
    chain = [tensor(storage=0, name="base"), tensor(storage=0, name="view"), tensor(storage=1, name="view of view")]
    refused(
        r"tensor 2 \(view of view\): storage 1 \(view\) is itself a view of 0; a view names the tensor that owns",
        tensors=chain,
    )


def test_work():
    refused(r"op 0 \(f in m\): work: seq uses undeclared symbols: seq", [op([0], [1], work=Work(bytes_read=S))])
    refused(r"op 0 \(f in m\): work: the size -1 is negative", [op([0], [1], work=Work(special_flops=-1))])
    refused(r"op 0 \(f in m\): work: the size batch - 9 is negative", [op([0], [1], work=Work(B - 9))])


def test_dangling_tensors():
    refused(r"op 0 \(f\): input 9 is dangling: the graph has 4 tensors", [op([9], [1])])
    refused(r"op 0 \(f\): input -1 is dangling", [op([-1], [1])])
    refused(r"op 0 \(f\): output 4 is dangling: the graph has 4 tensors", [op([0], [4])])
    refused(r"op 0 \(f\): input 2 \(t2\) is dangling: no op produces it and its role is activation", [op([0, 2], [1])])


def test_two_producers():
    refused(r"tensor 1 \(t1\) is produced by op 0 and by op 1", [op([0], [1]), op([0], [1])])
    refused(r"tensor 1 \(t1\) is produced by op 0 and by op 0", [op([0], [1, 1])])


def test_order():
    refused(
        r"op 0 \(g\) reads what op 1 \(f\) produces later: ops must stand in an order they can run in",
        [op([1], [2], name="g"), op([0], [1])],
    )


def test_cycles_are_printed():
    refused(r"the graph has a cycle of 1 ops: 0 \(f\) → 0 \(f\)$", [op([1], [1])])
    refused(
        r"the graph has a cycle of 3 ops: 0 \(a\) → 1 \(b\) → 2 \(c\) → 0 \(a\)$",
        [op([3], [1], name="a"), op([1], [2], name="b"), op([2], [3], name="c")],
    )
    n = 5000
    tensors = [tensor(storage=i) for i in range(n)]
    ring = [op([(i - 1) % n], [i]) for i in range(n)]
    refused(r"a cycle of 5000 ops: 0 \(f\) → .* → 7 \(f\) → \.\.\. → 0 \(f\)$", ring, tensors)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "the attribute a holds a list: expected none, bool, int"),
        (("x", ({},)), "the attribute a holds a dict"),
        (object(), "the attribute a holds a object"),
        (1j, "the attribute a holds a complex"),
        (S, "the attribute a: seq uses undeclared symbols: seq"),
        ((1, (S * B,)), r"the attribute a: batch\*seq uses undeclared symbols: seq"),
    ],
)
def test_attributes(value, message):
    refused(rf"op 0 \(f in m\): {message}", [op([0], [1], attributes={"a": value})])


def test_attributes_that_a_file_can_hold():
    value = (None, True, -1, math.inf, "text", B - 100, ((),))
    verify(graph([op([0], [1], attributes={"a": value, **dict(zip("bcdefgh", value, strict=True))})]))
    for _ in range(40):
        value = (value,)
    refused("the attribute a nests deeper than 32", [op([0], [1], attributes={"a": value})])


def matmul(shape=(8, 64), kind=OpKind.MATMUL, **changed):
    attributes = {"b": 1, "m": 8, "n": 64, "k": 32, **changed}
    attributes = {k: v for k, v in attributes.items() if v != "none"}
    tensors = [tensor(role=Role.INPUT), tensor(shape, storage=1)]
    return [op([0], [1], kind, "aten.mm", "lm", attributes=attributes)], tensors


@pytest.mark.parametrize("kind", [OpKind.MATMUL, OpKind.GROUPED_MATMUL, OpKind.CONVOLUTION])
def test_matrix_kinds_need_their_sizes(kind):
    verify(graph(*matmul(kind=kind)))
    refused(rf"op 0 \(aten.mm in lm\): a {kind} op needs the attributes k", *matmul(kind=kind, k="none"))
    refused(r"op 0 \(aten.mm in lm\): the attribute k is a size, got -1", *matmul(kind=kind, k=-1))
    refused(r"the attribute k is a size, got '8'", *matmul(kind=kind, k="8"))
    refused(r"the attribute k is a size, got True", *matmul(kind=kind, k=True))
    ops, tensors = matmul(kind=kind)
    refused(rf"a {kind} op needs an output", [dataclasses.replace(ops[0], outputs=())], tensors)


def test_matmul_geometry():
    verify(graph(*matmul((2, 4, 64))))
    refused(r"op 0 \(aten.mm in lm\): b\*m\*n = 512 but the output has shape \[8, 65\]", *matmul((8, 65)))
    refused(r"b\*m\*n = 64\*batch but the output has shape \[8, 64\]", *matmul(m=B))
    refused("needs the attributes b, n$", *matmul(b="none", n="none"))


def test_geometry_that_rounding_hides_is_compared_at_the_defaults():
    verify(graph(*matmul((2 * (B // 2), 64), m=B)))  # batch is 8 there
    refused(r"b\*m\*n = 64\*batch but", *matmul((3 * (B // 3), 64), m=B))


def attention(shape=(2, 8, 16, 64), **changed):
    attributes = {"batch": 2, "heads": 8, "kv_heads": 2, "q_len": 16, "kv_len": 32, "head_dim": 64, "v_dim": 64}
    tensors = [tensor(role=Role.INPUT), tensor(shape, storage=1)]
    return [op([0], [1], OpKind.ATTENTION, "sdpa", "", attributes=attributes | changed)], tensors


def test_attention_geometry():
    verify(graph(*attention()))
    verify(graph(*attention((B, 8, 16, 64), batch=B)))
    refused(
        r"op 0 \(sdpa in the model\): batch\*heads\*q_len\*v_dim = 16384 but the output has shape \[2, 8, 16, 63\]",
        *attention((2, 8, 16, 63)),
    )
    refused("8 query heads do not divide over 3 KV heads", *attention(kv_heads=3))
    refused("8 query heads do not divide over 0 KV heads", *attention(kv_heads=0))
    ops, tensors = attention()
    bare = dataclasses.replace(ops[0], attributes={"heads": 8})
    refused("a attention op needs the attributes batch, kv_heads, q_len, kv_len, head_dim, v_dim", [bare], tensors)


def test_the_same_geometry_on_another_output_is_checked_again():
    ops, tensors = matmul()
    second = dataclasses.replace(ops[0], outputs=(2,))
    refused(r"op 1 .*output has shape \[8, 65\]", [*ops, second], [*tensors, tensor((8, 65), storage=2)])


def test_verify_does_not_depend_on_object_identity():
    a, b = small_graph(), small_graph()
    assert verify(a) == verify(b)
