"""The time of whole steps, unprofiled: on the host's clock, and on the device's own."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

QUIET = 0.1
"""Spread of step times, as a share of their median, over which a machine is called not quiet."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step: until the device was done, until the host had issued it, between events on the device."""

    step_s: float
    host_s: float
    device_s: float | None = None


@dataclass
class StepTimes:
    """The times of several steps."""

    repeats: list[StepTime] = field(default_factory=list)

    @property
    def median_s(self) -> float:
        """Median seconds of a step, the device's work done."""
        return statistics.median(t.step_s for t in self.repeats)

    @property
    def spread_s(self) -> float:
        """Sample standard deviation of the seconds of a step, 0 for one."""
        return statistics.stdev(t.step_s for t in self.repeats) if len(self.repeats) > 1 else 0.0

    def to_info(self) -> dict[str, Any]:
        """Every repeat, and median and spread of each clock, for a Trace's ``info``."""
        info: dict[str, Any] = {
            "step_s": [t.step_s for t in self.repeats],
            "host_s": [t.host_s for t in self.repeats],
            "median_s": self.median_s,
            "spread_s": self.spread_s,
        }
        device = [t.device_s for t in self.repeats if t.device_s is not None]
        if device:
            info |= {"device_s": device, "device_median_s": statistics.median(device)}
        return info

    def warnings(self) -> list[str]:
        """What a reader of these times must know."""
        spread = self.spread_s / self.median_s if self.median_s else 0.0
        if spread <= QUIET:
            return []
        times = ", ".join(f"{t.step_s * 1e3:.2f}" for t in self.repeats)
        return [f"the machine is not quiet: steps spread by {spread:.0%} of their median ({times} ms)"]


def synchronize(device: str) -> None:
    """Wait until *device* has done all that was issued."""
    if device == "cuda":
        torch.cuda.synchronize()


def time_step(run: Callable[[], Any], device: str, ready: Callable[[], Any] = lambda: None) -> StepTime:
    """The time of one *run* on *device*, which is idle before and after; *ready* comes first and is not counted."""
    ready()
    synchronize(device)
    if device != "cuda":
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        return StepTime(seconds, seconds)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start = time.perf_counter()
    first.record()
    run()
    last.record()
    issued = time.perf_counter() - start
    torch.cuda.synchronize()
    return StepTime(time.perf_counter() - start, issued, first.elapsed_time(last) * 1e-3)
