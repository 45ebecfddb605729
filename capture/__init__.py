"""A model becomes a Graph, or (on a real device) a measured Trace.

`models` finds the model · `phases` makes a step of it, `training` a training step around that · `recorder` runs it on
meta and logs what is dispatched, `memo` keeps what an operator gave before · `plugins` keep what kernels do as one
operator · `shorten` records deep models at one layer of each kind · `symbolic` finds sizes as expressions · `aten` says
what an operator is · `build` assembles the Graph · `fx` takes torch.fx GraphModules in · `user` runs modules of your
own · `measure` runs for real. The names below import torch when first
used; `onnx` needs none.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .capture import capture_graph
    from .fx import GraphCollector, graph_from_fx
    from .measure import measure_model, measure_step
    from .models import catalogue, catalogue_name, resolve_model
    from .operators import measure_operators

_HOMES = {
    "GraphCollector": "fx",
    "capture_graph": "capture",
    "catalogue": "models",
    "catalogue_name": "models",
    "graph_from_fx": "fx",
    "measure_model": "measure",
    "measure_step": "measure",
    "measure_operators": "operators",
    "resolve_model": "models",
}

__all__ = [
    "GraphCollector",
    "capture_graph",
    "catalogue",
    "catalogue_name",
    "graph_from_fx",
    "measure_model",
    "measure_operators",
    "measure_step",
    "resolve_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import torch  # noqa: F401
    except ImportError as e:
        from foretrace.ir import ForetraceError

        raise ForetraceError(f"capturing a model needs PyTorch ({e}): pip install 'foretrace[capture]'") from e
    found = globals()[name] = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    return found
