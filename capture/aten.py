"""What an ATen operator is to a cost model: its kind, and the geometry of the matrix-like ones.

Most operators are classified by what torch itself says of them: a schema whose result aliases an argument is a view,
the tag ``pointwise`` is elementwise. The tables below name the rest. What is in neither is `OpKind.OTHER`: priced by
its bytes and reported.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch

from foretrace.ir import DimLike, OpKind, Tensor, prod

from .plugins import OPS
from .plugins.attention import geometry as _attention
from .plugins.experts import geometry as _grouped_matmul

_KINDS: dict[OpKind, str] = {
    OpKind.MATMUL: """
        mm addmm bmm baddbmm addbmm matmul linear mv dot addmv _scaled_mm _int_mm _addmm_activation""",
    OpKind.GROUPED_MATMUL: "_grouped_mm _scaled_grouped_mm",
    OpKind.ATTENTION: """
        scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu
        _scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention
        _scaled_dot_product_cudnn_attention""",
    OpKind.CONVOLUTION: "convolution conv1d conv2d conv3d _convolution convolution_overrideable",
    OpKind.NORM: """
        native_layer_norm native_group_norm native_batch_norm _native_batch_norm_legit
        _native_batch_norm_legit_no_training _fused_rms_norm rms_norm layer_norm
        _weight_norm_interface""",
    OpKind.SOFTMAX: "_softmax _log_softmax _safe_softmax softmax log_softmax",
    OpKind.ELEMENTWISE: """
        floor_divide native_dropout bernoulli bernoulli_ uniform_ normal_ rand randn randint masked_fill masked_fill_
        where clamp arange full full_like zeros zeros_like ones ones_like new_zeros new_ones new_full fill fill_ zero_
        scalar_tensor tril triu eye linspace avg_pool2d upsample_nearest2d upsample_linear1d upsample_bilinear2d glu
        one_hot addcmul addcdiv lerp isin bucketize polar log_sigmoid_forward nll_loss_backward nll_loss2d_backward
        log_sigmoid __and__ __or__ __xor__""",
    OpKind.REDUCTION: """
        sum mean amax amin max min argmax argmin prod any all _is_all_true _is_any_true var var_mean std logsumexp
        linalg_vector_norm norm count_nonzero max_pool2d_with_indices _adaptive_avg_pool2d mse_loss nll_loss_forward
        nll_loss2d_forward""",
    OpKind.EMBEDDING: "embedding _embedding_bag",
    OpKind.GATHER_SCATTER: """
        index index_select gather scatter scatter_ scatter_add scatter_add_ scatter_reduce index_put index_put_
        _index_put_impl_ _unsafe_index index_add index_add_ index_copy index_copy_ masked_select masked_scatter
        nonzero take embedding_dense_backward""",
    OpKind.SCAN: "cumsum cumsum_ cumprod logcumsumexp cummax cummin",
    OpKind.SORT: "sort topk argsort unique _unique2 unique_consecutive kthvalue histc",
    OpKind.COPY: """
        clone copy_ copy _to_copy cat stack repeat repeat_interleave constant_pad_nd roll flip slice_scatter
        select_scatter slice_backward select_backward unfold_backward resize_ contiguous reflection_pad1d
        reflection_pad2d replication_pad2d pixel_shuffle im2col col2im all_gather_copy_in split_with_sizes_copy
        chunk_cat _chunk_cat""",
    OpKind.VIEW: "_unsafe_view view reshape as_strided_ lift_fresh lift_fresh_copy detach detach_ alias",
    OpKind.HOST: "_local_scalar_dense empty empty_like empty_strided new_empty new_empty_strided set_ item",
}
KIND_OF: dict[str, OpKind] = {name: kind for kind, names in _KINDS.items() for name in names.split()}
"""Bare operator name → kind, for those that torch's own schema and tags do not settle."""
_DISTRIBUTED = frozenset({"c10d", "_c10d_functional", "_dtensor"})
"""Namespaces of torch.distributed's operators."""


