"""What is installed is whole: every module can be imported, and every data file on disk is packaged."""

import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("capture", "hardware", "ir", "replay", "traces", "transforms", "src/foretrace")
DATA = {".yaml", ".yml", ".proto", ".json", ".html", ".css", ".js", ".typed"}


def test_every_installed_module_can_be_imported() -> None:
    pytest.importorskip("torch")
    code = """
import importlib, pkgutil, foretrace
found = [m.name for m in pkgutil.walk_packages(foretrace.__path__, "foretrace.") if not m.name.endswith("__main__")]
for name in found:
    importlib.import_module(name)
print(len(found))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100


@pytest.mark.checkout
def test_data_files_on_disk_are_packaged() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {package: ROOT / place for package, place in setup["package-dir"].items()}
    packaged = {
        path
        for package, patterns in setup["package-data"].items()
        for path in folders[package].iterdir()
        if any(fnmatch(path.name, pattern) for pattern in patterns)
    }
    on_disk = {
        path
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.suffix in DATA and "recorded" not in path.parts and not any(p.is_symlink() for p in path.parents)
    }
    assert packaged
    assert on_disk <= packaged, sorted(map(str, on_disk - packaged))
