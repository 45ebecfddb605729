"""What `fit_profiles.py` fits, in its order: one `Stage` a set of constants, later ones standing on earlier ones."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretrace.replay.measured import Measurements


@dataclass(frozen=True)
class Stage:
    """One fit."""

    profile: str
    kernels: str
    pipeline: str
    table: str
    gpus: str
    """Pattern of the GPUs whose rows count; each is a sample of its own."""
    names: str
    """The constants that move, space-separated."""
    start: str = ""
    """``constant=value``, of a further set ``class.constant=value``, to start from, space-separated; the others from
    the set that the profile falls back to."""
    dtypes: str = ".*"
    sources: str = ".*"
    kinds: str = ".*"
    at_least: float = 0.0
    """s under which a row is left out: what only the host's time decides."""
    prior: float = 0.2
    also: str = ""
    """Further sets that move: ``class:constant,constant`` of the same pipeline."""
    carry: str = ""
    """A pipeline without rows of its own that takes over the constants of this one."""
    where: Callable[[Measurements], "np.ndarray"] | None = None

    @property
    def name(self) -> str:
        """``serving/gemm/ampere``."""
        return f"{self.profile}/{self.kernels}/{self.pipeline}"


GEMM = "efficiency fill_per_clock step_cycles tile_cycles memory_efficiency start_s split_start_s split_per_clock"
SIMT = "efficiency fill_per_clock step_cycles tile_cycles memory_efficiency long_row_bytes batched"
FP32 = {"table": "gemm", "dtypes": "fp32", "sources": "neusight_(test|amd)", "at_least": 120e-6}
SIMT_START = (
    "efficiency=0.9 fill_per_clock=40 step_cycles=50 tile_cycles=2000 memory_efficiency=0.8 core_fill=40 start_s=1e-6 "
    "split_start_s=1e-4 split_per_clock=64 resident=0.5 long_row_bytes=1e6 batched=1 energy_per_flop=14e-12"
)
PREFILL = "efficiency tile_cycles block_cycles tail memory_efficiency start_s"
DECODE = "lone_cycles unit_per_clock unit_cycles token_cycles memory_efficiency start_s reduce_s query_passes occupancy"
STREAM = "memory_efficiency core_fill start_s vector_efficiency"
LIBRARIES = {"trtllm": "aic_trtllm", "vllm": "aic_vllm", "sglang": "aic_sglang"}


def _attention() -> Iterator[Stage]:
    a100, h100 = "A100-SXM-80GB", "H100-SXM"
    # PyTorch's own flash attention is FlashAttention-2, Hopper or not: so are the encoders of the tables
    yield Stage("eager", "prefill", "hopper", "attention", h100, PREFILL, kinds=".*encoder",
                start="efficiency=0.4 exp_efficiency=1 overlap=1 low_precision=1", sources="aic_")  # fmt: skip
    for library, source in {"serving": "aic_(vllm|sglang)", **LIBRARIES}.items():
        common = {"profile": library, "table": "attention", "sources": source}
        fa3 = "efficiency=0.75 exp_efficiency=0.8 overlap=4"
        ampere = "efficiency=0.8 exp_efficiency=1 overlap=1 low_precision=1"  # FlashAttention-2 knows no 8-bit products
        yield Stage(kernels="prefill", pipeline="ampere", gpus=a100, names=PREFILL, start=ampere,
                    kinds=".*prefill", **common)  # fmt: skip
        yield Stage(kernels="prefill", pipeline="hopper", gpus=h100, names=PREFILL + " exp_efficiency",
                    start=fa3, kinds=".*prefill", where=_wide, **common)  # fmt: skip
        yield Stage(kernels="prefill_8bit", pipeline="hopper", gpus=h100,
                    names=PREFILL + " exp_efficiency low_precision",
                    start=fa3, kinds=".*prefill", where=_narrow, **common)  # fmt: skip
        packs = "pack=32 flat_single=1" if library == "trtllm" else "pack=256 flat_single=0"
        flat = " flat_unit_cycles flat_token_cycles" if library == "trtllm" else ""
        yield Stage(kernels="decode", pipeline="ampere", gpus=a100, names=DECODE + flat, start=packs,
                    kinds=".*decode", **common)  # fmt: skip
        yield Stage(kernels="decode", pipeline="hopper", gpus=h100, names=DECODE + flat, start=packs,
                    kinds=".*decode", where=_wide, **common)  # fmt: skip
        yield Stage(kernels="decode_8bit", pipeline="hopper", gpus=h100, names=DECODE + flat, start=packs,
                    kinds=".*decode", where=_narrow, **common)  # fmt: skip
        if library in ("serving", "trtllm"):
            yield Stage(kernels="encoder", pipeline="hopper", gpus=h100, names=PREFILL, kinds=".*encoder",
                        start="efficiency=0.4 exp_efficiency=1 overlap=1", **{**common, "sources": "aic_"})  # fmt: skip
        if library in ("serving", "sglang"):
            yield Stage(kernels="prefill_triton", pipeline="hopper", gpus=h100, names=PREFILL,
                        kinds=".*prefill", where=_triton,
                        start="efficiency=0.1 exp_efficiency=1 overlap=1", **common)  # fmt: skip


