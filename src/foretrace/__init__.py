"""Foretrace: capture the graph of a real model, replay it on hardware that may not exist yet, check it by measurement.

    import foretrace

    graph = foretrace.capture_graph("Llama-3.1-8B", phase="decode")
    result = foretrace.replay_graph(graph, "h100-sxm", batch=16, context=4096)
    print(result.time_s, result.memory.peak_bytes)

The verbs of the command line as functions, none of which hides a room: `capture_graph`, `replay_graph`,
`measure_model`, `measure_step`, `diff_traces`, `validate_tables`, `calibrate_costs`, `load_graph`, `save_graph`,
`load_trace`, `save_trace`, `load_system`. Each is imported when first used: only capturing and measuring import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foretrace.calibrate import calibrate_costs
    from foretrace.capture import capture_graph, measure_model, measure_step
    from foretrace.hardware import load_system
    from foretrace.ir import ForetraceError, load_graph, save_graph
    from foretrace.replay import replay_graph
    from foretrace.traces import diff_traces, load_trace, save_trace
    from foretrace.validate import validate_tables

    __version__: str

_HOMES = {
    "calibrate_costs": "foretrace.calibrate",
    "capture_graph": "foretrace.capture",
    "measure_model": "foretrace.capture",
    "measure_step": "foretrace.capture",
    "replay_graph": "foretrace.replay",
    "diff_traces": "foretrace.traces",
    "validate_tables": "foretrace.validate",
    "load_trace": "foretrace.traces",
    "save_trace": "foretrace.traces",
    "load_system": "foretrace.hardware",
    "load_graph": "foretrace.ir",
    "save_graph": "foretrace.ir",
    "ForetraceError": "foretrace.ir",
}

__all__ = [
    "ForetraceError",
    "__version__",
    "calibrate_costs",
    "capture_graph",
    "diff_traces",
    "load_graph",
    "load_system",
    "load_trace",
    "measure_model",
    "measure_step",
    "replay_graph",
    "save_graph",
    "save_trace",
    "validate_tables",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("foretrace.ir").VERSION
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'foretrace' has no attribute {name!r}")
