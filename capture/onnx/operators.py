"""What an ONNX operator is: its kind, how its sizes follow, which of its inputs it computes with.

An operator in no table is `OpKind.OTHER`, reported as unmodelled; its sizes then come from onnx's own shape inference
or from what the file says of the value.

Transpose is a copy, as ONNX Runtime runs it (PyTorch's is a view): only one that moves nothing but dims of one is
free. Reshape, Flatten, Squeeze, Unsqueeze and Identity are views. Slice and Split copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from foretrace.ir import DTYPES, OpKind

from . import classical
from . import geometry as g
from . import shapes as s
from . import windows as w
from .call import Call, Sized
from .gaps import infer_gap

Sizes = Callable[[Call], list[Sized]]


@dataclass(frozen=True, slots=True)
class Rule:
    """One operator: `operands` are the inputs whose data a kernel reads (None: all of them)."""

    kind: OpKind
    sizes: Sizes
    operands: tuple[int, ...] | None = None
    geometry: Callable[[Call], dict[str, Any]] | None = None


def _quantized(call: Call) -> list[Sized]:
    x, zero = call.value(0), call.given(2)
    dtype = (
        zero.dtype
        if zero is not None
        else call.attr_dtype("output_dtype", 2)
        if call.attr("output_dtype", 0)
        else DTYPES["uint8"]
    )
    return [(x.shape, dtype)]


def _dynamic_quantized(call: Call) -> list[Sized]:
    x = call.value(0)
    return [(x.shape, DTYPES["uint8"]), ((), x.dtype), ((), DTYPES["uint8"])]


def _cast(call: Call) -> list[Sized]:
    dtype = call.value(1).dtype if call.op == "CastLike" else call.attr_dtype("to")
    return [(call.value(0).shape, dtype)]


def _dequantized(call: Call) -> list[Sized]:
    return [(call.value(0).shape, call.value(1).dtype)]


def _logical(call: Call) -> list[Sized]:
    return s.as_type(DTYPES["bool"], s.broadcast(call))


def _dropout(call: Call) -> list[Sized]:
    x = call.value(0)
    return [(x.shape, x.dtype), (x.shape, DTYPES["bool"])][: len(call.node.output)]


def _quantized_pair(call: Call) -> list[Sized]:
    """QLinearAdd and the like: A and B with their scales and zero points between them."""
    a, b = call.value(0), call.value(3)
    return [(call.broadcast(a.shape, b.shape), a.dtype)]


def _embedded(call: Call) -> list[Sized]:
    """EmbedLayerNormalization: word, position and segment embeddings, summed and normed."""
    ids, table = call.value(0), call.value(2)
    out: list[Sized] = [((*ids.shape, table.shape[-1]), table.dtype), ((ids.shape[0],), DTYPES["int32"])]
    return [*out, out[0]][: len(call.node.output)]


def _gathered_blocks(call: Call) -> list[Sized]:
    """GatherBlockQuantized: rows of a table of packed integers, in the scales' format."""
    x, index, scales = call.value(0), call.value(1), call.value(2)
    width = scales.shape[-1] * call.attr("block_size", 128)
    return [((*index.shape, *x.shape[1:-1], width), scales.dtype)]


