"""Graph → Graph: passes, each a frozen dataclass whose fields are its options.

`base` the pass protocol and the runner · `fuse` what a compiler merges into one kernel · `in_place` the cache as
serving engines keep it · `master_weights` the optimizer of mixed-precision training · `plan` how a model is spread and
run, `parallel` one rank's graph by a plan: `shard` tensors, experts and context, `recompute` what runs again in the
backward (`regions`).
"""

from .base import Pass, apply
from .fuse import Fuse
from .in_place import InPlaceCache
from .master_weights import MasterWeights

__all__ = ["Fuse", "InPlaceCache", "MasterWeights", "Pass", "apply"]
