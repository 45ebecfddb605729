"""The fast slice of the scoreboard (`make capture-matrix`): captured, exact elsewhere, FLOPs as torch counts them."""

import importlib.util
from itertools import product
from pathlib import Path

import pytest

from foretrace.capture import catalogue_name

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "capture_matrix.py"
pytestmark = [pytest.mark.slow, pytest.mark.checkout]


def matrix():  # type: ignore[no-untyped-def]
    spec = importlib.util.spec_from_file_location("capture_matrix", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_list_is_64_models_of_the_catalogue() -> None:
    names = matrix().MODELS
    assert len(set(names)) == 64
    assert all(catalogue_name(n) for n in names)
    assert set(matrix().FAST) <= set(names)


@pytest.mark.parametrize(("name", "phase"), list(product(["gpt2", "t5-base", "vit-base-patch16-224"], ["forward"])))
def test_the_fast_slice(name: str, phase: str) -> None:
    found = matrix().measure(name, phase)
    assert found["exact"]
    assert found["parameters"] == found["published"]
    assert found["seen"] == found["counted"]
