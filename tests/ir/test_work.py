import pytest
from hypothesis import given
from strategies import bindings, graphs

from foretrace.ir import DTYPES, FREE_KINDS, OpKind, Role, Tensor, Work, evaluate_dim, op_work, symbol

B, S = symbol("batch"), symbol("seq")


def tensor(*shape, dtype="bfloat16"):
    return Tensor("t", shape, DTYPES[dtype], Role.ACTIVATION, 0)


MATMUL = {"b": 1, "m": B * S, "n": 64, "k": 32}
ATTENTION = {"batch": B, "heads": 8, "kv_heads": 2, "q_len": S, "kv_len": S, "head_dim": 64, "v_dim": 32}


@pytest.mark.parametrize(
    ("kind", "function", "attributes", "inputs", "outputs", "work"),
    [
        (
            "matmul", "addmm", {**MATMUL, "bias": True}, [tensor(64), tensor(B * S, 32), tensor(32, 64)],
            [tensor(B * S, 64)], Work(4096 * B * S, 64 * B * S, 0, 128 + 64 * B * S + 4096, 128 * B * S),
        ),
        ("attention", "sdpa", ATTENTION, [], [], Work(1536 * B * S * S, 32 * B * S * S, 8 * B * S * S, 0, 0)),
        ("convolution", "conv2d", {"k": 27}, [], [tensor(B, 8)], Work(432 * B, 0, 0, 0, 16 * B)),
        ("elementwise", "gelu_", {}, [tensor(B)], [tensor(B)], Work(0, B, B, 2 * B, 2 * B)),
        ("elementwise", "add", {}, [tensor(B), tensor(1)], [tensor(B)], Work(0, B, 0, 2 * B + 2, 2 * B)),
        ("softmax", "_softmax", {}, [tensor(B)], [tensor(B)], Work(0, 4 * B, B, 2 * B, 2 * B)),
        ("reduction", "sum", {}, [tensor(B, S)], [tensor(B)], Work(0, B * S, 0, 2 * B * S, 2 * B)),
        ("norm", "layer_norm", {}, [tensor(B)], [tensor(B)], Work(0, 7 * B, 0, 2 * B, 2 * B)),
        (
            "embedding", "embedding", {}, [tensor(50000, 64), tensor(B, dtype="int64")], [tensor(B, 64)],
            Work(0, 0, 0, 128 * B + 8 * B, 128 * B),
        ),
        ("copy", "clone", {}, [tensor(4)], [tensor(4)], Work(0, 0, 0, 8, 8)),
        ("view", "view", {}, [tensor(4)], [tensor(4)], Work()),
        ("host", "item", {}, [tensor(4)], [tensor(4)], Work()),
        ("other", "mystery", {}, [tensor(4)], [], Work(0, 0, 0, 8, 0)),
    ],
)  # fmt: skip
def test_formulae(kind, function, attributes, inputs, outputs, work):
    assert op_work(OpKind(kind), function, attributes, inputs, outputs) == work


def test_a_front_end_may_say_what_is_read():
    assert op_work(OpKind.ELEMENTWISE, "add", {}, [tensor(B)], [tensor(B)], read=[2, B]).bytes_read == 2 + B


@given(graphs(), bindings)
def test_work_is_never_negative_and_only_views_and_host_ops_are_free(graph, at):
    for op in graph.ops:
        ins, outs = [graph.tensors[t] for t in op.inputs], [graph.tensors[t] for t in op.outputs]
        work = op_work(op.kind, op.name, op.attributes, ins, outs)
        parts = (work.matrix_flops, work.vector_flops, work.special_flops, work.bytes_read, work.bytes_written)
        assert all(evaluate_dim(d, at) >= 0 for d in parts)
        assert (work == Work()) or op.kind not in FREE_KINDS
