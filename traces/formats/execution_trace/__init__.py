"""PyTorch execution traces: the structure of a run, by itself or joined to the Kineto trace of the same run."""

from .read import NO_TIMES, join_execution_trace, read_execution_trace

__all__ = ["NO_TIMES", "join_execution_trace", "read_execution_trace"]
