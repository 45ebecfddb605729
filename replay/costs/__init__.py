"""What one operator takes: cost models by name. A model prices the rows of `OpColumns` on a system, all at once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from foretrace.ir import ForetraceError, UnknownNameError
from foretrace.replay.columns import Floats, Ints, OpColumns

if TYPE_CHECKING:
    from foretrace.hardware import System

BOUNDS: Final = ("matrix", "vector", "special", "memory", "launch", "free", "cache", "link")
"""What limits an op: a unit of the chip, the memory, the shortest kernel there is, the shared cache that feeds the
cores, the links; free: the device does nothing."""


class UnreachableError(ForetraceError):
    """A collective among accelerators that no link of the system joins."""


@dataclass(frozen=True, eq=False)
class Costs:
    """The price of each row of a table."""

    seconds: Floats
    """[r] s on the device, host time left out."""
    low_s: Floats
    high_s: Floats
    bound: NDArray[np.int8]
    """[r] index into `BOUNDS`."""
    floor_s: Floats | None = None
    """[r] s that an eager call of each op takes between two events on an idle device: the host's own time, part of
    what a table of eager timings holds. None: the model knows of none."""
    gap_s: float = 0.0
    """s that such a timing holds besides the device's: from the first event to the kernel, and to the second."""
    correlation: float = 1.0
    """Share of the variance of the ops' log errors that they have in common (see `interval`)."""
    unmodelled: tuple[str, ...] = ()
    """Names of the operators priced by their bytes alone, sorted."""
    warnings: tuple[str, ...] = ()

    def timed(self, row: Ints, rows: int, eager: bool) -> Floats:
        """[rows] s that a measurement of each row shows, whose ops are those with that *row* [r].

        An *eager* one holds the gap between the events, and is no shorter than the host's own time.
        """
        total: Floats = np.bincount(row, self.seconds, minlength=rows).astype(np.float64)
        if not eager or self.floor_s is None:
            return total
        floor = np.zeros(rows)
        np.maximum.at(floor, row, self.floor_s)
        return np.asarray(np.maximum(total + self.gap_s, floor), np.float64)


class CostModel(Protocol):
    """Table in, table out."""

    @property
    def name(self) -> str:
        """What ``--costs`` calls it."""
        ...

    def price(self, columns: OpColumns, system: "System", software: str = "eager") -> Costs:
        """Price every row of *columns* on one accelerator of *system*, driven by the kernels of *software*."""
        ...


def _roofline() -> CostModel:
    from .roofline import Roofline

    return Roofline()


def _physics() -> CostModel:
    from .physics import Physics

    return Physics()


_MODELS: Final[dict[str, Callable[[], CostModel]]] = {"physics": _physics, "roofline": _roofline}


def load_costs(name: str) -> CostModel:
    """The cost model called *name*, or that of a profile: a YAML file of yours, or ``physics:PROFILE``.

    Raises `UnknownNameError` with the nearest names.
    """
    if name.endswith((".yaml", ".yml")) or name.startswith("physics:"):
        from .physics import Physics, load_profile

        return Physics(load_profile(name.removeprefix("physics:")), name)
    if name not in _MODELS:
        raise UnknownNameError("cost model", name, _MODELS, f"there is: {', '.join(_MODELS)}")
    return _MODELS[name]()
