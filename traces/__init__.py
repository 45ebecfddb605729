"""Traces: what happened when, predicted or measured; other people's formats; alignment and diff."""

from .store import load_trace, save_trace
from .strings import StringColumn
from .trace import Trace

__all__ = [
    "StringColumn",
    "Trace",
    "load_trace",
    "save_trace",
]
