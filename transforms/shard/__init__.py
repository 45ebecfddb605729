"""Sharding: one rank's graph of a model that is divided among many."""

from .context import ContextParallel
from .expert import ExpertParallel
from .placement import PARTIAL, REPLICATE, Placement, shard
from .tensor import TensorParallel

__all__ = ["PARTIAL", "REPLICATE", "ContextParallel", "ExpertParallel", "Placement", "TensorParallel", "shard"]
