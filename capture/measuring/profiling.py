"""One run of a step under torch's profiler, and the annotations that say which module and phase it was in."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.profiler import ProfilerActivity, profile, record_function

from foretrace.capture.recorder import module_paths
from foretrace.traces import Trace, load_trace

from .clock import synchronize

MODULE_PREFIX, PHASE_PREFIX = "module:", "phase:"


def profile_run(
    run: Callable[[], Any],
    device: str,
    ready: Callable[[], Any] = lambda: None,
    *,
    shapes: bool = False,
    memory: bool = False,
) -> Trace:
    """The Trace of one *run*; with input *shapes*, and with the allocator's bytes over time in ``info["memory"]``.

    *ready* comes first and is not seen.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler reports its own starts and stops on stderr
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with tempfile.TemporaryDirectory(prefix="foretrace-") as folder:
        file = Path(folder) / "step.json"
        ready()
        synchronize(device)
        with profile(activities=activities, record_shapes=shapes, profile_memory=memory) as profiler:
            run()
            synchronize(device)
        profiler.export_chrome_trace(str(file))
        return load_trace(file)


@contextmanager
def annotated_modules(root: torch.nn.Module) -> Iterator[None]:
    """Every submodule's forward inside a ``module:PATH`` annotation, which the Kineto reader understands."""
    open_annotations: list[Any] = []

    def enter(path: str) -> None:
        annotation = record_function(MODULE_PREFIX + path)
        annotation.__enter__()
        open_annotations.append(annotation)

    def leave() -> None:
        open_annotations.pop().__exit__(None, None, None)

    with module_paths(root, enter, leave):
        yield


class _Phases:
    """One ``phase:NAME`` annotation after the other, by the rules of `capture.training`."""

    def __init__(self) -> None:
        self.name = ""
        self._open: Any = None

    def begin(self, name: str) -> None:
        """The step is in phase *name* from here on."""
        if name == self.name:
            return
        self.end()
        self.name, self._open = name, record_function(PHASE_PREFIX + name)
        self._open.__enter__()

    def end(self) -> None:
        """The step is in no phase any more."""
        if self._open is not None:
            self._open.__exit__(None, None, None)
        self.name, self._open = "", None


@contextmanager
def annotated_phases(root: torch.nn.Module | None) -> Iterator[None]:
    """A training step inside ``phase:`` annotations: backward while autograd runs, optimizer from there on (clipping,
    the optimizer's step), forward before and wherever a module's forward begins again."""
    phases, autograd = _Phases(), torch.autograd
    run: Any = autograd._engine_run_backward  # type: ignore[attr-defined]
    compiled: Any = None if root is None else root._compiled_call_impl

    def run_backward(*args: Any, **kwargs: Any) -> Any:
        phases.begin("backward")
        try:
            return run(*args, **kwargs)
        finally:
            phases.begin("optimizer")

    def before_forward(*_: Any) -> None:
        if torch._C._current_graph_task_id() < 0:  # else a checkpointed forward that runs again
            phases.begin("forward")

    def call_compiled(*args: Any, **kwargs: Any) -> Any:
        before_forward()
        return compiled(*args, **kwargs)

    with ExitStack() as stack:
        stack.callback(phases.end)
        autograd._engine_run_backward = run_backward  # type: ignore[attr-defined]
        stack.callback(setattr, autograd, "_engine_run_backward", run)
        hooks: list[Any] = [register_optimizer_step_pre_hook(lambda *_: phases.begin("optimizer"))]
        if root is not None and compiled is not None:  # a hook on modules would have it compiled again
            root._compiled_call_impl = call_compiled
            stack.callback(setattr, root, "_compiled_call_impl", compiled)
        else:
            hooks.append(torch.nn.modules.module.register_module_forward_pre_hook(before_forward))
        for hook in hooks:
            stack.callback(hook.remove)
        phases.begin("forward")
        yield
