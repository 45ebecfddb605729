"""The distinct operators of a graph, timed one by one on a real device: a table of measured rows."""

from .table import OperatorTable, measure_operators

__all__ = ["OperatorTable", "measure_operators"]
