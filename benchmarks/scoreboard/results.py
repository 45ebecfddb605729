"""What was measured, kept between runs: one small JSON file a job under .capture-matrix/, with what it was made by."""

import hashlib
import json
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .jobs import Job

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".capture-matrix"
MEASURED_BY = ("capture", "ir", "benchmarks/scoreboard")
"""Folders whose code a result depends on."""


@lru_cache
def made_by() -> dict[str, str]:
    """The code that measures now: a digest of ours, and the versions of what it captures."""
    digest = hashlib.sha256()
    for folder in MEASURED_BY:
        for file in sorted((ROOT / folder).rglob("*.py")):
            if file.name != "page.py":
                digest.update(file.read_bytes())
    return {"code": digest.hexdigest()[:12], "torch": _version("torch"), "transformers": _version("transformers")}


def _version(package: str) -> str:
    try:
        return version(package).split("+")[0]
    except PackageNotFoundError:
        return "none"


def load(job: Job) -> dict[str, Any] | None:
    """The result of *job*, if there is one."""
    file = _file(job)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or cut off by a stop
        return None
    return found if isinstance(found, dict) else None


def save(job: Job, result: dict[str, Any]) -> None:
    """Keep the result of *job*."""
    file = _file(job)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps({"made_by": made_by()} | result, indent=1), encoding="utf-8")
    part.replace(file)


def is_stale(result: dict[str, Any]) -> bool:
    """Whether other code than today's measured it."""
    return bool(result.get("made_by") != made_by())


def failed(result: dict[str, Any]) -> bool:
    """Whether it gave nothing, or stopped before its checks."""
    return "error" in result or "stopped" in result


def _file(job: Job) -> Path:
    return FOLDER / job.group / f"{job.name}.{job.phase}.json"
