"""What a plan leaves open: formats of gradients and optimizer state, how the allocator rounds, what overlap costs."""

from dataclasses import dataclass
from typing import Final

from foretrace.ir import parse_dtype

BLOCK: Final = 512
"""bytes that every allocation is rounded up to (``kMinBlockSize``, c10/cuda/CUDACachingAllocator.cpp, torch 2.13)."""
LARGE: Final = 10 * 2**20
"""bytes from which an allocation has a segment of its own (``kMinLargeAlloc``, same file)..."""
LARGE_BLOCK: Final = 2 * 2**20
"""... of a multiple of these bytes (``kRoundLarge``); what smaller segments leave over is fragmentation."""

OVERLAP_SLOWDOWN: Final = 0.19
"""Share by which computation is slower while a collective runs beside it: the mean over models and GPUs that Lee et
al. 2025 (arXiv:2507.03114) measured is 18.9 %, the most 40 %."""

BUCKET_ELEMENTS: Final = 40_000_000
"""Gradients that are reduced in one collective: Megatron-LM's default bucket (``DistributedDataParallelConfig``:
max(40,000,000, 1,000,000 · data parallel ranks) parameters). PyTorch's DDP takes 25 MiB."""
BUCKET_ELEMENTS_PER_RANK: Final = 1_000_000


@dataclass(frozen=True, kw_only=True)
class MemoryPolicy:
    """Formats that a training run keeps its state in, and what the allocator adds."""

    gradient: str | None = None
    """Format gradients are summed and reduced in; None: as captured."""
    state_bytes: float | None = None
    """Optimizer state, bytes a parameter (12: a float32 copy and two moments); None: as captured."""
    fragmentation: float = 0.0
    """Share of the activations' peak that the allocator holds and cannot give out. None is assumed: state what yours
    shows (``torch.cuda.memory_reserved`` over ``memory_allocated``, less 1).
    """

    def gradient_bits(self, captured: int) -> int:
        """Bits of one element of a gradient that was captured with *captured*."""
        return parse_dtype(self.gradient).bits if self.gradient else captured


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How communication runs beside computation."""

    slowdown: float = OVERLAP_SLOWDOWN
    exposed: float = 1.0
    """Share of a tensor-parallel collective that the products beside it do not hide (asynchronous tensor parallel)."""
    bucket: int | None = None
    """Elements of gradients a collective; None: Megatron-LM's default."""

    def bucket_elements(self, replicas: int) -> int:
        """Elements of one bucket among *replicas*."""
        return self.bucket or max(BUCKET_ELEMENTS, BUCKET_ELEMENTS_PER_RANK * replicas)
