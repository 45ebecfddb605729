"""The kinds of events that profilers record; a predicted event's kind is its operator's."""

DEVICE_WORK = ("kernel", "copy", "memset")
DEVICE_KINDS = (*DEVICE_WORK, "sync", "gpu_annotation")
HOST_KINDS = ("cpu_op", "launch", "driver", "annotation", "python")
NOT_WORK = frozenset(
    ["annotation", "gpu_annotation", "launch", "driver", "python", "span", "sync", "instant", "cpu_instant_event"]
)  #: what encloses, issues or waits, and does no operator's work itself
