"""What one operator takes: cost models by name. A model prices the rows of `OpColumns` on a system, all at once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from foretrace.ir import UnknownNameError
from foretrace.replay.columns import Floats, OpColumns

if TYPE_CHECKING:
    from foretrace.hardware import System

BOUNDS: Final = ("matrix", "vector", "special", "memory", "launch", "free")
"""What limits an op: a unit of the chip, the memory, the shortest kernel there is; free: the device does nothing."""


@dataclass(frozen=True, eq=False)
class Costs:
    """The price of each row of a table."""

    seconds: Floats
    """[r] s on the device, host time left out."""
    low_s: Floats
    high_s: Floats
    bound: NDArray[np.int8]
    """[r] index into `BOUNDS`."""
    unmodelled: tuple[str, ...] = ()
    """Names of the operators priced by their bytes alone, sorted."""
    warnings: tuple[str, ...] = ()


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


_MODELS: Final[dict[str, Callable[[], CostModel]]] = {"roofline": _roofline}


def load_costs(name: str) -> CostModel:
    """The cost model called *name*. Raises `UnknownNameError` with the nearest names."""
    if name not in _MODELS:
        raise UnknownNameError("cost model", name, _MODELS, f"there is: {', '.join(_MODELS)}")
    return _MODELS[name]()
