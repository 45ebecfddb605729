import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measured_tables import COLLECTIVES, ELEMENTWISE, GEMM, write
from typer.testing import CliRunner

import foretrace
from foretrace.calibrate import CalibrationResult, calibrate_costs
from foretrace.cli import app
from foretrace.hardware import load_system
from foretrace.ir import ForetraceError, FormatError, UnknownNameError
from foretrace.replay.calibration import Errors, Sample, with_constants
from foretrace.replay.costs.physics import Physics, Profile, load_profile
from foretrace.replay.few_shot import Part, calibrate, constants_of
from foretrace.replay.measured import Measurements, read_measurements
from foretrace.validate import validate_tables

pytest.importorskip("scipy", reason="calibrating needs scipy")

CHIP = "h100-sxm"


def sizes(rows: int, seed: int, gpu: str = "H100-SXM", **more: Any) -> dict[str, list[Any]]:
    """Products as models have them: in multiples of eight."""
    draw = np.random.default_rng(seed)
    m, n, k = (np.exp(draw.uniform(np.log(low), np.log(8192), rows)).astype(int) // 8 * 8 for low in (16, 256, 256))
    columns = {"gpu": [gpu] * rows, "dtype": ["bf16"] * rows, "m": m.tolist(), "n": n.tolist(), "k": k.tolist()}
    return {**columns, "latency_us": [1.0] * rows, **more}


def read(path: Path) -> Measurements:
    (measured,) = read_measurements(path)
    return measured


def part(path: Path, software: str = "serving") -> Part:
    q = read(path)
    return Part(software, Sample(q.operators, q.row, q.seconds, load_system(q.gpu.at(0)), software == "eager"))


def measured_by(
    path: Path, profile: Profile, columns: dict[str, list[Any]], noise: float = 0.02, factor: Any = 1.0
) -> Path:
    """The table of *columns* with the times that *profile* predicts, times *factor* and a noise."""
    exact = part(write(path, columns)).predict(profile) * factor
    noisy = exact * np.exp(np.random.default_rng(7).normal(0, noise, exact.size))
    return write(path, columns, latency_us=(noisy * 1e6).tolist())


def slower(**factors: float) -> Profile:
    """The serving profile with constants of its products multiplied."""
    base = load_profile("serving")
    known = base.sets["gemm", "hopper"]
    return with_constants(base, {("gemm", "hopper", name): getattr(known, name) * f for name, f in factors.items()})


@dataclass(frozen=True)
class Mine:
    """A calibration of 50 rows of a slower H100 than the physics expects."""

    truth: Profile
    table: Path
    result: CalibrationResult
    file: Path

    @property
    def profile(self) -> Profile:
        return load_profile(str(self.file))


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Mine:
    folder = tmp_path_factory.mktemp("mine")
    truth = slower(efficiency=0.6, memory_efficiency=0.7)
    table = measured_by(folder / "t.parquet", truth, sizes(50, 1))
    result = calibrate_costs([table])
    result.save(folder / "mine.yaml")
    return Mine(truth, table, result, folder / "mine.yaml")


def test_fifty_rows_find_what_made_them(mine: Mine, tmp_path: Path) -> None:
    (outcome,) = mine.result.outcomes
    assert outcome.kernels == "gemm/hopper"
    assert outcome.kept != "physics"
    assert outcome.after.mape < 0.05 < 0.1 < outcome.before.mape
    other = part(measured_by(tmp_path / "u.parquet", mine.truth, sizes(200, 2), noise=0.0))
    assert Errors.of(other.predict(mine.profile), other.sample.seconds).mape < 0.05


def test_the_fitted_constants_lie_near_the_true_ones(mine: Mine) -> None:
    (outcome,) = mine.result.outcomes
    assert outcome.candidates["constants"] < 0.05
    assert "constants" in outcome.kept
    found, true = (profile.sets["gemm", "hopper"] for profile in (mine.profile, mine.truth))
    assert found.efficiency == pytest.approx(true.efficiency, rel=0.2)
    assert found.memory_efficiency == pytest.approx(true.memory_efficiency, rel=0.2)


def test_rows_that_physics_explains_keep_it(tmp_path: Path) -> None:
    table = measured_by(tmp_path / "t.parquet", load_profile("serving"), sizes(50, 3), noise=0.05)
    result = calibrate_costs([table])
    (outcome,) = result.outcomes
    assert outcome.kept == "physics"
    assert outcome.after == outcome.before
    assert any("physics kept" in warning for warning in result.warnings)
    result.save(tmp_path / "mine.yaml")
    before, after = (validate_tables([table], costs=costs) for costs in ("physics", str(tmp_path / "mine.yaml")))
    assert after.overall is not None
    assert before.overall is not None
    assert after.overall.mape == pytest.approx(before.overall.mape)


@pytest.mark.parametrize("seed", range(2))
def test_it_is_never_worse_on_the_rows_held_back(tmp_path: Path, seed: int) -> None:
    noise = np.exp(np.random.default_rng(seed).normal(0, 0.6, 24))
    table = measured_by(tmp_path / "t.parquet", load_profile("serving"), sizes(24, seed), factor=noise)
    for outcome in calibrate_costs([table], seed=seed).outcomes:
        assert outcome.after.mape <= outcome.before.mape


def test_many_rows_leave_a_residual_that_follows_the_shape(tmp_path: Path) -> None:
    columns = sizes(120, 4)
    bump = np.where(np.array(columns["m"]) < 256, 2.0, 1.0)  # what no constant of the physics can make
    result = calibrate_costs([measured_by(tmp_path / "t.parquet", load_profile("serving"), columns, factor=bump)])
    (outcome,) = result.outcomes
    assert "residual" in outcome.kept
    assert outcome.after.mape < outcome.before.mape / 2


def test_the_same_rows_give_the_same_file(tmp_path: Path) -> None:
    table = measured_by(tmp_path / "t.parquet", slower(efficiency=0.5), sizes(12, 1))
    assert calibrate_costs([table]).text == calibrate_costs([table]).text


def test_the_file_predicts_what_was_fitted(mine: Mine) -> None:
    here = part(mine.table)
    fitted, _ = calibrate({"serving": load_profile("serving")}, [here])
    np.testing.assert_allclose(here.predict(mine.profile), here.predict(fitted["serving"]), rtol=1e-3)
    assert mine.profile.calibration is not None
    assert mine.profile.calibration.gpu == CHIP


def test_software_is_told_apart(tmp_path: Path) -> None:
    columns = sizes(60, 1, source=["aic_trtllm_1"] * 30 + ["aic_vllm_1"] * 30)
    path = write(tmp_path / "t.parquet", columns)
    q = read(path)
    seconds = np.empty(60)
    for software, factor in (("trtllm", 1.5), ("vllm", 0.8)):
        rows = q.software.is_in({software})
        some = q.take(rows)
        predicted = Physics().price(some.operators, load_system(CHIP), software)
        seconds[rows] = factor * predicted.timed(some.row, some.rows, False)
    write(path, columns, latency_us=(seconds * 1e6).tolist())
    result = calibrate_costs([path])
    assert set(result.software) == {"trtllm", "vllm"}
    (outcome,) = result.outcomes
    assert outcome.after.mape < 0.08
    result.save(tmp_path / "mine.yaml")
    after = validate_tables([path], costs=str(tmp_path / "mine.yaml"))
    assert after.overall is not None
    assert after.overall.mape < 0.08
    assert "scale" in outcome.candidates
    assert outcome.candidates["scale"] < 0.08  # each software starts from constants of its own


def test_one_software_for_all_rows(tmp_path: Path) -> None:
    table = measured_by(tmp_path / "t.parquet", slower(efficiency=0.6), sizes(20, 1))
    assert calibrate_costs([table], software="vllm").software == ("vllm",)
    with pytest.raises(UnknownNameError, match="tensorrt"):
        calibrate_costs([table], software="tensorrt")


def test_another_chip_is_warned_of(mine: Mine) -> None:
    model, operators = Physics(mine.profile), read(mine.table).operators
    named = [w for w in model.price(operators, load_system("h200"), "serving").warnings if "calibrated on" in w]
    assert len(named) == 1
    assert CHIP in named[0]
    assert "h200" in named[0]
    assert not [w for w in model.price(operators, load_system(CHIP), "serving").warnings if "calibrated on" in w]
    assert [w for w in model.price(operators, load_system(CHIP), "eager").warnings if "kernels of serving" in w]


def test_spreads_come_from_the_rows_held_back(mine: Mine) -> None:
    spread = mine.profile.spread("gemm", "hopper", load_system(CHIP).accelerator)
    assert spread == pytest.approx(mine.result.outcomes[0].spread, abs=1e-3)
    assert spread < 1.2
    assert mine.profile.spread("gemm", "hopper", load_system("a100-sxm-80gb").accelerator) > spread


@pytest.mark.parametrize("columns", [COLLECTIVES, ELEMENTWISE], ids=["collectives", "elementwise"])
def test_other_tables_calibrate_too(tmp_path: Path, columns: dict[str, list[Any]]) -> None:
    rows = {name: [values[0]] * 12 for name, values in columns.items()}
    size = "bytes" if "bytes" in rows else "rows"
    rows[size] = [1 << (12 + i) for i in range(12)]
    table = write(tmp_path / "t.csv", rows)
    q = read(table)
    costs = Physics().price(q.operators, load_system(rows["gpu"][0]), q.software.at(0))
    seconds = 1.4 * costs.timed(q.row, q.rows, False) + costs.gap_s
    result = calibrate_costs([write(table, rows, latency_us=(seconds * 1e6).tolist())])
    assert all(o.after.mape <= o.before.mape for o in result.outcomes)


# --- bad input ---------------------------------------------------------------------------------------------------


def test_one_row_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(ForetraceError, match=r"1 rows of one class .* too few"):
        calibrate_costs([write(tmp_path / "t.parquet", sizes(1, 1), latency_us=[50.0])])


def test_nan_is_skipped_and_counted(tmp_path: Path) -> None:
    table = measured_by(tmp_path / "t.parquet", slower(efficiency=0.6), sizes(20, 1))
    times = (read(table).seconds * 1e6).tolist()
    result = calibrate_costs([write(table, sizes(20, 1), latency_us=[float("nan"), -1.0, *times[2:]])])
    assert result.skipped == {"latency_us is empty": 1, "latency_us is not positive": 1}
    assert result.rows == 18
    with pytest.raises(ForetraceError, match="no row to calibrate on: latency_us is empty"):
        calibrate_costs([write(table, sizes(9, 1), latency_us=[float("nan")] * 9)])


def test_two_gpus_need_a_choice(tmp_path: Path) -> None:
    columns = sizes(18, 1) | {"gpu": ["H100-SXM"] * 9 + ["A100-SXM-80GB"] * 9, "latency_us": [30.0] * 18}
    table = write(tmp_path / "t.parquet", columns)
    with pytest.raises(ForetraceError, match=r"2 GPUs: a100-sxm-80gb \(9 rows\), h100-sxm \(9 rows\).*--gpu"):
        calibrate_costs([table])
    assert calibrate_costs([table], gpu="h100-sxm").rows == 9


def test_missing_column_and_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="'latency_us' is missing"):
        calibrate_costs([write(tmp_path / "t.parquet", GEMM, latency_us=None)])
    with pytest.raises(ForetraceError, match="is a trace"):
        calibrate_costs([tmp_path / "measured.trace"])
    with pytest.raises(FormatError, match=r"\.parquet or \.csv"):
        calibrate_costs([tmp_path / "measured.txt"])