_FIRST = (0,)
_TABLE: Final[tuple[tuple[OpKind, Sizes, tuple[int, ...] | None, str], ...]] = (
    (OpKind.ELEMENTWISE, s.broadcast, None, """
        Add Sub Mul Div Pow Mod Min Max Sum Mean PRelu BitwiseAnd BitwiseOr BitwiseXor BitShift Where"""),
    (OpKind.ELEMENTWISE, _logical, None, "Equal Less LessOrEqual Greater GreaterOrEqual And Or Xor Not IsNaN IsInf"),
    (OpKind.ELEMENTWISE, s.same, None, """
        Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid
        HardSwish LeakyRelu Log Mish Neg Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt
        Swish Tan Tanh ThresholdedRelu Trilu EyeLike Bernoulli Clip
        FastGelu QuickGelu BiasGelu BiasAdd Silu QLinearSigmoid QLinearLeakyRelu RotaryEmbedding"""),
    (OpKind.ELEMENTWISE, _dropout, _FIRST, "Dropout"),
    (OpKind.ELEMENTWISE, _quantized_pair, None, "QLinearAdd QLinearMul"),
    (OpKind.ELEMENTWISE, _quantized, None, "QuantizeLinear"),
    (OpKind.ELEMENTWISE, _dequantized, None, "DequantizeLinear"),
    (OpKind.REDUCTION, _dynamic_quantized, None, "DynamicQuantizeLinear"),
    (OpKind.ELEMENTWISE, w.resize, _FIRST, "Resize Upsample"),
    (OpKind.ELEMENTWISE, s.filled, (), """
        ConstantOfShape RandomNormal RandomUniform RandomNormalLike RandomUniformLike"""),
    (OpKind.ELEMENTWISE, s.arange, (), "Range"),
    (OpKind.ELEMENTWISE, s.one_hot, (0, 2), "OneHot"),
    (OpKind.COPY, _cast, _FIRST, "Cast CastLike"),
    (OpKind.SOFTMAX, s.same, None, "Softmax LogSoftmax Hardmax QLinearSoftmax"),
    (OpKind.NORM, s.norm, None, """
        LayerNormalization RMSNormalization SimplifiedLayerNormalization SkipLayerNormalization
        SkipSimplifiedLayerNormalization"""),
    (OpKind.NORM, s.same, None, """
        BatchNormalization InstanceNormalization GroupNormalization GroupNorm LpNormalization LRN
        MeanVarianceNormalization"""),
    (OpKind.REDUCTION, s.reduced, _FIRST, """
        ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp
        ReduceSumSquare ArgMax ArgMin"""),
    (OpKind.REDUCTION, w.pool, None, "MaxPool AveragePool LpPool QLinearAveragePool"),
    (OpKind.REDUCTION, w.global_pool, None, "GlobalAveragePool GlobalMaxPool GlobalLpPool QLinearGlobalAveragePool"),
    (OpKind.COPY, s.concat, None, "Concat"),
    (OpKind.COPY, s.split, _FIRST, "Split"),
    (OpKind.COPY, s.slice_, _FIRST, "Slice"),
    (OpKind.COPY, s.transpose, _FIRST, "Transpose"),
    (OpKind.COPY, s.expand, _FIRST, "Expand"),
    (OpKind.COPY, s.tile, _FIRST, "Tile"),
    (OpKind.COPY, w.padded, _FIRST, "Pad"),
    (OpKind.COPY, w.blocks, _FIRST, "DepthToSpace SpaceToDepth"),
    (OpKind.COPY, s.same, _FIRST, "ReverseSequence"),
    (OpKind.COPY, g.unfold, _FIRST, "Col2Im"),
    (OpKind.VIEW, s.reshape, _FIRST, "Reshape"),
    (OpKind.VIEW, s.flatten, _FIRST, "Flatten"),
    (OpKind.VIEW, s.squeeze, _FIRST, "Squeeze"),
    (OpKind.VIEW, s.unsqueeze, _FIRST, "Unsqueeze"),
    (OpKind.VIEW, s.same, _FIRST, "Identity"),
    (OpKind.GATHER_SCATTER, s.gather, None, "Gather"),
    (OpKind.GATHER_SCATTER, s.gather_elements, None, "GatherElements"),
    (OpKind.GATHER_SCATTER, s.gather_nd, None, "GatherND"),
    (OpKind.GATHER_SCATTER, s.same, None, "ScatterElements ScatterND Scatter TensorScatter"),
    (OpKind.GATHER_SCATTER, s.found, None, "NonZero Compress"),
    (OpKind.EMBEDDING, _embedded, None, "EmbedLayerNormalization"),
    (OpKind.EMBEDDING, _gathered_blocks, None, "GatherBlockQuantized"),
    (OpKind.SCAN, s.same, _FIRST, "CumSum CumProd"),
    (OpKind.SORT, s.top_k, _FIRST, "TopK"),
    (OpKind.SORT, s.found, (0, 1), "Unique NonMaxSuppression"),
    (OpKind.MATMUL, g.matmul, None, """
        MatMul Gemm MatMulInteger QLinearMatMul FusedMatMul FusedGemm QGemm MatMulNBits DynamicQuantizeMatMul
        MatMulIntegerToFloat"""),
    (OpKind.MATMUL, g.einsum, None, "Einsum"),
    (OpKind.CONVOLUTION, g.convolution, None, "Conv ConvTranspose ConvInteger QLinearConv FusedConv"),
    (OpKind.ATTENTION, g.attention, None, "Attention MultiHeadAttention GroupQueryAttention QAttention"),
    (OpKind.HOST, s.measured, (), "Shape Size"),
    (OpKind.ELEMENTWISE, infer_gap, None, "HannWindow HammingWindow BlackmanWindow MelWeightMatrix AffineGrid"),
    (OpKind.GATHER_SCATTER, infer_gap, None, "GridSample RoiAlign MaxRoiPool"),
    (OpKind.OTHER, w.spectrum, _FIRST, "STFT DFT"),
    (OpKind.SCAN, s.recurrent, None, "LSTM GRU RNN DynamicQuantizeLSTM"),
)  # fmt: skip
_GEOMETRY: Final = {
    OpKind.MATMUL: g.matmul_geometry,
    OpKind.CONVOLUTION: g.convolution_geometry,
    OpKind.ATTENTION: g.attention_geometry,
}
DOMAINS: Final = frozenset({"", "com.microsoft", "com.ms.internal.nhwc"})
RULES: Final = {
    op: Rule(kind, sizes, operands, g.einsum_geometry if op == "Einsum" else _GEOMETRY.get(kind))
    for kind, sizes, operands, ops in _TABLE
    for op in ops.split()
}
"""Operator → what it is. ONNX's and ONNX Runtime's names differ, save `Attention`, which asks the domain."""
CLASSICAL: Final = {
    op: Rule(kind, sizes, None, geometry) for kind, sizes, geometry, ops in classical.TABLE for op in ops.split()
}
"""Those of ``ai.onnx.ml``."""
_UNKNOWN: Final = Rule(OpKind.OTHER, infer_gap)
RENAMED: Final = {"biasgelu": "gelu", "fastgelu": "gelu", "quickgelu": "gelu", "swish": "silu", "leakyrelu": "relu"}
"""Our name of the function, where ONNX's differs (`ir.work.SPECIAL_FUNCTIONS`)."""


