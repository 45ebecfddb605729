"""Nsight Systems: its SQLite export as a Trace."""

from .read import read_nsight

__all__ = ["read_nsight"]
