"""`this-machine`: detection, the cache's key, and what happens to a damaged cache."""

import os
import stat
from pathlib import Path

import pytest

from foretrace.hardware import load_system, this_machine
from foretrace.ir.dtype import parse_dtype


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FORETRACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(this_machine, "BUDGET_S", 0.001)
    monkeypatch.setattr(this_machine, "_MATMUL_SIZE", 64)
    monkeypatch.setattr(this_machine, "_COPY_BYTES", 1 << 20)
    return tmp_path / "cache" / "this-machine.yaml"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every time something is measured."""
    calls: list[int] = []
    measure = this_machine.measure
    monkeypatch.setattr(this_machine, "measure", lambda: calls.append(1) or measure())
    return calls


def test_it_is_a_cpu_with_measured_rates(cache: Path) -> None:
    chip = load_system("this-machine").accelerator
    assert (chip.kind, chip.synchronous, chip.measured) == ("cpu", True, True)
    assert 1 <= chip.cores <= (os.cpu_count() or 1)
    for name in ("float32", "float64"):
        assert (chip.matrix_flops(parse_dtype(name)) or 0) > 1e6
    assert chip.matrix_flops(parse_dtype("bf16")) is None
    assert chip.emulated_with(parse_dtype("bf16")) == parse_dtype("fp32")
    assert chip.memory.bandwidth > 1e6
    assert (chip.source("memory.bandwidth") or "").startswith("measured here")


def test_measured_once_then_read(cache: Path, measured: list[int]) -> None:
    first = load_system("this-machine")
    assert load_system("This_Machine") == first
    assert len(measured) == 1
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]  # no temporary file left


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("numpy", "numpy 0.1 was"),
        lambda text: text.replace("B/s", "B"),
        lambda text: text.split("\n")[0] + "\n[[[",
        lambda text: "\0" + text,
    ],
)
def test_a_damaged_or_foreign_cache_is_measured_again(cache: Path, measured: list[int], damage: object) -> None:
    load_system("this-machine")
    cache.write_text(damage(cache.read_text()))  # type: ignore[operator]
    load_system("this-machine")
    load_system("this-machine")
    assert len(measured) == 2


def test_a_cache_of_bytes_that_are_no_text(cache: Path, measured: list[int]) -> None:
    cache.parent.mkdir()
    cache.write_bytes(b"\xff\xfe\x00")
    load_system("this-machine")
    assert len(measured) == 1


def test_a_cache_that_cannot_be_written(cache: Path) -> None:
    cache.parent.write_text("a file where the folder should be")
    assert load_system("this-machine").accelerator.cores >= 1


def test_extends_this_machine(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "faster.yaml").write_text("extends: this-machine\nmemory: {bandwidth: 1 TB/s}\n")
    system = load_system(tmp_path / "faster.yaml")
    assert system.accelerator.extends == "this-machine"
    assert system.host.memory_bandwidth == 1e12


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FORETRACE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert this_machine.cache_path() == tmp_path / "foretrace" / "this-machine.yaml"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert this_machine.cache_path() == tmp_path / ".cache" / "foretrace" / "this-machine.yaml"


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 64), ("150000 100000", 2), ("50000 100000", 1), ("", 64), ("x y", 64)]
)
def test_cores_heed_the_cgroup(monkeypatch: pytest.MonkeyPatch, quota: str, cores: int) -> None:
    files = {"/sys/fs/cgroup/cpu.max": quota}
    monkeypatch.setattr(this_machine, "_read_file", lambda path: files.get(path, ""))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert this_machine.cpu_cores() == cores


def test_a_system_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(this_machine, "_read_file", lambda path: "")
    monkeypatch.setattr(this_machine, "_sysctl", lambda name: "")
    assert this_machine.cpu_model()
    assert this_machine.cpu_clock("a CPU @ 2.20GHz") == (2.2e9, "detected: the CPU's name")
    assert this_machine.cpu_clock("a CPU")[1].startswith("estimate")
    assert this_machine.memory_bytes() > 1 << 28


def test_the_cache_file_is_private_to_its_owner(cache: Path) -> None:
    load_system("this-machine")
    assert stat.S_IMODE(cache.stat().st_mode) & stat.S_IWOTH == 0
