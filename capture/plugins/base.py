"""What a plug-in is made of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foretrace.ir import OpKind, Tensor

Geometry = Callable[[Sequence[Tensor], Sequence[Tensor], Mapping[str, Any]], dict[str, Any]]
"""Input tensors, output tensors, literal arguments → the sizes a cost model of the kind reads."""


@dataclass(frozen=True, slots=True)
class OpSpec:
    """What a plug-in's own operator is in the Graph: its kind, its geometry, the name it goes by there."""

    kind: OpKind
    geometry: Geometry
    name: str
