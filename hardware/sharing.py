"""Flows that share links: max-min fair rates, and when each is done.

A flow f moves its bytes at rate x_f and loads link l with w_fl · x_f, where w_fl is the share of it that goes that way
(1 on a single path, a half where two paths split it). Rates are max-min fair: none can rise without taking from one
that is no faster. Progressive filling finds them (Bertsekas and Gallager, Data Networks, 1992, 6.5.2): all rates rise
together; where a link fills, the flows over it stop, and the others rise on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Paths:
    """Which links each of *flows* flows loads: entries (flow, link, weight) [e], those of one pair summed."""

    flows: int
    flow: Ints
    """[e]"""
    link: Ints
    """[e]"""
    weight: Floats
    """[e] share of the flow over that link."""

    @classmethod
    def of(cls, routes: Sequence[Sequence[int]]) -> "Paths":
        """Flow f goes over the links ``routes[f]``, each in full."""
        flow = np.repeat(np.arange(len(routes)), [len(route) for route in routes])
        link = np.array([link for route in routes for link in route], np.int64)
        return cls(len(routes), flow, link, np.ones(flow.size))

    def load(self, rates: Floats, links: int) -> Floats:
        """[links] bytes/s of each link where the flows run at *rates* [flows]."""
        return np.bincount(self.link, self.weight * rates[self.flow], links).astype(np.float64)


def max_min_rates(paths: Paths, capacity: Floats) -> Floats:
    """[flows] bytes/s, max-min fair, over links of *capacity* [links] bytes/s; infinite for a flow over no link."""
    rates = np.zeros(paths.flows)
    rising = np.ones(paths.flows, np.bool_)
    left = np.asarray(capacity, np.float64).copy()
    open_link = np.ones(left.size, np.bool_)
    while rising.any():
        demand = np.bincount(paths.link, paths.weight * rising[paths.flow], left.size)
        used = (demand > 0) & open_link
        if not used.any():
            rates[rising] = np.inf
            break
        room = np.full(left.size, np.inf)
        room[used] = np.maximum(left[used], 0.0) / demand[used]
        step = room.min()
        rates[rising] += step
        left -= step * demand
        full = used & (room <= step * (1 + 1e-12))
        open_link &= ~full
        stopped = np.zeros(paths.flows, np.bool_)
        stopped[paths.flow[full[paths.link]]] = True
        rising &= ~stopped
    return rates


def slowest_rate(paths: Paths, capacity: Floats) -> float:
    """bytes/s of the slowest of the max-min fair rates: the first step of the filling. Infinite without a link."""
    demand = np.bincount(paths.link, paths.weight, capacity.size)
    used = demand > 0
    return float((capacity[used] / demand[used]).min()) if used.any() else float("inf")


def finish_times(paths: Paths, capacity: Floats, nbytes: Floats, start: Floats | None = None) -> Floats:
    """[flows] s at which each flow has moved *nbytes* [flows], from *start* [flows] s (0), max-min fair all along.

    Rates change where a flow starts or ends (a fluid model: no packet, no slow start). Time is O(flows) fillings.
    """
    begin = np.zeros(paths.flows) if start is None else np.asarray(start, np.float64)
    left = np.asarray(nbytes, np.float64).copy()
    done = np.where(left <= 0, begin, np.inf)
    now = float(begin.min(initial=0.0)) if paths.flows else 0.0
    while np.isinf(done).any():
        waiting = np.isinf(done) & (begin > now)
        running = np.isinf(done) & ~waiting
        rates = np.zeros(paths.flows)
        if running.any():
            rates[running] = max_min_rates(_only(paths, running), capacity)
        ends = np.full(paths.flows, np.inf)
        ends[running] = now + left[running] / rates[running]
        upcoming = min(float(ends.min()), float(begin[waiting].min(initial=np.inf)))
        finite = running & np.isfinite(rates)
        left[finite] -= rates[finite] * (upcoming - now)
        over = running & (ends <= upcoming)
        done[over] = upcoming
        now = upcoming
    return done


def _only(paths: Paths, chosen: NDArray[np.bool_]) -> Paths:
    """The flows *chosen*, renumbered in order."""
    kept = chosen[paths.flow]
    number = np.cumsum(chosen) - 1
    return Paths(int(chosen.sum()), number[paths.flow[kept]], paths.link[kept], paths.weight[kept])
