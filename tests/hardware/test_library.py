"""The shipped figures: complete, sourced, unambiguous, and consistent with their own arithmetic."""

import math
import os
from pathlib import Path
from typing import get_args, get_origin

import pytest
from pydantic import BaseModel

from foretrace.hardware import Accelerator, load_system
from foretrace.hardware.document import read_document
from foretrace.hardware.loading import LIBRARY, _aliases, _normal, library_names
from foretrace.hardware.schema import Described, Host, Part
from foretrace.hardware.system import unit_of
from foretrace.ir.dtype import DTYPES, parse_dtype

NAMES = library_names()
HOSTS = sorted(path.stem for path in LIBRARY.glob("host-*.yaml"))
PROMISED = """h20 h800-sxm h800-pcie h100-sxm h100-pcie h100-nvl h200 gh200 a800-sxm-80gb a800-pcie-80gb b200 gb200 b300
    gb300 a100-sxm-80gb a100-sxm-40gb a100-pcie-40gb a100-pcie-80gb a10 a16 a30 a40 a6000 rtx-a5000 l4 l20 l40 l40s
    rtx-3090 rtx-4090 rtx-5090 rtx-6000-ada rtx-pro-6000 rtx-2080-ti t4 titan-v v100-sxm-32gb v100-sxm-16gb
    v100-pcie-32gb v100-pcie-16gb v100s-pcie-32gb p4 p40 p100-pcie-16gb p100-sxm-16gb gtx-1080-ti m40 m60 mi50 mi60
    mi100 mi210 mi250 mi250x mi300a mi300x mi308x mi325x mi350x mi355x max-1550 gaudi2 gaudi3 tpu-v2 tpu-v3 tpu-v4
    tpu-v5e tpu-v5p tpu-v6e tpu-v7 trainium1 trainium2 inferentia2 maia-100 ascend-910b ascend-910c x86-cpu""".split()
TABLES = """H100-SXM L40S A100-SXM-80GB T4 P100-PCIE-16GB A100-PCIE-40GB V100-PCIE-32GB P4 MI210 MI100 A40
    A100-PCIE-80GB A6000 A100-SXM-40GB""".split()  # the `gpu` strings of the ground-truth tables

