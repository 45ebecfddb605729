"""Tables of measured operators: their rows as the operators a captured graph would hold, priced by any cost model."""

from .collectives import collective, machine
from .columns import MeasuredColumns
from .measurements import Measurements, measure, read_measurements, table_class
from .tables import ROWS_AT_ONCE, Table, Text, count_rows, missing, read_tables

__all__ = [
    "ROWS_AT_ONCE",
    "MeasuredColumns",
    "Measurements",
    "Table",
    "Text",
    "collective",
    "count_rows",
    "machine",
    "measure",
    "missing",
    "read_measurements",
    "read_tables",
    "table_class",
]
