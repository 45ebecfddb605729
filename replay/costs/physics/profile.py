"""Kernel-library profiles: how a piece of software drives each pipeline, as constants read from YAML.

A profile holds, for each class of kernels (`CLASSES`), one set of constants a pipeline. `extends` names the profile
that the rest comes from. Hardware facts stay in `hardware/`; a hypothetical chip changes those and picks one of these.
"""

import contextlib
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from foretrace.ir import ForetraceError, UnknownNameError

from .attention import DecodeConstants, PrefillConstants
from .calibrated import KEYS, Calibration, read_calibration
from .collective import FAMILIES, PROTOCOLS, Launching, Own, Protocol, Shots
from .convolution import ConvolutionConstants
from .facts import GENERIC
from .gemm import GemmConstants
from .grouped import GroupedConstants
from .hosting import Hosting, Pace
from .memory_bound import StreamConstants, TrafficConstants
from .packed import PackedConstants
from .spread import UNKNOWN, Spread, distance_of

if TYPE_CHECKING:
    from foretrace.hardware import Accelerator

FOLDER: Final = Path(__file__).parent.parent / "profiles"
MAX_BYTES: Final = 4 * 2**20

CLASSES: Final[Mapping[str, type]] = {
    "gemm": GemmConstants,
    "gemm_8bit": GemmConstants,
    "gemm_block_scaled": GemmConstants,
    "gemm_triton": GemmConstants,
    "packed": PackedConstants,
    "prefill": PrefillConstants,
    "prefill_8bit": PrefillConstants,
    "prefill_triton": PrefillConstants,
    "encoder": PrefillConstants,
    "decode": DecodeConstants,
    "decode_8bit": DecodeConstants,
    "latent_prefill": PrefillConstants,
    "latent_decode": DecodeConstants,
    "convolution": ConvolutionConstants,
    "stream": StreamConstants,
    "traffic": TrafficConstants,
    "grouped_cutlass": GroupedConstants,
    "grouped_cutlass_8bit": GroupedConstants,
    "grouped_cutlass_block": GroupedConstants,
    "grouped_cutlass_4bit": GroupedConstants,
    "grouped_triton": GroupedConstants,
    "grouped_triton_8bit": GroupedConstants,
    "grouped_triton_4bit": GroupedConstants,
    "grouped_marlin": GroupedConstants,
    "grouped_flashinfer": GroupedConstants,
    "collective": Own,
    **{f"{family}_{protocol}": Protocol for family in FAMILIES for protocol in PROTOCOLS},
    "shots": Shots,
    "launching": Launching,
    "hosting": Hosting,
    "pace": Pace,
}
"""What a profile may hold, and the constants of each. A class after an underscore falls back to the one before it."""

FALLS_BACK: Final = {
    "gemm_8bit": "gemm",
    "gemm_block_scaled": "gemm_8bit",
    "gemm_triton": "gemm_8bit",
    "prefill_8bit": "prefill",
    "prefill_triton": "prefill",
    "encoder": "prefill",
    "decode_8bit": "decode",
    "latent_prefill": "prefill",
    "latent_decode": "decode",
    "grouped_cutlass_8bit": "grouped_cutlass",
    "grouped_cutlass_block": "grouped_cutlass_8bit",
    "grouped_cutlass_4bit": "grouped_cutlass",
    "grouped_triton": "grouped_cutlass",
    "grouped_triton_8bit": "grouped_triton",
    "grouped_triton_4bit": "grouped_triton",
    "grouped_marlin": "grouped_cutlass",
    "grouped_flashinfer": "grouped_cutlass",
}

EXPERTS: Final = ("cutlass", "triton", "marlin", "flashinfer")
"""Families of kernels of grouped products, the first part of an operator's name (``triton.grouped_mm``)."""