# FLOP per clock per core, FMA as two, from the vendors' architecture papers. A figure that is absent is held to be a
# power of two by `test_every_rate_is_a_whole_width`.
NO_MATRIX = {"vector.float32": 256}
GEFORCE = {"matrix.bfloat16": 512, "matrix.tf32": 256, "matrix.int8": 2048, "vector.float32": 256}
L40 = {**GEFORCE, "matrix.float8_e4m3": 1024, "matrix.int8": 1024}
GA102 = {"matrix.bfloat16": 1024, "matrix.tf32": 512, "matrix.int8": 2048, "vector.float32": 256, "vector.float64": 4}
ADA = {**GA102, "matrix.float8_e4m3": 2048}
ULTRA = {"matrix.bfloat16": 8192, "matrix.float8_e4m3": 16384, "matrix.float4_e2m1": 49152, "matrix.int8": 512}
PER_CLOCK = {
    "maxwell": NO_MATRIX,
    "pascal": NO_MATRIX,
    "volta": {"matrix.float16": 1024, "vector.float32": 128, "vector.float64": 64},
    "turing": {"matrix.float16": 1024, "matrix.int8": 2048, "matrix.int4": 4096, "vector.float32": 128},
    "ampere": GA102,
    "ada": ADA,
    "hopper": {
        "matrix.bfloat16": 4096,
        "matrix.tf32": 2048,
        "matrix.float8_e4m3": 8192,
        "matrix.int8": 8192,
        "vector.float32": 256,
        "vector.bfloat16": 512,
    },
    "blackwell": {
        "matrix.bfloat16": 8192,
        "matrix.tf32": 4096,
        "matrix.float8_e4m3": 16384,
        "matrix.float4_e2m1": 32768,
        "vector.float32": 256,
    },
    "blackwell-geforce": {
        "matrix.bfloat16": 1024,
        "matrix.tf32": 512,
        "matrix.float8_e4m3": 2048,
        "matrix.float4_e2m1": 4096,
        "vector.float32": 256,
        "vector.float64": 4,
    },
    "gcn5": {"vector.float32": 128, "vector.float16": 256, "vector.float64": 64, "vector.int8": 512},
    "cdna1": {"matrix.float16": 1024, "matrix.bfloat16": 512, "vector.float32": 128},
    "cdna2": {"matrix.float16": 1024, "matrix.float64": 256, "vector.float32": 128},
    "cdna3": {"matrix.float16": 2048, "matrix.float8_e4m3": 4096, "matrix.tf32": 1024, "vector.float32": 256},
    "cdna4": {
        "matrix.float16": 4096,
        "matrix.float8_e4m3": 8192,
        "matrix.float4_e2m1": 16384,
        "matrix.float64": 128,
        "vector.float32": 256,
    },
    "xe2": {
        "matrix.bfloat16": 2048,
        "matrix.float16": 2048,
        "matrix.int8": 4096,
        "vector.float32": 256,
        "vector.float16": 512,
    },
    "xe-hpc": {"matrix.bfloat16": 4096, "matrix.tf32": 2048, "matrix.int8": 8192, "vector.float64": 256},
    "gaudi2": {"matrix.bfloat16": 256 * 256 * 2, "matrix.float8_e4m3": 256 * 256 * 4},
    "gaudi3": {"matrix.bfloat16": 256 * 256 * 2, "matrix.float8_e4m3": 256 * 256 * 2},
    "tpu-v2": {"matrix.bfloat16": 128 * 128 * 2},
    "tpu-v3": {"matrix.bfloat16": 2 * 128 * 128 * 2},
    "tpu-v4": {"matrix.bfloat16": 4 * 128 * 128 * 2, "matrix.int8": 4 * 128 * 128 * 2},
    "tpu-v5e": {"matrix.bfloat16": 4 * 128 * 128 * 2, "matrix.int8": 4 * 128 * 128 * 4},
    "tpu-v5p": {"matrix.bfloat16": 4 * 128 * 128 * 2, "matrix.int8": 4 * 128 * 128 * 4},
    "tpu-v6e": {"matrix.bfloat16": 4 * 256 * 256 * 2, "matrix.int8": 4 * 256 * 256 * 4},
    "tpu-v7": {"matrix.bfloat16": 4 * 256 * 256 * 2, "matrix.float8_e4m3": 4 * 256 * 256 * 4},
    "trainium1": {"matrix.bfloat16": 128 * 128 * 2, "matrix.float32": 128 * 128 // 2},
    "trainium2": {"matrix.bfloat16": 128 * 128 * 2, "matrix.float8_e4m3": 128 * 128 * 4},
    "maia-100": {"matrix.bfloat16": 8192},
    "ascend-910b": {"matrix.float16": 16 * 16 * 16 * 2, "matrix.int8": 16 * 16 * 16 * 4},
    "x86": {"vector.float32": 64, "vector.float64": 32},
}
GA100 = {
    "matrix.bfloat16": 2048,
    "matrix.int8": 4096,
    "matrix.float64": 128,
    "vector.float32": 128,
    "vector.float64": 64,
    "vector.float16": 512,
}
P100 = {"vector.float32": 128, "vector.float16": 256, "vector.float64": 64}
BY_CHIP = {
    **dict.fromkeys(["a100", "a800", "a30"], GA100),
    "p100": P100,
    "p4": {"vector.float32": 256, "vector.int8": 1024},
    "rtx-2070": {"matrix.float16": 512, "matrix.int8": 2048, "vector.float32": 128},
    "rtx-2080-ti": {"matrix.float16": 512, "matrix.int8": 2048, "vector.float32": 128},
    "rtx-3090": GEFORCE,
    "rtx-4090": {**GEFORCE, "matrix.float8_e4m3": 1024},
    "rtx-5090": {**GEFORCE, "matrix.float8_e4m3": 1024, "matrix.float4_e2m1": 4096},
    "a10g": {**GEFORCE, "matrix.int8": 1024},
    **dict.fromkeys(["l20", "l40"], L40),
    "h20": {"matrix.bfloat16": 1024, "matrix.float8_e4m3": 2048, "vector.float32": 256},
    **dict.fromkeys(["b300", "gb300"], ULTRA),
}
OPTIONAL = {"matrix.int8", "matrix.int4", "matrix.tf32", "matrix.bfloat16"}  # not of every chip of its generation
ODD_WIDTHS = {
    "h20": {"vector.float64"},  # published as 1 TFLOP/s
    "h20-141gb": {"vector.float64"},
    "b300": {"matrix.float4_e2m1"},  # one and a half times Blackwell's
    "gb300": {"matrix.float4_e2m1"},
    "gaudi2": {"vector.bfloat16", "vector.float32"},  # of the vector processors, which `cores` does not count
    "gaudi3": {"vector.bfloat16", "vector.float32"},
    "trainium2": {"matrix.float32"},  # published as 181 TFLOP/s
}


def numeric_fields(part: Part, prefix: str = "") -> list[str]:
    """The dotted path of every number (stated or None) in *part* and below, one per dict entry."""
    found = []
    for name, field in type(part).model_fields.items():
        value, path = getattr(part, name), f"{prefix}{field.alias}"
        if isinstance(value, Part):
            found += numeric_fields(value, f"{path}.")
        elif unit_of(field) and isinstance(value, dict):
            found += [f"{path}.{key}" for key in value]
        elif unit_of(field) or type(value) in (int, float):
            found.append(path)
    return found + (["compute.special_per_clock"] if isinstance(part, Accelerator) else [])


def described(name: str) -> Described:
    if name in HOSTS:
        data = {"name": name} | read_document(LIBRARY / f"{name}.yaml").data
        return Host.model_validate(data)
    return load_system(name).accelerator


def test_what_was_promised_ships() -> None:
    assert set(PROMISED) <= set(NAMES)
    assert {load_system(gpu).accelerator.kind for gpu in TABLES} == {"gpu"}


@pytest.mark.parametrize("name", NAMES + HOSTS)
def test_every_figure_has_a_source(name: str) -> None:
    part = described(name)
    fields = [f for f in numeric_fields(part) if f != "vector_clock" or getattr(part, "vector_clock_hz", None)]
    fields = [f for f in fields if not (name in HOSTS and f.startswith("pcie"))]
    assert len(fields) >= 6
    unsourced = [path for path in fields if part.source(path) is None]
    assert unsourced == []


def exists(path: str, model: type[BaseModel] = Accelerator) -> bool:
    """Whether the schema has a field, a section or an entry of a table at the dotted *path*."""
    head, _, rest = path.partition(".")
    field = next((field for field in model.model_fields.values() if field.alias == head), None)
    if field is None or not rest:
        return field is not None
    kinds = (field.annotation, *get_args(field.annotation))
    part = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Part)), None)
    return exists(rest, part) if part else get_origin(field.annotation) is dict and rest in DTYPES


