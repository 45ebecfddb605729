"""Kernel-library profiles: those that ship are whole and sane on every accelerator; bad ones are refused in words."""

import dataclasses
import math
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import yaml

from foretrace.hardware import list_systems, load_system
from foretrace.ir import DTYPES, ForetraceError, OpKind, UnknownNameError
from foretrace.replay import replay_graph
from foretrace.replay.costs import load_costs
from foretrace.replay.costs.physics import load_profile, profile_names
from foretrace.replay.costs.physics.collective import NEEDED, NVLINK
from foretrace.replay.costs.physics.facts import facts_of
from foretrace.replay.costs.physics.memory_bound import TrafficConstants
from foretrace.replay.costs.physics.profile import CLASSES, FALLS_BACK, MAX_BYTES
from tests.replay.models import mlp
from tests.replay.physics_rows import attention, convolution, experts, gemm, price, stream, together

ACCELERATORS: Final = [s.name for s in list_systems()]
ON_LINKS: Final = ("nvlink_", "pcie_", "scale-out_")
PRICED: Final = [c for c in CLASSES if not c.startswith(ON_LINKS) and c not in ("shots", "launching")]
"""Classes that every chip needs; those of links are optional but for a few."""

shipped = pytest.mark.parametrize("name", profile_names())


# --- what ships --------------------------------------------------------------------------------------------------


@shipped
def test_every_class_resolves_on_every_accelerator(name: str) -> None:
    profile = load_profile(name)
    for chip in ACCELERATORS:
        for dtype in ("bfloat16", "float32", "float8_e4m3"):
            facts = facts_of(load_system(chip).accelerator, DTYPES[dtype])
            for kernels in PRICED:
                if kernels == "packed" and facts.pipeline != "cpu":
                    continue  # products of a CPU
                constants = profile.constants(kernels, facts.pipeline)
                assert isinstance(constants, CLASSES[kernels]), (chip, kernels)
            assert all(profile.find(f"{NVLINK}_{needed}", facts.pipeline) for needed in NEEDED)


@pytest.mark.parametrize("chip", ACCELERATORS)
def test_every_accelerator_prices_every_kind(chip: str) -> None:
    rows = together(
        gemm(512, 512, 512),
        gemm(512, 512, 512, dtype="float32"),
        gemm(512, 512, 512, dtype="float8_e4m3"),
        attention(2, 512, 512),
        attention(2, 512, 512, causal=False),
        attention(2, 1, 512),
        attention(2, 1, 512, 16, 1, 576, 512, kv_dtype="float8_e4m3"),
        stream(OpKind.NORM, "aten.native_layer_norm.default", 512, 512),
        experts(512, 512, 512, 8),
        convolution(2, 64, 64, 3, 28),
    )
    for name in profile_names():
        costs = price(rows, chip, name)
        assert (costs.low_s > 0).all()
        assert np.isfinite(costs.high_s).all()


CEILINGS: Final = {"exp_efficiency": 1.25, "slowdown": 20.0, "batched": 3.0, "low_precision": 2.5, "overlap": 16.0}
"""Above 1 with a reason: exponentials by polynomial on ordinary units besides; times, not shares."""


def shares(constants: Any) -> dict[str, float]:
    """Constants that are shares of something the chip has."""
    named = {f.name: float(getattr(constants, f.name)) for f in dataclasses.fields(constants)}
    return {
        name: value
        for name, value in named.items()
        if name.endswith("efficiency") or name in ("tail", "resident", "flat_single", *CEILINGS)
    }


