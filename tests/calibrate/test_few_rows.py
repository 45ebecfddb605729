"""Classes of fewer rows than a fit is asked for: a factor, where each row held back confirms it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measured_tables import write

from foretrace.calibrate import calibrate_costs
from foretrace.hardware import load_system
from foretrace.replay.calibration import Sample
from foretrace.replay.costs.physics import load_profile
from foretrace.replay.few_shot import Part
from foretrace.replay.measured import read_measurements

pytest.importorskip("scipy", reason="calibrating needs scipy")


def predicted(path: Path) -> Any:
    (q,) = read_measurements(path)
    sample = Sample(q.operators, q.row, q.seconds, load_system("v100-pcie-32gb"), False)
    return Part("serving", sample).predict(load_profile("serving"))


def tables(folder: Path, factors: list[float]) -> list[Path]:
    """Eight products as predicted and an attention of each factor, as often longer than predicted."""
    rows = 8
    gemm = {"gpu": ["V100-PCIE-32GB"] * rows, "dtype": ["fp16"] * rows, "k": [1024] * rows, "latency_us": [1.0] * rows}
    gemm |= {"m": [256 * (i + 1) for i in range(rows)], "n": [2048] * rows}
    n = len(factors)
    attention = {
        "gpu": ["V100-PCIE-32GB"] * n, "dtype": ["fp16"] * n, "batch": [2 * (i + 1) for i in range(n)],
        "q_len": [512] * n, "kv_len": [512] * n, "n_heads": [16] * n, "head_dim": [64] * n, "latency_us": [1.0] * n,
    }  # fmt: skip
    found = []
    for name, columns, by in (("g", gemm, np.ones(rows)), ("a", attention, np.array(factors))):
        times = predicted(write(folder / f"{name}.parquet", columns)) * by
        found.append(write(folder / f"{name}.parquet", columns, latency_us=(times * 1e6).tolist()))
    return found


def outcome(paths: list[Path]) -> tuple[str, float, list[str]]:
    result = calibrate_costs(paths)
    of = next(o for o in result.outcomes if o.kernels.startswith("prefill"))
    return of.kept, of.after.mape, [w for w in result.warnings if w.startswith("prefill")]


def test_four_rows_that_agree_give_a_factor(tmp_path: Path) -> None:
    kept, mape, warnings = outcome(tables(tmp_path, [2.0, 2.05, 1.95, 2.0]))
    assert kept == "scale"
    assert mape < 0.1
    assert "a factor alone" in warnings[0]


def test_four_rows_that_disagree_keep_the_physics(tmp_path: Path) -> None:
    kept, _, warnings = outcome(tables(tmp_path, [2.0, 0.5, 0.6, 1.7]))
    assert kept == "physics"
    assert "too few" in warnings[0]


def test_one_row_says_nothing(tmp_path: Path) -> None:
    kept, _, warnings = outcome(tables(tmp_path, [2.0]))
    assert kept == "physics"
    assert "too few" in warnings[0]
