"""Accelerators, memories, links, hosts and systems: the schema, its units, and the library that ships.

`load_system("h100-sxm:8")` is the way in; `loading` says what a YAML file may hold, `schema` what every
field means and its unit.
"""

from .document import HardwareError
from .loading import SystemSummary, check_file, list_systems, load_system
from .quantity import QuantityError, format_quantity, parse_quantity
from .schema import Accelerator, Cache, Compute, Host, Link, Links, Memory
from .system import Node, Row, System

__all__ = [
    "Accelerator",
    "Cache",
    "Compute",
    "HardwareError",
    "Host",
    "Link",
    "Links",
    "Memory",
    "Node",
    "QuantityError",
    "Row",
    "System",
    "SystemSummary",
    "check_file",
    "format_quantity",
    "list_systems",
    "load_system",
    "parse_quantity",
]
