"""The command line: one function a command. `foretrace --help` lists them."""

from pathlib import Path
from typing import Annotated

import typer

from .console import command, fail, note, print_json, show, stages, warn
from .diff_command import diff
from .measure_command import measure
from .options import (
    AsJson,
    Attention,
    Batch,
    Chakra,
    Context,
    Dims,
    DtypeName,
    Mixed,
    Model,
    ModelOrGraph,
    Optimizer,
    Output,
    Phase,
    PlanText,
    Rank,
    Ranks,
    Seq,
    Styles,
    WorldSize,
    obtain_graph,
    parse_dims,
    parse_ranks,
    plan_options,
)
from .plans_command import plans

app = typer.Typer(
    name="foretrace",
    help="Capture the graph of a real model, replay it on hardware that may not exist yet, and check the prediction "
    "against measured traces.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
hardware = typer.Typer(no_args_is_help=True, help="The accelerators and systems that ship, and yours.")
app.add_typer(hardware, name="hardware")


def _version(show: bool) -> None:
    if show:
        from foretrace import __version__

        print(f"foretrace {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: foretrace capture Llama-3.1-8B --phase decode -o llama.graph")
@command
def capture(
    model: Model,
    output: Output,
    phase: Phase = None,
    batch: Batch = None,
    seq: Seq = None,
    context: Context = None,
    dim: Dims = None,
    dtype: DtypeName = None,
    attention: Attention = None,
    optimizer: Optimizer = None,
    world_size: WorldSize = None,
    rank: Rank = None,
) -> None:
    """Capture a model's graph on meta tensors: no weights, no accelerator."""
    from foretrace.ir import save_graph

    if Path(model).is_file() and not model.endswith((".onnx", ".pt2")):
        fail(f"{model}: is a file; 'capture' takes a model (name, folder with config.json, package.module:function)")
    if (world_size, rank) != (None, None) and ":" not in model:
        fail(f"{model}: --world-size and --rank are for package.module:function, whose module torch has parallelised")
    graph = obtain_graph(
        model,
        phase=phase,
        batch=batch,
        seq=seq,
        context=context,
        dtype=dtype,
        attention=attention,
        optimizer=optimizer,
        dims=parse_dims(dim),
        world_size=world_size,
        rank=rank,
    )
    save_graph(graph, output)
    symbols = ", ".join(graph.symbols) or "none, every size is fixed"
    counts = f"{len(graph.ops):,} ops, {graph.parameter_count:,} parameters"
    note(f"{output}: {graph.name} {graph.phase}, {counts}; open sizes: {symbols}")
    for key, value in graph.metadata.items():
        if key.startswith("note."):
            warn(value)


@app.command(epilog="Example: foretrace inspect llama.graph --batch 8 --context 4096")
@command
def inspect(
    model: ModelOrGraph,
    phase: Phase = None,
    batch: Batch = None,
    seq: Seq = None,
    context: Context = None,
    dim: Dims = None,
    dtype: DtypeName = None,
    attention: Attention = None,
    optimizer: Optimizer = None,
    text: Annotated[bool, typer.Option("--text", help="print the whole graph in its text form")] = False,
    json: AsJson = False,
) -> None:
    """Show what a graph holds: repeated blocks, operators by kind, parameters, FLOPs."""
    from foretrace.ir import print_text, summarize

    graph = obtain_graph(
        model,
        phase=phase,
        batch=batch,
        seq=seq,
        context=context,
        dtype=dtype,
        attention=attention,
        optimizer=optimizer,
        dims=parse_dims(dim),
    )
    bindings = graph.bind({"batch": batch, "seq": seq, "context": context} | parse_dims(dim))
    if text:
        print(print_text(graph), end="")
    elif json:
        print_json(summarize(graph, bindings))
    else:
        from .pages import graph_page

        show(graph_page(summarize(graph, bindings)))


@app.command(epilog="Example: foretrace replay llama.graph --on h100-sxm --batch 8 --context 4096 --trace step.pftrace")
@command
def replay(
    model: ModelOrGraph,
    on: Annotated[str, typer.Option("--on", help="a shipped system, NAME:COUNT, or your YAML file", metavar="SYSTEM")],
    phase: Phase = None,
    batch: Batch = None,
    seq: Seq = None,
    context: Context = None,
    dim: Dims = None,
    dtype: DtypeName = None,
    attention: Attention = None,
    optimizer: Optimizer = None,
    plan: PlanText = None,
    shard: Styles = None,
    mixed: Mixed = False,
    ranks: Ranks = None,
    execution: Annotated[str, typer.Option(help="eager, compiled, cudagraph or serving")] = "eager",
    costs: Annotated[
        str, typer.Option(help="physics, roofline, or a profile: physics:NAME or your YAML file")
    ] = "physics",
    trace: Annotated[
        Path | None, typer.Option(help="write the predicted timeline: .pftrace, .json[.gz] or .trace", metavar="FILE")
    ] = None,
    chakra: Chakra = None,
    json: AsJson = False,
) -> None:
    """Predict one step on a system: how long, what bounds it, does it fit."""
    from foretrace.hardware import load_system
    from foretrace.replay import replay_graph

    system = load_system(on)
    graph = obtain_graph(
        model,
        phase=phase,
        batch=batch,
        seq=seq,
        context=context,
        dtype=dtype,
        attention=attention,
        optimizer=optimizer,
        dims=parse_dims(dim),
    )
    result = replay_graph(
        graph,
        system,
        plan=plan,
        execution=execution,
        costs=costs,
        batch=batch,
        seq=seq,
        context=context,
        dims=parse_dims(dim),
        **plan_options(shard, plan, mixed),
    )
    if trace is not None:
        from foretrace.traces import save_trace

        events = result.trace if ranks is None else result.trace_of(parse_ranks(ranks))
        save_trace(events, trace)
        note(f"{trace}: {len(events):,} events")
    if chakra is not None:
        from foretrace.replay.chakra_nodes import save_chakra_result

        chosen = None if ranks is None else parse_ranks(ranks)
        count = len(chosen or (result.parallel.ranks if result.parallel else [0]))
        with stages(count) as progress:
            files = save_chakra_result(result, chakra, chosen, progress)
        note(f"{files[0]}: Chakra, {len(files) - 1} rank{'s' if len(files) > 2 else ''}; groups in {files[-1]}")
    if json:
        print_json(result.to_json())
    else:
        from foretrace.replay.render import render_result

        show(render_result(result))


app.command(epilog="Example: foretrace plans Llama-3.1-70B --on h100-sxm:64 --batch 512 --seq 8192 --mixed")(
    command(plans)
)


app.command(epilog="Example: foretrace measure gpt2 --device cpu --batch 1 --seq 128 -o gpt2.trace")(command(measure))


app.command(epilog="Example: foretrace diff predicted.pftrace measured.trace --html diff.html --tolerance 10%")(
    command(diff)
)


@app.command(epilog="Example: foretrace validate gemm.parquet --html scatter.html")
@command
def validate(
    tables: Annotated[list[Path], typer.Argument(help="measured rows, .parquet or .csv", metavar="TABLE...")],
    costs: Annotated[str, typer.Option(help="the cost model, or a profile from 'calibrate'")] = "physics",
    quality: Annotated[str, typer.Option(help="rows whose 'quality' says so; all: any")] = "ok",
    gpu: Annotated[list[str] | None, typer.Option(help="only rows of this one (repeatable)", metavar="NAME")] = None,
    worst: Annotated[int, typer.Option(help="how many of the rows furthest off to show", min=0)] = 10,
    html: Annotated[
        Path | None, typer.Option(help="write predicted against measured as a picture", metavar="FILE")
    ] = None,
    json: AsJson = False,
) -> None:
    """Hold a cost model against tables of measured operators and models: how far off, where, and why."""
    from .validate import count_stages, validate_tables

    with stages(count_stages(tables)) as progress:
        result = validate_tables(tables, costs=costs, quality=quality, gpus=gpu or (), worst=worst, progress=progress)
    for warning in result.warnings:
        warn(warning)
    if html is not None:
        from .scatter import save_scatter

        count = save_scatter(result, html)
        note(f"{html}: {count:,} of {result.rows.group.size:,} rows")
    if json:
        print_json(result.to_json())
    else:
        from .validate_page import validation_page

        show(validation_page(result))


@app.command(epilog="Example: foretrace calibrate measured.parquet -o my-gpu.yaml, then --costs my-gpu.yaml")
@command
def calibrate(
    tables: Annotated[list[Path], typer.Argument(help="measured rows, .parquet or .csv", metavar="TABLE...")],
    output: Output,
    gpu: Annotated[str | None, typer.Option(help="whose rows, where there are several", metavar="NAME")] = None,
    software: Annotated[
        str | None, typer.Option(help="what ran the rows: eager, serving, trtllm...; else each row says")
    ] = None,
    points: Annotated[int | None, typer.Option(help="take only so many rows, drawn at random")] = None,
    seed: Annotated[int, typer.Option(help="of the draw, and of the rows held back")] = 0,
    quality: Annotated[str, typer.Option(help="rows whose 'quality' says so; all: any")] = "ok",
    json: AsJson = False,
) -> None:
    """Fit the costs to measured rows of one GPU: a profile for --costs, never worse on rows held back."""
    from .calibrate import calibrate_costs

    if output.suffix not in (".yaml", ".yml"):
        fail(f"{output}: a profile's file ends in .yaml")
    flags = {"gpu": gpu, "software": software, "points": points, "seed": seed or None}
    given = " ".join(f"--{name} {value}" for name, value in flags.items() if value is not None)
    names = " ".join(path.name for path in tables)
    with stages(len(tables) + 12) as progress:
        result = calibrate_costs(
            tables,
            gpu=gpu,
            software=software,
            points=points,
            seed=seed,
            quality=quality,
            command=f"foretrace calibrate {names} {given}".strip(),
            progress=progress,
        )
        result.save(output)
    for warning in result.warnings:
        warn(warning)
    note(f"{output}: calibrated on {result.rows:,} rows of {result.gpu}")
    if json:
        print_json(result.to_json())
    else:
        from .calibrate_page import calibration_page

        show(calibration_page(result))


@hardware.command("list", epilog="Example: foretrace hardware list")
@command
def hardware_list(json: AsJson = False) -> None:
    """List the systems that ship."""
    from foretrace.hardware import list_systems

    systems = list_systems()
    if json:
        print_json({"systems": [s._asdict() for s in systems]})
    else:
        from .pages import systems_page

        show(systems_page(systems))


@hardware.command("show", epilog="Example: foretrace hardware show h100-sxm")
@command
def hardware_show(
    name: Annotated[str, typer.Argument(help="a shipped system or a YAML file")], json: AsJson = False
) -> None:
    """Show every figure of a system with its unit and source."""
    from foretrace.hardware import load_system

    system = load_system(name)
    if json:
        print_json({"name": system.name, "fields": [row._asdict() for row in system.describe()]})
    else:
        from .pages import system_page

        show(system_page(system))


@hardware.command("check", epilog="Example: foretrace hardware check examples/double-bandwidth.yaml")
@command
def hardware_check(file: Annotated[Path, typer.Argument(help="your YAML file")]) -> None:
    """Check a YAML description of your own."""
    from foretrace.hardware import check_file

    system = check_file(file)
    print(f"{file}: {system.name}, {system.count} accelerator{'s' if system.count > 1 else ''}: no fault found")
