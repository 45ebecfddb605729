"""What Nsight Systems calls things, in the words that PyTorch's profiler uses for the same."""

import re
from typing import Final, NamedTuple

COPY_KINDS: Final = {1: "HtoD", 2: "DtoH", 3: "HtoA", 4: "AtoH", 5: "AtoA", 6: "AtoD", 7: "DtoA", 8: "DtoD"} | {
    9: "HtoH",
    10: "PtoP",
}  # CUpti_ActivityMemcpyKind
MEMORY_KINDS: Final = {0: "Pageable", 1: "Pinned", 2: "Device", 3: "Array", 4: "Managed"}  # Nsight's own order
SYNC_KINDS: Final = {1: "Event Sync", 2: "Stream Wait Event", 3: "Stream Sync", 4: "Context Sync"}
_VERSION: Final = re.compile(r"(_ptsz|_ptds)?_v\d+$")
_SHAPE: Final = re.compile(r"\[[0-9, ]+\]")
_OPERATOR: Final = re.compile(r"[A-Za-z_]\w*::\S")
_ANNOTATIONS: Final = ("module:", "phase:", "ProfilerStep", "Optimizer.", "nn.Module: ")


class Range(NamedTuple):
    """What an NVTX range says: an operator of PyTorch's emit_nvtx, or an annotation of the user's."""

    name: str
    kind: str
    shapes: str = ""
    sequence: int = -1
    op_id: int = -1


def parse_range(text: str) -> Range:
    """*text* taken apart: ``aten::linear, seq = 12, op_id = 5, sizes = [[4, 8], [8]]`` is a cpu_op with shapes."""
    rest, _, _ = text.partition(", input_op_ids = ")
    rest, sized, sizes = rest.partition(", sizes = ")
    rest, counted, op_id = rest.partition(", op_id = ")
    name, ordered, sequence = rest.partition(", seq = ")
    operator = bool(sized or counted or ordered) or _OPERATOR.match(name) is not None
    if name.startswith(_ANNOTATIONS) or not operator:
        return Range(name if name.startswith(_ANNOTATIONS) else text, "annotation")
    shapes = "".join(found.replace(" ", "") for found in _SHAPE.findall(sizes))
    return Range(name, "cpu_op", shapes, _number(sequence), _number(op_id))


def call_name(name: str) -> str:
    """``cudaLaunchKernel`` from ``cudaLaunchKernel_v7000``."""
    return _VERSION.sub("", name)


def copy_name(kind: int, source: int, target: int) -> str:
    """``Memcpy HtoD (Pinned -> Device)``."""
    ends = [MEMORY_KINDS.get(end, "") for end in (source, target)]
    return f"Memcpy {COPY_KINDS.get(kind, 'unknown')}" + (f" ({ends[0]} -> {ends[1]})" if all(ends) else "")


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 18 else -1
