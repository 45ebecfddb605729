"""What follows from a local graph alone, whatever the sizes: worked out once for all plans that run it."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from foretrace.ir import Graph, OpKind, Role
from foretrace.replay.columns import Floats, Ints, Mask
from foretrace.replay.lower import Program
from foretrace.transforms.stages import Layers, find_layers, pass_of, phase_of

from .flow import Flow, derived_ops, derived_reads, find_gradients, trace_flow

if TYPE_CHECKING:
    from .cutting import Cutting


@dataclass(frozen=True, eq=False)
class Outline:
    """The graph that runs, its layers, and who reads what."""

    graph: Graph
    cuttings: dict[Hashable, "Cutting"] = field(default_factory=dict)
    """What plans have cut of it so far."""
    programs: dict[bytes, Program] = field(default_factory=dict)
    """Lowered segments by their rows: what plans have made so far."""
    added_rows: dict[tuple[str, float], int] = field(default_factory=dict)
    """The number below 0 that stands in them for an op that a plan adds, by its name and seconds."""

    @cached_property
    def layers(self) -> Layers:
        """Its layers."""
        return find_layers(self.graph)

    @cached_property
    def flow(self) -> Flow:
        """Who reads what."""
        return trace_flow(self.graph)

    @cached_property
    def phases(self) -> Ints:
        """[ops] an `OpPass`, backwards whole."""
        return phase_of(self.graph)

    @cached_property
    def halves(self) -> Ints:
        """[ops] an `OpPass`, backwards in two."""
        return pass_of(self.graph, self.layers)

    @cached_property
    def derived(self) -> Mask:
        """[ops] what every stage makes for itself."""
        return derived_ops(self.graph, self.layers.place)

    @cached_property
    def derived_reads(self) -> tuple[Ints, Ints]:
        """Pairs (op, derived op that it reads a result of)."""
        return derived_reads(self.flow, self.derived)

    @cached_property
    def collective(self) -> Mask:
        """[ops] collectives."""
        return np.array([op.kind is OpKind.COLLECTIVE for op in self.graph.ops], np.bool_)

    @cached_property
    def again(self) -> Mask:
        """[ops] those that recomputation added."""
        return np.array(["recomputed" in op.attributes for op in self.graph.ops], np.bool_)

    @cached_property
    def trains(self) -> bool:
        """Whether there is a backward."""
        return any(op.phase == "backward" for op in self.graph.ops)

    def cutting(self, stage: Ints, halves: bool, size: Floats) -> "Cutting":
        """The graph cut into *stage* [ops]; *halves*: backwards come in two. *size* [tensors] bytes."""
        from .cutting import Cutting

        key = (stage.tobytes(), halves, size[self._lasting].tobytes())
        if key not in self.cuttings:
            lasting = np.where(self._lasting, size, 0.0)
            gradients = find_gradients(self.graph, self.flow, stage, lasting)
            self.cuttings[key] = Cutting(self, stage, self.halves if halves else self.phases, gradients, lasting)
        return self.cuttings[key]

    @cached_property
    def _lasting(self) -> Mask:
        """[tensors] what stays from step to step, and gradients: a micro-batch does not make them larger."""
        flow = self.flow
        found = flow.is_role(Role.PARAMETER, Role.GRADIENT, Role.OPTIMIZER_STATE)
        found[flow.storage[found]] = True
        return found

    @cached_property
    def optimizer(self) -> Ints:
        """The optimizer's ops."""
        return np.flatnonzero(np.array([op.phase == "optimizer" for op in self.graph.ops], np.bool_))

    @cached_property
    def touched(self) -> tuple[Ints, Ints]:
        """Pairs (op that starts work, storage that it reads or writes), storages that always stay left out."""
        flow = self.flow
        ops = np.concatenate([flow.read_op, flow.write_op])
        storages = flow.storage[np.concatenate([flow.read, flow.written])]
        stay = flow.is_role(Role.PARAMETER, Role.BUFFER, Role.OPTIMIZER_STATE, Role.KV_CACHE, Role.INPUT)
        some = flow.launching[ops] & ~stay[storages]
        return ops[some], storages[some]

    @cached_property
    def first_dims(self) -> Floats:
        """[tensors] the first dim of each parameter's shape; 1 where it has none, or one that is not known."""
        found = np.ones(len(self.graph.tensors))
        for t in np.flatnonzero(self.flow.is_role(Role.PARAMETER)).tolist():
            shape = self.graph.tensors[t].shape
            if shape and isinstance(shape[0], int) and shape[0] > 0:
                found[t] = shape[0]
        return found

    @cached_property
    def temporaries(self) -> tuple[Ints, Ints, Ints]:
        """Storages that the optimizer makes, and the first and the last op that touch each."""
        flow, ops = self.flow, self.optimizer
        if not ops.size:
            return ops, ops, ops
        at = np.concatenate([flow.read_op, flow.write_op])
        storages = flow.storage[np.concatenate([flow.read, flow.written])]
        some = at >= ops[0]
        made = flow.producer[storages[some]] >= ops[0]
        at, storages = at[some][made], storages[some][made]
        found, index = np.unique(storages, return_inverse=True)
        first, last = np.full(found.size, len(self.graph.ops)), np.zeros(found.size, np.int64)
        np.minimum.at(first, index, at)
        np.maximum.at(last, index, at)
        return found, first, last

    @cached_property
    def belongings(self) -> "Belongings":
        """Parameters with what belongs to them."""
        graph, flow = self.graph, self.flow
        ids = np.flatnonzero(flow.is_role(Role.PARAMETER) & (flow.storage == np.arange(flow.storage.size)))
        index = {graph.tensors[t].name: i for i, t in enumerate(ids.tolist())}
        of_storage = np.full(flow.storage.size, -1, np.int64)
        of_storage[ids] = np.arange(ids.size)
        gradient = np.full(ids.size, -1, np.int64)
        for t in np.flatnonzero(flow.is_role(Role.GRADIENT)).tolist():
            if (p := index.get(graph.tensors[t].name, -1)) >= 0:
                gradient[p] = flow.storage[t]
                of_storage[gradient[p]] = p
        states = []
        for t in np.flatnonzero(flow.is_role(Role.OPTIMIZER_STATE)).tolist():
            name = graph.tensors[t].name.split(".", 2)
            if flow.storage[t] == t and len(name) == 3 and (p := index.get(name[2], -1)) >= 0:
                of_storage[t] = p
                states.append((p, t))
        bits = np.array([graph.tensors[t].dtype.bits for t in ids.tolist()], np.float64)
        return Belongings(ids, bits, gradient, np.array(states, np.int64).reshape(-1, 2), of_storage)


class Belongings(NamedTuple):
    """p parameters and the storages of their gradients and optimizer state."""

    parameter: Ints
    """[p] tensor ids."""
    bits: Floats
    """[p] of one element."""
    gradient: Ints
    """[p] storage, -1: none."""
    states: Ints
    """[n, 2] a parameter (index) and a storage of its state."""
    of_storage: Ints
    """[tensors] the parameter (index) that a storage belongs to; -1: none."""
