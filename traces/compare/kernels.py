"""What a kernel or an operator does, told from its name: rules as data, the first that fits wins."""

import re
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from foretrace.traces.kinds import DEVICE_KINDS, DEVICE_WORK, HOST_KINDS
from foretrace.traces.strings import StringColumn
from foretrace.traces.trace import Trace

PROFILED = frozenset([*HOST_KINDS, *DEVICE_KINDS]) - {"copy"}  # kinds of events; "copy" is an operator's too
_COMMUNICATION = ("nccl", "rccl", "oneccl", "c10d::", "c10d.", "_c10d_functional", "record_param_comms")
KERNEL_RULES = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("collective", r"^(nccl|rccl|oneccl|mscclpp?)|ncclkernel|nccldev|cross_device_reduce|multimem_(all|reduce)"),
        ("collective", r"(one|two)_shot_all_?reduce|all_?reduce_(fusion_)?kernel"),
        ("attention", r"flash_|fmha|mem_eff|efficient_attention|attention|attn_fwd|attn_bwd|sdpa|mha_"),
        ("attention", r"flash::|flashattn|paged_?kv|ragged_?kv"),
        ("copy", r"nchwtonhwc|nhwctonchw"),
        ("convolution", r"implicit_gemm|implicit_convolve|winograd|fprop|dgrad|wgrad|igemm|conv(?!ert)|cudnn_.*scudnn"),
        ("convolution", r"fft2d_[rc]2[rc]|depthwise|im2col|col2im"),
        (
            "matmul",
            r"(?<!fb)gemm|gemv|cutlass|cublas|cijk_|nvjet|tensorop|splitk|matmul|wmma|_xmma|(ampere|volta|turing)_\w*\d",
        ),
        (
            "matmul",
            r"hopper_\w*\d|dot_kernel|cublaslt|\b(add|badd)?b?mm_|_(b|add)?mm_|marlin|machete|awq_|fused_moe_kernel",
        ),
        ("softmax", r"soft_?max|nll_loss|cross_entropy"),
        ("norm", r"(layer|rms|batch|group|instance)_?norm|bn_(fw|bw|fprop|bprop)|gammabeta|welford|rowwisemoments"),
        ("embedding", r"embedding|index(_?select|_?put|ing|func|_elementwise|_kernel|_add|_fill)|gather|scatter"),
        ("sort", r"sort|topk|radix"),
        ("scan", r"cumsum|cumprod|scan_|devicescan|tensor_kernel_scan"),
        ("copy", r"memcpy|memset|direct_copy|copy_kernel|catarray|batchedcopy|transpose|permute|triu_tril|copy_device"),
        ("reduction", r"reduce|norm_kernel|argmax|argmin|mean|softmax_warp"),
        ("elementwise", r"elementwise|vectorized|unrolled|pointwise|multi_tensor_apply|dropout|distribution|_fused_"),
        ("elementwise", r"act_and_mul|silu|gelu|relu|rotary|fill|adam|lamb|arange"),
    )
)
"""(kind, pattern) over lower-case kernel names of CUDA, ROCm and Triton. Order matters: an attention kernel may be
built of a library's gemm, a convolution is named implicit gemm, a copy runs as an elementwise kernel."""

OPERATOR_RULES = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        (
            "collective",
            r"c10d|^nccl|record_param_comms|all_?reduce|all_?gather|reduce_scatter|all_?to_?all|broadcast_coal",
        ),
        ("attention", r"attention"),
        ("convolution", r"conv(olution|\d?d|_transpose)"),
        ("matmul", r"::_?(addmm|addbmm|baddbmm|mm|bmm|matmul|linear|mv|addmv|dot|scaled_mm|grouped_mm|int_mm|gemm)"),
        ("matmul", r"::_scaled_grouped_mm|mkldnn_linear|mkl_linear|onnx::(gemm|matmul)"),
        ("softmax", r"soft_?max"),
        ("norm", r"(layer|rms|batch|group|instance)_norm|normalization"),
        ("embedding", r"embedding"),
        ("copy", r"::(_to_copy|to|copy_?|clone|contiguous|cat|stack|repeat|zeros?|ones|full|fill)(_like|_|$)"),
        ("reduction", r"::(sum|mean|a?max|a?min|prod|var|std|any|all|arg(max|min)|linalg_vector_norm)(_|$)"),
        ("sort", r"::(sort|argsort|topk)(_|$)"),
        (
            "elementwise",
            r"::(_foreach_)?(add|sub|rsub|mul|div|pow|neg|abs|exp|log|r?sqrt|sin|cos|erf|tanh|sigmoid|silu|gelu|relu|"
            r"where|clamp|dropout|native_dropout|bernoulli|masked_fill|threshold|lerp|eq|ne|lt|le|gt|ge|bitwise\w+|"
            r"logical\w+|addc(mul|div))(_|$)",
        ),
    )
)
"""The same for lower-case operator names."""

