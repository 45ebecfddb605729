"""Small measured tables of our own making, for the tests of `replay.measured` and of ``foretrace validate``."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

GEMM: dict[str, list[Any]] = {
    "gpu": ["H100-SXM", "H100-SXM", "A100-SXM-80GB"],
    "dtype": ["bf16", "fp8", "fp16"],
    "m": [512, 4096, 100],
    "n": [1024, 4096, 200],
    "k": [2048, 4096, 300],
    "latency_us": [12.0, 160.0, 6.0],
}
ATTENTION: dict[str, list[Any]] = {
    "gpu": ["H100-SXM"] * 3,
    "phase": ["prefill", "decode", "encoder"],
    "dtype": ["bf16"] * 3,
    "kv_dtype": ["bf16", "fp8", "bf16"],
    "batch": [2, 16, 4],
    "q_len": [1024, 1, 512],
    "kv_len": [1024, 4096, 512],
    "n_heads": [32, 32, 12],
    "n_kv_heads": [8, 8, 12],
    "head_dim": [128, 128, 64],
    "window": [0, 1024, 0],
    "causal": [True, False, False],
    "latency_us": [60.0, 40.0, 30.0],
}
MLA: dict[str, list[Any]] = {
    "gpu": ["H100-SXM"] * 2,
    "phase": ["prefill", "decode"],
    "dtype": ["bf16"] * 2,
    "kv_dtype": ["bf16"] * 2,
    "batch": [1, 64],
    "q_len": [1024, 1],
    "kv_len": [1024, 8192],
    "n_heads": [128, 16],
    "latency_us": [300.0, 250.0],
}
MOE: dict[str, list[Any]] = {
    "gpu": ["H100-SXM"] * 3,
    "dtype": ["bf16", "fp8_block", "w4a16_mxfp4"],
    "tokens": [256, 4096, 1],
    "hidden": [2048] * 3,
    "inter": [768] * 3,
    "topk": [8] * 3,
    "experts": [128] * 3,
    "moe_tp": [1, 2, 1],
    "moe_ep": [1, 4, 1],
    "distribution": ["balanced", "power_law_1.2", "balanced"],
    "latency_us": [400.0, 500.0, 60.0],
}
COLLECTIVES: dict[str, list[Any]] = {
    "gpu": ["H100-SXM", "A40"],
    "op": ["all_reduce", "all_gather"],
    "n_gpus": [8, 2],
    "n_nodes": [1, 1],
    "bytes": [1 << 20, 1 << 16],
    "dtype": ["bfloat16", "half"],
    "interconnect": ["nvlink4", "a40_pairwise_nvlink"],
    "latency_us": [25.0, 15.0],
}
ELEMENTWISE: dict[str, list[Any]] = {
    "gpu": ["V100-PCIE-32GB"] * 4,
    "op": ["add", "ln", "softmax", "gelu"],
    "dtype": ["fp32"] * 4,
    "rows": [4096] * 4,
    "cols": [1024] * 4,
    "n_in": [2, 1, 1, 1],
    "latency_us": [70.0, 60.0, 80.0, 50.0],
}
CONVOLUTION: dict[str, list[Any]] = {
    "gpu": ["T4"],
    "dtype": ["fp32"],
    "batch": [8],
    "c_in": [64],
    "c_out": [128],
    "kernel": [3],
    "image": [56],
    "stride": [2],
    "padding": [1],
    "latency_us": [900.0],
}
ALL = {
    "gemm": GEMM,
    "attention": ATTENTION,
    "mla": MLA,
    "moe": MOE,
    "collectives": COLLECTIVES,
    "elementwise": ELEMENTWISE,
    "convolution": CONVOLUTION,
}


def write(path: Path, columns: dict[str, list[Any]], **changed: Any) -> Path:
    """*columns* as the .parquet or .csv file *path*; *changed* columns stand in (a list), or are left out (None)."""
    merged = {name: values for name, values in (columns | changed).items() if values is not None}
    table = pa.table(merged)
    if path.suffix == ".csv":
        csv.write_csv(table, path)
    else:
        pq.write_table(table, path)
    return path
