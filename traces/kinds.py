"""The kinds of events that profilers record; a predicted event's kind is its operator's."""

import numpy as np
from numpy.typing import NDArray

from foretrace.ir import OpKind

from .strings import StringColumn

DEVICE_WORK = ("kernel", "copy", "memset")
DEVICE_KINDS = (*DEVICE_WORK, "sync", "gpu_annotation")
HOST_KINDS = ("cpu_op", "launch", "driver", "annotation", "python")
WORK = frozenset(["cpu_op", *DEVICE_WORK, *(kind.value for kind in OpKind)])  #: what does an operator's work
NOT_WORK = frozenset(
    [
        *("annotation", "gpu_annotation", "launch", "driver", "python", "span", "sync", "instant"),
        *("cpu_instant_event", "overhead"),
    ]
)  #: what encloses, issues or waits, and does no operator's work itself
_PROFILER = ("cpu_op", "kernel", "memset")


def is_work(kind: StringColumn) -> NDArray[np.bool_]:
    """Mask of the events that do an operator's work.

    Beside a profiler's operators or kernels only what is known to be work; else all that is not known to be none.
    """
    return kind.isin(WORK) if kind.isin(_PROFILER).any() else ~kind.isin(NOT_WORK)
