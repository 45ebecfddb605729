"""A user's own nn.Module with example inputs → Graph, at the shape of those inputs."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from foretrace.ir import ForetraceError, Graph

from .build import merge
from .models import UserModel
from .recorder import META, record
from .symbolic import DimSolver


def capture_user_model(model: UserModel, phase: str) -> Graph:
    """The Graph of one forward of *model* on its example inputs; every size is fixed to theirs.

    Raises `ForetraceError` with the module's own error where its forward fails on meta.
    """
    if phase != "forward":
        raise ForetraceError(f"{model.name}: a module of your own is captured in phase forward only, got {phase!r}")
    args, kwargs = tree_map(_on_meta, (model.args, dict(model.kwargs)))
    inputs = {f"input.{i}": t for i, t in enumerate(tree_leaves((args, kwargs))) if isinstance(t, torch.Tensor)}
    root = model.module.to(META)

    def run() -> Mapping[str, torch.Tensor]:
        leaves = tree_leaves(_plain(root(*args, **kwargs)))
        return {f"output.{i}": t for i, t in enumerate(leaves) if isinstance(t, torch.Tensor)}

    try:
        recording = record(root, run, inputs)
    except Exception as e:  # the user's code: any error is theirs to see
        raise ForetraceError(f"{model.name}: its forward failed on the meta device: {type(e).__name__}: {e}") from e
    metadata = {"source": model.name, "recorder": "dispatcher", "torch": torch.__version__.split("+")[0]}
    return merge(model.name, phase, {}, [(recording, {})], DimSolver([{}], []), metadata)


def _on_meta(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and (value.dtype.is_floating_point or value.dtype.is_complex):
        return value.to(META)
    return value


def _plain(value: Any) -> Any:
    """Output classes of other libraries (dicts with attributes) as plain dicts."""
    return dict(value) if isinstance(value, Mapping) else value
