"""`measure_model`: run a randomly initialised model for real and return what was measured as a Trace.

Three kinds of run, because observing costs time: whole steps without any profiler (their median is the step's time),
profiled steps without shapes (their averages are the operators' times), and one profiled step with shapes and module
annotations (where in the model each operator ran). The operators of the last two are paired in order.
"""

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from foretrace.ir import ForetraceError, UnknownNameError
from foretrace.traces import StringColumn, Trace, average_repeats, load_trace

from .models import PretrainedModel, UserModel, resolve_model
from .phases import Step, check_phase, make_step, symbols_of
from .recorder import module_paths
from .user import refuse_flags, user_step

DEVICES = ("cpu", "cuda")
MODULE_PREFIX = "module:"
Progress = Callable[[str], None]


def measure_model(
    model: "str | PretrainedModel | UserModel",
    *,
    device: str = "cpu",
    phase: str = "forward",
    batch: int | None = None,
    seq: int | None = None,
    context: int | None = None,
    dtype: str | None = None,
    attention: str = "sdpa",
    warmup: int = 2,
    repeats: int = 5,
    progress: Progress = lambda _: None,
) -> Trace:
    """Measure one phase of *model*, random weights, on *device*: *warmup* steps, then *repeats* of each kind of run.

    Shapes as in `capture_graph`. The Trace's ``step_s`` is the median of unprofiled steps in seconds; ``info`` has
    every repeat and the environment. Raises `ForetraceError` where the device is missing or the model does not fit.
    """
    check_phase(phase)
    if phase == "train":
        raise ForetraceError("phase 'train' is captured and replayed, and not measured yet; measure phase 'forward'")
    _check_device(device)
    if warmup < 0 or repeats < 1:
        raise ForetraceError(f"expected --warmup of at least 0 and --repeats of at least 1, got {warmup} and {repeats}")
    if isinstance(model, str):
        progress(f"finding {model}")
        model = resolve_model(model)
    given = {n: v for n, v in (("batch", batch), ("seq", seq), ("context", context)) if v is not None}
    progress(f"building {model.name} on {device}")
    root, step, point = _prepare(model, phase, given, dtype, attention, device)
    with torch.no_grad():
        try:
            for i in range(warmup):
                progress(f"warming up {i + 1}/{warmup}")
                _timed(step.run, device)
            seconds = []
            for i in range(repeats):
                progress(f"timing {i + 1}/{repeats}")
                seconds.append(_timed(step.run, device))
        except Exception as e:  # the model's own code
            raise ForetraceError(f"{model.name}: its forward failed on {device}: {type(e).__name__}: {e}") from e
        profiled = []
        for i in range(repeats):
            progress(f"profiling {i + 1}/{repeats}")
            profiled.append(_profiled(step.run, device, shapes=False))
        progress("recording the structure")
        with _annotated(root):
            structure = _profiled(step.run, device, shapes=True)
    info = _environment(device) | {
        "step_s": seconds, "phase": phase, "dtype": _weight_dtype(root),
        "attention": attention, "warmup": warmup, "repeats": repeats, **point,
    }  # fmt: skip
    trace = _with_structure(average_repeats(profiled), structure)
    return trace.replace(
        title=f"{model.name} {phase}",
        source="measured",
        system=info["device"],
        model=model.name,
        step_s=statistics.median(seconds),
        info=trace.info | info,
    )


def _weight_dtype(root: torch.nn.Module) -> str:
    first = next(root.parameters(), None)
    return "" if first is None else str(first.dtype).removeprefix("torch.")


def _check_device(device: str) -> None:
    if device not in DEVICES:
        raise UnknownNameError("device", device, DEVICES)
    if device == "cuda" and not torch.cuda.is_available():
        raise ForetraceError("--device cuda: torch sees no CUDA device here; measure with --device cpu")


def _prepare(
    model: PretrainedModel | UserModel,
    phase: str,
    given: dict[str, int],
    dtype: str | None,
    attention: str,
    device: str,
) -> tuple[torch.nn.Module, Step, dict[str, int]]:
    if isinstance(model, UserModel):
        refuse_flags(model, dtype=dtype, **given)
        root, step = user_step(model, phase, device)
        return root, step, {}
    point = {n: s.default for n, s in symbols_of(phase, given, model.family, model.config).items()}
    size = sum(p.numel() * p.element_size() for p in model.build(dtype, attention).parameters())
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else _free_memory()
    if size > free:
        raise ForetraceError(
            f"{model.name} needs {size / 1e9:.1f} GB for its weights and {device} has {free / 1e9:.1f} GB free; "
            "replay predicts it without a device"
        )
    torch.manual_seed(0)
    root = model.build(dtype, attention, device)
    with torch.no_grad():
        return root, make_step(root, model.config, phase, point, device, model.family), point


def _free_memory() -> int:
    try:
        return int(os.sysconf("SC_AVPHYS_PAGES")) * int(os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):  # macOS and Windows do not say
        return 1 << 62


def _timed(run: Callable[[], Any], device: str) -> float:
    _synchronize(device)
    start = time.perf_counter()
    run()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _profiled(run: Callable[[], Any], device: str, *, shapes: bool) -> Trace:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler reports its own starts and stops on stderr
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with tempfile.TemporaryDirectory(prefix="foretrace-") as folder:
        file = Path(folder) / "step.json"
        with profile(activities=activities, record_shapes=shapes) as profiler:
            run()
            _synchronize(device)
        profiler.export_chrome_trace(str(file))
        return load_trace(file)


@contextmanager
def _annotated(root: torch.nn.Module) -> Iterator[None]:
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


def _with_structure(timed: Trace, structure: Trace) -> Trace:
    """*timed* with the module paths and shapes of *structure*, operator by operator in order.

    Where the two runs issued different operators the structure run is kept as it is, with a warning.
    """
    rows, theirs = _work_rows(timed), _work_rows(structure)
    if timed.name.take(rows).tolist() != structure.name.take(theirs).tolist():
        warning = "the profiled steps differ in their operators: times are those of the annotated run, which are longer"
        return structure.replace(info=structure.info | {"warnings": [*structure.info.get("warnings", []), warning]})
    changes: dict[str, Any] = {}
    for column in ("module", "shapes", "phase"):
        values = [""] * len(timed)
        for row, value in zip(rows, getattr(structure, column).take(theirs).tolist(), strict=True):
            values[row] = value
        changes[column] = StringColumn.of(values)
    return timed.replace(**changes)


def _work_rows(trace: Trace) -> Any:
    """Rows that are operators, launches or kernels, stream by stream in order of start."""
    rows = np.flatnonzero(~trace.kind.isin(("annotation", "gpu_annotation", "span")))
    names = sorted(trace.stream.used())
    place = np.array([names.index(s) for s in trace.stream.take(rows).tolist()], np.int64)
    return rows[np.lexsort((rows, trace.start_s[rows], place))]


def _environment(device: str) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if device == "cuda" else _cpu_name()
    return {
        "device": name,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
