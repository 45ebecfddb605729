"""Grouped products and collectives through the cost model: the classes that rows take, by hand; profiles; refusals."""

from pathlib import Path

import measured_tables as tables
import numpy as np
import pytest

from foretrace.hardware import load_system
from foretrace.ir import DTYPES, ForetraceError
from foretrace.replay.costs import BOUNDS
from foretrace.replay.costs.physics import Physics, load_profile
from foretrace.replay.costs.physics.collective import NVLINK, fabrics_of
from foretrace.replay.costs.physics.facts import facts_of
from foretrace.replay.costs.physics.grouped import Groups, around_bytes, price_groups, products
from foretrace.replay.measured import Measurements, machine, measure, read_measurements, read_tables, table_class
from foretrace.replay.measured.collectives import collective
from foretrace.replay.measured.moe import layers

H100, L40S = load_system("h100-sxm"), load_system("l40s")
FACTS = facts_of(H100.accelerator, DTYPES["bfloat16"])


def experts(tmp_path: Path, **changed: list[object]) -> Measurements:
    return next(read_measurements(tables.write(tmp_path / "moe.parquet", tables.MOE, **changed)))


def seconds(q: Measurements, software: str = "serving", gpu: str = "h100-sxm") -> np.ndarray:
    return q.sum(Physics().price(q.operators, load_system(gpu), software).seconds)


def test_a_layer_is_two_products_and_what_is_around(tmp_path: Path) -> None:
    path = tables.write(tmp_path / "moe.parquet", tables.MOE)
    table = next(iter(read_tables(path)))
    sort = table_class(table)
    assert sort is not None
    q, x = measure(table, sort), layers(table)
    bf16 = np.array([0])
    constants = load_profile("serving").constants("grouped_cutlass", "hopper")
    first, second = (price_groups(part.take(bf16), FACTS, constants)[0][0] for part in products(x))
    assert seconds(q)[0] == pytest.approx(first + second)
    assert around_bytes(x)[0] == pytest.approx(np.nanmax(q.operators.attribute("around_bytes")[q.row == 0]))
    assert first - second > constants.bookkeeping_s


@pytest.mark.parametrize(
    ("kernel", "dtype", "called", "kernels"),
    [
        ("moe_torch_flow_cutlass", "bf16", "cutlass.grouped_mm", "grouped_cutlass"),
        ("moe_torch_flow_cutlass", "fp8", "cutlass.grouped_mm", "grouped_cutlass_8bit"),
        ("vllm_fp8moe_flashinfer_cutlass_flashinfe", "fp8_block", "cutlass.grouped_mm", "grouped_cutlass_block"),
        ("vllm_modeloptfp8moe_flashinfer_cutlass_f", "fp8", "flashinfer.grouped_mm", "grouped_flashinfer"),
        ("vllm_compressedtensorsw4a4mxfp4moe_marli", "w4a16_mxfp4", "marlin.grouped_mm", "grouped_marlin"),
        ("sglang_fused_moe_triton", "w4a16_mxfp4", "triton.grouped_mm", "grouped_triton"),
        ("vllm_gptossmxfp4moe_triton_oaitritonmxfp", "w4a16_mxfp4", "triton.grouped_mm", "grouped_triton_4bit"),
        ("sglang_fused_moe_triton", "fp8_block", "triton.grouped_mm", "grouped_triton_8bit"),
        ("somebody_elses", "bf16", "aten._grouped_mm.default", "grouped_cutlass"),
    ],
)
def test_kernels_and_formats_choose_the_class(
    tmp_path: Path, kernel: str, dtype: str, called: str, kernels: str
) -> None:
    q = experts(tmp_path, kernel=[kernel] * 3, dtype=[dtype] * 3)
    assert set(q.operators.names) == {called}
    got = seconds(q)
    profile = load_profile("serving")
    key = profile.key(kernels, "hopper")
    slower = {**profile.sets, key: _slower(profile.sets[key])}
    other = Physics(type(profile)("slower", slower, {}, experts=profile.experts))
    assert (q.sum(other.price(q.operators, H100).seconds) > got + 0.9).all()


def _slower(constants: object) -> object:
    from dataclasses import replace

    return replace(constants, bookkeeping_s=1.0)  # type: ignore[type-var]


