"""Ops → nodes on streams, one function per execution mode, and their replay.

The host issues ops in program order; each op that starts device work is a kernel on the device's compute stream
(collectives: communication stream), in order after the host issued it and after what it reads. A synchronous
accelerator (a CPU) is its own host: dispatch and work of every op follow each other on one resource.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from foretrace.ir import FREE_KINDS, ForetraceError, Graph, OpKind, Role, UnknownNameError
from foretrace.transforms import Fuse, InPlaceCache, Pass

from .columns import Floats, Ints, Mask
from .engine import Engine, Schedule, Timeline, run, ticks_from_seconds

if TYPE_CHECKING:
    from foretrace.hardware import System

    from .costs.physics.hosting import Hosting

VIEW_DISPATCH_SHARE: Final = 0.75
"""Host time of an op that starts no kernel (a view, ``item()``) over that of one that does. torch 2.13 on an x86
server, 4x4 CPU tensors, best of 5 x 20,000 calls: `x.view(16)` 1.58 us, `x.transpose(0, 1)` 2.02 us,
`torch.add(x, x)` 2.08 us, `torch.mm(x, x)` 2.65 us."""

GUARD_S: Final = 40e-6
GUARD_PER_MODULE_S: Final = 1e-6
"""Host s that a compiled model takes to enter and to check its guards, once a step and once a module. torch 2.13 on an
x86 server, `torch.compile(Sequential of k modules of one parameter, backend="eager")` less the same additions alone:
38 us for k = 1, 78 us for k = 50, 208 us for k = 200."""


class Stream(IntEnum):
    """What a node runs on."""

    HOST = 0
    COMPUTE = 1
    COMMUNICATION = 2


@dataclass(frozen=True, eq=False)
class Program:
    """What one rank issues and runs: nodes on streams, before device times are known."""

    op: Ints
    """[nodes] the op of each node; -1 for what the step does once (a guard check, a graph launch)."""
    stream: Ints
    """[nodes] a `Stream`."""
    host_s: Floats
    """[nodes] s of host nodes; 0 on the device."""
    source: Ints
    """[edges]"""
    target: Ints
    synchronous: bool

    @property
    def on_device(self) -> Mask:
        """[nodes] True for kernels."""
        return np.not_equal(self.stream, Stream.HOST)

    def run(
        self,
        graph: Graph,
        device_s: Floats,
        engine: Engine = "auto",
        host_factor: float = 1.0,
        device_free: int = 0,
    ) -> Timeline:
        """Replay with *device_s* [ops] seconds for kernels and host seconds times *host_factor*.

        No kernel starts before the tick *device_free*.
        """
        seconds = np.where(self.on_device, device_s[self.op] if len(device_s) else 0.0, self.host_s * host_factor)
        schedule = Schedule.from_edges(
            ticks_from_seconds(seconds),
            np.zeros_like(self.stream) if self.synchronous else self.stream,
            self.source,
            self.target,
            np.ones(len(Stream), np.bool_),
            priority=2 * self.op + self.on_device,
            not_before=np.where(self.on_device, device_free, 0),
        )
        return run(schedule, engine, lambda node: f"op {self.op[node]} ({graph.ops[self.op[node]].name})")


@dataclass(frozen=True)
class Execution:
    """One way to run a model: what a compiler does to the graph first, and how the rest is issued."""

    name: str
    passes: tuple[Pass, ...]
    lower: Callable[[Graph, "System"], Program]
    software: str
    """The kernel library that runs it: a profile of the cost models."""
    waits: bool = False
    """Whether the host waits for the device at the ends of every forward and backward, as training frameworks that
    time their passes do."""


def lower_eager(graph: Graph, system: "System") -> Program:
    """PyTorch as it stands: the host dispatches every op, views for a share of what a kernel costs it."""
    dispatch_s = system.host.dispatch_s
    host_s = np.where(launching(graph), dispatch_s, VIEW_DISPATCH_SHARE * dispatch_s)
    return _program(graph, system, host_s)


def lower_compiled(graph: Graph, system: "System") -> Program:
    """A compiled graph, already fused: guards once, one launch a kernel; views cost nothing, host ops still do."""
    hosted = np.array([op.kind is OpKind.HOST for op in graph.ops], np.bool_)
    host_s = np.where(launching(graph), system.host.launch_s, VIEW_DISPATCH_SHARE * system.host.dispatch_s * hosted)
    guarded = any(op.phase == "forward" for op in graph.ops)  # a backward alone is called without
    once_s = GUARD_S + GUARD_PER_MODULE_S * len({op.module for op in graph.ops})
    return _program(graph, system, host_s, once_s * guarded)


def lower_cudagraph(graph: Graph, system: "System") -> Program:
    """A captured CUDA graph of the eager kernels: one launch for all. Raises `ForetraceError` on a CPU."""
    if system.accelerator.synchronous:
        raise ForetraceError(
            f"execution cudagraph and serving: {system.accelerator.name} is a CPU and has no device graphs; "
            "use eager or compiled"
        )
    return _program(graph, system, np.zeros(len(graph.ops)), system.host.graph_launch_s)


_SUM: Final = "aten.add_.Tensor"


def lower_training(
    graph: Graph, system: "System", software: str, hosting: "Hosting | None" = None, step_s: float = 0.0
) -> Program:
    """A training framework: its own fused kernels, its own Python around them (*hosting*, else its profile's).

    *step_s* is what the host waits for each step of the ring of a tensor-parallel collective.
    """
    if hosting is None:
        from .costs.physics.facts import GENERIC
        from .costs.physics.profile import load_profile

        hosting = load_profile(software).constants("hosting", GENERIC)
    share = {"forward": hosting.forward, "backward": hosting.backward}
    sums = [op.name == _SUM and graph.tensors[op.outputs[0]].role is Role.GRADIENT for op in graph.ops]
    of_phase = np.where(sums, 1.0, [share.get(op.phase, 1.0) for op in graph.ops])  # autograd sums gradients itself
    host_s = system.host.dispatch_s * of_phase * launching(graph)
    if step_s:
        ranks = [op.attributes.get("ranks", 1) if op.attributes.get("group") == "tp" else 1 for op in graph.ops]
        host_s = host_s + step_s * (np.array(ranks, np.float64) - 1)
    return _program(graph, system, host_s)


EXECUTIONS: Final = {
    e.name: e
    for e in (
        Execution("eager", (), lower_eager, "eager"),
        Execution("compiled", (Fuse(),), lower_compiled, "compiled"),
        Execution("cudagraph", (), lower_cudagraph, "eager"),
        Execution("serving", (InPlaceCache(), Fuse()), lower_cudagraph, "serving"),
        *(
            Execution(name, (Fuse(inside=True),), partial(lower_training, software=name), name, waits=True)
            for name in ("megatron", "megatron-deepspeed", "nanotron")
        ),
    )
}
"""Every execution mode by its name."""


def load_execution(name: str) -> Execution:
    """The execution mode called *name*. Raises `UnknownNameError`."""
    if name not in EXECUTIONS:
        raise UnknownNameError("execution", name, EXECUTIONS, f"one of {', '.join(EXECUTIONS)}")
    return EXECUTIONS[name]


def launching(graph: Graph) -> Mask:
    """[ops] True for the ops that start work on the device."""
    return np.array([op.kind not in FREE_KINDS for op in graph.ops], np.bool_)


def _program(graph: Graph, system: "System", host_s: Floats, once_s: float = 0.0) -> Program:
    """Host nodes of *host_s* where it is not 0, after one of *once_s*; a kernel for each launching op.

    A kernel waits for its own host node; without one, for that of *once_s*.
    """
    launches = launching(graph)
    once_s = once_s if graph.ops else 0.0
    kernels = np.flatnonzero(launches)
    issued = np.flatnonzero(host_s > 0)
    first = [-1] if once_s else []
    op = np.concatenate([first, issued, kernels]).astype(np.int64)
    is_collective = [graph.ops[i].kind is OpKind.COLLECTIVE for i in kernels.tolist()]
    stream = np.repeat(np.array([Stream.HOST, Stream.COMPUTE], np.int64), [len(first) + issued.size, kernels.size])
    stream[op.size - kernels.size :][is_collective] = Stream.COMMUNICATION
    host_node, kernel_node = np.full((2, len(graph.ops)), -1)
    host_node[issued] = len(first) + np.arange(issued.size)
    kernel_node[kernels] = len(first) + issued.size + np.arange(kernels.size)
    if once_s:
        host_node[launches & (host_node < 0)] = 0
    read, reader = _data_waits(graph, launches)
    source = np.concatenate([host_node[kernels], kernel_node[read]])
    target = np.concatenate([kernel_node[kernels], np.where(launches, kernel_node, host_node)[reader]])
    kept = (source >= 0) & (target >= 0)
    seconds = np.concatenate([[once_s] if once_s else [], host_s[issued], np.zeros(kernels.size)])
    return Program(op, stream, seconds, source[kept], target[kept], system.accelerator.synchronous)


def _data_waits(graph: Graph, launches: Mask) -> tuple[Ints, Ints]:
    """Pairs (kernel's op, op that waits for it) that the order on one stream does not already give.

    Those are: a host op that reads a value (``item()`` gives no tensor, and blocks), and reads across streams.
    """
    kinds = {op.kind for op in graph.ops}
    if not kinds & {OpKind.HOST, OpKind.COLLECTIVE}:
        return np.zeros((2, 0), np.int64)[0], np.zeros(0, np.int64)
    pairs: set[tuple[int, int]] = set()
    made_by: dict[int, tuple[int, ...]] = {}  # tensor to the kernels it comes from, through views
    gathered = [op.kind is OpKind.COLLECTIVE for op in graph.ops]
    for i, (op, launched) in enumerate(zip(graph.ops, launches.tolist(), strict=True)):
        before = tuple([p for t in op.inputs for p in made_by.get(t, ())])
        if launched:
            across = gathered[i]
            pairs.update([(p, i) for p in before if gathered[p] != across])
            made_by |= dict.fromkeys(op.outputs, (i,))
        elif op.kind is OpKind.VIEW and before:
            made_by |= dict.fromkeys(op.outputs, before)
        elif op.kind is OpKind.HOST and not op.outputs:
            pairs.update([(p, i) for p in before])
    ends = np.array(sorted(pairs), np.int64).reshape(-1, 2)
    return ends[:, 0], ends[:, 1]