def _kv(q: Measurements) -> np.ndarray:
    return np.asarray(q.largest(q.operators.attribute("kv_bytes")))


def _triton(q: Measurements) -> np.ndarray:
    named = np.array(["triton" in n for n in q.operators.names])
    return np.asarray(np.bincount(q.row, named, minlength=q.rows) > 0)


def _narrow(q: Measurements) -> np.ndarray:
    return (_kv(q) <= 1) & ~_triton(q)


def _wide(q: Measurements) -> np.ndarray:
    return (_kv(q) > 1) & ~_triton(q)


def _mla() -> Iterator[Stage]:
    for library, source in {"serving": "aic_trtllm", **LIBRARIES}.items():
        for gpu, pipeline in (("A100-SXM-80GB", "ampere"), ("H100-SXM", "hopper")):
            common = {"profile": library, "pipeline": pipeline, "table": "mla", "gpus": gpu, "sources": source}
            yield Stage(kernels="latent_prefill", names=PREFILL, kinds=".*prefill", **common)
            yield Stage(kernels="latent_decode", names=DECODE + " flat_unit_cycles flat_token_cycles",
                        start="pack=256 flat_single=0", kinds=".*decode", **common)  # fmt: skip


GROUPED = (
    "efficiency fill_per_clock step_cycles tile_cycles memory_efficiency core_fill start_s bookkeeping_s "
    "around_efficiency"
)
RINGS = {
    "ampere": {
        "low_latency": "start_s=7.3e-6 step=0.96 efficiency=0.2",
        "low_latency_128": "start_s=2.9e-5 step=0.87 efficiency=0.57",
        "simple": "start_s=3.5e-5 step=4.6 efficiency=0.78",
        "direct": "start_s=1.1e-5 step=0.96 efficiency=0.95",
    },
    "hopper": {
        "low_latency": "start_s=3.9e-6 step=0.83 efficiency=0.34",
        "low_latency_128": "start_s=1.8e-5 step=0.59 efficiency=0.76",
        "simple": "start_s=2.3e-5 step=10 efficiency=0.89",
        "direct": "start_s=5.6e-6 step=0.83 efficiency=0.8",
        "in_switch": "start_s=6.9e-5 step=3 efficiency=0.65",
    },
}
"""What the fits of NCCL's protocols start from: an earlier fit, as minima near other starts are up to a third worse."""


def _experts() -> Iterator[Stage]:
    start = "efficiency=0.7 step_cycles=50 memory_efficiency=0.8 start_s=2e-6 bookkeeping_s=2e-5 around_efficiency=0.6"
    both: dict[str, Any] = {"table": "moe", "names": GROUPED}
    a100 = {**both, "pipeline": "ampere", "gpus": "A100-SXM-80GB"}
    h100 = {**both, "pipeline": "hopper", "gpus": "H100-SXM"}
    a100["start"] = f"{start} fill_per_clock=45 tile_cycles=2000 core_fill=30"
    h100["start"] = f"{start} fill_per_clock=80 tile_cycles=1500 core_fill=50"
    cutlass, marlin, triton = _called("cutlass"), _called("marlin"), _called("triton")
    yield Stage("serving", "grouped_cutlass", dtypes="bf16", where=cutlass, **a100)
    yield Stage("serving", "grouped_cutlass", dtypes="bf16", where=cutlass, **h100)
    yield Stage("serving", "grouped_cutlass_8bit", dtypes="fp8", where=cutlass, **h100)
    yield Stage("serving", "grouped_cutlass_block", dtypes="fp8_block", where=cutlass, **h100)
    yield Stage("serving", "grouped_cutlass_4bit", dtypes="w4a16_mxfp4", where=cutlass, **h100)
    yield Stage("serving", "grouped_flashinfer", where=_called("flashinfer"), **h100)
    yield Stage("serving", "grouped_marlin", where=marlin, **a100)
    yield Stage("serving", "grouped_marlin", where=marlin, **h100)
    yield Stage("serving", "grouped_triton", sources="aic_vllm", where=lambda q: triton(q) & _whole_ranks(q), **a100)
    for library, source in (("serving", "aic_vllm"), ("sglang", "aic_sglang")):
        named: dict[str, Any] = {"profile": library, "sources": source, "where": triton}
        if library == "sglang":
            yield Stage(kernels="grouped_triton", **named, **a100)
        wide = "bf16|w4a16.*" if library == "sglang" else "bf16"  # SGLang widens 4-bit weights when it loads them
        yield Stage(kernels="grouped_triton", dtypes=wide, **named, **h100)
        yield Stage(kernels="grouped_triton_8bit", dtypes="fp8_block", **named, **h100)
    yield Stage("serving", "grouped_triton_4bit", dtypes="w4a16.*", sources="aic_vllm", where=triton, **h100)