def rule_of(call: Call) -> Rule:
    """The rule of the operator that *call* calls."""
    if call.domain == classical.DOMAIN:
        return CLASSICAL.get(call.op, _UNKNOWN)
    return RULES.get(call.op, _UNKNOWN) if call.domain in DOMAINS else _UNKNOWN


def infer(call: Call) -> list[Sized]:
    """Shape and format of every output."""
    return rule_of(call).sizes(call)


def kind_of(call: Call) -> OpKind:
    """The kind of operator that *call* is with these inputs."""
    rule = rule_of(call)
    if call.domain == classical.DOMAIN:
        return rule.kind
    if call.op == "Gather" and rule.kind is OpKind.GATHER_SCATTER:
        table = call.value(0)
        return OpKind.EMBEDDING if table.constant and table.rank == 2 and call.attr("axis", 0) == 0 else rule.kind
    if call.op == "Transpose" and rule.kind is OpKind.COPY:
        x = call.value(0)
        order = call.attr("perm", list(range(x.rank))[::-1])
        moved: Sequence[int] = [i for i in order if x.shape[i] != 1]
        return OpKind.VIEW if list(moved) == sorted(moved) else OpKind.COPY
    if call.op == "Dropout" and len(call.node.output) == 1:
        return OpKind.VIEW  # in inference it passes its input on
    return rule.kind


def function_of(call: Call) -> str:
    """The bare name of the function for `op_work`: ``gelu``."""
    name = call.op.lower().removeprefix("qlinear")
    return RENAMED.get(name, name)
