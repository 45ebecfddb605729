"""One model's items in a process of its own: steps first, then the operators of their graphs, until the time is up."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from foretrace.ir import ForetraceError, Graph

from .items import Item, reference
from .machine import SYSTEM

STEPS_SHARE: Final = 0.6
"""Of a model's time, before its operators are begun."""
BUILD_BYTES_PER_S: Final = 1.5e8
"""How fast random weights are made, about; a guess that only decides what is begun."""
RUNS: Final = 20
"""Runs of a step that one measurement takes, about, the profiled ones longer."""
LIMIT: Final = 100
"""Operators of one graph."""

Say = Callable[[str, dict[str, Any]], None]


def run(items: list[Item], device: str, out: Path, seconds: float, repeats: int, say: Say) -> None:
    """Measure *items* of one model within *seconds*, files in *out*; *say* (kind, row) tells of each thing done.

    Kinds: step, operators, failed.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="foretrace-record-") as folder:
        graphs: dict[str, tuple[Item, Graph]] = {}
        for item in items:
            left = seconds * STEPS_SHARE - (time.monotonic() - start)
            try:
                graph = item.capture(Path(folder))
                eager = item.as_row() | {"execution": "eager"}
                graphs.setdefault(Item.of_row(eager).name, (Item.of_row(eager), graph))
                needed = _needed_s(graph, item, out / SYSTEM)
                if needed > left:
                    raise ForetraceError(f"no time left: {needed:.0f} s needed, {max(left, 0):.0f} s there")
                say("step", _step(item, device, out, Path(folder), repeats))
            except Exception as e:  # one item must not cost the rest
                say("failed", item.as_row() | {"what": "step", "reason": _why(e)})
        for name, (item, graph) in graphs.items():
            left = seconds - (time.monotonic() - start)
            try:
                if left < 5:
                    raise ForetraceError("no time left for its operators")
                say("operators", _operators(name, item, graph, device, out, left))
            except Exception as e:
                say("failed", item.as_row() | {"what": "operators", "reason": _why(e)})


def _needed_s(graph: Graph, item: Item, system: Path) -> float:
    """About how long measuring *item* takes, by our own prediction."""
    import foretrace

    step_s = foretrace.replay_graph(graph, str(system), dims=item.sizes()).time_s
    return graph.parameter_bytes / BUILD_BYTES_PER_S + RUNS * step_s + 60.0 * (item.execution == "compiled")


def _step(item: Item, device: str, out: Path, folder: Path, repeats: int) -> dict[str, Any]:
    import foretrace

    options: dict[str, Any] = {"optimizer": item.optimizer} if item.optimizer else {}
    trace = foretrace.measure_model(
        reference(item.model, folder),
        device=device,
        phase=item.phase,
        dtype=item.dtype,
        attention=item.attention,
        execution=item.execution,
        warmup=2,
        repeats=repeats,
        **item.sizes(),
        **options,
    )
    file = f"{item.name}.trace"
    foretrace.save_trace(trace.replace(model=item.model), out / file)
    row = {"file": file, "device": trace.system, "step_s": float(trace.step_s or 0.0)}
    warnings = [str(w) for w in trace.info.get("warnings", [])]
    return item.as_row() | row | ({"warnings": warnings} if warnings else {})


def _operators(name: str, item: Item, graph: Graph, device: str, out: Path, seconds: float) -> dict[str, Any]:
    from foretrace.capture import measure_operators

    end = time.monotonic() + seconds

    def progress(_: str) -> None:
        if time.monotonic() > end:
            raise TimeoutError("no time left for all of its operators")

    table = measure_operators(graph, device=device, dims=item.sizes(), limit=LIMIT, progress=progress)
    file = f"{name}.ops.parquet"
    table.on(SYSTEM).save(out / file)
    return item.as_row() | {"file": file, "rows": len(table), "not_timed": table.skipped}


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
