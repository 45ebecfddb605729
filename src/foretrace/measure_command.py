"""`foretrace measure`: a step that runs for real, as a trace; or its operators one by one, as a table."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import fail, note, stages, warn
from .options import (
    Attention,
    Batch,
    Context,
    Dims,
    DtypeName,
    ModelOrGraph,
    Optimizer,
    Output,
    Phase,
    Seq,
    check_sizes,
    obtain_graph,
    parse_dims,
)

if TYPE_CHECKING:
    from foretrace.ir import Graph
    from foretrace.traces import Trace

TABLES = (".parquet", ".csv")


def measure(
    model: ModelOrGraph,
    output: Output,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    phase: Phase = None,
    batch: Batch = None,
    seq: Seq = None,
    context: Context = None,
    dim: Dims = None,
    dtype: DtypeName = None,
    attention: Attention = None,
    optimizer: Optimizer = None,
    execution: Annotated[
        str, typer.Option(help="eager, compiled (torch.compile) or cudagraph (captured once, replayed)")
    ] = "eager",
    warmup: Annotated[int, typer.Option(help="steps run first and not counted; torch.compile compiles in them")] = 2,
    repeats: Annotated[int, typer.Option(help="steps timed, and as many profiled")] = 5,
    ops: Annotated[
        bool, typer.Option("--ops", help="time the distinct operators one by one: a table for validate and calibrate")
    ] = False,
    limit: Annotated[int | None, typer.Option(help="with --ops: time only so many operators", min=1)] = None,
) -> None:
    """Run a randomly initialised model for real and write what was measured as a trace."""
    check_sizes(batch=batch, seq=seq, context=context)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch's own remarks on its profiler, before it is imported
    dims = parse_dims(dim)
    if ops:
        if execution != "eager":
            fail(f"--execution {execution}: --ops times operators as they stand, eagerly")
        if output.suffix.lower() not in TABLES:
            fail(f"{output}: --ops writes a table, a name that ends in {' or '.join(TABLES)}")
        _check_folder(output)
        graph = obtain_graph(
            model,
            phase=phase,
            batch=batch,
            seq=seq,
            context=context,
            dtype=dtype,
            attention=attention,
            optimizer=optimizer,
            dims=dims,
        )
        given = {n: v for n, v in (("batch", batch), ("seq", seq), ("context", context)) if v is not None} | dims
        _time_operators(graph, output, device, given, repeats, limit)
        return
    if limit is not None:
        fail("--limit: goes with --ops")
    if Path(model).is_file() and not model.endswith(".onnx"):
        fail(f"{model}: is a file; without --ops 'measure' runs a model (name, folder, package.module:function)")
    output = output if output.suffix else output.with_suffix(".trace")
    _check_output(output)
    with stages(6 + max(warmup, 0) + 2 * max(repeats, 0)) as progress:
        progress("importing torch")
        from foretrace.capture import measure_model
        from foretrace.traces import save_trace

        trace = measure_model(
            model,
            device=device,
            phase=phase or "forward",
            batch=batch,
            seq=seq,
            context=context,
            dims=dims,
            dtype=dtype,
            attention=attention or "sdpa",
            optimizer=optimizer,
            execution=execution,
            warmup=warmup,
            repeats=repeats,
            progress=progress,
        )
        save_trace(trace, output)
    note(f"{output}: {_told(trace)}")
    for warning in trace.info.get("warnings", []):
        warn(warning)


def _time_operators(
    graph: "Graph", output: Path, device: str, dims: dict[str, int], repeats: int, limit: int | None
) -> None:
    """``--ops``: the table of *graph*'s distinct operators, written to *output*."""
    with stages(limit or len(set(graph.op_codes))) as progress:
        from foretrace.capture import measure_operators

        table = measure_operators(graph, device=device, dims=dims, repeats=repeats, limit=limit, progress=progress)
        table.save(output)
    note(f"{output}: {len(table):,} operators of {graph.name} {graph.phase}")
    for reason, count in table.skipped.items():
        warn(f"{count} distinct operators are not in it: {reason}")


def _told(trace: "Trace") -> str:
    """One line: what ran where, how long a step took and how far steps were apart, what it held, what it drew."""
    info, step_s = trace.info, trace.step_s or 0.0
    parts = [
        f"{trace.title} {info['execution']} on {trace.system}",
        f"{step_s * 1e3:.2f} ms a step (spread {info['spread_s'] / step_s if step_s else 0.0:.1%})",
        f"{len(trace):,} events",
    ]
    if "device_median_s" in info:
        parts.insert(2, f"{info['device_median_s'] * 1e3:.2f} ms of it on the device")
    if "peak_bytes" in info:
        parts.append(f"peak {info['peak_bytes'] / 1e9:.2f} GB")
    if "power_w" in info:
        parts.append(f"{info['power_w']:.0f} W")
    if "clock_hz" in info:
        parts.append(f"{info['clock_hz'] / 1e6:.0f} MHz")
    return ", ".join(parts)


def _check_output(output: Path) -> None:
    """Fail now, not after minutes of measuring, for a file that cannot be written."""
    from foretrace.traces.store import writer_of

    _check_folder(output)
    writer_of(output)


def _check_folder(output: Path) -> None:
    if not output.parent.is_dir():
        fail(f"{output}: no such folder: {output.parent}")