@lru_cache(maxsize=4096)
def kind_of(function: Any) -> OpKind:
    """The kind of an operator overload."""
    if (plugin := OPS.get(function._schema.name)) is not None:
        return plugin.kind
    bare = bare_name(function)
    if bare in KIND_OF:
        return KIND_OF[bare]
    if function._schema.name.partition("::")[0] in _DISTRIBUTED:
        return OpKind.COLLECTIVE if is_collective(function) else OpKind.VIEW  # a wait, or a wrapping
    returns = function._schema.returns
    if any(r.alias_info is not None and not r.alias_info.is_write for r in returns):
        return OpKind.VIEW
    if torch.Tag.pointwise in function.tags:
        return OpKind.ELEMENTWISE
    if bare.startswith("_foreach"):
        return OpKind.ELEMENTWISE
    if (forward := KIND_OF.get(bare.removesuffix("_data").removesuffix("_backward"))) is not None:
        return forward
    return OpKind.OTHER


@lru_cache(maxsize=4096)
def is_collective(function: Any) -> bool:
    """Whether *function* moves data between ranks: an operator of torch.distributed that takes a process group."""
    namespace = function._schema.name.partition("::")[0]
    names = {a.name for a in function._schema.arguments}
    return namespace in _DISTRIBUTED and not names.isdisjoint(("process_group", "group_name"))


@lru_cache(maxsize=4096)
def bare_name(function: Any) -> str:
    """``aten.addmm.default`` → ``addmm``."""
    return str(function._schema.name.split("::", 1)[1])


@lru_cache(maxsize=4096)
def full_name(function: Any) -> str:
    """The framework's own name; a plug-in's operator goes by the name its plug-in gives it."""
    plugin = OPS.get(function._schema.name)
    return str(function) if plugin is None else plugin.name


def geometry(
    function: Any, kind: OpKind, ins: Sequence[Tensor], outs: Sequence[Tensor], literals: Mapping[str, Any]
) -> dict[str, Any]:
    """The sizes a cost model of *kind* reads, from the tensors; empty for kinds that need none."""
    if (plugin := OPS.get(function._schema.name)) is not None:
        return plugin.geometry(ins, outs, literals)
    if kind is OpKind.MATMUL:
        return _matmul(bare_name(function), ins, outs)
    if kind is OpKind.GROUPED_MATMUL:
        return _grouped_matmul(ins, outs, literals)
    if kind is OpKind.ATTENTION:
        if bare_name(function).endswith("_backward"):
            return {**_attention(ins[1:4], outs, literals), "backward": True}
        return _attention(ins, outs, literals)
    if kind is OpKind.CONVOLUTION:
        if bare_name(function) == "convolution_backward":
            products = sum(literals["output_mask"][:2])
            return {**_convolution(ins[1:3], ins[:1], literals), "backward": True, "products": products}
        return _convolution(ins, outs, literals)
    return {}


def _matmul(bare: str, ins: Sequence[Tensor], outs: Sequence[Tensor]) -> dict[str, Any]:
    fused = bare in ("addmm", "baddbmm", "addbmm", "addmv", "_addmm_activation")
    left, right = (ins[1], ins[2]) if fused else (ins[0], ins[1])
    bias = fused or (bare == "linear" and len(ins) > 2)
    k = left.shape[-1]
    if bare in ("dot",):
        return {"b": 1, "m": 1, "n": 1, "k": k, "bias": False}
    if bare in ("mv", "addmv"):
        return {"b": 1, "m": left.shape[0], "n": 1, "k": k, "bias": bias}
    if len(left.shape) == 3 and len(right.shape) == 3:
        return {"b": left.shape[0], "m": left.shape[1], "n": right.shape[2], "k": k, "bias": bias}
    n: DimLike = outs[0].shape[-1]
    return {"b": 1, "m": prod(outs[0].shape[:-1]), "n": n, "k": k, "bias": bias}


def _convolution(ins: Sequence[Tensor], outs: Sequence[Tensor], literals: Mapping[str, Any]) -> dict[str, Any]:
    weight, out = ins[1].shape, outs[0].shape
    return {
        "batch": out[0],
        "out_channels": out[1],
        "in_channels": ins[0].shape[1],
        "groups": literals.get("groups", 1),
        "kernel": tuple(weight[2:]),
        "out_size": tuple(out[2:]),
        "k": prod(weight[1:]),  # multiply-adds an output element takes; of a transposed one, an input element
        "bias": len(ins) > 2,
    }
