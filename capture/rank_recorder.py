"""The recorder of one rank of a distributed program: the local operators and the collectives between them.

A DTensor is seen twice, as itself and as the operators on its local tensor; only those are recorded. FSDP2 writes
weights into buffers of which views were made before, and frees them by hand: a read of such a view depends on the last
write, and what is written after a free is new memory.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from .aten import is_collective
from .collectives import SAME, assume_peers, collective_of, leaves
from .recorder import RawOp, Recording, _signature
from .training import TrainingRecorder

_ALIAS = torch.ops.aten.alias.default
_EMPTY = torch.ops.aten.empty.memory_format
_FILLED = {"fsdp::all_gather_copy_in": ("all_gather_output",), "fsdp::split_with_sizes_copy": ("out",)}
_FILLED |= {"fsdp::chunk_cat": ("out",)}
"""Operators of FSDP2 that fill an argument without reading it: these arguments are no inputs."""


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """The plain tensor of this rank that a DTensor, or the result of a running collective, stands for."""
    inner = getattr(tensor, "_local_tensor", None)
    inner = getattr(tensor, "elem", None) if inner is None else inner
    return tensor if inner is None else local_of(inner)


class RankRecorder(TrainingRecorder):
    """Records one rank. `groups` names process groups by mesh dimension; `unsharded` are FSDP2's gathered parameters
    by address: those that autograd stores gradients for. `gradients` are the buffers, by address, that a pipeline
    stage sends and receives in its backward."""

    def __init__(self, root: torch.nn.Module, groups: Mapping[str, str]) -> None:
        super().__init__()
        self.root, self.groups = root, groups
        self.unsharded: dict[int, str] = {}
        self.gradients: set[int] = set()
        self._pinned: tuple[str, str] | None = None
        self._written: dict[int, int] = {}  # storage → the last value written to it

    def declare(self, tensor: torch.Tensor, role: str, name: str) -> int:
        """As `Recorder.declare`, of the local tensor; a view whose memory was written since is a new view of that."""
        local = local_of(tensor)
        if role == "input" and self._phase_now() == "backward":
            role = "buffer"  # where gradients are gathered, kept from step to step
        known = self._ids.get(local._cdata)
        if local.layout is not torch.strided:
            return super().declare(local, role, name)
        storage = local.untyped_storage()._cdata
        last = self._written.get(storage)
        if known is None and last is None and storage in self._storages:
            last = self._storages[storage]  # another view of a parameter
        if last is not None and (known is None or known < last):
            known = self._number(local)
            self.recording.ops.append(RawOp(_ALIAS, [last], [known], {}, self.module, self.phase))
        elif known is None:
            known = self._number(local, role, name)
        self._ids[tensor._cdata] = known
        if local is not tensor:
            self._seen.append(torch._C._WeakTensorRef(tensor))  # type: ignore[attr-defined]
        return known

    def allocate(self, tensor: torch.Tensor) -> None:
        """FSDP2 gives *tensor*, which it had freed, memory again."""
        self.free(tensor)
        number = self._number(tensor)
        self.recording.ops.append(RawOp(_EMPTY, [], [number], {}, self.module, self._phase_now()))
        self._written[tensor.untyped_storage()._cdata] = number

    def free(self, tensor: torch.Tensor) -> None:
        """FSDP2 frees the memory of *tensor*: what is written there next is new."""
        storage = tensor.untyped_storage()._cdata
        self._storages.pop(storage, None)
        self._written.pop(storage, None)

    @contextmanager
    def inside(self, module: str, backward: bool) -> Iterator[None]:
        """What is recorded meanwhile belongs to *module*, whatever autograd runs; to the backward pass if it runs, or
        *backward* says so."""
        backward = backward or torch._C._current_graph_task_id() >= 0
        before, self.module, self._pinned = self.module, module, (module, "backward" if backward else "forward")
        try:
            yield
        finally:
            self.module, self._pinned = before, None

    def move(self, module: str, depth: int) -> None:
        """As `Recorder.move`; autograd nodes made so far belong to the module before."""
        self._attribute_nodes()
        super().move(module, depth)

    def finish(self, results: Mapping[str, torch.Tensor]) -> Recording:
        """As `Recorder.finish`, by local tensors."""
        self._name_gradients()
        return super().finish({n: local_of(t) for n, t in results.items()})

    def _step(self, optimizer: Any, begins: bool) -> None:
        self._name_gradients()
        plain = all(type(p) is torch.nn.Parameter for g in optimizer.param_groups for p in g["params"])
        if plain:
            super()._step(optimizer, begins)
        else:  # torch takes multi-tensor operators by itself for plain tensors alone
            self._stepping = begins
            self.optimizers[id(optimizer)] = optimizer

    def _name_gradients(self) -> None:
        for name, parameter in self.root.named_parameters():
            if parameter.grad is None or (number := self._ids.get(local_of(parameter.grad)._cdata)) is None:
                continue
            tensors = self.recording.tensors
            for t in (tensors[number], tensors[tensors[number].storage]):
                if t.role == "activation":
                    t.role, t.name = "gradient", name

    def _origin(self) -> str:
        return super()._origin() if self._pinned is None else self._pinned[0]

    def _phase_now(self) -> str:
        return super()._phase_now() if self._pinned is None else self._pinned[1]

    def _accumulated(self) -> str | None:
        node: Any = torch._C._current_autograd_node()
        if node is not None and hasattr(node, "variable") and (name := self.unsharded.get(node.variable._cdata)):
            return name
        return super()._accumulated()

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = super()._run(func, args, kwargs)
        if is_collective(func) and assume_peers(func, args, kwargs, out):
            self.recording.notes.add(SAME)
        return out

    def _note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Write one operator down, of whose phase and module the caller took care."""
        if is_collective(func):
            self._collective(func, args, kwargs, out)
            return
        names, dropped = _signature(func).names, _FILLED.get(func._schema.name)
        if dropped:
            filled = dict(zip(names, args, strict=False)) | kwargs
            inputs = [self.declare(t, "input", "") for n, v in filled.items() if n not in dropped for t in leaves(v)]
            written = leaves(out)[:1] or [t for n in dropped for t in leaves(filled[n])]
            self._append(func, inputs, written, {})
            return
        count = len(self.recording.ops)
        super()._note(func, args, kwargs, out)
        writes = [t for i in _signature(func).writes if i < len(args) for t in leaves(args[i])]
        if len(self.recording.ops) > count and writes:
            self._wrote(writes, self.recording.ops[-1].outputs)

    def _collective(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        call = collective_of(func, args, kwargs, out, self.groups)
        if any(t._cdata in self.gradients for t in (*call.reads, *call.writes)):
            self.phase = "backward"
        inputs = [self.declare(t, "input", "") for t in call.reads]
        self._append(func, inputs, call.writes, call.attributes)

    def _append(self, func: Any, inputs: list[int], written: list[torch.Tensor], literals: dict[str, Any]) -> None:
        outputs = [self._number(t) for t in written]
        self.recording.ops.append(RawOp(func, inputs, outputs, literals, self.module, self.phase))
        self._wrote(written, outputs)

    def _wrote(self, tensors: list[torch.Tensor], numbers: list[int]) -> None:
        """Remember the last write to each storage; *numbers* are the results, in no order of *tensors*."""
        for number in numbers:
            storage = self.recording.tensors[number].storage
            for tensor in tensors:
                at = tensor.untyped_storage()._cdata
                if self._storages.get(at) == storage:
                    self._written[at] = number