@pytest.mark.parametrize("name", NAMES)
def test_sources_speak_of_fields_that_exist(name: str) -> None:
    chip = load_system(name).accelerator
    assert [source for source in chip.sources if not exists(source)] == []


@pytest.mark.parametrize("name", NAMES)
def test_shipped_chips_stand_by_themselves(name: str) -> None:
    chip = load_system(name).accelerator
    assert (chip.name, chip.extends) == (name, None)  # `extends` marks a hypothetical chip, siblings are none
    assert chip.title is not None
    assert [source for source in chip.sources.values() if "set in" in source] == []


def test_no_name_means_two_chips() -> None:
    claims: dict[str, set[str]] = {}
    for name in NAMES:
        for alias in (name, *load_system(name).accelerator.aliases):
            claims.setdefault(_normal(alias), set()).add(name)
    assert {alias: names for alias, names in claims.items() if len(names) > 1} == {}
    scanned = _aliases() | {name: name for name in NAMES}
    assert scanned == {alias: next(iter(names)) for alias, names in claims.items()}


def figures(chip: Accelerator) -> dict[str, int]:
    special = (BY_CHIP.get(key) for key in (chip.name, chip.name.split("-")[0]))
    return next((table for table in special if table is not None), PER_CLOCK[chip.generation])


