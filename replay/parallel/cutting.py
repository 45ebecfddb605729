"""A local graph cut into stages: what each stage runs and reads, worked out once for all plans that cut it so."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from foretrace.ir import Graph, Role
from foretrace.replay.columns import Floats, Ints
from foretrace.transforms.schedules import Pass
from foretrace.transforms.stages import OpPass

from .flow import Flow, Gradients, crossing_bytes, crossing_reads, needed_by

if TYPE_CHECKING:
    from .outline import Outline

PASSES = {
    Pass.FORWARD: (OpPass.FORWARD,),
    Pass.BACKWARD: (OpPass.BACKWARD_INPUT, OpPass.BACKWARD_WEIGHT),
    Pass.BACKWARD_INPUT: (OpPass.BACKWARD_INPUT,),
    Pass.BACKWARD_WEIGHT: (OpPass.BACKWARD_WEIGHT,),
}
_Made = TypeVar("_Made")


@dataclass(frozen=True, eq=False)
class Cutting:
    """What is known of a graph that is cut into stages."""

    outline: "Outline"
    stage: Ints
    """[ops]"""
    passes: Ints
    """[ops] an `OpPass`."""
    gradients: Gradients
    size: Floats
    """[tensors] bytes of parameters, gradients and optimizer state; 0 of what depends on the micro-batch."""
    _made: dict[Hashable, Any] = field(default_factory=dict)

    @property
    def graph(self) -> Graph:
        """What is cut."""
        return self.outline.graph

    @property
    def flow(self) -> Flow:
        """Who reads what."""
        return self.outline.flow

    @property
    def place(self) -> Ints:
        """[ops] the layer of each."""
        return self.outline.layers.place

    @property
    def layers(self) -> int:
        """How many there are."""
        return self.outline.layers.count

    def once(self, key: Hashable, make: Callable[[], _Made]) -> _Made:
        """What *make* gives, made once for each *key*."""
        if key not in self._made:
            self._made[key] = make()
        found: _Made = self._made[key]
        return found

    @cached_property
    def parameters(self) -> tuple[Ints, Ints]:
        """Pairs (op, parameter) of reads by forwards and backwards."""
        flow = self.flow
        is_parameter = flow.is_role(Role.PARAMETER)[flow.storage[flow.read]]
        some = is_parameter & (self.stage[flow.read_op] >= 0)
        return flow.read_op[some], flow.storage[flow.read[some]]

    def program(self, stage: int, work: int) -> Ints:
        """The ops of one row of a schedule, in program order; what every stage derives for itself stands first."""
        return self.once((stage, work), lambda: self._program(stage, work))

    def _program(self, stage: int, work: int) -> Ints:
        parts = [self._groups.get(stage * 8 + p, np.zeros(0, np.int64)) for p in PASSES[Pass(work)]]
        own = np.sort(np.concatenate(parts))
        if work == Pass.FORWARD and stage:
            own = np.concatenate([needed_by(self.outline.derived_reads, own), own])
        return own

    def crossing(self, size: Floats, stages: int) -> Floats:
        """[2, stages - 1] bytes that a micro-batch sends over each cut, forward and backward; *size* [tensors]."""
        return crossing_bytes(self.flow, self.stage, self.passes, self._crossing, size, stages)

    @cached_property
    def _crossing(self) -> tuple[Ints, Ints, Ints]:
        return crossing_reads(self.flow, self.stage, self.outline.derived)

    @cached_property
    def _groups(self) -> dict[int, Ints]:
        """The ops of each stage and `OpPass`, ascending."""
        code = self.stage * 8 + self.passes
        order = np.argsort(code, kind="stable")
        found, first = np.unique(code[order], return_index=True)
        return dict(zip(found.tolist(), np.split(order, first[1:]), strict=True))
