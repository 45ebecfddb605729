"""`foretrace diff`: two traces held together, operator by operator."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import EXIT_TOLERANCE, fail, note, portions, print_json, show, warn
from .options import AsJson

if TYPE_CHECKING:
    from foretrace.traces import Trace
    from foretrace.traces.compare.page import Roofs

LEAST_MATCH = 0.5  # share of measured operator time under which a diff is of two different things


def diff(
    predicted: Annotated[Path, typer.Argument(help="a trace from 'replay --trace', or any other", metavar="PREDICTED")],
    measured: Annotated[
        Path, typer.Argument(help="a trace from 'measure', a Kineto, Nsight or CSV file...", metavar="MEASURED")
    ],
    tolerance: Annotated[
        str | None, typer.Option(help="exit with code 3 when the step's error is larger, e.g. 10%")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="write one page with pictures and sortable tables", metavar="FILE")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="write both side by side for ui.perfetto.dev (.pftrace)", metavar="FILE")
    ] = None,
    depth: Annotated[int, typer.Option(help="how many parts of the module path to show", min=1)] = 3,
    top: Annotated[int, typer.Option(help="rows of each table", min=1)] = 12,
    json: AsJson = False,
) -> None:
    """Hold a predicted trace against a measured one, operator by operator; or any two traces of one program."""
    from foretrace.traces import diff_traces

    limit = _tolerance(tolerance)
    if html is not None and html.suffix.lower() not in (".html", ".htm"):
        fail(f"{html}: expected a name that ends in .html")
    traces = _load(predicted), _load(measured)
    result = diff_traces(*traces)
    if html is not None:
        from foretrace.traces.compare.page import save_page

        save_page(result, html, _roofs(result.predicted))
        note(f"{html}: {len(result.by_op):,} matched operators")
    if trace is not None:
        from foretrace.traces.compare.side_by_side import save_side_by_side

        save_side_by_side(result, trace)
        note(f"{trace}: both timelines, an arrow from each operator to its partner")
    if json:
        print_json(result.to_json())
    else:
        from foretrace.traces.compare.render import diff_page

        show(diff_page(result, depth=depth, top=top))
    if limit is not None and not abs(result.error) <= limit:
        fail(f"the step's error {result.error:+.1%} is over the tolerance of {limit:.1%}", EXIT_TOLERANCE)
    if limit is not None and result.matched_share < LEAST_MATCH:
        fail(f"only {result.matched_share:.1%} of measured operator time is matched: another model?", EXIT_TOLERANCE)


def _load(path: Path) -> Trace:
    from foretrace.traces import load_trace

    with portions(f"reading {path.name}") as progress:
        trace = load_trace(path, progress)
    if trace.source != "predicted":
        for warning in trace.info.get("warnings", []):
            warn(f"{path}: {warning}")
    return trace


def _roofs(trace: Trace) -> Roofs | None:
    """The ceilings of the system that *trace* was predicted for, None where it is not one that can be found."""
    from foretrace.hardware import load_system
    from foretrace.ir import ForetraceError
    from foretrace.traces.compare.page import Roofs

    if trace.source != "predicted" or not trace.system:
        return None
    try:
        accelerator = load_system(trace.system).accelerator
    except ForetraceError:
        return None
    rates = accelerator.compute.matrix or accelerator.compute.vector
    named: dict[float, list[str]] = {}
    for dtype, rate in rates.items():
        named.setdefault(rate, []).append(dtype)
    highest = sorted(named, reverse=True)[:4]
    return Roofs(accelerator.memory.bandwidth, {", ".join(named[rate]): rate for rate in highest})


def _tolerance(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise typer.BadParameter(f"expected e.g. 10% or 0.1, got {text!r}", param_hint="--tolerance")
    return value
