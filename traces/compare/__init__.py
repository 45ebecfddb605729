"""Two traces held together: which operator is which, and where the time differs."""

from .align import Alignment, align_traces
from .diff import Diff, diff_traces

__all__ = ["Alignment", "Diff", "align_traces", "diff_traces"]