@dataclass(frozen=True)
class Profile:
    """The constants of one kernel library."""

    name: str
    sets: Mapping[tuple[str, str], Any]
    """(class, pipeline) → constants."""
    timing_floor_s: Mapping[str, float]
    """Kind of op → s that an eager call of it takes between two events on an idle device: the host's own time."""

    fitted_on: Mapping[tuple[str, str], Mapping[str, str]] = field(default_factory=dict)
    """(class, pipeline) → the chips whose rows were fitted, and the generation of each."""
    spreads: Mapping[str, Spread] = field(default_factory=dict)
    """Class → how far measurements lie from its predictions."""
    correlation: float = 0.25
    """Share of the variance of log errors that all operators of a chip have in common (see `costs.interval`)."""
    experts: str = EXPERTS[0]
    """The family that runs a grouped product whose operator names none."""
    calibration: Calibration | None = None
    """What a user's own measurements changed; None: nothing."""

    def driven_by(self, software: str) -> "tuple[Profile, str]":
        """The profile for *software*, and the software that it was calibrated on.

        A profile that was not calibrated stands for any software. One that was has sections by software; any other
        keeps its own constants but for the classes that were calibrated.
        """
        calibration = self.calibration
        if calibration is None or software == calibration.software:
            return self, software
        if software in calibration.others:
            return calibration.others[software], software
        if software not in profile_names():
            return self, calibration.software
        own = {key: self.sets[key] for key in calibration.changed}
        base = load_profile(software)
        fitted_on = {**base.fitted_on, **{key: self.fitted_on.get(key, {}) for key in own}}
        over = replace(base, sets={**base.sets, **own}, fitted_on=fitted_on, calibration=calibration)
        return over, calibration.software

    def spread(self, kernels: str, pipeline: str, chip: "Accelerator") -> float:
        """Factor to either side of a prediction of class *kernels* on *chip* that holds 80 % of measurements."""
        found = self.key(kernels, pipeline)
        name: str | None = kernels
        while name is not None and name not in self.spreads:
            name = FALLS_BACK.get(name)
        spread = UNKNOWN if name is None else self.spreads[name]
        return spread.of(distance_of(chip, self.fitted_on.get(found, {})))

    def constants(self, kernels: str, pipeline: str) -> Any:
        """The constants of class *kernels* for *pipeline*.

        Without any of its own a pipeline takes those of `facts.GENERIC`, a class those of the one it falls back to.
        """
        return self.sets[self.key(kernels, pipeline)]

    def key(self, kernels: str, pipeline: str) -> tuple[str, str]:
        """The (class, pipeline) whose constants class *kernels* takes on *pipeline*."""
        name: str | None = kernels
        while name is not None:
            for asked in (pipeline, _nearest(pipeline)):
                if (name, asked) in self.sets:
                    return name, asked
            name = FALLS_BACK.get(name)
        name = kernels
        while (name, GENERIC) not in self.sets:
            if name not in FALLS_BACK:
                raise ForetraceError(
                    f"profile {self.name}: no {kernels} for {pipeline} or {GENERIC}: extend one (extends: serving)"
                )
            name = FALLS_BACK[name]
        return name, GENERIC

    def find(self, kernels: str, pipeline: str) -> Any | None:
        """The constants of class *kernels* itself for *pipeline*, else for any (`facts.GENERIC`); None without any."""
        asked = ((kernels, name) for name in (pipeline, _nearest(pipeline), GENERIC))
        return next((self.sets[key] for key in asked if key in self.sets), None)


def _nearest(pipeline: str) -> str:
    """A pipeline of ordinary units is named after its generation (``simt-ampere``); the newest stands for the rest."""
    return "simt-ampere" if pipeline.startswith("simt") else pipeline


