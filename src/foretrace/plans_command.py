"""`foretrace plans`: which plan for this model on these accelerators."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .console import note, print_json, show, stages
from .options import AsJson, Attention, DtypeName, Mixed, ModelOrGraph, Optimizer, Seq, obtain_graph

Values = Annotated[str | None, typer.Option(metavar="N,N,...")]


def plans(
    model: ModelOrGraph,
    on: Annotated[str, typer.Option("--on", help="a shipped system with its count, NAME:COUNT, or your YAML file")],
    batch: Annotated[int, typer.Option(help="sequences in a step, over all accelerators")],
    seq: Seq = None,
    dtype: DtypeName = None,
    attention: Attention = None,
    optimizer: Optimizer = None,
    mixed: Mixed = False,
    tp: Values = None,
    pp: Values = None,
    cp: Values = None,
    ep: Values = None,
    interleave: Values = None,
    zero: Values = None,
    microbatch: Values = None,
    recompute: Annotated[str | None, typer.Option(metavar="NAME,NAME,...")] = None,
    execution: Annotated[str, typer.Option(help="eager, compiled or cudagraph")] = "eager",
    costs: Annotated[str, typer.Option(help="physics, roofline, or a profile")] = "physics",
    top: Annotated[int, typer.Option(help="how many of the fastest to show")] = 10,
    jobs: Annotated[int | None, typer.Option(help="processes; default: one a core")] = None,
    json: AsJson = False,
) -> None:
    """Replay every plan that a training step allows on a system; the fastest that fits first."""
    from foretrace.hardware import load_system
    from foretrace.transforms.candidates import Space, plans_for

    from .plans import rank_plans
    from .plans_page import plans_page

    system = load_system(on)
    phase = None if Path(model).is_file() else "train"
    graph = obtain_graph(
        model, phase=phase, batch=None, seq=None, context=None, dtype=dtype, attention=attention, optimizer=optimizer
    )
    given: dict[str, Any] = {
        name: numbers(name, text)
        for name, text in {
            "tp": tp, "pp": pp, "cp": cp, "ep": ep, "interleave": interleave, "zero": zero, "microbatch": microbatch,
        }.items()
        if text is not None
    }  # fmt: skip
    if recompute is not None:
        given["recompute"] = tuple(part.strip() for part in recompute.split(","))
    candidates = plans_for(graph, system.count, batch, Space(**given))
    note(f"{len(candidates):,} plans of {graph.name} on {system.name}:{system.count}")
    with stages(len(candidates)) as advance:

        def progress(done: int, total: int) -> None:
            for _ in range(done - told[0]):
                advance(f"{done:,} of {total:,} plans")
            told[0] = done

        told = [-1]
        progress(0, len(candidates))
        ranked = rank_plans(
            graph, system, batch=batch, seq=seq, plans=candidates, execution=execution, costs=costs, jobs=jobs,
            progress=progress, **({"mixed": True} if mixed else {}),
        )  # fmt: skip
    if json:
        asked = {"model": graph.name, "system": system.name, "count": system.count, "batch": batch}
        print_json(asked | {"plans": [r.to_json() for r in ranked]})
    else:
        title = f"{graph.name} on {system.count} x {system.name}, {batch:,} sequences a step, {execution}"
        show(plans_page(title, ranked, top))


def numbers(name: str, text: str) -> tuple[int, ...]:
    """``"1,2,4"`` → ``(1, 2, 4)``. Raises `ForetraceError` for anything else."""
    from foretrace.ir import ForetraceError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ForetraceError(f"--{name} {text}: expected whole numbers, e.g. --{name} 1,2,4") from None