def _called(part: str) -> Callable[[Measurements], "np.ndarray"]:
    """Rows with an operator whose name begins with *part*."""

    def where(q: Measurements) -> np.ndarray:
        named = np.array([n.startswith(f"{part}.") for n in q.operators.names])
        return np.asarray(np.bincount(q.row, named, minlength=q.rows) > 0)

    return where


def _whole_ranks(q: Measurements) -> np.ndarray:
    """vLLM 0.14's rows whose rank has all experts: of others, their time does not say which rows they ran."""
    operators = q.operators
    rows = q.largest(operators.attribute("m") / operators.attribute("tokens") / operators.attribute("topk"))
    return np.asarray((rows == 1) & (q.largest(operators.attribute("tokens")) <= 16384))


def _collectives() -> Iterator[Stage]:
    """NCCL's protocols on rows of its own, which what the host and engines add stands on."""
    libraries = {"trtllm": "aic_(trtllm|sglang_0.5.6)", "vllm": "aic_vllm", "sglang": "aic_sglang"}
    for gpu, pipeline in (("A100-SXM-80GB", "ampere"), ("H100-SXM", "hopper")):
        common: dict[str, Any] = {"pipeline": pipeline, "table": "collectives", "gpus": gpu}
        rings = RINGS[pipeline]
        also = " ".join(f"nvlink_{ring}:start_s,step,efficiency" for ring in rings)
        parts = [f"nvlink_{ring}.{part}" for ring, given in rings.items() for part in given.split()]
        start = " ".join(["own=0.5", *parts])
        yield Stage("serving", "collective", names="own", also=also, start=start, where=_by_nccl, **common)
        yield Stage("serving", "launching", names="host_s", start="host_s=3e-5 copies=0", sources="vidur|pipeweave",
                    kinds="all_reduce", where=_launched, **common)  # fmt: skip
        for library, source in libraries.items():
            # most_bytes stays: TensorRT-LLM's was found by search (of 1, 2, 4 and 8 MiB), the others' are in their code
            engine = {"profile": library, "sources": source, "kinds": "all_reduce", **common}
            yield Stage(kernels="shots", names="start_s step efficiency second_s", where=_own_kernel(library),
                        start="start_s=2e-6 step=0.1 efficiency=0.6 second_s=3e-6", **engine)  # fmt: skip
            if library != "trtllm":
                yield Stage(kernels="launching", names="host_s copies", start="host_s=3e-5 copies=2",
                            where=_launched, **engine)  # fmt: skip


def _launched(q: Measurements) -> np.ndarray:
    return np.asarray(q.largest(q.operators.attribute("launched")) > 0)


def _own_kernel(library: str) -> Callable[[Measurements], "np.ndarray"]:
    return lambda q: ~_launched(q) & ~_called("nccl")(q) & q.software.is_in({library})


def _by_nccl(q: Measurements) -> np.ndarray:
    """On one node, without the host's part: what is called so, and buffers that engines leave to it."""
    large = q.largest(q.operators.attribute("bytes")) > 2**23
    by_nccl = (_called("nccl")(q) | large) & (~_launched(q) | q.kind.is_in({"send_recv"}))
    return np.asarray(by_nccl & (q.largest(q.operators.attribute("nodes")) == 1))


