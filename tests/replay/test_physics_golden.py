"""Sixty shapes on a few chips: seconds and what bounds them, by constants that no fit moves (golden/physics-profile).

After a change that is meant to move them: ``make golden``.
"""

import json
import os
from pathlib import Path
from typing import Final

import pytest

from foretrace.ir import OpKind
from foretrace.replay.costs import BOUNDS
from foretrace.replay.costs.physics import load_profile
from foretrace.replay.measured.columns import Block
from tests.replay.physics_rows import attention, collective, convolution, experts, gemm, on, price, stream, together

FOLDER: Final = Path(__file__).parent / "golden"
GOLDEN: Final = FOLDER / "physics.json"

SHAPES: Final[dict[str, Block]] = {
    # twenty products
    "gemm 4096 x 4096 x 4096": gemm(4096, 4096, 4096),
    "gemm 8192 x 8192 x 8192": gemm(8192, 8192, 8192),
    "gemm 1024 x 1024 x 1024": gemm(1024, 1024, 1024),
    "gemm 128 x 128 x 128": gemm(128, 128, 128),
    "gemm 1 x 1 x 1": gemm(1, 1, 1),
    "gemm 1 x 4096 x 4096, a decoded token": gemm(1, 4096, 4096),
    "gemm 16 x 14336 x 4096": gemm(16, 14336, 4096),
    "gemm 64 x 28672 x 8192": gemm(64, 28672, 8192),
    "gemm 2048 x 6144 x 4096": gemm(2048, 6144, 4096),
    "gemm 2048 x 128256 x 4096, a vocabulary": gemm(2048, 128256, 4096),
    "gemm 333 x 777 x 1111, odd": gemm(333, 777, 1111),
    "gemm 64 x 64 x 65536, split": gemm(64, 64, 65536),
    "gemm 65536 x 64 x 64, tall": gemm(65536, 64, 64),
    "gemm 32 of 512 x 128 x 512": gemm(512, 128, 512, b=32),
    "gemm 4096 x 4096 x 4096 float16": gemm(4096, 4096, 4096, dtype="float16"),
    "gemm 4096 x 4096 x 4096 float32": gemm(4096, 4096, 4096, dtype="float32"),
    "gemm 16 of 256 x 256 x 64 float32": gemm(256, 256, 64, b=16, dtype="float32"),
    "gemm 4096 x 4096 x 4096 float8": gemm(4096, 4096, 4096, dtype="float8_e4m3"),
    "gemm 4096 x 4096 x 4096 float8 block-scaled": gemm(
        4096, 4096, 4096, dtype="float8_e4m3", name="deep_gemm.block_scaled_mm.default"
    ),
    "gemm 4096 x 4096 x 4096 int8": gemm(4096, 4096, 4096, dtype="int8"),
    # twelve attentions
    "prefill 1 x 4096, 32 of 8 heads": attention(1, 4096, 4096),
    "prefill 16 x 512, 32 of 8 heads": attention(16, 512, 512),
    "prefill 1 x 128, 8 of 8 heads": attention(1, 128, 128, 8, 8),
    "prefill 1 x 2048 after 30720": attention(1, 2048, 32768),
    "prefill 1 x 16384, window of 1024": attention(1, 16384, 16384, 16, 8, 256, window=1024),
    "prefill 4 x 2048, latent": attention(4, 2048, 2048, 128, 128, 192, 128),
    "encoder 32 x 512, 12 heads of 64": attention(32, 512, 512, 12, 12, 64, causal=False),
    "backward 4 x 2048, 32 of 32 heads": attention(4, 2048, 2048, 32, 32, backward=True),
    "decode 64 x 4096, 32 of 8 heads": attention(64, 1, 4096),
    "decode 1 x 131072, 64 of 8 heads": attention(1, 1, 131072, 64, 8),
    "decode 32 x 2048, cache in float8": attention(32, 1, 2048, kv_dtype="float8_e4m3"),
    "decode 32 x 4096, latent": attention(32, 1, 4096, 128, 1, 576, 512),
    # six mixtures
    "experts 4096 rows to 8, 14336 x 4096": experts(4096, 14336, 4096, 8),
    "experts 32768 rows to 128, 1536 x 2048": experts(32768, 1536, 2048, 128),
    "experts 8 rows to 128, 1536 x 2048": experts(8, 1536, 2048, 128),
    "experts 8192 rows to 64, 4096 x 7168, Triton": experts(8192, 4096, 7168, 64, name="triton.grouped_mm"),
    "experts 8192 rows to 64, 4096 x 7168 float8": experts(8192, 4096, 7168, 64, "float8_e4m3"),
    "experts 100 rows to 256, 512 x 7168": experts(100, 512, 7168, 256),
    # six collectives
    "all-reduce 64 KiB of 8": collective("all_reduce", 1 << 16, 8),
    "all-reduce 256 MiB of 8": collective("all_reduce", 1 << 28, 8),
    "all-gather 16 MiB of 4": collective("all_gather", 1 << 24, 4),
    "reduce-scatter 16 MiB of 8": collective("reduce_scatter", 1 << 24, 8),
    "all-to-all 64 MiB of 8": collective("all_to_all", 1 << 26, 8),
    "send 8 MiB": collective("send", 1 << 23, 2),
    # ten that memory bounds
    "add 8192 x 8192": stream(OpKind.ELEMENTWISE, "aten.add.Tensor", 8192, 8192, reads=2),
    "add 128 x 128": stream(OpKind.ELEMENTWISE, "aten.add.Tensor", 128, 128, reads=2),
    "gelu 16384 x 4096 float32": stream(OpKind.ELEMENTWISE, "aten.gelu.default", 16384, 4096, "float32", special=1),
    "silu and multiply 4096 x 14336": stream(
        OpKind.ELEMENTWISE, "foretrace.silu_and_mul", 4096, 14336, reads=2, special=1
    ),
    "layer norm 32768 x 768": stream(OpKind.NORM, "aten.native_layer_norm.default", 32768, 768),
    "rms norm 4096 x 8192": stream(OpKind.NORM, "aten._fused_rms_norm.default", 4096, 8192),
    "softmax 32768 x 2048 float32": stream(OpKind.SOFTMAX, "aten._softmax.default", 32768, 2048, "float32", special=1),
    "sum 65536 x 1024": stream(OpKind.REDUCTION, "aten.sum.dim_IntList", 65536, 1024, writes=1 / 1024),
    "embedding 8192 x 4096": stream(OpKind.EMBEDDING, "aten.embedding.default", 8192, 4096),
    "sort 64 x 128256 float32": stream(OpKind.SORT, "aten.sort.default", 64, 128256, "float32", writes=3),
    # six convolutions
    "convolution 32 x 64 to 64, 3 x 3 of 56": convolution(32, 64, 64, 3, 56),
    "convolution 32 x 64 to 64, 3 x 3 of 56 float32, Winograd": convolution(
        32, 64, 64, 3, 56, dtype="float32", winograd=1.0
    ),
    "convolution 32 x 256 to 1024, 1 x 1 of 14": convolution(32, 256, 1024, 1, 14),
    "convolution 1 x 3 to 64, 7 x 7 of 112": convolution(1, 3, 64, 7, 112),
    "convolution 16 x 512, depthwise 7 x 7 of 14": convolution(16, 512, 512, 7, 14, groups=512),
    "convolution 8 x 512 to 512, 3 x 3 of 28 float32": convolution(8, 512, 512, 3, 28, dtype="float32"),
}
ALSO: Final = {name: SHAPES[name] for name in list(SHAPES)[::4]}
"""Those that chips of other makers price as well."""
CHIPS: Final = {
    "h100-sxm": SHAPES, "a100-sxm-80gb": SHAPES, "l40s": SHAPES, "mi300x": ALSO, "tpu-v6e": ALSO
}  # fmt: skip


