"""Products on a CPU: packing and multiplying add up; a vector is neither packed nor short of rows."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretrace.hardware import load_system
from foretrace.ir import DTYPES
from foretrace.replay.costs.physics.facts import Facts, facts_of
from foretrace.replay.costs.physics.gemm import LAUNCH, MATH, MEMORY, Gemms
from foretrace.replay.costs.physics.packed import PIPELINE, PackedConstants, price_packed
from foretrace.replay.costs.physics.profile import load_profile

CONSTANTS = PackedConstants(efficiency=0.9, idle_rows=6.0, memory_efficiency=0.8, packing=0.5, start_s=1e-6)
CPU = """
name: box
accelerator:
  name: box
  title: a CPU
  kind: cpu
  vendor: Intel
  generation: x86
  cores: 4
  clock: 2 GHz
  measured: true
  compute: {matrix: {float32: 200 GFLOP/s}, vector: {float32: 200 GFLOP/s}}
  memory: {capacity: 32 GiB, bandwidth: 20 GB/s}
  launch_floor: 0.5 us
  sources: {cores: a test, clock: a test, compute: a test, memory.capacity: a test, memory.bandwidth: a test,
    launch_floor: a test}
host: {dispatch: 5 us}
"""


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    file = tmp_path_factory.mktemp("cpu") / "box.yaml"
    file.write_text(CPU)
    return facts_of(load_system(file).accelerator, DTYPES["float32"])


def product(m: float, n: float, k: float, b: float = 1.0) -> Gemms:
    return Gemms(*(np.array([v], float) for v in (b, m, n, k, 4.0, 4.0, 4.0)))


def seconds(facts: Facts, m: float, n: float, k: float, c: PackedConstants = CONSTANTS) -> float:
    return float(price_packed(product(m, n, k), facts, c)[0][0])


def test_by_hand(facts: Facts) -> None:
    compute = 2 * (32 + 6) * 2048 * 8192 / (0.9 * 200e9)
    traffic = (4 * 2048 * 8192 * 1.5 + 4 * 32 * 2048 + 4 * 32 * 8192) / (0.8 * 20e9)
    assert seconds(facts, 32, 8192, 2048) == pytest.approx(0.5e-6 + 1e-6 + compute + traffic)


def test_a_vector_is_read_once(facts: Facts) -> None:
    more = dataclasses.replace(CONSTANTS, packing=3.0, idle_rows=50.0)
    assert seconds(facts, 1, 8192, 2048, more) == seconds(facts, 1, 8192, 2048)
    assert seconds(facts, 2, 8192, 2048, more) > seconds(facts, 2, 8192, 2048)


@given(st.integers(1, 4096), st.integers(1, 8192), st.integers(1, 8192))
def test_more_work_takes_longer(facts: Facts, m: int, n: int, k: int) -> None:
    base = seconds(facts, m, n, k)
    assert base >= 2 * m * n * k / facts.flops
    assert min(seconds(facts, m + 1, n, k), seconds(facts, m, n + 1, k), seconds(facts, m, n, k + 1)) > base


def test_what_limits(facts: Facts) -> None:
    sizes = ((1, 8192, 8192), (2048, 2048, 2048), (1, 1, 8))
    assert [int(price_packed(product(*s), facts, CONSTANTS)[1][0]) for s in sizes] == [MEMORY, MATH, LAUNCH]


def test_the_profiles_that_ship_have_it() -> None:
    for name in ("eager", "compiled", "serving"):
        assert isinstance(load_profile(name).constants("packed", PIPELINE), PackedConstants)