STAGES: tuple[Stage, ...] = (
    Stage("serving", "gemm", "ampere", "gemm", "A100-SXM-80GB", GEMM, dtypes="bf16|fp16", sources="aic|vidur"),
    Stage("serving", "gemm", "hopper", "gemm", "H100-SXM", GEMM, dtypes="bf16|fp16", sources="aic|vidur"),
    *(
        Stage(library, "gemm", pipeline, "gemm", gpu, GEMM, dtypes="bf16|fp16", sources=source)
        for library, source in LIBRARIES.items()
        for pipeline, gpu in (("ampere", "A100-SXM.*"), ("hopper", "H100.*"))
    ),
    Stage("eager", "gemm", "simt-pascal", gpus="P100.*|P4", names=SIMT, start=SIMT_START + " batched_tile=64", **FP32),
    Stage("eager", "gemm", "simt-volta", gpus="V100.*", names=SIMT, start=SIMT_START + " batched_tile=64", **FP32),
    Stage("eager", "gemm", "simt-turing", gpus="T4", names=SIMT, start=SIMT_START + " batched_tile=32", **FP32),
    Stage("eager", "gemm", "simt-ampere", gpus="A100-PCIE.*", names=SIMT,
          start=SIMT_START + " batched_tile=128", **FP32),
    Stage("serving", "gemm", "cdna", gpus="MI100", names=SIMT,
          start=SIMT_START + " efficiency=0.7 tile_cycles=3000 fill_per_clock=100 energy_per_flop=0 batched=1.3",
          **FP32),
    *(
        Stage("eager", "stream", pipeline, "elementwise", gpus, "memory_efficiency vector_efficiency",
              sources="neusight", kinds="elementwise", at_least=50e-6, start="start_s=1e-6 core_fill=40")
        for pipeline, gpus in (
            ("simt-pascal", "P100.*|P4"), ("simt-volta", "V100.*"), ("simt-turing", "T4"),
            ("simt-ampere", "A100-PCIE.*"), ("cdna", "MI100"),
        )
    ),
    *(
        Stage("eager", "traffic", pipeline, "elementwise", gpus, "norm_short norm_long softmax_short softmax_long",
              sources="neusight", kinds="norm|softmax", at_least=80e-6)
        for pipeline, gpus in (
            ("simt-pascal", "P100.*|P4"), ("simt-volta", "V100.*"), ("simt-turing", "T4"),
            ("simt-ampere", "A100-PCIE.*"), ("cdna", "MI100"),
        )
    ),
    *(
        Stage("eager", "convolution", pipeline, "conv", gpus, "slowdown winograd", at_least=120e-6,
              start="slowdown=1.2 winograd=1.6 start_s=2e-5")
        for pipeline, gpus in (("simt-pascal", "P100.*|P4"), ("simt-volta", "V100.*"), ("simt-turing", "T4"))
    ),
    *(
        Stage("serving", "stream", pipeline, "elementwise", gpus, STREAM, sources="vidur|aic",
              kinds="elementwise", also="traffic:gated_per_clock,gelu_per_clock")
        for pipeline, gpus in (("ampere", "A100-SXM.*"), ("hopper", "H100.*"))
    ),
    *(
        Stage("serving", "traffic", pipeline, "elementwise", gpus, "rms_norm_per_clock norm_short norm_long",
              sources="vidur|aic", kinds="norm")
        for pipeline, gpus in (("ampere", "A100-SXM.*"), ("hopper", "H100.*"))
    ),
    Stage("trtllm", "stream", "hopper", "elementwise", "H100.*", "start_s core_fill", sources="aic",
          kinds="quantize", also="traffic:amax,amax_start_s,quantize"),
    Stage("trtllm", "traffic", "hopper", "elementwise", "H100.*", "amax amax_start_s quantize", sources="aic",
          kinds="quantize", carry="ampere"),
    *(
        Stage(library, "traffic", "hopper", "gemm", "H100.*", "dynamic dynamic_start_s", dtypes="fp8",
              sources=source, start="dynamic=1.5 dynamic_start_s=1e-6", carry="ampere",
              also="gemm_8bit:" + GEMM.replace(" ", ","))
        for library, source in LIBRARIES.items()
    ),
    *(
        Stage(library, "gemm_block_scaled", "hopper", "gemm", "H100.*", GEMM, dtypes="fp8_block", sources=source,
              also="traffic:quantize_blocks,quantize_blocks_start_s")
        for library, source in LIBRARIES.items()
    ),
    Stage("serving", "gemm_triton", "hopper", "gemm", "H100.*", GEMM, dtypes="fp8", sources="pipeweave",
          start="step_cycles=800"),
    *_attention(),
    *_mla(),
    *_experts(),
    *_collectives(),
)  # fmt: skip
