"""Profiles from strangers: what is read of a calibrated one, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from foretrace.ir import ForetraceError
from foretrace.replay.costs.physics import load_profile
from foretrace.replay.costs.physics.residual import (
    MOST_FEATURES,
    MOST_POINTS,
    Residual,
    read_residual,
    write_residual,
)

RESIDUAL = {"features": ["m", "software=serving"], "lengths": [1.0, 1.0], "points": "1 0\n2 1", "weights": "0.1 0.2"}


def profile(path: Path, **changed: Any) -> Path:
    path = path / "mine.yaml"
    path.write_text(yaml.safe_dump({"extends": "serving", **changed}))
    load_profile.cache_clear()
    return path


def test_a_residual_is_read_as_it_was_written() -> None:
    draw = np.random.default_rng(0)
    given = Residual(
        ("m", "n", "name=aten.mm.default"), np.array([1.5, 2, 1]), draw.normal(size=(40, 3)), draw.normal(size=40)
    )
    found = read_residual("x", yaml.safe_load(yaml.safe_dump(write_residual(given))))
    assert found.features == given.features
    at = draw.normal(size=(5000, 3))
    np.testing.assert_allclose(found.log_factor(at), given.log_factor(at), atol=1e-3)


def test_far_from_its_points_a_residual_says_nothing() -> None:
    given = Residual(("m",), np.array([1.0]), np.array([[0.0]]), np.array([0.5]))
    assert given.log_factor(np.array([[0.0], [50.0]])) == pytest.approx([0.5, 0.0], abs=1e-9)


def test_sections_scales_and_residuals_are_read(tmp_path: Path) -> None:
    path = profile(
        tmp_path,
        calibrated={"gpu": "h100-sxm"},
        scale={"gemm/hopper": 1.5},
        residual={"gemm/hopper": RESIDUAL},
        software={"vllm": {"scale": {"gemm/hopper": 0.5}}},
    )
    main = load_profile(str(path))
    assert main.calibration is not None
    assert main.calibration.corrections["gemm/hopper"].scale == 1.5
    other, software = main.driven_by("vllm")
    assert software == "vllm"
    assert other.calibration is not None
    assert other.calibration.corrections["gemm/hopper"].scale == 0.5
    assert other.calibration.corrections["gemm/hopper"].residual is not None
    third, software = main.driven_by("sglang")
    assert software == "serving"
    assert third.sets["gemm", "hopper"] == load_profile("sglang").sets["gemm", "hopper"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"scale": {"gemm/hopper": 1e9}}, r"scale.gemm/hopper: expected 0.125 to 8"),
        ({"scale": {"gemm/hopper": float("nan")}}, "expected a number"),
        ({"scale": {"gemm/hopper": "os.system"}}, "expected a number"),
        ({"scale": 3}, "scale: expected a mapping"),
        ({"residual": {"gemm/hopper": {"pickle": "x"}}}, "expected a mapping of features"),
        ({"residual": {"gemm/hopper": RESIDUAL | {"features": ["__import__", "m"]}}}, "no feature '__import__'"),
        (
            {"residual": {"gemm/hopper": RESIDUAL | {"features": ["m"] * (MOST_FEATURES + 1)}}},
            "expected a list of 1 to",
        ),
        ({"residual": {"gemm/hopper": RESIDUAL | {"lengths": [1.0]}}}, "expected a list of 2 numbers"),
        ({"residual": {"gemm/hopper": RESIDUAL | {"lengths": [1.0, 0.0]}}}, "above 0"),
        ({"residual": {"gemm/hopper": RESIDUAL | {"points": "1 0 3"}}}, "2 numbers for each of the 2 weights"),
        ({"residual": {"gemm/hopper": RESIDUAL | {"points": "1 0 nan 3"}}}, "finite"),
        ({"residual": {"gemm/hopper": RESIDUAL | {"weights": "0.1 inf"}}}, "finite"),
        ({"residual": {"gemm/hopper": RESIDUAL | {"weights": "a b"}}}, "numbers separated by spaces"),
        ({"residual": {"gemm/hopper": RESIDUAL | {"weights": "1 " * (MOST_POINTS + 1)}}}, "more than 3,000 numbers"),
        ({"software": {"vllm": 3}}, "software: expected a mapping"),
        ({"software": {"nowhere": {}}}, "no profile 'nowhere'"),
        ({"software": {"vllm": {"software": {}}}}, "holds constants and scale"),
        ({"software": {str(i): {} for i in range(17)}}, "more than 16"),
        ({"calibrated": 3}, "calibrated: expected a mapping"),
    ],
)
def test_a_profile_that_lies_is_refused(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    path = profile(tmp_path, **changed)
    with pytest.raises(ForetraceError, match=said) as caught:
        load_profile(str(path))
    assert "mine.yaml" in str(caught.value)


def test_a_file_of_any_length_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "long.yaml"
    path.write_text("title: " + "x" * (5 << 20))
    with pytest.raises(ForetraceError, match="over 4,194,304 bytes"):
        load_profile(str(path))
