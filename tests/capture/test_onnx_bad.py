"""ONNX files from strangers: one clear error each, memory bounded, nothing opened that the file points at."""

import contextlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("onnx")
from onnx import ModelProto, TensorProto, helper
from onnx_models import graph, model, node, save, value

from foretrace.capture.onnx import capture_onnx
from foretrace.ir import ForetraceError

RELU = node("Relu", "x", "y", name="/act/Relu")


def simple(**dims: Any) -> ModelProto:
    return model([RELU], {"x": ["n", 8]}, **dims)


def external(location: str, **of: Any) -> ModelProto:
    proto = model([node("MatMul", "xw", "y")], {"x": ["n", 8]}, weights={"w": np.zeros((8, 3), np.float32)})
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return proto


def changed(**more: Any) -> ModelProto:
    proto = model([RELU], {"x": [2]})
    for name, item in more.items():
        getattr(proto.graph, name).append(item)
    return proto


def nested(depth: int) -> ModelProto:
    leaf = graph([node("Identity", "x", ["r"])], {}, ["r"])
    inner = leaf
    for _ in range(depth):
        inner = graph([node("If", ["c"], ["r"], then_branch=inner, else_branch=leaf)], {}, ["r"])
    return model(
        [node("If", ["c"], ["y"], then_branch=inner, else_branch=leaf)], {"x": [2]}, weights={"c": np.array(True)}
    )


def calling_itself() -> ModelProto:
    proto = model([node("Again", "x", "y", domain="mine")], {"x": [2]})
    body = [node("Again", "a", "b", domain="mine")]
    proto.functions.append(helper.make_function("mine", "Again", ["a"], ["b"], body, [helper.make_opsetid("", 20)]))
    return proto


