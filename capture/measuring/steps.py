"""A model's step on a real device: random weights, random inputs, the same program that `capture_graph` records."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._pytree import tree_leaves, tree_map

from foretrace.capture.families import position_limits
from foretrace.capture.models import PretrainedModel, UserModel
from foretrace.capture.phases import make_step, symbols_of
from foretrace.capture.training import OPTIMIZERS, check_optimizer, set_to_train, train_step
from foretrace.capture.user import refuse_flags, user_step
from foretrace.ir import ForetraceError

STATES = {"adam": 2, "adamw": 2, "sgd": 0, "adafactor": 0, "muon": 1}
"""Tensors of the parameters' size that an optimizer keeps, at least."""
Run = Callable[[], Any]


def nothing() -> None:
    """What comes before a step that needs nothing."""


@dataclass(frozen=True)
class Work:
    """A step for real: the call, what comes before each and is no part of it, the module that it is annotated with."""

    name: str
    run: Run
    root: torch.nn.Module | None = None
    ready: Run = nothing
    point: Mapping[str, int] = field(default_factory=dict)
    tensors: tuple[torch.Tensor, ...] = ()
    optimizers: tuple[Optimizer, ...] = ()
    trains: bool = False
    notes: tuple[str, ...] = ()

    def resident_bytes(self) -> int:
        """Bytes of parameters, buffers, inputs and optimizer state, shared memory once."""
        held = list(self.tensors)
        if self.root is not None:
            held += chain(self.root.parameters(), self.root.buffers())
        held += tree_leaves([list(o.state.values()) for o in self.optimizers])
        strided = [t for t in held if isinstance(t, torch.Tensor) and t.layout is torch.strided]
        return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in strided}.values())

    @property
    def dtype(self) -> str:
        """Number format of the first parameter, "" without one."""
        first = None if self.root is None else next(self.root.parameters(), None)
        return "" if first is None else str(first.dtype).removeprefix("torch.")


def model_work(
    model: PretrainedModel,
    phase: str,
    device: str,
    given: Mapping[str, int],
    dtype: str | None,
    attention: str,
    optimizer: str | None,
) -> Work:
    """One step of *phase* of *model* at the *given* sizes. Raises `ForetraceError` where *device* cannot hold it."""
    check_optimizer(optimizer, phase)
    shapes = model.build(dtype, attention)
    limits = position_limits(shapes, model.family)
    point = {n: s.default for n, s in symbols_of(phase, given, model.family, model.config, limits).items()}
    _check_room(model.name, shapes, device, phase == "train", optimizer)
    torch.manual_seed(0)
    root = model.build(dtype, attention, device)
    notes = set_to_train(root.requires_grad_(True)) if phase == "train" else []
    with torch.no_grad():
        step = make_step(root, model.config, phase, point, device, model.family)
    tensors, run = tuple(step.inputs.values()), step.run
    if phase != "train":
        return Work(model.name, _without_gradients(run), root, step.ready, point, tensors)
    optimizers = _optimizers(root, optimizer)
    run = _training_run(train_step(root, step).run, optimizers)
    return Work(model.name, run, root, nothing, point, tensors, optimizers, True, tuple(notes))


def user_work(model: UserModel, phase: str, device: str, optimizer: str | None, **flags: Any) -> Work:
    """One step of a user's own module on *device*, or the step that their own function does.

    Raises `ForetraceError` for *flags*, which such a module does not take, and for a phase that it does not have.
    """
    check_optimizer(optimizer, phase)
    refuse_flags(model, **flags)
    if phase not in ("forward", "train"):
        user_step(model, phase, device)  # says what it runs in

    def move(value: object) -> object:
        if not isinstance(value, torch.Tensor):
            return value
        return value.detach().to(device).requires_grad_(value.requires_grad)

    args, kwargs = tree_map(move, (model.args, dict(model.kwargs)))
    root, step = user_step(replace(model, args=args, kwargs=kwargs), "forward", device)
    tensors = tuple(step.inputs.values())
    if phase == "forward":
        return Work(model.name, _without_gradients(step.run), root, tensors=tensors)
    notes, own = tuple(set_to_train(root)), model.step
    optimizers = _optimizers(root, optimizer)
    if own is None:
        run = train_step(root, step).run
    else:

        def run() -> Any:
            root.zero_grad(set_to_none=True)
            with torch.enable_grad():
                own(root, *args, **kwargs)

    run = _training_run(run, optimizers)
    return Work(model.name, run, root, tensors=tensors, optimizers=optimizers, trains=True, notes=notes)


def _without_gradients(run: Run) -> Run:
    def once() -> Any:
        with torch.no_grad():
            return run()

    return once


def _training_run(run: Run, optimizers: tuple[Optimizer, ...]) -> Run:
    def once() -> Any:
        results = run()
        for optimizer in optimizers:
            optimizer.step()
        return results

    return once


def _optimizers(root: torch.nn.Module, name: str | None) -> tuple[Optimizer, ...]:
    learning = [(n, p) for n, p in root.named_parameters() if p.requires_grad]
    if not learning:
        raise ForetraceError("phase 'train': no parameter of the model requires a gradient")
    return () if name is None else tuple(OPTIMIZERS[name](learning))


@contextmanager
def multi_tensor_optimizers() -> Iterator[None]:
    """Optimizers that leave it to torch take multi-tensor operators while the context is open: as captured, and as
    torch itself does on a GPU."""

    def before(optimizer: Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            if group.get("foreach", True) is None and not group.get("fused"):
                group["foreach"] = True

    hook: Any = register_optimizer_step_pre_hook(before)
    try:
        yield
    finally:
        hook.remove()


def _check_room(name: str, shapes: torch.nn.Module, device: str, trains: bool, optimizer: str | None) -> None:
    weights = sum(p.numel() * p.element_size() for p in shapes.parameters())
    size = weights * (2 + STATES.get(optimizer or "", 0) if trains else 1)
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else free_memory()
    if size > free:
        what = f"its weights, gradients and {optimizer or 'no'} optimizer state" if trains else "its weights"
        raise ForetraceError(
            f"{name} needs {size / 1e9:.1f} GB for {what} and {device} has {free / 1e9:.1f} GB free; "
            "replay predicts it without a device"
        )


def free_memory() -> int:
    """Bytes of host memory that can be taken, as far as the system says."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return min(int(line.split()[1]) << 10, _cgroup_room())
    except (OSError, ValueError):
        pass
    try:
        return int(os.sysconf("SC_AVPHYS_PAGES")) * int(os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):  # macOS and Windows do not say
        return 1 << 62


def _cgroup_room() -> int:
    """What a container's limit leaves; a great deal without one."""
    try:
        limit, used = (int((Path("/sys/fs/cgroup") / f).read_text()) for f in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # "max"
        return 1 << 62
    return max(limit - used, 0)
