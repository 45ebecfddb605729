"""Traces: what happened when, predicted or measured; other people's formats; alignment and diff."""

from .compare import Alignment, Diff, align_traces, diff_traces
from .repeats import average_repeats, split_steps
from .store import load_trace, save_trace
from .strings import StringColumn
from .trace import Trace

__all__ = [
    "Alignment",
    "Diff",
    "StringColumn",
    "Trace",
    "align_traces",
    "average_repeats",
    "diff_traces",
    "load_trace",
    "save_trace",
    "split_steps",
]
