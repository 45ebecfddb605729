"""The memory of training rows: what nanotron reports of a replayed step, and whether the step fits.

Constants are of the rows of ``calib`` that report memory (nanotron on H100, bfloat16, gradients summed in float32).
"""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from foretrace.ir import ForetraceError
from foretrace.replay.parallel.run import PlanRun

from .training_plans import NANOTRON, Run

if TYPE_CHECKING:
    from foretrace.hardware import System

WORKSPACE_BYTES: Final = 75e6
"""Two workspaces of cuBLAS (32 MiB on Hopper, one a thread of autograd) and small buffers."""
ALLOCATOR: Final = 1.04
"""Bytes that the caching allocator holds over those of the tensors at the peak: rows without tensor parallel."""
DRIVER_BYTES: Final = 9.5 * 2**30
"""Of an accelerator's memory that no tensor gets: the context, buffers of NCCL's communicators, fragments. 9 to 10 GiB
are right on the most rows of ``calib`` (98.0 %; 3.5 to 8 GiB: 96.8 %)."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of a replayed training step."""

    allocated: float
    """Between two steps, on the first rank: what nanotron prints, whose peak counter begins anew after each step."""
    reserved: float
    """That the allocator of the first rank holds."""
    worst: float
    """As `reserved`, on the rank that needs most."""

    def fits(self, system: "System") -> bool:
        """Whether the step runs on the first rank, which holds most micro-batches in flight.

        The last one is left out: a captured loss keeps more copies of the logits than nanotron's, which works in
        place. On ``calib`` the two differ in one row, and that one ran.
        """
        return self.reserved <= system.accelerator.memory.capacity_bytes - DRIVER_BYTES


def memory_of(run: Run, result: PlanRun) -> TrainingMemory:
    """What *result* holds in nanotron's formats. Raises `ForetraceError` for another framework's run.

    Of a parameter, while passes run: itself 2 bytes, its float32 gradient 4, master and moments 12 (divided by ZeRO,
    which keeps the 16-bit gradient, 2). After the step there are 2 more where replicas have reduced (`_between`). With
    tensor parallelism two buffers hold gathered activations of a micro-batch. A layer's gathered inputs of its two
    column-parallel products wait for the streams that read them; where the device is slower than its host, so that
    launches pile up, those of all layers in flight are held (``calib``: runs that the host slows down hold none).
    """
    if run.framework is not NANOTRON:
        raise ForetraceError("memory: only nanotron's formats are known")
    plan, model = run.plan, json.loads(run.what.model)
    elements = result.holdings.sums(result.holdings.elements).tolist()
    divided = plan.zero > 0 and plan.dp > 1
    each = 8 + 12 / plan.dp if divided else 18.0
    gathered = 2.0 * (run.at.batch or 1) * (run.at.seq or 1) * model["hidden_size"] if plan.tp > 1 else 0.0
    held = []
    for rank, memory in enumerate(result.memory[: plan.pp]):
        layers = run.split[rank] if run.split else model["num_hidden_layers"]
        piled = 2 * layers * gathered * (1 - 1 / plan.tp) * memory.in_flight
        kept = piled if _device_is_behind(result, rank) else 0.0
        own = each * elements[rank] + WORKSPACE_BYTES
        held.append(ALLOCATOR * (own + kept + memory.by_category_bytes["activations"]))
    return TrainingMemory(_between(run) * elements[0] + WORKSPACE_BYTES + 2 * gathered, held[0], max(held))


def _device_is_behind(result: PlanRun, rank: int) -> bool:
    """Whether the passes of a rank take its device longer than its host."""
    items, timings = result.step.items, result.timings
    segments = items.segment[(items.rank == rank) & (items.row >= 0)]
    return bool(timings.device[segments].sum() > timings.host[segments].sum())


def _between(run: Run) -> float:
    """Bytes a parameter between two steps: 18 on one replica, 20 on several, 10 and a share of 14 under ZeRO 1.

    Read off the rows of ``calib``, which it meets to 0.3 %.
    """
    if run.plan.dp == 1:
        return 18.0
    return 10 + 14 / run.plan.dp if run.plan.zero else 20.0
