"""The operators of a trace: one per captured op where predicted, cut from the nested calls where measured."""

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from foretrace.traces.kinds import DEVICE_WORK, is_work
from foretrace.traces.nesting import lookup, resolve
from foretrace.traces.trace import Trace

from .kernels import fused_members, fused_text, is_communication

VIEWS = frozenset(
    f"aten::{name}"
    for name in """alias as_strided chunk contiguous detach detach_ diagonal expand expand_as flatten lift_fresh movedim
    narrow permute ravel real reshape reshape_as _reshape_alias resolve_conj resolve_neg select slice split
    split_with_sizes squeeze squeeze_ swapaxes t t_ transpose transpose_ unbind unflatten unfold unsafe_split
    unsafe_view _unsafe_view unsqueeze unsqueeze_ view view_as numpy_T mT empty empty_like empty_strided
    new_empty new_empty_strided size stride numel is_nonzero sym_size resize_""".split()
)  #: operators that move no data: aligned last, so that they never pull others out of place
_MAX_DEPTH = 64  # of nested calls that are looked through
_FRAMEWORK = ("autograd::", "torch::autograd")  # frames around operators, whose own time is not operator time
REGION = re.compile(r"Torch-Compiled Region|CompiledFunction|.*CompiledFxGraph")
_COMPILER = ("TorchDynamo ", "Pregraph bytecode", "AOTDispatcher ")  # around a compiled step, on the host
_SAME = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (
            r"aten::_?(scaled_dot_product_(\w+_)?|flash_|efficient_|cudnn_)?attention(_math|_forward|_for_cpu)*_backward",
            "aten::scaled_dot_product_attention_backward",
        ),
        (
            r"aten::_?(scaled_dot_product_(\w+_)?|flash_|efficient_|cudnn_)attention(_math|_forward|_for_cpu)*",
            "aten::scaled_dot_product_attention",
        ),
        (r"aten::(_?native|cudnn|miopen|mkldnn)_batch_norm(_legit)?(_no_training|_with_update)?", "aten::batch_norm"),
        (r"aten::(native|cudnn|miopen|mkldnn)_batch_norm_backward", "aten::batch_norm_backward"),
        (r"aten::(cudnn|miopen|mkldnn|thnn|slow)_conv\w*", "aten::convolution"),
        (r"aten::_?fused_rms_norm", "aten::rms_norm"),
        (r"record_param_comms", "c10d::record_param_comms"),
    )
)
"""Operators that are one by what they do and go by the name of the library that does it."""


@dataclass(frozen=True)
class Operators:
    """*rows* of a trace in execution order, and per event of the trace the operator *seconds* it stands for."""

    rows: NDArray[np.int64]
    seconds: NDArray[np.float64]


def canonical_name(name: str) -> str:
    """The operator without its overload, as profilers write it: "aten.addmm.default" gives "aten::addmm"."""
    if "::" in name:
        namespace, _, rest = name.partition("::")
        return name if namespace != "aten" else f"aten::{rest.split('.')[0]}"
    parts = name.split(".")
    return f"{parts[0]}::{parts[1]}" if len(parts) in (2, 3) and all(parts) else name


@lru_cache(maxsize=65536)
def common_name(name: str) -> str:
    """The canonical name less what only says which library does it: all fused attentions are one operator."""
    canonical = canonical_name(name)
    return next((same for pattern, same in _SAME if pattern.fullmatch(canonical)), canonical)


def is_frame(name: str) -> bool:
    """Whether a host event of this *name* is around operators rather than one."""
    if fused_text(name) is not None:
        return False
    return "::" not in name or name.startswith(_FRAMEWORK) or REGION.match(name) is not None


def is_nested(trace: Trace) -> bool:
    """Whether the trace holds a profiler's nested operator calls rather than one event per operator."""
    return bool(trace.kind.isin(["cpu_op"]).any())


def find_operators(trace: Trace, vocabulary: frozenset[str]) -> Operators:
    """The operators of *trace*; nested calls are cut, from the top, at common names in *vocabulary*.

    A cut operator stands for everything below it, and for the calls around it alone with their views (aten::linear
    around aten::t and one aten::addmm); calls of other names stand for their own time. Seconds are those on the
    device (all kernels, copies and sets that an operator issued) where the trace has any, else those on the host.
    """
    return _cut(trace, vocabulary) if is_nested(trace) else _listed(trace)


def leaf_names(trace: Trace) -> frozenset[str]:
    """Common names to cut at when *trace* is the reference: of listed operators, or of innermost calls."""
    if is_nested(trace):
        op = trace.kind.isin(["cpu_op"])
        outer = resolve(trace.parent, op, strict=True)[op]
        op[outer[outer >= 0]] = False
        rows = np.flatnonzero(op)
    else:
        rows = _listed(trace).rows
    names = trace.name.take(rows).map(common_name).used()
    inside = [f"aten::{word}" for name in names for word in fused_members(name)]
    return frozenset([*names, *map(common_name, inside)])