def test_times_in_another_unit(tmp_path: Path) -> None:
    table = measured_by(tmp_path / "t.parquet", load_profile("serving"), sizes(30, 1), factor=1000.0)
    with pytest.raises(ForetraceError, match="another unit"):
        calibrate_costs([table])


def test_points_are_drawn(tmp_path: Path) -> None:
    table = measured_by(tmp_path / "t.parquet", slower(efficiency=0.6), sizes(30, 1))
    assert calibrate_costs([table], points=8).rows == 8
    with pytest.raises(ForetraceError, match="--points 3"):
        calibrate_costs([table], points=3)


# --- the command -------------------------------------------------------------------------------------------------


def test_the_command_writes_a_profile(mine: Mine, tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    done = CliRunner().invoke(app, ["calibrate", str(mine.table), "-o", str(out), "--points", "12", "--json"])
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    assert shown["gpu"] == CHIP
    assert shown["classes"][0]["after"]["mape"] <= shown["classes"][0]["before"]["mape"]
    assert load_profile(str(out)).calibration is not None


def test_validate_takes_the_profile(mine: Mine) -> None:
    done = CliRunner().invoke(app, ["validate", str(mine.table), "--costs", str(mine.file), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["overall"]["mape"] < 0.05


def test_the_page_shows_each_class(mine: Mine, capsys: pytest.CaptureFixture[str]) -> None:
    from foretrace.calibrate_page import calibration_page
    from foretrace.console import show

    show(calibration_page(mine.result))
    assert "gemm/hopper" in capsys.readouterr().out


def test_a_failure_leaves_no_file(tmp_path: Path) -> None:
    table = write(tmp_path / "t.parquet", sizes(1, 1))
    out = tmp_path / "mine.yaml"
    assert CliRunner().invoke(app, ["calibrate", str(table), "-o", str(out)]).exit_code == 1
    assert not out.exists()
    assert CliRunner().invoke(app, ["calibrate", str(table), "-o", str(tmp_path / "mine.txt")]).exit_code == 1


def test_without_scipy_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = measured_by(tmp_path / "t.parquet", slower(efficiency=0.6), sizes(20, 1))
    monkeypatch.setitem(__import__("sys").modules, "scipy.optimize", None)
    with pytest.raises(ForetraceError, match=r"foretrace\[calibrate\]"):
        calibrate_costs([table])


def test_the_face_has_the_verb() -> None:
    assert foretrace.calibrate_costs is calibrate_costs


def test_every_class_names_constants_that_exist() -> None:
    from foretrace.replay.costs.physics.profile import CLASSES

    for kernels in CLASSES:
        for owner, name in constants_of(kernels):
            assert owner in CLASSES
            assert name in CLASSES[owner].__dataclass_fields__, f"{kernels}: {owner}.{name}"


def test_scale_moves_the_interval_too() -> None:
    from foretrace.replay.costs.physics.calibrated import Calibration
    from foretrace.replay.costs.physics.residual import Correction

    columns = foretrace.replay.measured.collective("all_reduce", 1e6, 8, 1, "bf16")
    base = load_profile("serving")
    own = replace(base, calibration=Calibration(CHIP, "serving", {"collective/hopper": Correction(2.0)}))
    plain, doubled = (Physics(p).price(columns, load_system(CHIP), "serving") for p in (base, own))
    for name in ("seconds", "low_s", "high_s"):
        np.testing.assert_allclose(getattr(doubled, name), 2 * getattr(plain, name))
