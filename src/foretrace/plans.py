"""`rank_plans`: every plan of a space replayed, the fastest that fits first.

Plans share what they can: a local graph for each (tp, sp, cp, ep, recompute), its prices for each micro-batch size.
Those that share most run one after another in one process.
"""

import gc
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from foretrace.ir import ForetraceError, Graph, load_graph, save_graph
from foretrace.transforms.candidates import Space, plans_for
from foretrace.transforms.plan import Plan

if TYPE_CHECKING:
    from foretrace.hardware import System
    from foretrace.replay.parallel import Shared

Progress = Callable[[int, int], None]
"""Told (plans done, plans in all)."""


@dataclass(frozen=True)
class Ranked:
    """One plan's answer. Seconds, bytes."""

    plan: Plan
    time_s: float
    time_low_s: float
    time_high_s: float
    breakdown_s: Mapping[str, float]
    mfu: float
    peak_bytes: int
    fits: bool
    refused: str = ""
    """Why there is no answer; the figures are then 0."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "plan": str(self.plan),
            "time_s": self.time_s,
            "time_low_s": self.time_low_s,
            "time_high_s": self.time_high_s,
            "breakdown_s": dict(self.breakdown_s),
            "mfu": self.mfu,
            "peak_bytes": self.peak_bytes,
            "fits": self.fits,
            "refused": self.refused,
        }

    @property
    def order(self) -> tuple[bool, bool, float, str]:
        """What fits first, then by time."""
        return bool(self.refused), not self.fits, self.time_s, str(self.plan)


@dataclass(frozen=True)
class Question:
    """What is asked of every plan."""

    system: "System"
    batch: int
    seq: int | None = None
    execution: str = "eager"
    costs: str = "physics"
    options: Mapping[str, Any] | None = None
    """Of `replay_graph` with a plan: ``mixed``, ``styles``, ``policy``, ``overlap``."""
    interval: bool = False
    """Whether both ends of the interval are replayed too."""


def rank_plans(
    graph: Graph,
    system: "System | str",
    *,
    batch: int,
    seq: int | None = None,
    plans: Sequence[Plan] | Space | None = None,
    execution: str = "eager",
    costs: str = "physics",
    jobs: int | None = None,
    progress: Progress | None = None,
    intervals: int = 20,
    **options: Any,
) -> list[Ranked]:
    """Replay *plans* (or those of a `Space`) of *graph* on *system*, best first; what does not fit or run stands last.

    *batch* counts the samples of a step over all accelerators. *jobs* processes share the work (None: one a core).
    The first *intervals* of the answer have an interval, the others' ends are their time: a step replayed three times
    takes longer than one.
    Raises `PlanError` where no plan is possible, `UnknownNameError` for a system that does not exist.
    """
    if isinstance(system, str):
        from foretrace.hardware import load_system

        system = load_system(system)
    if plans is None or isinstance(plans, Space):
        plans = plans_for(graph, system.count, batch, plans)
    question = Question(system, batch, seq, execution, costs, options)
    jobs = jobs or os.cpu_count() or 1
    chunks = _chunks(plans, jobs)
    found: list[Ranked] = []
    with _workers(graph, min(jobs, len(chunks))) as answers:
        for some in answers(question, chunks):
            found += some
            if progress is not None:
                progress(len(found), len(plans))
        found.sort(key=lambda r: r.order)
        first = [r.plan for r in found[:intervals] if not r.refused]
        again = {r.plan: r for some in answers(replace(question, interval=True), _chunks(first, jobs)) for r in some}
    return [again.get(r.plan, r) for r in found]


def _chunks(plans: Sequence[Plan], jobs: int) -> list[list[Plan]]:
    """*plans* in chunks that a process runs at a time: those that share a local graph, the chunks of most work first.

    The last *jobs* of them are divided once more, by micro-batch size, so that processes end at about the same time.
    """
    from foretrace.replay.parallel.prepared import local_key

    groups: dict[tuple[Any, ...], list[Plan]] = {}
    for plan in plans:
        groups.setdefault(local_key(plan), []).append(plan)
    ordered = [sorted(g, key=lambda p: (p.microbatch, p.pp, p.interleave, p.zero)) for g in groups.values()]
    ordered.sort(key=lambda group: -len(group))
    if jobs == 1:
        return ordered
    small = (list(some) for group in ordered[-jobs:] for _, some in groupby(group, key=lambda p: p.microbatch))
    return [*ordered[:-jobs], *small]


Answers = Callable[[Question, list[list[Plan]]], Iterable[list[Ranked]]]
"""The answers to a question, a chunk of plans after the other."""


@contextmanager
def _workers(graph: Graph, jobs: int) -> Iterator[Answers]:
    """*jobs* processes that have *graph*, or this one."""
    if jobs == 1:
        worker = _Worker(graph)
        yield lambda question, chunks: (worker.answer(question, chunk) for chunk in chunks)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph"
        save_graph(graph, path)  # a file is smaller than a pickle, and workers need not be forks
        with ProcessPoolExecutor(jobs, get_context("spawn"), _start, (str(path),)) as pool:
            yield lambda question, chunks: pool.map(partial(_work, question), chunks)


class _Worker:
    """Answers to plans of one graph; what the last local graphs gave is kept for the next chunk."""

    KEPT: Final = 2

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._shared: dict[Any, Shared] = {}

    def answer(self, q: Question, chunk: list[Plan]) -> list[Ranked]:
        """The answers to plans that share a local graph."""
        from foretrace.replay import replay_graph

        shared = self._of(chunk[0])
        found = []
        for plan in chunk:
            try:
                r = replay_graph(
                    self.graph, q.system, plan=plan, batch=q.batch, seq=q.seq, execution=q.execution, costs=q.costs,
                    shared=shared, interval=q.interval, **(q.options or {}),
                )  # fmt: skip
            except ForetraceError as error:
                found.append(Ranked(plan, 0.0, 0.0, 0.0, {}, 0.0, 0, False, str(error)))
                continue
            memory, ends = r.memory, (r.time_s, r.time_low_s, r.time_high_s)
            found.append(Ranked(plan, *ends, r.breakdown_s, r.mfu, memory.peak_bytes, memory.fits))
        return found

    def _of(self, plan: Plan) -> "Shared":
        """What *plan* shares with others of its local graph."""
        from foretrace.replay.parallel import Shared
        from foretrace.replay.parallel.prepared import local_key

        key = local_key(plan)
        shared = self._shared.pop(key) if key in self._shared else Shared()
        self._shared[key] = shared  # the last used stands last
        for old in list(self._shared)[: -self.KEPT]:
            del self._shared[old]
        return shared


_state: dict[str, _Worker] = {}


def _start(path: str) -> None:
    _state["worker"] = _Worker(load_graph(path))
    gc.freeze()  # the graph stays: no collection looks through it again


def _work(question: Question, chunk: list[Plan]) -> list[Ranked]:
    return _state["worker"].answer(question, chunk)