def _listed(trace: Trace) -> Operators:
    """Each op id once, what ran on the host to issue it left out; without op ids each event."""
    kept = is_work(trace.kind)
    if (kept & (trace.op_id >= 0)).any():
        kept &= trace.op_id >= 0
        beside = kept & ~trace.stream.isin(["host"])
        kept &= beside | ~np.isin(trace.op_id, trace.op_id[beside])
        rows = np.flatnonzero(kept)
        order = rows[np.lexsort((trace.start_s[rows], trace.op_id[rows]))]
        _, first, place = np.unique(trace.op_id[order], return_index=True, return_inverse=True)
        heads = order[first]
        seconds = np.zeros(len(trace))
        seconds[heads] = np.bincount(place, trace.duration_s[order], minlength=len(heads))
        return Operators(heads, seconds)
    rows = np.flatnonzero(kept)
    rows = rows[np.argsort(trace.start_s[rows], kind="stable")]
    seconds = np.zeros(len(trace))
    seconds[rows] = trace.self_s[rows]
    return Operators(rows, seconds)


def _cut(trace: Trace, vocabulary: frozenset[str]) -> Operators:
    op = trace.kind.isin(["cpu_op"])
    named = op & trace.name.where(lambda n: common_name(n) in vocabulary)
    top = named & (resolve(trace.parent, named, strict=True) < 0)
    covered = (resolve(trace.parent, top, strict=True) >= 0) & op
    chosen = op & ~covered & ~trace.name.where(lambda n: n.startswith(_COMPILER))
    work = np.flatnonzero(trace.kind.isin(DEVICE_WORK))
    if len(work):
        ops = np.flatnonzero(op)
        issuer = lookup(trace.external_id, ops[trace.external_id[ops] >= 0], trace.external_id[work])
        holder = np.where(issuer >= 0, resolve(trace.parent, chosen)[issuer], work)
        around = ~top & trace.name.where(is_frame)
        remote = is_communication(trace)
        alone = around[holder] | (remote[work] & ~remote[holder])
        holder = np.where(alone, work, holder)  # of a compiled region, another's collective, nobody's: for itself
        chosen[holder] = True
        seconds = np.zeros(len(trace))
        np.add.at(seconds, holder, trace.duration_s[work])
    else:
        region = trace.name.where(lambda n: REGION.match(n) is not None)
        if (op & trace.name.where(lambda n: fused_text(n) is not None)).any():
            region[:] = False  # its kernels are listed: what is left of it is the compiler's own code around them
        frame = trace.name.where(is_frame) & ~region
        outer = resolve(trace.parent, chosen, strict=True)
        inner = np.flatnonzero(chosen & (outer >= 0))
        inside = np.bincount(outer[inner], trace.duration_s[inner], minlength=len(trace))
        seconds = np.where(chosen, np.maximum(trace.duration_s - inside, 0.0), 0.0)
        seconds[frame & ~top & (inside > 0)] = 0.0
        _give_to_only_child(seconds, outer, chosen & ~top & ~region, top, trace.name.where(_is_view))
    rows = np.flatnonzero(chosen)
    return Operators(rows[np.lexsort((trace.start_s[rows], _issued_s(trace)[rows]))], seconds)


def _issued_s(trace: Trace) -> NDArray[np.float64]:
    """When each event was issued: device work when its launch began, the rest when it began itself."""
    issued = trace.start_s.copy()
    work = np.flatnonzero(trace.kind.isin(DEVICE_WORK) & (trace.correlation >= 0))
    launches = np.flatnonzero(trace.kind.isin(["launch", "driver"]) & (trace.correlation >= 0))
    launch = lookup(trace.correlation, launches, trace.correlation[work])
    issued[work] = np.where(launch >= 0, trace.start_s[launch], issued[work])
    return issued


def _is_view(name: str) -> bool:
    return canonical_name(name) in VIEWS


def _give_to_only_child(
    seconds: NDArray[np.float64],
    outer: NDArray[np.int64],
    around: NDArray[np.bool_],
    cut: NDArray[np.bool_],
    view: NDArray[np.bool_],
) -> None:
    """Move the seconds of each call *around* exactly one *cut* that is no view, and of views in it, to that cut."""
    count = np.zeros(len(seconds), np.int64)
    child = np.full(len(seconds), -1, np.int64)
    below = np.flatnonzero(cut & ~view)
    above = outer[below]
    for _ in range(_MAX_DEPTH):
        below, above = below[above >= 0], above[above >= 0]
        np.add.at(count, above, 1)
        child[above] = below
        above = outer[above]
    alone = around & (count == 1)
    giver = np.flatnonzero(alone | (around & view))
    wrapper = resolve(outer, alone)[giver]
    giver, wrapper = giver[wrapper >= 0], wrapper[wrapper >= 0]
    np.add.at(seconds, child[wrapper], seconds[giver])
    seconds[giver] = 0.0