def profile_names() -> list[str]:
    """The profiles that ship, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@lru_cache(maxsize=32)
def load_profile(name: str) -> Profile:
    """The shipped profile called *name*, or that of a YAML file at the path *name*.

    Raises `UnknownNameError` for a name that does not exist, `ForetraceError` for a file that is no profile.
    """
    if name.endswith((".yaml", ".yml")):
        return _read(Path(name), ())
    if name not in profile_names():
        raise UnknownNameError("kernel-library profile", name, profile_names(), f"one of {', '.join(profile_names())}")
    return _read(FOLDER / f"{name}.yaml", ())


def _read(path: Path, chain: tuple[str, ...]) -> Profile:
    return _build(path, read_yaml(path), chain)


def _build(path: Path, data: dict[str, Any], chain: tuple[str, ...]) -> Profile:
    own: dict[str, Any] = {key: data.pop(key) for key in KEYS if key in data}
    base: Profile | None = None
    if (extends := data.pop("extends", None)) is not None:
        if extends in chain:
            raise ForetraceError(f"{path}: extends: {extends} extends itself: {' → '.join((*chain, extends))}")
        if extends not in profile_names():
            raise ForetraceError(f"{path}: extends: no profile {extends!r}: one of {', '.join(profile_names())}")
        base = _read(FOLDER / f"{extends}.yaml", (*chain, str(extends)))
    sets = dict(base.sets) if base else {}
    floors = dict(base.timing_floor_s) if base else {}
    fitted_on = dict(base.fitted_on) if base else {}
    spreads = dict(base.spreads) if base else {}
    correlation = base.correlation if base else 0.25
    experts = base.experts if base else EXPERTS[0]
    for key, value in data.items():
        if key == "title":
            continue
        if key == "experts":
            if (experts := str(value)) not in EXPERTS:
                raise ForetraceError(f"{path}: {key}: expected one of {', '.join(EXPERTS)}, got {value!r}")
            continue
        if key == "correlation":
            correlation = min(_number(path, key, value), 1.0)
            continue
        if not isinstance(value, dict):
            raise ForetraceError(f"{path}: {key}: expected a mapping")
        if key == "timing_floor":
            floors |= {
                kind: _number(path, f"{key}.{kind}", given) * (1.0 if kind.endswith("_share") else 1e-6)
                for kind, given in value.items()
            }
        elif key == "fitted":
            for name, said in value.items():
                kernels, _, pipeline = str(name).partition("/")
                on = said.get("on", {}) if isinstance(said, dict) else {}
                fitted_on[kernels, pipeline] = {str(k): str(v) for k, v in on.items()}
        elif key == "spread":
            for kernels, given in value.items():
                spread: Spread = _constants(path, f"{key}.{kernels}", Spread, given)
                if not 1 <= spread.seen <= spread.near <= spread.far < math.inf:
                    raise ForetraceError(f"{path}: {key}.{kernels}: expected 1 <= seen <= near <= far")
                spreads[str(kernels)] = spread
        elif key in CLASSES:
            for pipeline, constants in value.items():
                sets[key, str(pipeline)] = _constants(path, f"{key}.{pipeline}", CLASSES[key], constants)
        else:
            raise ForetraceError(f"{path}: {key}: no class of kernels: one of {', '.join(CLASSES)}")
    calibration = read_calibration(path, own, str(extends or path.stem), lambda section: _build(path, section, chain))
    if calibration is not None:
        changed = frozenset((str(k), str(p)) for k in data.keys() & CLASSES.keys() for p in data[k])
        calibration = replace(calibration, changed=changed)
    return Profile(path.stem, sets, floors, fitted_on, spreads, correlation, experts, calibration)


def _constants(path: Path, where: str, of: type, given: Any) -> Any:
    """Those of one class for one pipeline; times are written in microseconds, without their suffix `_s`."""
    if not isinstance(given, dict):
        raise ForetraceError(f"{path}: {where}: expected a mapping of constants")
    values = {}
    known = {f.name.removesuffix("_s") if f.name.endswith("_s") else f.name: f for f in fields(of)}
    for key, value in given.items():
        if key not in known:
            raise ForetraceError(f"{path}: {where}.{key}: no such constant: one of {', '.join(known)}")
        number = _number(path, f"{where}.{key}", value)
        values[known[key].name] = number * 1e-6 if known[key].name.endswith("_s") else number
    missing = [k for k, f in known.items() if f.default is MISSING and f.name not in values]
    if missing:
        raise ForetraceError(f"{path}: {where}: missing {', '.join(missing)}")
    return of(**values)


def _number(path: Path, where: str, value: Any) -> float:
    if isinstance(value, str):
        with contextlib.suppress(ValueError):  # YAML 1.1 reads 1e6 as text
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or value < 0:
        raise ForetraceError(f"{path}: {where}: expected a number of 0 or more, got {value!r}")
    return float(value)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, as plain data. Raises `ForetraceError`: unreadable, too long, no mapping."""
    import yaml

    try:
        if path.stat().st_size > MAX_BYTES:
            raise ForetraceError(f"{path}: over {MAX_BYTES:,} bytes: no profile")
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ForetraceError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ForetraceError(f"{path}: expected a mapping, got {type(data).__name__}")
    return {str(key): value for key, value in data.items()}