def widths(chip: Accelerator) -> dict[str, float]:
    """FLOP per clock per core by table and dtype. The fp64 of matrix units is quoted at the vector clock."""
    vector_clock = chip.vector_clock_hz or chip.clock_hz
    found = {f"vector.{dtype}": rate / vector_clock for dtype, rate in chip.compute.vector.items()}
    for dtype, rate in chip.compute.matrix.items():
        found[f"matrix.{dtype}"] = rate / (vector_clock if dtype == "float64" else chip.clock_hz)
    return {path: rate / chip.cores for path, rate in found.items()}


@pytest.mark.parametrize("name", NAMES)
def test_peaks_are_cores_times_clock_times_width(name: str) -> None:
    chip = load_system(name).accelerator
    found, table = widths(chip), figures(chip)
    assert table
    tolerance = 0.04 if chip.name == "p4" else 0.025  # P4: "22 TOPS" and "5.5 TFLOPS" are rounded up
    for path, width in table.items():
        if path in found or path not in OPTIONAL:
            assert found[path] == pytest.approx(width, rel=tolerance), path


@pytest.mark.parametrize("name", NAMES)
def test_every_rate_is_a_whole_width(name: str) -> None:
    odd = {}
    for path, width in widths(load_system(name).accelerator).items():
        if path not in ODD_WIDTHS.get(name, ()) and width != pytest.approx(2 ** round(math.log2(width)), rel=0.05):
            odd[path] = width
    assert odd == {}


@pytest.mark.parametrize("name", NAMES)
def test_orders_of_magnitude(name: str) -> None:
    system = load_system(name)
    chip = system.accelerator
    assert 1 << 32 < chip.memory.capacity_bytes < 1 << 39
    assert chip.memory.available_bytes <= chip.memory.capacity_bytes
    assert 1e11 < chip.memory.bandwidth < 1e13
    assert 1e-7 < chip.launch_floor_s < 1e-5
    assert 1e-6 < system.host.dispatch_s < 2e-5
    assert chip.cache is None or chip.cache.bandwidth is None or chip.cache.bandwidth > chip.memory.bandwidth
    for link in system.network.tiers().values():
        assert 1e9 < link.bandwidth < 1e12
    if chip.node_size > 1:
        assert load_system(f"{name}:{chip.node_size}").node.fabric is not None


def test_old_matrix_units_take_no_bfloat16() -> None:
    for name in ("v100-sxm-32gb", "t4"):
        chip = load_system(name).accelerator
        assert chip.matrix_flops(parse_dtype("bf16")) is None
        assert chip.matrix_flops(parse_dtype("tf32")) is None
        assert chip.emulated_with(parse_dtype("bf16")) == parse_dtype("fp32")
    assert load_system("p100").accelerator.matrix_flops(parse_dtype("fp16")) is None


def test_fp8_is_one_rate_for_both_its_formats() -> None:
    chip = load_system("h100").accelerator
    assert chip.matrix_flops(parse_dtype("fp8_e5m2")) == chip.matrix_flops(parse_dtype("fp8")) == 1978.9e12
    assert chip.emulated_with(parse_dtype("fp4")) == parse_dtype("bf16")
    assert chip.emulated_with(parse_dtype("bf16")) is None