def test_each_library_has_its_usual_family(tmp_path: Path) -> None:
    q = experts(tmp_path)
    assert (seconds(q, "vllm") != seconds(q, "trtllm")).all()
    named = experts(tmp_path, kernel=["vllm_unquantizedfusedmoe_triton_tritonex"] * 3)
    active = named.operators.attribute("around_bytes")
    assert np.isfinite(active).sum() == 3
    assert seconds(named, "vllm")[0] == pytest.approx(seconds(named, "serving")[0])
    assert seconds(named, "sglang")[0] != pytest.approx(seconds(named, "serving")[0])


def test_a_captured_product_is_priced_balanced_and_alone(tmp_path: Path) -> None:
    q = experts(tmp_path, distribution=["balanced"] * 3, moe_tp=[1] * 3, moe_ep=[1] * 3)
    o = q.operators
    kept = {k: v for k, v in o.attributes.items() if k not in ("active", "longest", "around_bytes")}
    captured = type(o)(**{**vars(o), "attributes": kept})
    with_routing = type(o)(**{**vars(o), "attributes": {k: v for k, v in o.attributes.items() if k != "around_bytes"}})
    alone, same = (Physics().price(columns, H100, "serving").seconds for columns in (captured, with_routing))
    assert alone == pytest.approx(same)
    assert (q.sum(alone) < seconds(q)).all()


def test_a_gradient_of_weights_is_a_product_of_each_group(tmp_path: Path) -> None:
    q = experts(tmp_path)
    o = q.operators.take(np.array([0]))
    given = {"b": 1.0, "m": 512.0, "n": 256.0, "k": 4096.0, "groups": 16.0}
    columns = {name: np.array([value]) for name, value in given.items()}
    gradient = type(o)(**{**vars(o), "attributes": columns, "bytes_written": np.array([16 * 512 * 256 * 2.0])})
    x = Groups(*(np.array([v]) for v in (16 * 512.0, 16.0, 512.0, 256.0, 4096.0 / 16, 2.0, 2.0, 2.0)))
    constants = load_profile("serving").constants("grouped_cutlass", "hopper")
    priced = Physics().price(gradient, H100, "serving")
    assert priced.seconds == pytest.approx(price_groups(x, FACTS, constants)[0])


def test_an_unmeasured_generation_takes_the_newest_release_around_its_products(tmp_path: Path) -> None:
    q = experts(tmp_path, dtype=["bf16"] * 3)
    profile = load_profile("serving")
    ampere, hopper = (profile.constants("grouped_cutlass", name) for name in ("ampere", "hopper"))
    carried = np.isfinite(q.operators.attribute("around_bytes"))
    took = Physics().price(q.operators, L40S, "serving").seconds
    bare = {k: v for k, v in q.operators.attributes.items() if k != "around_bytes"}
    alone = Physics().price(type(q.operators)(**{**vars(q.operators), "attributes": bare}), L40S, "serving").seconds
    moved = q.operators.attribute("around_bytes")[carried]
    around = hopper.bookkeeping_s + moved / (hopper.around_efficiency * L40S.accelerator.memory.bandwidth)
    assert (took - alone)[carried] == pytest.approx(around)
    assert ampere.bookkeeping_s != hopper.bookkeeping_s


def test_what_the_rows_of_sources_hold(tmp_path: Path) -> None:
    def rows(**changed: list[object]) -> np.ndarray:
        q = experts(tmp_path, **{"dtype": ["bf16"] * 3, "distribution": ["balanced"] * 3, **changed})
        return q.largest(q.operators.attribute("m"))

    shared = rows(moe_ep=[4] * 3, tokens=[256, 4096, 64])
    assert shared.tolist() == [512, 8192, 128]
    whole = rows(moe_ep=[4] * 3, tokens=[256, 4096, 64], source=["aic_sglang_0.5.10"] * 3)
    assert whole.tolist() == [256 * 8, 4096 * 8, 64 * 8]
    shape = {"hidden": [2688] * 3, "inter": [1856] * 3}
    plain, gated = (
        experts(tmp_path, **shape, kernel=[kernel] * 3).operators.attribute("n").max()
        for kernel in ("moe_torch_flow", "vllm_fused_moe")
    )
    assert (plain, gated) == (2688, 2 * 1856)


