"""Every family of ONNX operators by hand: kind, sizes with open dims in them, FLOPs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
from onnx import TensorProto, helper
from onnx_models import model, node, save

from foretrace.capture.onnx import capture_onnx
from foretrace.ir import Graph, Op, OpKind, Tensor, evaluate_dim, summarize

F = np.float32
I64 = TensorProto.INT64
W = np.zeros


def captured(tmp_path: Path, *args: Any, dims: dict[str, int] | None = None, **kwargs: Any) -> Graph:
    return capture_onnx(save(model(*args, **kwargs), tmp_path), dims=dims)


def output(graph: Graph) -> Tensor:
    return graph.tensors[graph.ops[-1].outputs[0]]


def shape(graph: Graph) -> str:
    return ", ".join(map(str, output(graph).shape))


MATRIX = {
    "MatMul": (node("MatMul", "xw", "y"), {"x": ["n", 5, 8]}, {"w": W((8, 3), F)}, "n, 5, 3", 2 * 5 * 8 * 3),
    "MatMul batched": (node("MatMul", "xw", "y"), {"x": ["n", 2, 5, 8], "w": [1, 2, 8, 3]}, {}, "n, 2, 5, 3", 480),
    "MatMul vector": (node("MatMul", "xw", "y"), {"x": ["n", 8], "w": [8]}, {}, "n", 16),
    "Gemm": (node("Gemm", "xwb", "y", transB=1), {"x": ["n", 8]}, {"w": W((3, 8), F), "b": W(3, F)}, "n, 3", 48),
    "MatMulInteger": (
        node("MatMulInteger", "xw", "y"), {"x": (["n", 8], TensorProto.UINT8)}, {"w": W((8, 3), np.int8)}, "n, 3", 48),
    "QLinearMatMul": (
        node("QLinearMatMul", ["x", "s", "z", "w", "s", "z", "s", "z"], "y"), {"x": (["n", 8], TensorProto.UINT8)},
        {"w": W((8, 3), np.uint8), "s": F(1), "z": np.uint8(0)}, "n, 3", 48),
    "MatMulNBits": (
        node("MatMulNBits", "xws", "y", domain="com.microsoft", K=64, N=3, bits=4, block_size=32), {"x": ["n", 5, 64]},
        {"w": W((3, 2, 16), np.uint8), "s": W(6, F)}, "n, 5, 3", 2 * 5 * 64 * 3),
    "Einsum": (
        node("Einsum", "xw", "y", equation="bhid,bhjd->bhij"), {"x": ["n", 2, 5, 8], "w": ["n", 2, 3, 8]}, {},
        "n, 2, 5, 3", 2 * 2 * 5 * 3 * 8),
    "Conv": (
        node("Conv", "xwb", "y", strides=[2, 2], pads=[1, 1, 1, 1]), {"x": ["n", 4, 9, 9]},
        {"w": W((6, 4, 3, 3), F), "b": W(6, F)}, "n, 6, 5, 5", 2 * 6 * 25 * 36),
    "Conv depthwise": (
        node("Conv", "xw", "y", group=4, dilations=[2], auto_pad="SAME_UPPER"), {"x": ["n", 4, 9]},
        {"w": W((4, 1, 3), F)}, "n, 4, 9", 2 * 4 * 9 * 3),
    "ConvTranspose": (
        node("ConvTranspose", "xw", "y", strides=[2, 2], group=2), {"x": ["n", 4, 5, 5]}, {"w": W((4, 3, 3, 3), F)},
        "n, 6, 11, 11", 2 * 4 * 25 * 3 * 9),
    "QLinearConv": (
        node("QLinearConv", ["x", "s", "z", "w", "s", "z", "s", "z"], "y"),
        {"x": (["n", 4, 9, 9], TensorProto.UINT8)}, {"w": W((6, 4, 3, 3), np.uint8), "s": F(1), "z": np.uint8(0)},
        "n, 6, 7, 7", 2 * 6 * 49 * 36),
    "Attention 23": (
        node("Attention", "qkv", "y", q_num_heads=4, kv_num_heads=2),
        {"q": ["n", 5, 32], "k": ["n", 7, 16], "v": ["n", 7, 16]}, {}, "n, 5, 32", 2 * 4 * 5 * 7 * 16),
    "MultiHeadAttention": (
        node("MultiHeadAttention", "qkv", "y", domain="com.microsoft", num_heads=4),
        {"q": ["n", 5, 32], "k": ["n", 7, 32], "v": ["n", 7, 32]}, {}, "n, 5, 32", 2 * 4 * 5 * 7 * 16),
    "GroupQueryAttention": (
        node("GroupQueryAttention", ["q", "k", "v", "pk", "pv"], ["y", "a", "b"], domain="com.microsoft",
             num_heads=4, kv_num_heads=2),
        {"q": ["n", 1, 32], "k": ["n", 1, 16], "v": ["n", 1, 16], "pk": ["n", 2, 7, 8], "pv": ["n", 2, 7, 8]}, {},
        "n, 1, 32", 2 * 4 * 8 * 16),
    "Attention packed": (
        node("Attention", "xwb", "y", domain="com.microsoft", num_heads=4), {"x": ["n", 5, 32]},
        {"w": W((32, 96), F), "b": W(96, F)}, "n, 5, 32", 2 * 5 * 32 * 96 + 2 * 4 * 25 * 16),
    "LSTM": (
        node("LSTM", "xwr", "y", hidden_size=3), {"x": [7, "n", 5]}, {"w": W((1, 12, 5), F), "r": W((1, 12, 3), F)},
        "7, 1, n, 3", 2 * 7 * 12 * (5 + 3)),
    "GRU": (
        node("GRU", "xwr", "y", hidden_size=3, direction="bidirectional"), {"x": [7, "n", 5]},
        {"w": W((2, 9, 5), F), "r": W((2, 9, 3), F)}, "7, 2, n, 3", 2 * 2 * 7 * 9 * (5 + 3)),
}  # fmt: skip


@pytest.mark.parametrize("case", MATRIX)
def test_matrix_work(case: str, tmp_path: Path) -> None:
    operator, inputs, weights, expected, flops = MATRIX[case]
    graph = captured(tmp_path, [operator], inputs, weights=weights, opset=23)
    assert shape(graph) == expected
    assert graph.flops({"n": 7}) == 7 * flops
    domain = operator.domain or "onnx"
    assert {op.name for op in graph.ops} == {f"{domain}::{operator.op_type}"}


OTHERS = {
    "Add": (node("Add", "xw", "y"), {"x": ["n", 1, 8], "w": [5, 1]}, {}, OpKind.ELEMENTWISE, "n, 5, 8"),
    "Equal": (node("Equal", "xw", "y"), {"x": ["n", 1], "w": [5]}, {}, OpKind.ELEMENTWISE, "n, 5"),
    "Gelu": (node("Gelu", "x", "y"), {"x": ["n", 8]}, {}, OpKind.ELEMENTWISE, "n, 8"),
    "Softmax": (node("Softmax", "x", "y"), {"x": ["n", 8]}, {}, OpKind.SOFTMAX, "n, 8"),
    "LayerNormalization": (
        node("LayerNormalization", "xw", "y"), {"x": ["n", 8]}, {"w": W(8, F)}, OpKind.NORM, "n, 8"),
    "SkipLayerNormalization": (
        node("SkipLayerNormalization", "xxw", ["y", "", "", "z"], domain="com.microsoft"), {"x": ["n", 2, 8]},
        {"w": W(8, F)}, OpKind.NORM, "n, 2, 8"),
    "ReduceMean": (
        node("ReduceMean", "xa", "y", keepdims=0), {"x": ["n", 4, 8]}, {"a": np.array([-1])}, OpKind.REDUCTION, "n, 4"),
    "ReduceSum 11": (node("ReduceSum", "x", "y", axes=[1]), {"x": ["n", 4, 8]}, {}, OpKind.REDUCTION, "n, 1, 8"),
    "ArgMax": (node("ArgMax", "x", "y", axis=-1, keepdims=0), {"x": ["n", 4]}, {}, OpKind.REDUCTION, "n"),
    "MaxPool": (
        node("MaxPool", "x", "y", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1), {"x": ["n", 4, 8, 8]}, {},
        OpKind.REDUCTION, "n, 4, 4, 4"),
    "AveragePool open": (
        node("AveragePool", "x", "y", kernel_shape=[3], strides=[2], pads=[1, 1]), {"x": [1, 4, "n"]}, {},
        OpKind.REDUCTION, "1, 4, floordiv(n + 1, 2)"),
    "GlobalAveragePool": (
        node("GlobalAveragePool", "x", "y"), {"x": ["n", 4, 8, 8]}, {}, OpKind.REDUCTION, "n, 4, 1, 1"),
    "Concat": (node("Concat", "xw", "y", axis=1), {"x": ["n", 3], "w": ["n", "m"]}, {}, OpKind.COPY, "n, m + 3"),
    "Split": (node("Split", "x", "yz", axis=1, num_outputs=2), {"x": ["n", 5]}, {}, OpKind.COPY, "n, 3"),
    "Slice": (
        node("Slice", "xabc", "y"), {"x": ["n", 9]},
        {"a": np.array([-4]), "b": np.array([2**63 - 1]), "c": np.array([1])}, OpKind.COPY, "n, 4"),
    "Slice back": (
        node("Slice", "xabcd", "y"), {"x": ["n", 9]},
        {"a": np.array([-1]), "b": np.array([-(2**63)]), "c": np.array([0]), "d": np.array([-1])}, OpKind.COPY, "n, 9"),
    "Slice 9": (node("Slice", "x", "y", starts=[1], ends=[-1], axes=[0]), {"x": ["n", 9]}, {}, OpKind.COPY, "n - 2, 9"),
    "Transpose": (node("Transpose", "x", "y", perm=[1, 0]), {"x": ["n", 9]}, {}, OpKind.COPY, "9, n"),
    "Transpose of one": (node("Transpose", "x", "y", perm=[1, 0]), {"x": [1, "n"]}, {}, OpKind.VIEW, "n, 1"),
    "Reshape": (
        node("Reshape", "xa", "y"), {"x": ["n", 6, 4]}, {"a": np.array([0, -1, 8])}, OpKind.VIEW, "n, 3, 8"),
    "Flatten": (node("Flatten", "x", "y", axis=2), {"x": ["n", 3, 4]}, {}, OpKind.VIEW, "3*n, 4"),
    "Unsqueeze 9": (node("Unsqueeze", "x", "y", axes=[0, 2]), {"x": ["n", 3]}, {}, OpKind.VIEW, "1, n, 1, 3"),
    "Squeeze": (node("Squeeze", "xa", "y"), {"x": ["n", 1, 3]}, {"a": np.array([1])}, OpKind.VIEW, "n, 3"),
    "Expand": (node("Expand", "xa", "y"), {"x": ["n", 1, 3]}, {"a": np.array([5, 1])}, OpKind.COPY, "n, 5, 3"),
    "Tile": (node("Tile", "xa", "y"), {"x": ["n", 3]}, {"a": np.array([2, 3])}, OpKind.COPY, "2*n, 9"),
    "Pad": (node("Pad", "xa", "y"), {"x": ["n", 3]}, {"a": np.array([0, 1, 0, 2])}, OpKind.COPY, "n, 6"),
    "Cast": (node("Cast", "x", "y", to=TensorProto.FLOAT16), {"x": ["n", 3]}, {}, OpKind.COPY, "n, 3"),
    "Gather": (
        node("Gather", "xi", "y", axis=1), {"x": ["n", 9], "i": (["k"], I64)}, {}, OpKind.GATHER_SCATTER, "n, k"),
    "Embedding": (node("Gather", "wi", "y"), {"i": (["n", 5], I64)}, {"w": W((9, 4), F)}, OpKind.EMBEDDING, "n, 5, 4"),
    "GatherND": (
        node("GatherND", "xi", "y"), {"x": [9, 8, 4], "i": (["n", 2], I64)}, {}, OpKind.GATHER_SCATTER, "n, 4"),
    "ScatterElements": (
        node("ScatterElements", "xiu", "y"), {"x": ["n", 9], "i": (["n", 2], I64), "u": ["n", 2]}, {},
        OpKind.GATHER_SCATTER, "n, 9"),
    "Resize": (
        node("Resize", ["x", "", "s"], "y"), {"x": ["n", 3, "h", 4]}, {"s": np.array([1, 1, 2, 0.5], F)},
        OpKind.ELEMENTWISE, "n, 3, 2*h, 2"),
    "Upsample 9": (
        node("Upsample", "xs", "y"), {"x": ["n", 3, 4, 4]}, {"s": np.array([1, 1, 2, 2], F)}, OpKind.ELEMENTWISE,
        "n, 3, 8, 8"),
    "TopK": (node("TopK", "xk", "yz"), {"x": ["n", 9]}, {"k": np.array([3])}, OpKind.SORT, "n, 3"),
    "CumSum": (node("CumSum", "xa", "y"), {"x": ["n", 9]}, {"a": np.array(1)}, OpKind.SCAN, "n, 9"),
    "OneHot": (
        node("OneHot", "idv", "y"), {"i": (["n"], I64)}, {"d": np.array(9), "v": np.array([0, 1], F)},
        OpKind.ELEMENTWISE, "n, 9"),
    "DepthToSpace": (node("DepthToSpace", "x", "y", blocksize=2), {"x": ["n", 8, 3, 3]}, {}, OpKind.COPY, "n, 2, 6, 6"),
    "QuantizeLinear": (
        node("QuantizeLinear", "xsz", "y"), {"x": ["n", 3]}, {"s": F(1), "z": np.int8(0)}, OpKind.ELEMENTWISE, "n, 3"),
    "Dropout": (node("Dropout", "x", "y"), {"x": ["n", 3]}, {}, OpKind.VIEW, "n, 3"),
    "Det by onnx": (node("Det", "x", "y"), {"x": ["n", 3, 3]}, {}, OpKind.OTHER, "n"),
}  # fmt: skip
OPSETS = {"ReduceSum 11": 11, "Unsqueeze 9": 9, "Slice 9": 9, "Upsample 9": 9}


@pytest.mark.parametrize("case", OTHERS)
def test_other_operators(case: str, tmp_path: Path) -> None:
    operator, inputs, weights, kind, expected = OTHERS[case]
    graph = captured(tmp_path, [operator], inputs, weights=weights, opset=OPSETS.get(case, 20))
    assert [op.kind for op in graph.ops] == [kind]
    assert shape(graph) == expected


def test_formats_of_results(tmp_path: Path) -> None:
    for case, dtype in (("Equal", "bool"), ("Cast", "float16"), ("ArgMax", "int64"), ("QuantizeLinear", "int8")):
        operator, inputs, weights, _, _ = OTHERS[case]
        assert output(captured(tmp_path, [operator], inputs, weights=weights)).dtype.name == dtype
    operator, inputs, weights, _, _ = MATRIX["MatMulInteger"]
    assert output(captured(tmp_path, [operator], inputs, weights=weights)).dtype.name == "int32"


def test_qdq_keeps_integer_weights(tmp_path: Path) -> None:
    nodes = [
        node("QuantizeLinear", "xsz", ["xq"]),
        node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        node("DequantizeLinear", ["w", "s", "z"], ["wd"]),
        node("MatMul", ["xd", "wd"], "y"),
    ]
    weights = {"w": W((8, 3), np.int8), "s": F(1), "z": np.int8(0)}
    graph = captured(tmp_path, nodes, {"x": ["n", 8]}, weights=weights)
    assert [op.name for op in graph.ops] == [f"onnx::{n.op_type}" for n in nodes]
    assert graph.parameter_count == graph.parameter_bytes == 24


def test_shape_arithmetic_is_no_work(tmp_path: Path) -> None:
    """Shape, Gather, Mul, Concat, Reshape: what exporters write for ``x.view(n * s, -1)``."""
    nodes = [
        node("Shape", "x", ["shape"]),
        node("Gather", ["shape", "zero"], ["n"]),
        node("Gather", ["shape", "one"], ["s"]),
        node("Mul", ["n", "s"], ["ns"]),
        node("Unsqueeze", ["ns", "axes"], ["ns1"]),
        node("Concat", ["ns1", "minus"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["flat"]),
        node("Relu", ["flat"], "y"),
    ]
    weights = {"zero": np.array(0), "one": np.array(1), "axes": np.array([0]), "minus": np.array([-1])}
    graph = captured(tmp_path, nodes, {"x": ["n", "s", 4, 2]}, weights=weights)
    assert [op.name for op in graph.ops] == ["onnx::Reshape", "onnx::Relu"]
    assert shape(graph) == "n*s, 8"


def branches(first: list[Any], second: list[Any]) -> dict[str, Any]:
    from onnx_models import graph

    return {"then_branch": graph(first, {}, ["t"]), "else_branch": graph(second, {}, ["e"])}


def test_if_takes_the_branch_its_sizes_choose(tmp_path: Path) -> None:
    nodes = [
        node("Shape", "x", ["shape"]),
        node("Gather", ["shape", "one"], ["s"]),
        node("Equal", ["s", "eight"], ["c"]),
        node("If", "c", "y", **branches([node("Relu", "x", "t")], [node("Exp", "x", "e")])),
    ]
    weights = {"one": np.array(1), "eight": np.array(8)}
    graph = captured(tmp_path, nodes, {"x": ["n", 8]}, weights=weights)
    assert [op.name for op in graph.ops] == ["onnx::Relu"]
    graph = captured(tmp_path, nodes, {"x": ["n", "s"]}, weights=weights, dims={"s": 9})
    assert [op.name for op in graph.ops] == ["onnx::Exp"]
    assert graph.metadata["fixed.s"] == "9"


def test_if_on_data_counts_the_larger_branch(tmp_path: Path) -> None:
    nodes = [
        node("ReduceMax", "x", ["m"], keepdims=0),
        node("Cast", "m", ["c"], to=TensorProto.BOOL),
        node("If", "c", "y", **branches([node("Relu", "x", "t")], [node("MatMul", ["x", "w"], "e")])),
    ]
    graph = captured(tmp_path, nodes, {"x": ["n", 8]}, weights={"w": W((8, 8), F)})
    assert [op.name for op in graph.ops] == ["onnx::MatMul"]
    assert "data decide which branch runs" in graph.metadata["note.0"]


def loop(trips: Any) -> tuple[list[Any], dict[str, Any]]:
    from onnx_models import graph

    body = graph(
        [node("MatMul", ["s", "w"], ["s2"], name="/cell/MatMul"), node("Identity", ["c"], ["c2"])],
        {"i": ([], I64), "c": ([], TensorProto.BOOL), "s": None},
        ["c2", "s2", "s2"],
    )
    last = node("Loop", ["trips", "", "x"], ["y", "all"], body=body, name="/rnn/Loop")
    return [last], {"trips": np.array(trips), "w": W((8, 8), F)}


@pytest.mark.parametrize("results", [["y", "all"], ["all"]])
@pytest.mark.parametrize("trips", [3, 1000])
def test_a_loop_is_its_body_times_its_trips(trips: int, results: list[str], tmp_path: Path) -> None:
    nodes, weights = loop(trips)
    graph = captured(tmp_path, nodes, {"x": ["n", 8]}, results, weights=weights)
    matmuls: list[Op] = [op for op in graph.ops if op.kind is OpKind.MATMUL]
    assert graph.flops({"n": 5}) == trips * 2 * 5 * 64
    assert [op.module for op in matmuls] == (["rnn.0.cell", "rnn.1.cell", "rnn.2.cell"] if trips == 3 else ["rnn.cell"])
    assert matmuls[0].attributes.get("repeat", 1) == (1 if trips == 3 else trips)
    stacked = graph.tensors[graph.ops[-1].outputs[0]]
    assert [evaluate_dim(d, {"n": 5}) for d in stacked.shape] == [trips, 5, 8]


def test_a_scan_over_an_open_length(tmp_path: Path) -> None:
    from onnx_models import graph

    body = graph(
        [node("MatMul", ["s", "w"], ["h"]), node("Add", ["h", "x1"], ["s2"])], {"s": None, "x1": None}, ["s2", "s2"]
    )
    scan = node("Scan", ["start", "x"], ["last", "y"], body=body, num_scan_inputs=1)
    made = captured(
        tmp_path, [scan], {"start": ["n", 8], "x": ["t", "n", 8]}, ["last", "y"], weights={"w": W((8, 8), F)}
    )
    assert made.flops({"n": 5, "t": 11}) == 11 * 2 * 5 * 64
    assert shape(made) == "t, n, 8"


def test_functions_run_where_they_are_called(tmp_path: Path) -> None:
    from onnx import helper

    proto = model([node("Block", "xw", "y", domain="mine", name="/layers.0/Block")], {"x": ["n", 8], "w": [8, 3]})
    opset = [helper.make_opsetid("", 20)]
    body = [node("MatMul", "ab", "c"), node("Relu", "c", "d")]
    proto.functions.append(helper.make_function("mine", "Block", ["a", "b"], ["d"], body, opset))
    graph = capture_onnx(save(proto, tmp_path))
    assert [(op.name, op.module) for op in graph.ops] == [("onnx::MatMul", "layers.0"), ("onnx::Relu", "layers.0")]
    assert graph.flops({"n": 7}) == 7 * 48


def test_data_dependent_lengths_are_sizes_of_their_own(tmp_path: Path) -> None:
    graph = captured(tmp_path, [node("NonZero", "x", "y", name="/find")], {"x": [4, 8]})
    assert shape(graph) == "2, find"
    assert graph.symbols["find"].default == 32


def test_equal_blocks_fold(tmp_path: Path) -> None:
    from foretrace.ir import find_blocks

    nodes = []
    for i in range(3):
        source = "x" if i == 0 else f"h{i - 1}"
        nodes.append(node("MatMul", [source, "w"], [f"m{i}"], name=f"/encoder/layers.{i}/MatMul"))
        nodes.append(node("Relu", [f"m{i}"], ["y" if i == 2 else f"h{i}"], name=f"/encoder/layers.{i}/act/Relu"))
    graph = captured(tmp_path, nodes, {"x": ["n", 8]}, weights={"w": W((8, 8), F)})
    assert [(b.path, b.repeats) for b in find_blocks(graph)] == [("encoder.layers.*", 3)]
    assert graph.parameter_count == 64


def test_what_a_later_trip_reads_is_work(tmp_path: Path) -> None:
    """Two carried values that change places: the result of a trip needs the other one of the trip before."""
    from onnx_models import graph

    body = graph(
        [node("MatMul", ["a", "w"], ["a2"]), node("Relu", ["b"], ["b2"]), node("Identity", ["c"], ["c2"])],
        {"i": ([], I64), "c": ([], TensorProto.BOOL), "a": None, "b": None},
        ["c2", "b2", "a2"],
    )
    swap = node("Loop", ["trips", "", "x", "x"], ["y", "z"], body=body)
    weights = {"trips": np.array(100), "w": W((8, 8), F)}
    made = captured(tmp_path, [swap], {"x": ["n", 8]}, weights=weights)
    assert made.flops({"n": 5}) == 100 * 2 * 5 * 64


def test_weights_put_in_order_when_the_model_loads_count_once(tmp_path: Path) -> None:
    nodes = [
        node("Split", "w", ["w1", "w2"], axis=1, num_outputs=2),
        node("Concat", ["w2", "w1"], ["v"], axis=1),
        node("Transpose", "v", ["t"], perm=[1, 0]),
        node("MatMul", ["x", "t"], "y"),
    ]
    graph = captured(tmp_path, nodes, {"x": ["n", 6]}, weights={"w": W((4, 6), F)})
    assert [op.name for op in graph.ops] == ["onnx::MatMul"]
    assert graph.parameter_count == 24


ML = {
    # operator and attributes → kind, sizes of the results, matrix FLOPs at 8 rows of 4 features
    "Scaler": ({"offset": [0.0], "scale": [1.0]}, OpKind.ELEMENTWISE, [(8, 4)], 0),
    "OneHotEncoder": ({"cats_int64s": [1, 2, 3]}, OpKind.ELEMENTWISE, [(8, 4, 3)], 0),
    "LinearRegressor": ({"coefficients": [1.0] * 8, "targets": 2}, OpKind.MATMUL, [(8, 2)], 2 * 8 * 4 * 2),
    "SVMClassifier": ({"classlabels_strings": ["a", "b"]}, OpKind.OTHER, [(8,), (8, 2)], 0),
    "TreeEnsembleRegressor": ({"n_targets": 1}, OpKind.OTHER, [(8, 1)], 0),
    "LabelEncoder": ({"keys_floats": [1.0], "values_int64s": [1]}, OpKind.OTHER, [(8, 4)], 0),
}  # fmt: skip


@pytest.mark.parametrize("op", ML)
def test_classical_models(op: str, tmp_path: Path) -> None:
    attributes, kind, shapes, flops = ML[op]
    results = [f"y{i}" for i in range(len(shapes))]
    proto = model([node(op, ["x"], results, domain="ai.onnx.ml", **attributes)], {"x": ["N", 4]}, results)
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    graph = capture_onnx(save(proto, tmp_path))
    assert [(o.kind, o.name) for o in graph.ops] == [(kind, f"ai.onnx.ml::{op}")]
    outs = [graph.tensors[t].shape for t in graph.ops[0].outputs]
    assert [tuple(evaluate_dim(d, {"N": 8}) for d in shape) for shape in outs] == shapes
    assert graph.flops({"N": 8}) == flops
    assert summarize(graph, {"N": 8})["unmodelled_ops"] == ([f"ai.onnx.ml::{op}"] if kind is OpKind.OTHER else [])


def test_a_dictionary_for_each_row_is_made_on_the_host(tmp_path: Path) -> None:
    nodes = [
        node("SVMClassifier", ["x"], ["label", "p"], domain="ai.onnx.ml", classlabels_ints=[0, 1]),
        node("ZipMap", ["p"], ["z"], domain="ai.onnx.ml", classlabels_int64s=[0, 1]),
    ]
    proto = model(nodes, {"x": ["N", 4]}, ["label", "z"])
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    assert [o.kind for o in capture_onnx(save(proto, tmp_path)).ops] == [OpKind.OTHER, OpKind.HOST]


@pytest.mark.parametrize("results", [["label"], ["label", "scores"]])
def test_a_linear_classifier_is_a_matmul_and_the_largest_of_its_scores(results: list[str], tmp_path: Path) -> None:
    labels = {"coefficients": [1.0] * 12, "classlabels_ints": [0, 1, 2]}
    proto = model([node("LinearClassifier", ["x"], results, domain="ai.onnx.ml", **labels)], {"x": ["N", 4]}, results)
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    graph = capture_onnx(save(proto, tmp_path))
    assert [o.kind for o in graph.ops] == [OpKind.MATMUL, OpKind.REDUCTION]
    assert graph.flops({"N": 8}) == 2 * 8 * 4 * 3