STRUCTURAL = frozenset(["matmul", "attention", "convolution", "collective", "softmax", "norm", "embedding"])
"""Kinds that show a model's structure: what aligns kernels that nothing but their order tells apart."""

_SAME_KIND = {"grouped_matmul": "matmul", "gather_scatter": "embedding", "memset": "copy", "view": "", "host": ""}
_PART = re.compile(
    r"splitkreduce|splitk_reduce|splitkv_combine|flashattnfwdcombine|flash_bwd_(dot_do_o|convert_dq)|fmha_bwd_.*reduce"
)
_FUSED = re.compile(r"^(?:graph_\d+_)?(?:triton|cpp|cuda|halide|pallas)_(?:\w{2,4}_)?fused_(?P<ops>.+?)(?:_\d+)?$")
_PREDICTED = re.compile(r"^fused\((?P<ops>.*)\)$")
_MORE = re.compile(r"^(\d+ more|\.\.\.)$")


@lru_cache(maxsize=65536)
def kernel_kind(name: str) -> str:
    """The operator kind of a kernel by its *name*, "" where no rule fits."""
    text = name.lower()
    return next((kind for kind, pattern in KERNEL_RULES if pattern.search(text)), "")


@lru_cache(maxsize=65536)
def operator_kind(name: str) -> str:
    """The kind of a framework operator by its *name*, "" where it says too little."""
    text = name.lower()
    return next((kind for kind, pattern in OPERATOR_RULES if pattern.search(text)), "")


def coarse_kind(kind: str) -> str:
    """A captured operator's *kind* as the rules name it: they do not tell a grouped matmul from a matmul."""
    return _SAME_KIND.get(kind, kind)


@lru_cache(maxsize=65536)
def is_part(name: str) -> bool:
    """Whether a kernel only finishes what the one before it began: a split-K reduction, a combined split."""
    return _PART.search(name.lower()) is not None


@lru_cache(maxsize=65536)
def fused_text(name: str) -> str | None:
    """The operators in the name of a fused kernel as ``_add_mul_``, None where *name* is none."""
    found = _FUSED.match(name)
    if found:
        return f"_{found['ops']}_"
    members = fused_members(name)
    return f"_{'_'.join(members)}_" if members else None


@lru_cache(maxsize=65536)
def fused_members(name: str) -> tuple[str, ...]:
    """The operators that a prediction lists in the *name* of one it fused, () where it is none."""
    found = _PREDICTED.match(name)
    return tuple(part for part in found["ops"].split(", ") if not _MORE.match(part)) if found else ()


@lru_cache(maxsize=65536)
def fused_rest(name: str) -> int:
    """How many more operators a fused one has than its *name* lists."""
    found = _PREDICTED.match(name)
    last = found["ops"].rpartition(", ")[2] if found else ""
    return int(last.split()[0]) if _MORE.match(last) and last[0].isdigit() else 0


def is_communication(trace: Trace) -> NDArray[np.bool_]:
    """Mask of the rows that move data between ranks; of work on a device those whose kernel is a collective."""
    host = trace.name.where(lambda n: n.lower().startswith(_COMMUNICATION))
    device = trace.name.where(lambda n: kernel_kind(n) == "collective")
    named = np.where(trace.kind.isin(DEVICE_WORK), device, host)
    return named | trace.kind.isin(["collective"]) | trace.stream.isin(["communication"])


def named_kinds(kind: StringColumn, name: StringColumn) -> StringColumn:
    """The kinds that a prediction states in *kind*; where a profiler stands there, what *name* tells, "" if nothing."""
    return StringColumn.of(
        [
            k if k not in PROFILED else kernel_kind(n) if k in DEVICE_WORK else operator_kind(n)
            for k, n in zip(kind.tolist(), name.tolist(), strict=True)
        ]
    )
