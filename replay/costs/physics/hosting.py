"""What a training framework adds: its host's work besides PyTorch's own dispatch, and kernels at a sustained pace.

A layer of Megatron-LM or nanotron is more Python than the operators in it: autograd functions, parallel linears,
handles of collectives, memory buffers. Its forward pays for that; its backward is mostly autograd's C++. Both are
counted in dispatches of each kernel that remains after the framework's own fusion, so a faster host makes them shorter.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Hosting:
    """Host time of a training framework, in units of `System.host.dispatch_s`. Fitted."""

    forward: float
    """Of a kernel of a forward."""
    backward: float
    """Of a kernel of a backward."""
    pipeline_step_s: float = 0.0
    """s that the host waits at each step of the ring of a tensor-parallel collective while a pipeline spans nodes."""
    across_step_s: float = 0.0
    """s of each step of the ring of a tensor-parallel collective that itself spans nodes."""


@dataclass(frozen=True)
class Pace:
    """Time of kernels inside a long run over that of the same kernels alone, measured for a moment. Fitted.

    Chips at their power limit lower their clocks, and neighbours on the stream share caches and memory.
    """

    kernels: float = 1.0
    """Of matrix work."""
    streams: float = 1.0
    """Of memory-bound kernels, among them those that a framework does not fuse and `Fuse` does."""
    collectives: float = 1.0
    exposed: float = 1.0
    """Share of a tensor-parallel collective that the products beside it do not hide."""