def breakdown(chip: str) -> dict[str, list[float | str]]:
    """Shape → s and what bounds it."""
    shapes = CHIPS[chip]
    profile = load_profile(str(FOLDER / "physics-profile.yaml"))
    costs = price(together(*shapes.values()), on(chip).model_copy(update={"count": 8}), profile=profile)
    bounds = [BOUNDS[code] for code in costs.bound.tolist()]
    return {name: [float(f"{s:.12g}"), b] for name, s, b in zip(shapes, costs.seconds.tolist(), bounds, strict=True)}


def test_sixty_shapes() -> None:
    assert len(SHAPES) == 60


@pytest.mark.parametrize("chip", CHIPS)
def test_golden(chip: str) -> None:
    found = breakdown(chip)
    if os.environ.get("FORETRACE_REGENERATE"):
        _write({**(json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}), chip: found})
    expected = json.loads(GOLDEN.read_text())[chip]
    assert list(found) == list(expected)
    for name, (seconds, bound) in expected.items():
        assert found[name] == [pytest.approx(seconds, rel=1e-9), bound], name


def _write(chips: dict[str, dict[str, list[float | str]]]) -> None:
    """A line a shape."""
    parts = []
    for chip in CHIPS:
        rows = (f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in chips.get(chip, {}).items())
        parts.append(f" {json.dumps(chip)}: {{\n" + ",\n".join(rows) + "\n }")
    GOLDEN.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def test_what_bounds_them_is_what_should() -> None:
    bounds = {name: str(row[1]) for name, row in breakdown("h100-sxm").items()}
    assert bounds["gemm 8192 x 8192 x 8192"] == "matrix"
    assert bounds["gemm 16 x 14336 x 4096"] == "memory"
    assert bounds["gemm 1 x 1 x 1"] == "launch"
    assert bounds["decode 64 x 4096, 32 of 8 heads"] == "memory"
    assert bounds["add 8192 x 8192"] == "memory"
    assert bounds["add 128 x 128"] == "launch"
    assert bounds["all-reduce 256 MiB of 8"] == "link"