@shipped
def test_constants_are_within_reason(name: str) -> None:
    for (kernels, pipeline), constants in load_profile(name).sets.items():
        where = f"{kernels}/{pipeline}"
        for field in dataclasses.fields(constants):
            value = getattr(constants, field.name)
            assert not math.isnan(value), f"{where}.{field.name}"
            assert value >= 0, f"{where}.{field.name}"
            if field.name.endswith("_s"):
                assert value <= 0.005, f"{where}.{field.name}: no kernel starts for {value} s"
            if field.name.endswith(("_per_clock", "core_fill")):
                assert value > 0, f"{where}.{field.name}"
        for field_name, value in shares(constants).items():
            assert value <= CEILINGS.get(field_name, 1.0), f"{where}.{field_name}"
            assert value > 0 or field_name in ("tail", "flat_single", "resident"), f"{where}.{field_name}"
        if hasattr(constants, "low_precision"):  # 8-bit units are twice as fast
            assert constants.low_precision * constants.efficiency <= 2.0, where
        if isinstance(constants, TrafficConstants):
            traffic = {k: v for k, v in vars(constants).items() if not k.endswith(("_s", "_per_clock", "long_row"))}
            assert min(traffic.values()) >= 0.9, f"{where}: moves less than its bytes: {traffic}"
            for long, short in (("norm_long", "norm_short"), ("softmax_long", "softmax_short")):
                assert traffic[long] / traffic[short] <= 2.2, f"{where}: a longer row is a cliff"


@shipped
def test_spreads_widen_with_distance(name: str) -> None:
    profile = load_profile(name)
    assert 0 <= profile.correlation <= 1
    for kernels, spread in profile.spreads.items():
        assert 1 <= spread.seen <= spread.near <= spread.far <= 10, kernels
        assert kernels in CLASSES, kernels
    for kernels, pipeline in profile.fitted_on:
        assert kernels in CLASSES or kernels == "timing_floor", kernels
        assert kernels == "timing_floor" or profile.key(kernels, pipeline)


def test_classes_fall_back_to_an_end() -> None:
    for name in FALLS_BACK:
        seen = [name]
        while seen[-1] in FALLS_BACK:
            seen.append(FALLS_BACK[seen[-1]])
            assert len(seen) < 10
        assert set(seen) <= set(CLASSES)


# --- bad ones ----------------------------------------------------------------------------------------------------

GENERIC: Final = {"memory_efficiency": 0.9, "core_fill": 40, "start": 1, "vector_efficiency": 0.5}


def refused(tmp_path: Path, text: str | dict[str, Any], match: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text if isinstance(text, str) else yaml.safe_dump(text))
    with pytest.raises(ForetraceError, match=match) as caught:
        load_costs(str(path))
    assert "mine.yaml" in str(caught.value)
    assert len(str(caught.value)) < 1500


def constants(**changed: Any) -> dict[str, Any]:
    return {"extends": "serving", "stream": {"hopper": {k: v for k, v in (GENERIC | changed).items() if v != "gone"}}}


@pytest.mark.parametrize("value", [-1, "nan", "fast", "", True, None, [1], {"a": 1}, "-inf", "1e6x", "2026-01-01"])
def test_a_constant_that_is_no_number(tmp_path: Path, value: Any) -> None:
    match = r"stream\.hopper\.core_fill: expected a number of 0 or more, got "
    refused(tmp_path, constants(core_fill=value), match)


def test_a_constant_that_is_nan_in_yaml(tmp_path: Path) -> None:
    refused(tmp_path, "extends: serving\ngemm: {hopper: {efficiency: .nan}}", r"gemm\.hopper\.efficiency: .*got nan")


def test_an_unknown_constant(tmp_path: Path) -> None:
    refused(tmp_path, constants(speed=1), r"stream\.hopper\.speed: no such constant: one of memory_efficiency, core")
    refused(tmp_path, constants(start_s=1), r"stream\.hopper\.start_s: no such constant: .*start,")


def test_a_missing_constant(tmp_path: Path) -> None:
    refused(tmp_path, constants(core_fill="gone", start="gone"), r"stream\.hopper: missing core_fill, start")


def test_an_unknown_class(tmp_path: Path) -> None:
    refused(
        tmp_path, {"extends": "serving", "gem": {"hopper": {}}}, r"gem: no class of kernels: one of gemm, gemm_8bit"
    )


@pytest.mark.parametrize("value", [1, "fast", None, [1, 2]])
def test_a_class_that_is_no_mapping(tmp_path: Path, value: Any) -> None:
    refused(tmp_path, {"extends": "serving", "gemm": value}, "gemm: expected a mapping")
    refused(
        tmp_path, {"extends": "serving", "gemm": {"hopper": value}}, r"gemm\.hopper: expected a mapping of constants"
    )


