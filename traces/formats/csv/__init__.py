"""Plain CSV: a trace's own columns in and out, and what ``nsys stats`` prints in."""

from .table import encode_csv, read_csv

__all__ = ["encode_csv", "read_csv"]
