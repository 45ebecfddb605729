"""Two traces held together: which operator is which, and where the time differs."""

from .activity import Activity
from .align import Alignment, align_traces
from .causes import Cause
from .diff import Diff, diff_traces
from .tables import DiffRow, OpDiff, Unmatched
from .waterfall import WaterfallStep

__all__ = [
    "Activity",
    "Alignment",
    "Cause",
    "Diff",
    "DiffRow",
    "OpDiff",
    "Unmatched",
    "WaterfallStep",
    "align_traces",
    "diff_traces",
]
