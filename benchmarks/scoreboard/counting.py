"""Our FLOPs against those that torch's `FlopCounterMode` sees the unpatched model do.

Where a layer's experts or scan are one operator of ours, transformers runs something else (every expert on every
token, a scan unrolled into matmuls), or the counter has no formula: such modules are left out on both sides, without
the modules inside them that run as they are. So is what a flash kernel's backward computes a second time, Q·Kᵀ, which
the unpatched model keeps; and grouped convolutions in training, whose backward torch's formula counts as dense ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from foretrace.capture.phases import Step
from foretrace.capture.recorder import module_paths
from foretrace.capture.training import TrainingRecorder
from foretrace.ir import MATRIX_KINDS, Graph, Op, OpKind, evaluate_dim

_KEPT_WHOLE = frozenset({OpKind.GROUPED_MATMUL, OpKind.SCAN})


@dataclass(frozen=True)
class LeftOut:
    """Modules that are not compared: those that run `kernels`, and inside them those where `ours` runs nothing."""

    kernels: frozenset[str]
    ours: frozenset[str]

    def __contains__(self, module: str) -> bool:
        if module in self.kernels:
            return True
        if module in self.ours:
            return False
        parts = module.split(".")
        return any(".".join(parts[:i]) in self.kernels for i in range(1, len(parts)))


def left_out_of(graph: Graph) -> LeftOut:
    """What of *graph* is not compared."""
    kernels = {op.module for op in graph.ops if _is_kernel(op) or _is_miscounted(op)}
    return LeftOut(frozenset(kernels), frozenset(op.module for op in graph.ops if op.phase == "forward"))


def _is_kernel(op: Op) -> bool:
    return op.kind in _KEPT_WHOLE and (op.kind is OpKind.GROUPED_MATMUL or "algorithm" in op.attributes)


def _is_miscounted(op: Op) -> bool:
    """A grouped convolution's backward: torch's formula takes the gradient of its weight for that of a dense one."""
    a = op.attributes
    return op.kind is OpKind.CONVOLUTION and bool(a.get("backward")) and a.get("groups", 1) != 1


def our_flops(graph: Graph, at: Mapping[str, int], left_out: LeftOut) -> int:
    """FLOPs of *graph* that the counter can see too."""
    ops = [op for op in graph.ops if op.kind in MATRIX_KINDS and op.module not in left_out]
    return sum(int(evaluate_dim(op.work.matrix_flops, at)) - _again(op, at) for op in ops)


def _again(op: Op, at: Mapping[str, int]) -> int:
    a = op.attributes
    if op.kind is not OpKind.ATTENTION or not a.get("backward"):
        return 0
    return int(evaluate_dim(2 * a["batch"] * a["heads"] * a["q_len"] * a["kv_len"] * a["head_dim"], at))


class _Attribution(TrainingRecorder):
    """Torch's own formulas of an operator's FLOPs, by module: of a backward, the module that its forward ran in."""

    def __init__(self) -> None:
        super().__init__()
        self.flops: dict[str, int] = {}

    def _record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        before = len(self.recording.ops)
        super()._record(func, args, kwargs, out)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None and len(self.recording.ops) > before:
            module = self.recording.ops[-1].module
            self.flops[module] = self.flops.get(module, 0) + int(formula(*args, **kwargs, out_val=out))


def counted_flops(root: torch.nn.Module, step: Step, train: bool, left_out: LeftOut) -> tuple[int, int]:
    """What the counter sees *step* of the unpatched *root* do: in all, and outside the modules *left_out*.

    Raises what the model raises, and `AssertionError` where the counter's total and the sum over modules differ.
    """
    recorder, path = _Attribution(), [""]

    def enter(name: str) -> None:
        path.append(recorder.module)
        recorder.module = name

    def leave() -> None:
        recorder.module = path.pop()

    with (
        module_paths(root, enter, leave),
        torch.set_grad_enabled(train),
        recorder,
        FlopCounterMode(display=False) as counter,
    ):
        step.run()
    total = int(counter.get_total_flops())
    assert total == sum(recorder.flops.values()), (
        f"the counter has {total:,}, {sum(recorder.flops.values()):,} by module"
    )
    return total, sum(flops for module, flops in recorder.flops.items() if module not in left_out)
