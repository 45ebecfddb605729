"""The ways a step is run: eagerly, through torch.compile, or captured once as a CUDA graph and replayed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from foretrace.ir import ForetraceError, UnknownNameError

from .steps import Work

EXECUTIONS = ("eager", "compiled", "cudagraph")
SETTLING_RUNS = 3
"""Runs on a stream of their own before a CUDA graph is captured, as torch's documentation asks for."""
Run = Callable[[], Any]


def check_execution(execution: str, device: str) -> None:
    """Raise `UnknownNameError` for a way to run that does not exist, `ForetraceError` for one that *device* lacks."""
    if execution not in EXECUTIONS:
        raise UnknownNameError("execution", execution, EXECUTIONS)
    if execution == "cudagraph" and device != "cuda":
        raise ForetraceError("--execution cudagraph: they need --device cuda; a cpu runs eager or compiled")


@contextmanager
def prepared(work: Work, execution: str, device: str) -> Iterator[Run]:
    """The call that runs the step of *work* by *execution*; a compiled one compiles when it is first called."""
    if execution == "compiled":
        with _compiled(work, device):
            yield work.run
    elif execution == "cudagraph":
        for group in (g for optimizer in work.optimizers for g in optimizer.param_groups):
            if "capturable" in group:  # its step count then lives on the device
                group["capturable"] = True
        yield _captured(work.run)
    else:
        yield work.run


@contextmanager
def _compiled(work: Work, device: str) -> Iterator[None]:
    """The model of *work* compiled for fixed sizes; on a CPU its fused kernels are seen by the profiler."""
    from torch._inductor import config

    if work.root is None:
        raise ForetraceError(f"--execution compiled: {work.name} is a function alone; compile it yourself")
    torch.compiler.reset()  # else other models' graphs count towards the limit, beyond which torch runs eagerly
    before: Any = work.root._compiled_call_impl
    inner = work.root._call_impl

    def call(*args: Any, **kwargs: Any) -> Any:  # torch compiles no frame of its own files: the first is this one
        return inner(*args, **kwargs)

    seen = device == "cpu" and hasattr(config.cpp, "enable_kernel_profile")
    with config.patch({"cpp.enable_kernel_profile": True} if seen else {}):
        work.root._compiled_call_impl = torch.compile(call, dynamic=False)
        try:
            yield
        finally:
            work.root._compiled_call_impl = before


def count_graphs() -> int:
    """Graphs that torch has compiled so far."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def count_breaks() -> int:
    """Places where torch left compiled code so far."""
    from torch._dynamo.utils import counters

    return sum(counters["graph_break"].values())


def _captured(run: Run) -> Run:
    """*run* as a CUDA graph."""
    stream: Any = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(SETTLING_RUNS):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()

    def replay() -> Any:
        graph.replay()
        return results

    return replay
