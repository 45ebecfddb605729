"""What a calibrated profile says beyond constants: the chip it was fitted on, and a correction of each class.

Classes are written with the pipeline whose constants they stand on: ``gemm/ampere``.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from foretrace.ir import ForetraceError

from .residual import MOST_FACTOR, Correction, read_residual

if TYPE_CHECKING:
    from .profile import Profile

KEYS: Final = ("calibrated", "scale", "residual", "software")
"""Keys of a profile's YAML that are read here."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """How a profile differs from the one that it extends, and for which chip."""

    gpu: str
    """The chip whose rows were fitted, as the hardware library names it; empty: not said."""
    software: str
    """The software whose profile it extends."""
    corrections: Mapping[str, Correction]
    """Class (``gemm/ampere``) → what measurements say beyond the formulae."""
    changed: frozenset[tuple[str, str]] = frozenset()
    """The (class, pipeline) whose constants are its own."""
    others: Mapping[str, "Profile"] = field(default_factory=dict)
    """Further software → its calibrated profile."""


def read_calibration(
    path: Path, given: Mapping[str, Any], extends: str, build: Callable[[dict[str, Any]], "Profile"]
) -> Calibration | None:
    """That in the `KEYS` of a profile's YAML, None without any; *build* makes a profile of a software's own section."""
    if not given:
        return None
    about = given.get("calibrated", {})
    if not isinstance(about, dict):
        raise ForetraceError(f"{path}: calibrated: expected a mapping")
    sections = given.get("software", {})
    if not isinstance(sections, dict) or not all(isinstance(section, dict) for section in sections.values()):
        raise ForetraceError(f"{path}: software: expected a mapping of software to its classes")
    if len(sections) > 16:
        raise ForetraceError(f"{path}: software: more than 16 sections")
    residuals = _mapping(path, "residual", given)
    others = {}
    for name, section in sections.items():
        if {"software", "calibrated", "residual"} & set(section):
            raise ForetraceError(f"{path}: software.{name}: holds constants and scale; the rest stands above it")
        others[str(name)] = build({"extends": name, **section, "residual": residuals})
    return Calibration(
        str(about.get("gpu", "")),
        extends,
        corrections(path, given),
        others=others,
    )


def corrections(path: Path, given: Mapping[str, Any]) -> dict[str, Correction]:
    """Class → its correction, of `scale` and `residual`."""
    scales, residuals = _mapping(path, "scale", given), _mapping(path, "residual", given)
    found = {}
    for key in sorted(scales.keys() | residuals.keys()):
        scale = scales.get(key, 1.0)
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
            raise ForetraceError(f"{path}: scale.{key}: expected a number, got {scale!r}")
        if not 1 / MOST_FACTOR <= scale <= MOST_FACTOR:
            raise ForetraceError(f"{path}: scale.{key}: expected {1 / MOST_FACTOR:g} to {MOST_FACTOR:g}, got {scale:g}")
        residual = read_residual(f"{path}: residual.{key}", residuals[key]) if key in residuals else None
        found[key] = Correction(float(scale), residual)
    return found


def _mapping(path: Path, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    found = given.get(name, {})
    if not isinstance(found, dict) or len(found) > 200:
        raise ForetraceError(f"{path}: {name}: expected a mapping of classes such as gemm/ampere")
    return {str(key): value for key, value in found.items()}
