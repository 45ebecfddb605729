"""Graph → Graph: passes, each a frozen dataclass whose fields are its options.

`base` the pass protocol and the runner · `fuse` what a compiler merges into one kernel.
"""

from .base import Pass, apply
from .fuse import Fuse

__all__ = ["Fuse", "Pass", "apply"]
