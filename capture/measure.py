"""Run a randomly initialised model, or a step of one's own, for real and return what was measured as a Trace.

Three kinds of run, because observing costs time: whole steps without any profiler (their median is the step's time),
profiled steps without shapes (their averages are the operators' times), and one profiled step with shapes, memory,
module and phase annotations (where in the model each operator ran). The operators of the last two are paired in order.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch

from foretrace.ir import ForetraceError, UnknownNameError
from foretrace.traces import Trace

from .measuring import executions, structure
from .measuring.clock import StepTimes, synchronize, time_step
from .measuring.environment import describe_environment, load_warnings
from .measuring.executions import EXECUTIONS
from .measuring.failures import explained
from .measuring.profiling import annotated_modules, annotated_phases, profile_run
from .measuring.sampling import Samples, sampled
from .measuring.steps import Work, model_work, multi_tensor_optimizers, user_work
from .models import PretrainedModel, UserModel, resolve_model
from .phases import check_phase

DEVICES = ("cpu", "cuda")
ATTENTIONS = ("sdpa", "eager")
Progress = Callable[[str], None]
__all__ = ["ATTENTIONS", "DEVICES", "EXECUTIONS", "check_device", "measure_model", "measure_step"]


def measure_model(
    model: "str | PretrainedModel | UserModel",
    *,
    device: str = "cpu",
    phase: str = "forward",
    batch: int | None = None,
    seq: int | None = None,
    context: int | None = None,
    dims: Mapping[str, int] | None = None,
    dtype: str | None = None,
    attention: str = "sdpa",
    optimizer: str | None = None,
    execution: str = "eager",
    warmup: int = 2,
    repeats: int = 5,
    progress: Progress = lambda _: None,
) -> Trace:
    """Measure one phase of *model*, random weights, on *device*: *warmup* steps, then *repeats* of each kind of run.

    Shapes as in `capture_graph`; phase train is the step that it records, with one of *optimizer* where that is given.
    *execution* is eager, compiled (torch.compile for fixed sizes) or cudagraph (captured once, replayed). The Trace is
    as `measure_step` gives it. Raises `ForetraceError` where the device or a compiler is missing, the model or its step
    does not fit, or the step fails; `UnknownNameError` for a name that does not exist.
    """
    check_phase(phase)
    check_device(device)
    executions.check_execution(execution, device)
    _check_counts(warmup, repeats)
    if attention not in ATTENTIONS:
        raise UnknownNameError("attention", attention, ATTENTIONS, "what runs for real")
    environment = describe_environment(device)
    if isinstance(model, str):
        progress(f"finding {model}")
        model = resolve_model(model)
    sizes = {n: v for n, v in (("batch", batch), ("seq", seq), ("context", context)) if v is not None}
    progress(f"building {model.name} on {device}")
    with explained(f"{model.name}: building it", device):
        if isinstance(model, UserModel):
            given = sizes | {f"dim {n}": v for n, v in (dims or {}).items()}
            work = user_work(model, phase, device, optimizer, dtype=dtype, **given)
        else:
            work = model_work(model, phase, device, sizes | dict(dims or {}), dtype, attention, optimizer)
    info: dict[str, Any] = {"phase": phase, "dtype": work.dtype, **work.point}
    info |= {"attention": attention} if isinstance(model, PretrainedModel) else {}
    info |= {} if optimizer is None else {"optimizer": optimizer}
    trace = _measure(work, device, execution, warmup, repeats, environment, progress)
    return trace.replace(title=f"{model.name} {phase}", model=model.name, info=trace.info | info)


def measure_step(
    step: Callable[[], Any],
    *,
    module: torch.nn.Module | None = None,
    name: str = "step",
    device: str = "cpu",
    execution: str = "eager",
    trains: bool = False,
    warmup: int = 2,
    repeats: int = 5,
    progress: Progress = lambda _: None,
) -> Trace:
    """Measure *step*, a function of one's own that does one step of whatever it likes on *device*.

    Operators are attributed to the submodules of *module* where that is given, and to the phases forward, backward and
    optimizer where it *trains*. The Trace's ``step_s`` is the median of unprofiled steps in seconds; ``info`` has every
    repeat's host and device seconds, their spread, peak memory in bytes, power (W) and clocks (Hz) where the device
    reports them, the environment, and "warnings". Raises as `measure_model` does.
    """
    check_device(device)
    executions.check_execution(execution, device)
    _check_counts(warmup, repeats)
    work = Work(name, step, module, trains=trains)
    trace = _measure(work, device, execution, warmup, repeats, describe_environment(device), progress)
    return trace.replace(title=name, model=name)


def check_device(device: str) -> None:
    """Raise `UnknownNameError` for a device that we do not measure on, `ForetraceError` for one that is not here."""
    if device not in DEVICES:
        raise UnknownNameError("device", device, DEVICES)
    if device == "cuda" and not torch.cuda.is_available():
        raise ForetraceError("--device cuda: torch sees no CUDA device here; measure with --device cpu")


def _check_counts(warmup: int, repeats: int) -> None:
    if warmup < 0 or repeats < 1:
        raise ForetraceError(f"expected --warmup of at least 0 and --repeats of at least 1, got {warmup} and {repeats}")


def _measure(
    work: Work,
    device: str,
    execution: str,
    warmup: int,
    repeats: int,
    environment: dict[str, Any],
    progress: Progress,
) -> Trace:
    what = f"{work.name}: its {'training step' if work.trains else 'step'}"
    settled = warmup if execution == "eager" and not work.trains else max(warmup, 1)
    with ExitStack() as stack:
        stack.enter_context(multi_tensor_optimizers())
        stack.enter_context(explained(what, device, execution))
        run = stack.enter_context(executions.prepared(work, execution, device))
        before = executions.count_graphs(), executions.count_breaks()
        for i in range(settled):
            progress(f"{'compiling and ' if execution == 'compiled' and not i else ''}warming up {i + 1}/{settled}")
            time_step(run, device, work.ready)
        compiled = executions.count_graphs() - before[0], executions.count_breaks() - before[1]
        times, samples, memory = _time(work, run, device, execution == "cudagraph", repeats, progress)
        trace = _profile(work, run, device, execution, repeats, progress)
    warnings = [*load_warnings(environment), *work.notes, *times.warnings()]
    info = environment | times.to_info() | samples.to_info() | memory
    info |= {"execution": execution, "warmup": settled, "repeats": repeats}
    if execution == "compiled":
        info |= {"compiled_graphs": compiled[0], "graph_breaks": compiled[1]}
        if again := executions.count_graphs() - before[0] - compiled[0]:
            warnings.append(f"torch compiled {again} more graphs while it was measured: take a larger --warmup")
    if (peak := structure.peak_bytes(trace)) is not None:
        info.setdefault("peak_bytes", peak)
    trace = structure.with_warnings(structure.compact(trace), warnings)
    return trace.replace(source="measured", system=info["device"], step_s=times.median_s, info=trace.info | info)


def _time(
    work: Work, run: Callable[[], Any], device: str, graphed: bool, repeats: int, progress: Progress
) -> tuple[StepTimes, Samples, dict[str, int]]:
    """*repeats* unprofiled steps, what the device reported meanwhile, and on CUDA the bytes that its allocator held."""
    times = StepTimes()
    if device == "cuda" and not graphed:  # a graph's own memory was taken when it was captured
        synchronize(device)
        torch.cuda.reset_peak_memory_stats()
    with sampled(device) as samples:
        for i in range(repeats):
            progress(f"timing {i + 1}/{repeats}")
            times.repeats.append(time_step(run, device, work.ready))
    if device != "cuda":
        return times, samples, {}
    held = {"peak_bytes": torch.cuda.max_memory_allocated(), "reserved_bytes": torch.cuda.max_memory_reserved()}
    return times, samples, held


def _profile(
    work: Work, run: Callable[[], Any], device: str, execution: str, repeats: int, progress: Progress
) -> Trace:
    if device == "cuda":  # its tracer starts with the first profile, and slows that one down
        progress("starting the profiler")
        profile_run(run, device, work.ready)
    profiled = []
    for i in range(repeats):
        progress(f"profiling {i + 1}/{repeats}")
        profiled.append(profile_run(run, device, work.ready))
    timed = structure.average_runs(profiled)
    progress("recording the structure")

    def observe() -> None:
        with ExitStack() as stack:
            stack.enter_context(annotated_phases(work.root))
            if work.root is not None and execution != "compiled":  # hooks on modules would have it compiled again
                stack.enter_context(annotated_modules(work.root))
            work.run()

    # a CUDA graph has no operators: those of the step that it was captured from stand for them
    observed = profile_run(observe, device, work.ready, shapes=True, memory=execution != "cudagraph")
    if execution == "cudagraph":
        return structure.with_captured_operators(timed, observed)
    if device == "cpu":
        observed = structure.memory_above(observed, work.resident_bytes())
    return structure.with_structure(timed, observed)
