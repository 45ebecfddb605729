"""Seconds of one call, again and again, of an operator on a device: inputs as a step of a model finds them.

On CUDA a graph of calls over enough input sets to pass the shared cache is replayed, so the host counts for nothing. On
a CPU the tensors that stay in memory from step to step (weights, caches) take turns past the last-level cache and are
cold, what the operator before gave is warm; what it takes the framework to dispatch a call is measured on an addition
of one element and taken off, as a replay adds it again.
"""

import math
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from .calls import Call

PASSES: Final = 3
"""Times that the sets of cold inputs fill the cache."""
SMALL: Final = 512
"""Parts of the cache under which an input counts as warm: so little is fetched while the operator starts."""
MOST_BYTES: Final = 1 << 30
"""Of all sets of inputs of one operator on a CPU."""
SAMPLE_S: Final = 4e-3
"""What one sample takes at least on a CPU: clocks resolve 1e-7 s, other processes come in every few ms."""
GRAPH_CALLS: Final = 16
LAST_LEVEL_BYTES: Final = 32 << 20
"""Where a system does not say."""


@dataclass(frozen=True)
class Timing:
    """Of one operator, seconds a call."""

    median_s: float
    spread_s: float
    """Half of the range of the samples between the quartiles."""


class Bench:
    """Times calls on one device."""

    def __init__(self, device: str, repeats: int) -> None:
        self.device, self.repeats = device, repeats
        self.cuda = device.startswith("cuda")
        self.cache_bytes = cache_bytes(device)
        self.dispatch_s = 0.0 if self.cuda else self._dispatch_s()

    @property
    def timing(self) -> str:
        """What a table says of how a row was timed."""
        return f"{'cudagraph' if self.cuda else 'loop'}_median{self.repeats}"

    def time(self, call: Call) -> Timing:
        """Seconds of one call. Raises what the operator raises."""
        inputs = call.make()
        call.check(call.function(*inputs))
        rotated = call.input_bytes if self.cuda else call.cold_bytes
        sets = [inputs]
        for _ in range(self._sets(rotated, call.input_bytes) - 1):
            sets.append(call.make() if self.cuda else call.fresh(inputs))
        samples = (self._graph_samples if self.cuda else self._samples)(call.function, sets)
        quartiles = statistics.quantiles(samples, n=4) if len(samples) > 1 else [samples[0]] * 3
        return Timing(statistics.median(samples) - self.dispatch_s, (quartiles[2] - quartiles[0]) / 2)

    def _sets(self, rotated: int, whole: int) -> int:
        """Sets of inputs of which *rotated* bytes take turns (of *whole* bytes, weights and caches or all)."""
        if rotated < self.cache_bytes / SMALL:
            return 1
        wanted = math.ceil(PASSES * self.cache_bytes / rotated)
        room = torch.cuda.mem_get_info()[0] // 2 if self.cuda else MOST_BYTES
        return max(1, min(wanted, int(room // max(whole if self.cuda else rotated, 1))))

    def _samples(self, function: Callable[..., Any], sets: list[list[torch.Tensor]]) -> list[float]:
        start = time.perf_counter()
        function(*sets[0])
        once = max(time.perf_counter() - start, 1e-7)
        calls = max(1, math.ceil(SAMPLE_S / once))
        found, at = [], 0
        for _ in range(self.repeats):
            start = time.perf_counter()
            for i in range(at, at + calls):
                function(*sets[i % len(sets)])
            found.append((time.perf_counter() - start) / calls)
            at += calls
        return found

    def _graph_samples(self, function: Callable[..., Any], sets: list[list[torch.Tensor]]) -> list[float]:
        calls = max(len(sets), GRAPH_CALLS)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for inputs in sets:  # what a first call does beside its work must not be in the graph
                function(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for i in range(calls):
                function(*sets[i % len(sets)])
        graph.replay()
        found = []
        for _ in range(self.repeats):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            begin.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            found.append(begin.elapsed_time(end) * 1e-3 / calls)
        return found

    def _dispatch_s(self) -> float:
        one = torch.ones(1)
        add = torch.ops.aten.add.Tensor
        return min(self._samples(lambda x: add(self=x, other=x), [[one]]))


def cache_bytes(device: str) -> int:
    """Of the last cache before the memory."""
    if device.startswith("cuda"):
        return int(getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0) or LAST_LEVEL_BYTES)
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        if said := re.fullmatch(r"(\d+)([KM])", file.read_text().strip()):
            sizes.append(int(said[1]) << (10 if said[2] == "K" else 20))
    return max(sizes, default=LAST_LEVEL_BYTES)
