"""A user's own nn.Module with example inputs: one step of it, and its Graph at their shape."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain

import torch
from torch.utils._pytree import tree_leaves, tree_map

from foretrace.ir import ForetraceError, Graph

from .build import merge
from .models import UserModel
from .phases import Step
from .recorder import record
from .symbolic import DimSolver
from .training import own_step, record_training, set_to_train, train_step

PHASES = ("forward", "train")


def user_step(model: UserModel, phase: str, device: str, optimizer: str | None = None) -> tuple[torch.nn.Module, Step]:
    """*model* moved to *device* and the step that runs it on its example inputs (integers stay real on meta)."""
    if phase not in PHASES:
        raise ForetraceError(
            f"{model.name}: a module of your own runs in phase {' or '.join(PHASES)} only, got {phase!r}"
        )

    def move(value: object) -> object:
        if not isinstance(value, torch.Tensor):
            return value
        on_meta = device == "meta" and not (value.dtype.is_floating_point or value.dtype.is_complex)
        return value if on_meta else value.detach().to(device).requires_grad_(value.requires_grad)

    args, kwargs = tree_map(move, (model.args, dict(model.kwargs)))
    leaves = tree_leaves((args, kwargs))
    inputs = {f"input.{i}": t for i, t in enumerate(leaves) if isinstance(t, torch.Tensor)}
    root, own = model.module, model.step
    _move(root, device)
    step = Step(inputs, lambda: _results(root(*args, **kwargs)))
    if phase != "train":
        return root, step
    notes = tuple(set_to_train(root))
    if own is not None:
        step = own_step(root, inputs, lambda: own(root, *args, **kwargs), optimizer)
    else:
        step = train_step(root, step, optimizer)
    return root, replace(step, notes=notes)


def _results(out: object) -> dict[str, torch.Tensor]:
    loss = out.get("loss") if isinstance(out, Mapping) else getattr(out, "loss", None)
    leaves = tree_leaves(dict(out) if isinstance(out, dict) else out)
    found = {f"output.{i}": t for i, t in enumerate(leaves) if isinstance(t, torch.Tensor)}
    return found | ({"loss": loss} if isinstance(loss, torch.Tensor) else {})


def _move(root: torch.nn.Module, device: str) -> None:
    """*root* to *device*, its tensors the same objects as before: tied ones stay one, and an optimizer still has them
    (`Module.to` replaces each on the way to meta)."""
    for tensor in {id(t): t for t in chain(root.parameters(), root.buffers())}.values():
        there = tensor.detach().to(device)
        if isinstance(tensor, torch.nn.Parameter):
            there = torch.nn.Parameter(there, requires_grad=tensor.requires_grad)
        if there.device != tensor.device:
            torch.utils.swap_tensors(tensor, there)


def refuse_flags(model: UserModel, **given: object) -> None:
    """Raise `ForetraceError` for flags that a module of one's own does not take: its function says its sizes."""
    if flags := [f"--{name}" for name, value in given.items() if value is not None]:
        raise ForetraceError(
            f"{', '.join(flags)}: {model.name} is captured at the sizes and in the dtype of the inputs and module that "
            "it returns; change them there"
        )


def capture_user_model(model: UserModel, phase: str, optimizer: str | None = None) -> Graph:
    """The Graph of one step of *model* on its example inputs; every size is fixed to theirs.

    Raises `ForetraceError` with the module's own error where it fails on meta.
    """
    try:
        root, step = user_step(model, phase, "meta", optimizer)
        recording = record_training(root, step) if phase == "train" else record(root, step.run, step.inputs)
    except ForetraceError:
        raise
    except Exception as e:  # the user's code: any error is theirs to see
        what = "forward" if phase == "forward" else "training step"
        raise ForetraceError(f"{model.name}: its {what} failed on the meta device: {type(e).__name__}: {e}") from e
    metadata = {"source": model.name, "recorder": "dispatcher", "torch": torch.__version__.split("+")[0]}
    metadata |= {} if optimizer is None else {"optimizer": optimizer}
    metadata |= {f"note.{i}": note for i, note in enumerate([*step.notes, *sorted(recording.notes)])}
    return merge(model.name, phase, {}, [(recording, {})], DimSolver([{}], []), metadata)