def test_a_cpu_is_its_own_host() -> None:
    system = load_system("x86-cpu")
    assert system.accelerator.synchronous
    assert (system.host.name, system.host.cores, system.host.pcie) == ("x86-cpu", 32, None)
    assert system.host.memory_bandwidth == system.accelerator.memory.bandwidth
    gpu = load_system("t4")
    assert not gpu.accelerator.synchronous
    assert gpu.host.pcie == gpu.accelerator.links.pcie


def test_special_rate() -> None:
    assert load_system("h100").accelerator.special_rate == 16 * 132 * 1.98e9
    assert load_system("tpu-v5e").accelerator.special_rate is None


@pytest.mark.skipif("FORETRACE_GROUNDTRUTH" not in os.environ, reason="FORETRACE_GROUNDTRUTH is not set")
def test_every_gpu_of_the_ground_truth_resolves() -> None:
    import pyarrow.parquet as pq

    folder = Path(os.environ["FORETRACE_GROUNDTRUTH"])
    found = set()
    for path in folder.glob("*/*.parquet"):
        found |= set(pq.read_table(path, columns=["gpu"]).column("gpu").unique().to_pylist())
    assert {load_system(gpu).name for gpu in found}


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("RTX-4090", "rtx-4090"),
        ("RTX_PRO_6000", "rtx-pro-6000"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx-pro-6000"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx-6000-ada"),
        ("H200-SXM", "h200"),
        ("B200-SXM", "b200"),
        ("GB200", "gb200"),
        ("h100_pcie", "h100-pcie"),
        ("H800", "h800-sxm"),
        ("NVIDIA H20", "h20"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("Tesla V100-SXM2-32GB", "v100-sxm-32gb"),
        ("NVIDIA TITAN V", "titan-v"),
        ("NVIDIA GeForce GTX 1080 Ti", "gtx-1080-ti"),
        ("MI300X", "mi300x"),
        ("AMD Instinct MI325X", "mi325x"),
        ("Trillium", "tpu-v6e"),
        ("Ironwood", "tpu-v7"),
        ("trn2", "trainium2"),
        ("Gaudi-3", "gaudi3"),
        ("910B", "ascend-910b"),
    ],
)
def test_names_that_tables_and_devices_use(written: str, name: str) -> None:
    assert load_system(written).name == name


def test_generations_without_measurements_name_one_that_has() -> None:
    chips = [load_system(name).accelerator for name in NAMES]
    resembling = {chip.generation: chip.resembles for chip in chips if chip.resembles}
    assert resembling["ada"] == resembling["blackwell-geforce"] == "ampere"
    assert resembling["blackwell"] == "hopper"
    assert {chip.generation for chip in chips if chip.kind == "gpu"} >= set(resembling.values())
    for chip in chips:
        assert chip.resembles == resembling.get(chip.generation)  # all of a generation alike


def test_exponentials_per_clock() -> None:
    per_clock = {"maxwell": 32, "pascal": 32, "cdna4": 32}
    for name in NAMES:
        chip = load_system(name).accelerator
        if chip.kind == "gpu" and chip.vendor in ("NVIDIA", "AMD"):
            expected = per_clock.get(chip.generation, 16)
            expected = 16 if name.startswith("p100") else 32 if name in ("b300", "gb300") else expected
            assert chip.compute.special_per_clock == expected, name


def test_switches_that_reduce() -> None:
    def reduces(name: str) -> bool:
        link = load_system(name).network.scale_up
        return link is not None and link.reduces

    for name in ("h100-sxm", "h800-sxm", "h20", "h200", "b200", "b300", "gb200", "gb300"):
        assert reduces(name), name
    for name in ("a100-sxm-80gb", "a800-sxm-80gb", "v100-sxm-32gb", "mi300x", "l40s", "h100-nvl"):
        assert not reduces(name), name