# --- collectives ---------------------------------------------------------------------------------------------------


def price(
    op: str = "all_reduce", size: float = 65536, ranks: int = 8, nodes: int = 1, software: str = "serving"
) -> float:
    return float(Physics().price(collective(op, size, ranks, nodes, "bf16"), H100, software).seconds[0])


def test_engines_take_their_own_all_reduce() -> None:
    assert price(software="vllm") < price(software="serving") / 2
    assert price("all_gather", software="vllm") == price("all_gather", software="serving")


def test_rows_of_tables_say_who_ran_them_and_how(tmp_path: Path) -> None:
    impls = ["vLLM_custom_graph", "vLLM_custom_eager", "nccl", "nccl_torch", "TRTLLM"]
    columns = {k: v[:1] * 5 for k, v in tables.COLLECTIVES.items()}
    q = next(read_measurements(tables.write(tmp_path / "c.parquet", columns, impl=impls)))
    found = {q.software.at(i): i for i in range(5)}
    assert set(found) == {"vllm", "serving", "trtllm"}
    took = {}
    for gpu, variant, software, rows in q.split():
        part = q.take(rows)
        priced = Physics().price(part.operators, machine(load_system(gpu), variant), software)
        took.update(zip(part.number.tolist(), part.sum(priced.seconds).tolist(), strict=True))
        assert not priced.warnings
    graph, eager, nccl, issued, trtllm = (took[i] for i in range(5))
    assert graph < nccl
    assert eager > graph + 5e-6
    assert issued >= load_profile("serving").sets["launching", "hopper"].host_s
    assert trtllm not in (graph, nccl)


def test_links_that_nothing_was_fitted_on_are_said() -> None:
    priced = Physics().price(collective("all_reduce", 1e6, 4, 1, "bf16"), L40S, "serving")
    assert any("over PCIe" in warning for warning in priced.warnings)
    assert BOUNDS[priced.bound[0]] == "link"
    across = Physics().price(collective("all_reduce", 1e6, 16, 2, "bf16"), H100, "serving")
    assert any("several nodes" in warning for warning in across.warnings)
    near = Physics().price(collective("all_reduce", 1e6, 8, 1, "bf16"), H100, "serving")
    assert near.warnings == ()
    with pytest.raises(ForetraceError, match="no link joins 16 ranks in 2 nodes"):
        Physics().price(collective("all_reduce", 1e6, 16, 2, "bf16"), L40S, "serving")


def test_tables_of_cards_without_a_network_get_one() -> None:
    bridged = machine(load_system("a40"), "a40_pairwise_nvlink:pair")
    assert [f.family for f in fabrics_of(bridged)] == [NVLINK, "pcie", "scale-out"]


# --- profiles ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("experts: cublas", "experts: expected one of cutlass, triton, marlin, flashinfer, got 'cublas'"),
        ("nvlink_simple: {hopper: {start: 1, step: 1}}", "nvlink_simple.hopper: missing efficiency"),
        ("nvlink_simple: {hopper: {steps: 1}}", "nvlink_simple.hopper.steps: no such constant"),
        ("infiniband_simple: {hopper: {start: 1}}", "infiniband_simple: no class of kernels"),
        ("shots: {hopper: 3}", "shots.hopper: expected a mapping of constants"),
        ("grouped_cutlass: {hopper: {efficiency: -1}}", "grouped_cutlass.hopper.efficiency: expected a number"),
    ],
)
def test_a_profile_that_is_none_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (path := tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ForetraceError, match=said):
        load_profile(str(path))


def test_a_profile_without_links_or_experts_says_so(tmp_path: Path) -> None:
    (path := tmp_path / "mine.yaml").write_text("collective: {generic: {own: 0}}", encoding="utf-8")
    columns = collective("all_reduce", 1e6, 8, 1, "bf16")
    with pytest.raises(ForetraceError, match="profile mine: no link with low_latency, simple, direct for hopper"):
        Physics(load_profile(str(path))).price(columns, H100)
    q = experts(tmp_path, dtype=["bf16"] * 3)
    with pytest.raises(ForetraceError, match="profile mine: no grouped_cutlass for hopper or generic"):
        Physics(load_profile(str(path))).price(q.operators, H100)
