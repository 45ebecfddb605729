"""An operator of a captured graph as a row of a table of measured operators (docs/tables.md)."""

from collections.abc import Mapping
from typing import Any, Final

from foretrace.ir import MATRIX_KINDS, DimLike, DType, ForetraceError, Graph, Op, OpKind, evaluate_dim

Row = dict[str, Any]
COLUMNS: Final = (
    *("table", "gpu", "op", "kind", "phase", "dtype", "kv_dtype", "b", "m", "n", "k", "bias"),
    *("batch", "q_len", "kv_len", "n_heads", "n_kv_heads", "head_dim", "v_dim", "window", "causal", "backward"),
    *("c_in", "c_out", "kernel", "image", "stride", "padding", "groups"),
    *("rows", "cols", "n_in", "bytes_read", "bytes_written", "vector_flops", "special_flops"),
    *("count", "latency_us", "spread_us", "timing", "software", "source", "quality"),
)
"""Of all tables together, in the order of a file."""
SHORT: Final = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "float64": "fp64"}
TABLED: Final = {
    "aten.relu.default": "relu", "aten.gelu.default": "gelu", "aten.silu.default": "silu", "aten.tanh.default": "tanh",
    "aten.sigmoid.default": "sigmoid", "aten.exp.default": "exp", "aten.rsqrt.default": "rsqrt",
    "aten.neg.default": "neg", "aten.clone.default": "copy", "aten.native_layer_norm.default": "ln",
    "aten._fused_rms_norm.default": "rmsnorm", "aten._softmax.default": "softmax",
    "aten._log_softmax.default": "log_softmax",
    **{f"aten.{name}.Tensor": name for name in ("add", "sub", "mul", "div")},
}  # fmt: skip
"""Operators that tables of others call by these names; the rest go by the framework's own."""
_WORK: Final = ("bytes_read", "bytes_written", "vector_flops", "special_flops")
_BATCHED: Final = ("bmm", "baddbmm")


class NoRow(ForetraceError):  # noqa: N818 - a reason, not a failure of the program
    """Why no table has a row for an operator."""


def row_of(op: Op, graph: Graph, bindings: Mapping[str, int]) -> Row:
    """What the table of *op*'s kind says of it, its time apart. Raises `NoRow` where no column fits."""
    sizes = _Sizes(op, graph, bindings)
    common = {"dtype": sizes.dtype, "kind": str(op.kind)}
    if op.kind is OpKind.MATMUL:
        return common | _product(op, sizes)
    if op.kind is OpKind.ATTENTION:
        return common | _attention(op, sizes)
    if op.kind is OpKind.CONVOLUTION:
        return common | _convolution(op, sizes)
    if op.kind in MATRIX_KINDS:
        raise NoRow(f"no table holds a {op.kind} by itself")
    if op.kind is OpKind.COLLECTIVE:
        raise NoRow("a collective needs several devices")
    return common | _stream(op, sizes)


class _Sizes:
    """Numbers of one operator at bound sizes."""

    def __init__(self, op: Op, graph: Graph, bindings: Mapping[str, int]) -> None:
        self.op, self.bindings = op, bindings
        self.tensors = [graph.tensors[t] for t in (*op.inputs, *op.outputs)]
        self.inputs = len(op.inputs)
        dtypes = [t.dtype for t in self.tensors]
        first = next((d for d in dtypes[: self.inputs] if d.is_float), dtypes[0] if dtypes else None)
        self.dtype = "fp32" if first is None else _short(first)

    def value(self, size: DimLike) -> int:
        return int(evaluate_dim(size, self.bindings))

    def attribute(self, name: str, absent: int = 0) -> int:
        found = self.op.attributes.get(name, absent)
        return int(found) if isinstance(found, bool | int) else self.value(found)

    def shape(self, tensor: int) -> tuple[int, ...]:
        return tuple(self.value(d) for d in self.tensors[tensor].shape)


def _short(dtype: DType) -> str:
    return SHORT.get(dtype.name, dtype.name)


def _product(op: Op, sizes: _Sizes) -> Row:
    own = op.name.split(".")[1]
    name = own if own in _BATCHED else "linear"
    found = {size: sizes.attribute(size, 1) for size in "bmnk"}
    return {"table": "gemm", "op": name, **found, "bias": sizes.attribute("bias")}


def _attention(op: Op, sizes: _Sizes) -> Row:
    names = {"batch": "batch", "q_len": "q_len", "kv_len": "kv_len", "n_heads": "heads", "n_kv_heads": "kv_heads"}
    found = {column: sizes.attribute(name, 1) for column, name in names.items()}
    found["head_dim"] = sizes.attribute("head_dim", 1)
    found["v_dim"] = sizes.attribute("v_dim", found["head_dim"])
    if op.attributes.get("masked"):
        raise NoRow("no column of the attention table says that scores are masked by a tensor")
    causal = bool(op.attributes.get("causal"))
    phase = "decode" if found["q_len"] == 1 else "prefill" if causal else "encoder"
    if found["q_len"] > found["kv_len"] and phase != "encoder":
        raise NoRow("more queries than keys")
    return {
        "table": "attention",
        "op": op.name,
        "phase": phase,
        "kv_dtype": sizes.dtype,
        **found,
        "window": sizes.attribute("window"),
        "causal": int(causal),
        "backward": int(bool(op.attributes.get("backward"))),
    }


def _convolution(op: Op, sizes: _Sizes) -> Row:
    if op.attributes.get("backward"):
        raise NoRow("no column of the convolution table says that it is a backward")
    image, kernel = sizes.shape(0), sizes.shape(1)
    if len(image) != 4 or image[2] != image[3] or kernel[2] != kernel[3] or op.attributes.get("transposed"):
        raise NoRow("the convolution table is of square images and kernels in two dimensions")
    stride, padding, dilation = (_one(op.attributes.get(name, absent)) for name, absent in _WINDOW)
    if stride is None or padding is None or dilation != 1:
        raise NoRow("the convolution table has one stride and padding for both dimensions, and no dilation")
    return {
        "table": "conv",
        "op": op.name,
        "batch": image[0],
        "c_in": image[1],
        "c_out": kernel[0],
        "kernel": kernel[2],
        "image": image[2],
        "stride": stride,
        "padding": padding,
        "groups": sizes.attribute("groups", 1),
    }


_WINDOW: Final = (("stride", 1), ("padding", 0), ("dilation", 1))


def _one(value: Any) -> int | None:
    """The number that all of *value* is."""
    found = set(value) if isinstance(value, tuple | list) else {value}
    return int(found.pop()) if len(found) == 1 and all(isinstance(v, int) for v in found) else None


def _stream(op: Op, sizes: _Sizes) -> Row:
    shapes = [sizes.shape(i) for i in range(len(sizes.tensors))]
    if not shapes:
        raise NoRow("it takes and gives no tensor")
    counts = [_elements(shape) for shape in shapes]
    largest = max(counts)
    cols = max(shapes[0][-1] if shapes[0] else 1, 1)
    inputs = sum(1 for c in counts[: sizes.inputs] if c == largest)
    name = TABLED.get(op.name, op.name)
    if name in ("add", "sub", "mul", "div") and sizes.inputs == 1:
        name += "u"
    return {
        "table": "elementwise",
        "op": name,
        "rows": max(round(largest / cols), 1),
        "cols": cols,
        "n_in": max(inputs, 1),
        **{name: sizes.value(getattr(op.work, name)) for name in _WORK},
    }


def _elements(shape: tuple[int, ...]) -> int:
    found = 1
    for size in shape:
        found *= size
    return found
