"""Kernels told by their names, and aligned by kind and order where nothing else is known."""

import pytest

from foretrace.traces import Trace, align_traces
from foretrace.traces.compare.kernels import fused_text, is_communication, is_part, kernel_kind, operator_kind

AT = "void at::native::"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_32x6_tn", "matmul"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1", "matmul"),
        ("nvjet_tst_128x152_64x6_1x2_h_bz_coopA_TNT", "matmul"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_128x64>(cutlass_80::Params)", "matmul"),
        ("Cijk_Alik_Bljk_BBS_BH_Bias_HAS_SAV_UserArgs_MT256x128x64", "matmul"),
        ("volta_sgemm_128x32_nn", "matmul"),
        ("void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 64, 64, 4>>(flash::Flash_fwd_params)", "attention"),
        ("fmha_cutlassF_f32_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel<float>)", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3i_128x128x128", "attention"),
        ("ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "collective"),
        ("sm80_xmma_fprop_implicit_gemm_indexed_tf32f32_tf32f32_f32_nhwckrsc_nchw_tilesize128x128x16", "convolution"),
        ("void cudnn::ops::nchwToNhwcKernel<float, float>(cudnn::ops::nchw2nhwc_params_t<float>)", "copy"),
        (f"{AT}(anonymous namespace)::vectorized_layer_norm_kernel<float, float>(int, float)", "norm"),
        ("void (anonymous namespace)::softmax_warp_forward<float, float, float, 10, false, false>(float*)", "softmax"),
        (f"{AT}vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>(int)", "elementwise"),
        (f"{AT}unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda(at::TensorIteratorBase&)>", "copy"),
        (f"{AT}reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::MeanOps<float, float>>>", "reduction"),
        (f"{AT}index_elementwise_kernel<128, 4, at::native::gpu_index_kernel>", "embedding"),
        (f"{AT}(anonymous namespace)::CatArrayBatchedCopy<float, unsigned int, 3, 64, 64>(float*)", "copy"),
        ("Memcpy DtoD (Device -> Device)", "copy"),
        ("void cub::DeviceRadixSortOnesweepKernel<cub::DeviceRadixSortPolicy<long, int, int>>", "sort"),
        (
            "void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<"
            "flash::CollectiveMainloopFwdSm90<2, cute::tuple<cute::C<1>>, 128, cutlass::bfloat16_t>>>>(Params)",
            "attention",
        ),
        ("void cutlass::device_kernel<cutlass::gemm::kernel::GemmUniversal<cute::tuple<int, int>>>(Params)", "matmul"),
        ("void flashinfer::BatchDecodeWithPagedKVCacheKernel<(flashinfer::PosEncodingMode)0, 2, 4, 8>", "attention"),
        ("void flashinfer::BatchPrefillWithRaggedKVCacheKernel<flashinfer::KernelTraits<1>>(Params)", "attention"),
        ("kernel_paged_kv_gather", "attention"),
        ("fused_moe_kernel", "matmul"),
        ("fused_moe_kernel_gptq_awq", "matmul"),
        ("void one_shot_all_reduce_kernel<c10::BFloat16, 16, 8>(c10::BFloat16**, unsigned long)", "collective"),
        ("void two_shot_all_reduce_kernel_inplace<c10::BFloat16, 8>(c10::BFloat16**, unsigned long)", "collective"),
        ("void tensorrt_llm::allreduce_fusion_kernel_oneshot_lamport<4, __half>(Params)", "collective"),
        ("something_nobody_knows", ""),
    ],
)
def test_kernels_by_their_names(name: str, kind: str) -> None:
    assert kernel_kind(name) == kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::addmm", "matmul"), ("aten::bmm", "matmul"), ("aten::mul", "elementwise"), ("aten::mean", "reduction"),
        ("aten::_softmax", "softmax"), ("aten::native_layer_norm", "norm"), ("aten::convolution", "convolution"),
        ("aten::_scaled_dot_product_flash_attention", "attention"), ("c10d::allreduce_", "collective"),
    ],
)  # fmt: skip
def test_operators_by_their_names(name: str, kind: str) -> None:
    assert operator_kind(name) == kind


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("triton_poi_fused_add_mul_3", "_add_mul_"),
        ("triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_12", "__to_copy_add_mean_mul_pow_rsqrt_"),
        ("graph_0_cpp_fused_silu_mul_5", "_silu_mul_"),
        ("cpp_fused_native_layer_norm_0", "_native_layer_norm_"),
        ("fused(pow, mean, add, 3 more)", "_pow_mean_add_"),
        ("aten::mm", None),
        ("_fused_adamw_", None),
    ],
)
def test_operators_in_the_name_of_a_fused_kernel(name: str, text: str | None) -> None:
    assert fused_text(name) == text


