"""A calibrated profile as the YAML file that ``--costs`` reads."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

from .costs.physics import Profile
from .costs.physics.profile import CLASSES
from .costs.physics.residual import Residual, write_residual
from .few_shot import LEAST_ROWS, Outcome

if TYPE_CHECKING:
    from foretrace.hardware import Accelerator

HEAD: Final = """\
# Kernel-library profile calibrated on measured rows of one chip: foretrace replay|validate --costs THIS_FILE.
# Times are in microseconds. Nothing in it is code: constants, a factor a class, and points of measured corrections.
"""


def calibrated_yaml(
    profiles: Mapping[str, Profile],
    main: str,
    outcomes: Sequence[Outcome],
    chip: "Accelerator",
    about: Mapping[str, Any],
) -> str:
    """The file of *profiles* (software → calibrated profile), the one of software *main* first; *about*: of the fit."""
    import yaml

    data: dict[str, Any] = {"extends": main, "calibrated": {"gpu": chip.name, **about}}
    data["calibrated"]["held_back"] = {outcome.kernels: _held_back(outcome) for outcome in outcomes}
    data |= _section(profiles[main], outcomes)
    residuals: dict[str, Residual] = {}
    for profile in profiles.values():
        for key, correction in (profile.calibration.corrections if profile.calibration else {}).items():
            if correction.residual is not None:
                residuals[key] = correction.residual
    if residuals:
        data["residual"] = {key: write_residual(residual) for key, residual in sorted(residuals.items())}
    common = _trust(profiles[main], outcomes, chip)
    data |= common
    others = {name: _section(profile, outcomes) | common for name, profile in profiles.items() if name != main}
    if others:
        data["software"] = others
    return HEAD + yaml.safe_dump(data, sort_keys=False, width=100_000, allow_unicode=True)


def _held_back(outcome: Outcome) -> dict[str, Any]:
    def figures(mape: float, median: float) -> dict[str, float]:
        return {"mape": round(mape, 4), "median": round(median, 4)}

    return {
        "n": outcome.before.n,
        "kept": outcome.kept,
        "before": figures(outcome.before.mape, outcome.before.median),
        "after": figures(outcome.after.mape, outcome.after.median),
    }


def _section(profile: Profile, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The constants and factors that are the profile's own."""
    calibration = profile.calibration
    data: dict[str, Any] = {}
    places = set(calibration.changed) if calibration else set()
    for outcome in outcomes:  # a class that takes another's constants gets a set of its own, to be trusted by itself
        kernels, _, pipeline = outcome.kernels.partition("/")
        if outcome.before.n >= LEAST_ROWS:
            places.add((kernels, pipeline))
    for kernels, pipeline in sorted(places):
        found = profile.sets.get((kernels, pipeline)) or profile.constants(kernels, pipeline)
        data.setdefault(kernels, {})[pipeline] = _constants(found)
    scales = {
        key: float(f"{correction.scale:.5g}")
        for key, correction in sorted(calibration.corrections.items() if calibration else ())
        if correction.scale != 1.0
    }
    if scales:
        data["scale"] = scales
    return data


def _constants(given: Any) -> dict[str, float]:
    shown = {}
    for field in fields(given):
        value = float(getattr(given, field.name))
        if value != field.default:
            micro = field.name.endswith("_s")
            shown[field.name.removesuffix("_s")] = float(f"{value * 1e6 if micro else value:.6g}")
    return shown


def _trust(profile: Profile, outcomes: Sequence[Outcome], chip: "Accelerator") -> dict[str, Any]:
    """How far rows lie from predictions, and what was fitted on what."""
    seen: dict[str, float] = {}
    fitted: dict[str, Any] = {}
    for outcome in outcomes:
        kernels, _, pipeline = outcome.kernels.partition("/")
        if outcome.before.n < LEAST_ROWS or kernels not in CLASSES:
            continue
        seen[kernels] = max(seen.get(kernels, 1.0), outcome.spread)
        after = outcome.after
        fitted[f"{kernels}/{pipeline}"] = {
            "rows": f"{after.n} rows of {chip.name}, {outcome.kept}",
            "on": {chip.name: chip.generation},
            "errors": f"held back: MAPE={after.mape:.1%} median={after.median:.1%} bias={after.bias:.3f}",
        }
    spreads = {}
    for kernels, factor in seen.items():
        base = profile.spreads.get(kernels)
        near, far = (base.near, base.far) if base else (factor, factor)
        spreads[kernels] = {
            "seen": round(factor, 3),
            "near": round(max(near, factor), 3),
            "far": round(max(far, factor), 3),
        }
    return {"spread": spreads, "fitted": fitted} if fitted else {}
