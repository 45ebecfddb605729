"""The shipped figures: complete, sourced, unambiguous, and consistent with their own arithmetic."""

import os
from pathlib import Path

import pytest

from foretrace.hardware import Accelerator, load_system
from foretrace.hardware.document import read_document
from foretrace.hardware.loading import LIBRARY, _aliases, _normal, library_names
from foretrace.hardware.schema import Described, Host, Part
from foretrace.hardware.system import unit_of
from foretrace.ir.dtype import parse_dtype

NAMES = library_names()
HOSTS = sorted(path.stem for path in LIBRARY.glob("host-*.yaml"))
PROMISED = """h100-sxm h100-pcie h200 b200 a100-sxm-80gb a100-sxm-40gb a100-pcie-40gb a100-pcie-80gb v100-sxm-32gb
    v100-sxm-16gb v100-pcie-32gb v100-pcie-16gb l4 t4 mi300x tpu-v5e x86-cpu l40s mi250""".split()
TABLES = """H100-SXM L40S A100-SXM-80GB T4 P100-PCIE-16GB A100-PCIE-40GB V100-PCIE-32GB P4 MI210 MI100 A40
    A100-PCIE-80GB A6000 A100-SXM-40GB""".split()  # the `gpu` strings of the ground-truth tables

# FLOP per clock per core, FMA as two, from the vendors' architecture whitepapers; None: no such unit.
PER_CLOCK = {
    "volta": {"matrix.float16": 1024, "vector.float32": 128, "vector.float64": 64},
    "turing": {"matrix.float16": 1024, "matrix.int8": 2048, "vector.float32": 128},
    "pascal": {},
    "ampere": {"matrix.int8": None},
    "ada": {"matrix.bfloat16": 1024, "vector.float32": 256},
    "hopper": {
        "matrix.bfloat16": 4096,
        "matrix.tf32": 2048,
        "matrix.float8_e4m3": 8192,
        "vector.float32": 256,
        "vector.float64": 128,
    },
    "blackwell": {"matrix.bfloat16": 8192, "matrix.float8_e4m3": 16384, "matrix.float4_e2m1": 32768},
    "cdna1": {"matrix.float16": 1024, "matrix.bfloat16": 512, "vector.float32": 128},
    "cdna2": {"matrix.float16": 1024, "matrix.float64": 256, "vector.float32": 128},
    "cdna3": {"matrix.float16": 2048, "matrix.float8_e4m3": 4096, "matrix.tf32": 1024, "vector.float32": 256},
    "tpu-v5": {"matrix.bfloat16": 4 * 128 * 128 * 2, "matrix.int8": 4 * 128 * 128 * 4},
    "x86": {"vector.float32": 64, "vector.float64": 32},
}
BY_CHIP = {
    "a100": {"matrix.bfloat16": 2048, "matrix.int8": 4096, "matrix.float64": 128, "vector.float32": 128},
    "a40": {"matrix.bfloat16": 1024, "vector.float32": 256},
    "a6000": {"matrix.bfloat16": 1024, "vector.float32": 256},
    "p100": {"vector.float32": 128, "vector.float16": 256, "vector.float64": 64},
    "p4": {"vector.float32": 256, "vector.int8": 1024},
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


@pytest.mark.parametrize("name", NAMES)
def test_sources_speak_of_fields_that_exist(name: str) -> None:
    chip = load_system(name).accelerator
    paths = numeric_fields(chip) + [f"cache.{key}" for key in ("capacity", "bandwidth")] + ["memory.technology"]
    paths += ["compute.matrix.", "tdp", "memory.usable"]
    stray = [s for s in chip.sources if not any(p == s or p.startswith(f"{s}.") for p in paths)]
    assert stray == []


@pytest.mark.parametrize("name", NAMES)
def test_shipped_chips_stand_by_themselves(name: str) -> None:
    chip = load_system(name).accelerator
    assert (chip.name, chip.extends) == (name, None)  # `extends` marks a hypothetical chip


def test_no_name_means_two_chips() -> None:
    claims: dict[str, set[str]] = {}
    for name in NAMES:
        for alias in (name, *load_system(name).accelerator.aliases):
            claims.setdefault(_normal(alias), set()).add(name)
    assert {alias: names for alias, names in claims.items() if len(names) > 1} == {}
    scanned = _aliases() | {name: name for name in NAMES}
    assert scanned == {alias: next(iter(names)) for alias, names in claims.items()}


def figures(chip: Accelerator) -> dict[str, int | None]:
    special = next((table for prefix, table in BY_CHIP.items() if chip.name.split("-")[0] == prefix), None)
    return special if special is not None else PER_CLOCK[chip.generation]


@pytest.mark.parametrize("name", NAMES)
def test_peaks_are_cores_times_clock_times_width(name: str) -> None:
    chip = load_system(name).accelerator
    table = figures(chip)
    assert table
    for path, width in table.items():
        unit, _, dtype = path.partition(".")
        rates, clock = chip.compute.matrix, chip.clock_hz
        if unit == "vector":
            rates, clock = chip.compute.vector, chip.vector_clock_hz or chip.clock_hz
        tolerance = 0.04 if chip.name == "p4" else 0.02  # P4: "22 TOPS" and "5.5 TFLOPS" are rounded up
        assert rates[dtype] == pytest.approx(chip.cores * clock * width, rel=tolerance), path


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