@pytest.mark.parametrize(
    ("name", "kind", "moves"),
    [
        ("ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "kernel", True),
        ("void vllm::cross_device_reduce_2stage<__nv_bfloat16, 8>(vllm::RankData*)", "kernel", True),
        ("void multimem_all_reduce_kernel<c10::BFloat16, 16>(c10::BFloat16*)", "kernel", True),
        ("void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float>>", "kernel", False),
        ("Memcpy PtoP (Device -> Device)", "copy", False),
        ("c10d::allreduce_", "cpu_op", True),
        ("aten::sum", "cpu_op", False),
        ("_c10d_functional.all_gather_into_tensor.default", "collective", True),
    ],
)
def test_communication_is_what_the_rules_call_a_collective(name: str, kind: str, moves: bool) -> None:
    trace = Trace.from_rows([{"name": name, "kind": kind, "stream": "gpu 0 stream 7", "duration_s": 1.0}])
    assert is_communication(trace).tolist() == [moves]


def test_a_kernel_that_finishes_another() -> None:
    assert is_part("void cublasLt::splitKreduce_kernel<32, 16, int, float>")
    assert is_part("void cutlass::device_kernel<flash::FlashAttnFwdCombine<cute::tuple<cute::C<8>>, 4, float>>")
    assert not is_part("ampere_sgemm_128x64_nn")


LAYER = [
    ("aten.native_layer_norm.default", "norm", f"{AT}(anonymous namespace)::vectorized_layer_norm_kernel<float>"),
    ("aten.mm.default", "matmul", "nvjet_tst_128x152_64x6_1x2_h_bz_coopA_TNT"),
    ("aten.scaled_dot_product_attention.default", "attention", "void flash::flash_fwd_kernel<Traits<128>>"),
    ("aten.mm.default", "matmul", "nvjet_tst_64x64_64x16_4x1_v_bz_TNT"),
    ("aten.add.Tensor", "elementwise", f"{AT}vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>"),
    ("aten.gelu.default", "elementwise", f"{AT}vectorized_elementwise_kernel<4, at::native::GeluCUDAKernelImpl>"),
]


def graph_replay(layers: int, extra: bool = False) -> Trace:
    """Kernels of a replayed CUDA graph: one launch, no operators, no modules, no shapes."""
    names = [k for _ in range(layers) for _, _, k in LAYER]
    if extra:
        names.insert(2, "void cublasLt::splitKreduce_kernel<32, 16, int, float>")
    return Trace.from_rows(
        [{"name": n, "kind": "kernel", "stream": "gpu 0 stream 7", "start_s": i, "duration_s": 0.5, "correlation": 5}
         for i, n in enumerate(names)]
    )  # fmt: skip


def operators(layers: int) -> Trace:
    rows = [
        {"name": n, "kind": k, "module": f"h.{layer}", "shapes": "[2,2]", "stream": "compute", "duration_s": 0.5}
        for layer in range(layers) for n, k, _ in LAYER
    ]  # fmt: skip
    return Trace.from_rows([row | {"op_id": i, "start_s": float(i)} for i, row in enumerate(rows)])


def test_kernels_without_operators_are_aligned_by_kind_and_order_with_little_confidence() -> None:
    found = align_traces(operators(3), graph_replay(3))
    assert found.pairs.tolist() == [[i, i] for i in range(3 * len(LAYER))]
    assert found.matched_share == 1.0
    assert found.confidence.max() <= 0.2


def test_a_split_product_keeps_its_reduction() -> None:
    found = align_traces(operators(3), graph_replay(3, extra=True))
    assert [j for i, j in found.pairs.tolist() if i == 1] == [1, 2]
    assert found.matched_share == 1.0


def test_kernels_of_a_deeper_model_are_not_matched_by_kind_alone() -> None:
    assert align_traces(operators(3), graph_replay(5)).matched_share == 0.0