BAD: dict[str, tuple[Callable[[], ModelProto], str]] = {
    "newer opset": (lambda: simple(opset=99), "uses operator set 99; 7 to"),
    "cycle": (
        lambda: model([node("Add", "xb", "a", name="one"), node("Relu", "a", "b", name="two")], {"x": [2]}, ["b"]),
        r"the graph has a cycle: among node 'one' \(Add\), node 'two' \(Relu\)",
    ),
    "dangling": (lambda: model([node("Add", "xz", "y")], {"x": [2]}), r"node 'y' \(Add\) reads 'z', which nothing"),
    "no result": (lambda: model([RELU], {"x": [2]}, ["z"]), "nothing produces its result 'z'"),
    "twice": (lambda: model([RELU, node("Exp", "x", "y")], {"x": [2]}), "the value 'y' is produced twice"),
    "two inputs": (lambda: changed(input=value("x", [2])), "two inputs are called 'x'"),
    "no shape": (lambda: model([RELU], {"x": None}), "input 'x' has no shape in the file"),
    "absurd dim": (lambda: model([RELU], {"x": [2**40]}), r"a size of 1099511627776: expected 0 to 2\*\*36"),
    "absurd product": (lambda: model([RELU], {"x": [2**30, 2**30]}), "elements, more than any memory holds"),
    "unknown operator": (
        lambda: model([node("Strange", "x", "y", domain="mine")], {"x": [2]}),
        r"the operator mine::Strange is not known .* output 0 \('y'\): write the shape",
    ),
    "shapes": (
        lambda: model([node("MatMul", "xw", "y", name="/mm")], {"x": ["n", 8], "w": [7, 3]}),
        r"node '/mm' \(MatMul\): sizes 8 and 7 do not fit",
    ),
    "input": (lambda: model([node("MatMul", "x", "y")], {"x": [2, 2]}), "input 1 is missing"),
    "stride 0": (
        lambda: model([node("MaxPool", "x", "y", kernel_shape=[2], strides=[0])], {"x": [1, 2, 8]}),
        "stride 0, dilation 1: expected at least 1",
    ),
    "attribute": (
        lambda: model([node("MaxPool", "x", "y", kernel_shape=2.0)], {"x": [1, 2, 8]}),
        r"node 'y' \(MaxPool\): its attributes or inputs are not those of the operator",
    ),
    "reshape": (
        lambda: model([node("Reshape", "xs", "y")], {"x": [2, 5]}, weights={"s": np.array([3, -1])}),
        r"cannot reshape \[2, 5\] to \[3, -1\]",
    ),
    "shape from data": (
        lambda: model([node("Reshape", "xs", "y")], {"x": [2, 5], "s": ([2], TensorProto.INT64)}),
        r"a size depends on the data of its input 1 \(s\), which are not known before the model runs",
    ),
    "axis": (lambda: model([node("Concat", "xx", "y", axis=5)], {"x": [2, 5]}), "axis 5 of a tensor of rank 2"),
    "endless loop": (
        lambda: model(
            [
                node(
                    "Loop", ["", "", "x"], "y",
                    body=graph([node("Relu", "s", "r"), node("Identity", "c", "d")],
                               {"i": ([], TensorProto.INT64), "c": ([], TensorProto.BOOL), "s": None}, ["d", "r"]),
                )
            ],
            {"x": [2]},
        ),
        "runs more than 1024 times",
    ),
    "deep": (lambda: nested(28), "nest deeper than 24"),
    "function of itself": (calling_itself, "nest deeper than 24"),
    "data too short": (
        lambda: changed(initializer=TensorProto(name="w", data_type=7, dims=[2], raw_data=b"1")),
        "tensor 'w': its data do not fill its shape",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_models_get_one_clear_error(case: str, tmp_path: Path) -> None:
    make, message = BAD[case]
    path = save(make(), tmp_path)
    with pytest.raises(ForetraceError, match=message) as caught:
        capture_onnx(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello, this is no protobuf", "not an ONNX model"),
        (simple().SerializeToString()[:-5], "not an ONNX model, or cut off"),
        (ModelProto(ir_version=9).SerializeToString(), "it has no opset_import"),
        (b"\x3a\xff\xff\xff\xff\x0f", "ends after the file"),
    ],
)
def test_files_that_are_no_model(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(ForetraceError, match=message):
        capture_onnx(path)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ForetraceError, match="cannot be read: No such file"):
        capture_onnx(tmp_path / "no.onnx")
    with pytest.raises(ForetraceError, match="is not a file"):
        capture_onnx(tmp_path)


@pytest.mark.parametrize("location", ["weights.bin", "../../../etc/passwd", "/etc/passwd"])
def test_external_data_are_never_opened(location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, opened = save(external(location), tmp_path), []
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: (opened.append(self), real(self, *a, **k))[1])
    made = capture_onnx(path)
    assert made.parameter_count == 24
    assert opened == [path]


def test_an_external_shape_says_what_is_missing(tmp_path: Path) -> None:
    proto = model([node("Reshape", "xs", "y")], {"x": [2, 5]}, weights={"s": np.array([5, 2])})
    proto.graph.initializer[0].ClearField("raw_data")
    proto.graph.initializer[0].data_location = TensorProto.EXTERNAL
    with pytest.raises(ForetraceError, match=r"data of its input 1 \(s\), which are not .* in the file"):
        capture_onnx(save(proto, tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dims": {"m": 3}}, r"unknown symbol 'm' .*the file leaves open: n"),
        ({"dims": {"n": 0}}, "--dim n=0: expected a size of at least 1"),
        ({"dims": {"n": 2**40}}, "--dim n=1099511627776"),
        ({"phase": "train"}, "--phase train: an ONNX file is one forward pass"),
        ({"dtype": "float16"}, "--dtype float16"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ForetraceError, match=message):
        capture_onnx(save(simple(), tmp_path), **arguments)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_give_a_graph_or_one_error(data: st.DataObject, tmp_path: Path) -> None:
    """Bytes of a real file, some of them changed, cut or repeated."""
    content = bytearray(FUZZED[data.draw(st.integers(0, len(FUZZED) - 1))])
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        start = data.draw(st.integers(0, len(content)))
        del content[start : start + data.draw(st.integers(0, 40))]
    path = tmp_path / "fuzzed.onnx"
    path.write_bytes(bytes(content))
    with contextlib.suppress(ForetraceError):
        capture_onnx(path)


def _fuzzed() -> list[bytes]:
    from tests.capture.test_onnx_operators import MATRIX, OPSETS, OTHERS, loop

    protos = [model([o], i, weights=w, opset=23) for o, i, w, *_ in MATRIX.values()]
    protos += [model([o], i, weights=w, opset=OPSETS.get(n, 20)) for n, (o, i, w, *_) in OTHERS.items()]
    nodes, weights = loop(3)
    protos += [model(nodes, {"x": ["n", 8]}, ["y", "all"], weights=weights), nested(3), calling_itself()]
    return [p.SerializeToString() for p in protos]


FUZZED = _fuzzed()


def test_weights_are_not_read(tmp_path: Path) -> None:
    """Half a GiB of weights (a hole in the file) in a process that may take 64 MiB more than it has."""
    proto = model([node("MatMul", "xw", "y")], {"x": ["n", 8192]})
    path = save(proto, tmp_path)
    size = 8192 * 16384 * 4
    tensor = TensorProto(name="w", data_type=1, dims=[8192, 16384]).SerializeToString() + b"\x4a" + _varint(size)
    head = b"\x2a" + _varint(len(tensor) + size) + tensor  # GraphProto.initializer
    inner = proto.graph.SerializeToString()
    with path.open("wb") as file:
        proto.ClearField("graph")
        file.write(proto.SerializeToString() + b"\x3a" + _varint(len(inner) + len(head) + size) + inner + head)
        file.truncate(file.tell() + size)
    code = f"""
import resource
from foretrace.capture.onnx import capture_onnx
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
graph = capture_onnx({str(path)!r})
print(graph.parameter_count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == [str(8192 * 16384), "True"], done.stderr


def _varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