@pytest.mark.parametrize(
    "text", ["", "- gemm\n", "just words", "12", "null", "\x00", "a: [", "a: b: c", "!!python/object:os.system {}"]
)
def test_a_file_that_is_no_mapping(tmp_path: Path, text: str) -> None:
    refused(tmp_path, text, r"expected a mapping, got \w+|cannot be read")


def test_text_that_is_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"extends: serving\n\xff\xfe")
    with pytest.raises(ForetraceError, match="cannot be read"):
        load_costs(str(path))


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ForetraceError, match=r"over 4,194,304 bytes"):
        load_costs(str(path))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ForetraceError, match=r"cannot be read: .*No such file"):
        load_costs(str(tmp_path / "none.yaml"))
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ForetraceError, match="cannot be read"):
        load_costs(str(tmp_path / "folder.yaml"))


@pytest.mark.parametrize("extends", ["mine", "nope", "../serving", "", 3, ["serving"], {"a": 1}])
def test_extending_what_is_no_profile(tmp_path: Path, extends: Any) -> None:
    refused(
        tmp_path,
        {"extends": extends},
        "extends: no profile .*: one of compiled, eager, megatron, megatron-deepspeed, nanotron, serving",
    )


def test_profiles_that_extend_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foretrace.replay.costs.physics.profile.FOLDER", tmp_path)
    load_profile.cache_clear()
    (tmp_path / "one.yaml").write_text("extends: two")
    (tmp_path / "two.yaml").write_text("extends: one")
    (tmp_path / "self.yaml").write_text("extends: self")
    with pytest.raises(ForetraceError, match=r"extends itself: .*one"):
        load_profile("one")
    with pytest.raises(ForetraceError, match="extends: self extends itself: "):
        load_profile("self")
    load_profile.cache_clear()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("experts: cutlas", "experts: expected one of cutlass, triton, marlin, flashinfer, got 'cutlas'"),
        ("correlation: -1", "correlation: expected a number"),
        ("correlation: much", "correlation: expected a number"),
        ("timing_floor: 3", "timing_floor: expected a mapping"),
        ("timing_floor: {norm: slow}", r"timing_floor\.norm: expected a number"),
        ("spread: {gemm: 2}", r"spread\.gemm: expected a mapping"),
        ("spread: {gemm: {seen: 1.1}}", r"spread\.gemm: missing near, far"),
        ("fitted: all", "fitted: expected a mapping"),
    ],
)
def test_other_keys(tmp_path: Path, text: str, match: str) -> None:
    refused(tmp_path, f"extends: serving\n{text}", match)


@pytest.mark.parametrize(
    "name", ["physics:nope", "physics:", "physics:sevring", "physics:../serving", "physics:serving "]
)
def test_a_profile_nobody_knows(name: str) -> None:
    with pytest.raises(UnknownNameError, match="unknown kernel-library profile"):
        load_costs(f"physics:{name}")


def test_near_names_are_named() -> None:
    with pytest.raises(UnknownNameError, match="nearest: serving"):
        load_costs("physics:servng")
    with pytest.raises(UnknownNameError, match="unknown cost model 'physic'; nearest: physics"):
        load_costs("physic")


def test_a_profile_without_what_a_row_needs(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"stream": {"generic": GENERIC}}))
    with pytest.raises(ForetraceError, match="profile mine: no gemm for hopper or generic: extend one"):
        replay_graph(mlp(), "h100-sxm", costs=str(path))


def test_a_profile_of_ones_own_moves_what_it_names_alone(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(constants(start=1000)))
    rows = together(gemm(64, 64, 64), stream(OpKind.COPY, "aten.clone.default", 64, 64))
    own, shipped = price(rows, "h100-sxm", profile=load_profile(str(path))), price(rows, "h100-sxm", "serving")
    assert own.seconds[0] == shipped.seconds[0]
    assert own.seconds[1] == pytest.approx(1000e-6, rel=0.1)
