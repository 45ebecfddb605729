"""Work of one op from its kind, geometry and tensors: the FLOP and byte formulae every front end shares.

A multiply-add is 2 FLOP. Bytes are the compulsory traffic of a kernel that reads each input once and writes each
output once; what a real kernel re-reads is the cost models' affair. Attention is counted in full (causal or not),
as `torch.utils.flop_counter` and the usual MFU do; its bytes are those of a kernel that never writes the scores.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from .dim import DimLike, dim_min, prod
from .graph import FREE_KINDS, OpKind, Tensor, Work
from .scans import scan_flops

SPECIAL_FUNCTIONS = frozenset(
    "exp exp2 expm1 log log2 log10 log1p sin cos tan tanh sigmoid silu gelu mish softplus erf erfc erfinv rsqrt sqrt "
    "pow reciprocal logit atan atan2 asin acos sinh cosh hardswish elu celu selu log_sigmoid_forward".split()
)
"""Pointwise functions that take one special-function result an element (reciprocal, root, exponential...)."""

VECTOR_FLOPS_PER_ELEMENT = {
    OpKind.NORM: 7,  # mean (1), variance (3), subtract, scale, shift
    OpKind.SOFTMAX: 4,  # maximum, subtract, sum, scale; its exponential counts as special
    OpKind.ELEMENTWISE: 1,
    OpKind.REDUCTION: 1,
    OpKind.SCAN: 2,
}
"""Vector FLOPs an element of the larger side: how many passes of arithmetic the textbook algorithm makes."""


def op_work(
    kind: OpKind,
    function: str,
    attributes: Mapping[str, Any],
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    read: Sequence[DimLike] | None = None,
) -> Work:
    """The `Work` of an op of *kind*; *function* is its bare name (``gelu``).

    *read* are the bytes touched of each input where a front end knows better than the whole tensor
    (broadcast dims, gathered rows).
    """
    if kind in FREE_KINDS:
        return Work()
    bytes_written = _sum([t.bytes for t in outputs])
    if kind is OpKind.EMBEDDING or kind is OpKind.GATHER_SCATTER:  # only the rows asked for are read, and the indices
        bytes_read = bytes_written + _sum([t.bytes for t in inputs if not t.dtype.is_float])
    else:
        touched = list(read if read is not None else [t.bytes for t in inputs])
        groups = attributes.get("groups")
        if kind is OpKind.GROUPED_MATMUL and groups and len(inputs) > 1 and len(inputs[1].shape) == 3:
            touched[1] = touched[1] // groups * dim_min(groups, attributes["m"])  # of experts that got a row
        bytes_read = _sum(touched)
    matrix, vector, special = _flops(kind, function, attributes, inputs, outputs)
    return Work(matrix, vector, special, bytes_read, bytes_written)


def _flops(
    kind: OpKind, function: str, a: Mapping[str, Any], inputs: Sequence[Tensor], outputs: Sequence[Tensor]
) -> tuple[DimLike, DimLike, DimLike]:
    if kind is OpKind.MATMUL or kind is OpKind.GROUPED_MATMUL:
        product = a["b"] * a["m"] * a["n"]
        return 2 * product * a["k"], product if a.get("bias") else 0, 0
    if kind is OpKind.ATTENTION:
        scores = a["batch"] * a["heads"] * a["q_len"] * a["kv_len"]
        backward = bool(a.get("backward"))
        # forward: Q·Kᵀ and P·V; backward: Q·Kᵀ again, dQ and dK over head_dim, dP and dV over v_dim (FlashAttention-2)
        widths = 3 * a["head_dim"] + 2 * a["v_dim"] if backward else a["head_dim"] + a["v_dim"]
        return 2 * scores * widths, VECTOR_FLOPS_PER_ELEMENT[OpKind.SOFTMAX] * scores, scores
    if kind is OpKind.CONVOLUTION:
        if not a.get("backward"):
            out = prod(outputs[0].shape)
            walked = prod(inputs[0].shape) if a.get("transposed") else out  # the side each of whose elements takes k
            return 2 * walked * a["k"], out if a.get("bias") else 0, 0
        out = prod((a["batch"], a["out_channels"], *a["out_size"]))
        return 2 * out * a["k"] * a.get("products", 2), 0, 0  # the gradients of input and weight
    if "algorithm" in a:
        return scan_flops(a)
    of_list = function.startswith("_foreach_")  # one operator on a list of tensors
    function = function.removeprefix("_foreach_")
    elements = _sum([t.elements for t in outputs]) if of_list else _larger(inputs, outputs)
    per_element = VECTOR_FLOPS_PER_ELEMENT.get(kind, 0)
    small_power = function.startswith("pow") and a.get("exponent") in (1, 2, 3)  # one or two multiplies
    uses_special = kind is OpKind.SOFTMAX or (function.rstrip("_") in SPECIAL_FUNCTIONS and not small_power)
    return 0, elements * per_element, elements if uses_special else 0


def _larger(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> DimLike:
    """Elements of the side that a pointwise op or reduction walks: the highest-rank tensor it touches."""
    sides = [prod(t.shape) for t in (*outputs, *inputs)]
    if not sides:
        return 0
    constants = [s for s in sides if isinstance(s, int)]
    symbolic = [s for s in sides if not isinstance(s, int)]
    if not symbolic:
        return max(constants)
    return max(symbolic, key=lambda s: (max(len(m) for m, _ in s.terms), max(abs(c) for _, c in s.terms)))


def _sum(values: Sequence[DimLike]) -> DimLike:
    total: DimLike = 0
    for v in values:
        total = total + v
    return total
