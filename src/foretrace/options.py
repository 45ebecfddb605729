"""The flags that commands share: the same name and meaning everywhere."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from foretrace.ir import ForetraceError, Graph

Model = Annotated[
    str,
    typer.Argument(
        help="catalogue or hub name, folder with config.json, .onnx file, or package.module:function", metavar="MODEL"
    ),
]
ModelOrGraph = Annotated[
    str, typer.Argument(help="a graph file written by 'capture', or anything 'capture' takes", metavar="MODEL|GRAPH")
]
Phase = Annotated[
    str | None, typer.Option(help="forward, prefill (fills the KV cache), decode (reads it) or train (with a backward)")
]
Optimizer = Annotated[
    str | None, typer.Option(help="sgd, adam, adamw, adafactor or muon: phase train then ends with its step")
]
Batch = Annotated[int | None, typer.Option(help="sequences in the step; with --plan over all accelerators")]
Seq = Annotated[int | None, typer.Option(help="new tokens of each sequence")]
Context = Annotated[int | None, typer.Option(help="tokens of each sequence already in the KV cache (decode)")]
Dims = Annotated[
    list[str] | None,
    typer.Option("--dim", help="any other size: height, target, an ONNX file's own", metavar="NAME=VALUE"),
]
DtypeName = Annotated[str | None, typer.Option("--dtype", help="number format of the weights, e.g. bfloat16")]
Attention = Annotated[str | None, typer.Option(help="sdpa (one fused operator) or eager (matmul, softmax, matmul)")]
WorldSize = Annotated[
    int | None, typer.Option(help="ranks of the program: package.module:function runs as one of them, sending nothing")
]
Rank = Annotated[int | None, typer.Option(help="which of --world-size ranks to capture (default 0)")]
PlanText = Annotated[
    str | None,
    typer.Option(help="how the model is spread over the accelerators: tp=8,pp=4,zero=1,microbatch=1", metavar="PLAN"),
]
Styles = Annotated[
    Path | None,
    typer.Option("--shard", help="with tp: a YAML file of your own module names, '*.my_proj: colwise'", metavar="FILE"),
]
Mixed = Annotated[
    bool,
    typer.Option(
        "--mixed", help="Adam on float32 masters and moments with float32 gradients, for a step captured without one"
    ),
]
Ranks = Annotated[
    str | None,
    typer.Option(
        help="with --plan, of --trace and --chakra: whose, e.g. 0,8 or 0-7 (default: one of each pipeline rank)"
    ),
]
Chakra = Annotated[
    Path | None,
    typer.Option(help="write Chakra execution traces: PREFIX.RANK.et, PREFIX.groups.json", metavar="PREFIX"),
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")]
Output = Annotated[Path, typer.Option("--output", "-o", help="the file to write", metavar="FILE")]


def parse_dims(given: list[str] | None) -> dict[str, int]:
    """``["rows=3"]`` → ``{"rows": 3}``. Raises `ForetraceError` for anything else."""
    dims: dict[str, int] = {}
    for text in given or []:
        name, separator, value = text.partition("=")
        try:
            dims[name] = int(value)
        except ValueError:
            separator = ""
        if not separator or not name:
            raise ForetraceError(f"--dim {text!r}: expected NAME=VALUE with a whole number, e.g. --dim rows=3")
    return dims


def plan_options(path: Path | None, plan: str | None, mixed: bool) -> dict[str, Any]:
    """The options ``styles`` and ``mixed`` of `replay_graph`.

    Raises `ForetraceError` without a plan, and for a file of styles that is none.
    """
    given: dict[str, Any] = {}
    if (path is not None or mixed) and not plan:
        raise ForetraceError(f"{'--mixed' if mixed else '--shard'}: goes with a plan; give --plan dp=1 too")
    if mixed:
        given["mixed"] = True
    if path is not None:
        from foretrace.transforms.shard.seeds import load_styles

        given["styles"] = load_styles(str(path))
    return given


def parse_ranks(text: str) -> list[int]:
    """``"0,8-10"`` → ``[0, 8, 9, 10]``. Raises `ForetraceError` for anything else, and for over 100,000."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            span = range(int(first), int(last if dash else first) + 1)
        except ValueError:
            span = range(0)
        if not span or len(found) + len(span) > 100_000:
            raise ForetraceError(f"--ranks {text}: expected whole numbers, e.g. --ranks 0,8 or 0-7")
        found += span
    return found


def check_sizes(**sizes: int | None) -> None:
    """Raise `ForetraceError` for a shape flag of zero or less."""
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise ForetraceError(f"--{name} {value}: expected a size of at least 1")


def obtain_graph(
    spec: str,
    *,
    phase: str | None,
    batch: int | None,
    seq: int | None,
    context: int | None,
    dtype: str | None,
    attention: str | None,
    optimizer: str | None = None,
    dims: Mapping[str, int] | None = None,
    world_size: int | None = None,
    rank: int | None = None,
) -> Graph:
    """The graph in the file *spec*, or that of the model *spec* captured now (which imports torch)."""
    check_sizes(batch=batch, seq=seq, context=context)
    path = Path(spec)
    if path.is_file() and path.suffix not in (".onnx", ".pt2"):
        from foretrace.ir import load_graph

        graph = load_graph(path)
        for flag, wanted, has in (
            ("phase", phase, graph.phase),
            ("dtype", dtype, graph.metadata.get("dtype")),
            ("attention", attention, graph.metadata.get("attention")),
            ("optimizer", optimizer, graph.metadata.get("optimizer", "none")),
        ):
            if wanted is not None and _plain(flag, wanted) != has:
                raise ForetraceError(
                    f"--{flag} {wanted}: {spec} was captured with {flag} {has}; capture the model again"
                )
        return graph
    if path.suffix in (".graph", ".pb") and not path.exists():
        raise ForetraceError(f"{spec}: no such file")
    from .console import stages

    with stages(6) as progress:
        if path.suffix == ".onnx":  # this needs no torch
            progress("importing onnx")
            from foretrace.capture.onnx import capture_onnx

            sizes = {n: v for n, v in (("batch", batch), ("seq", seq), ("context", context)) if v is not None}
            return capture_onnx(
                spec,
                dims=sizes | dict(dims or {}),
                phase=phase or "forward",
                dtype=dtype,
                attention=attention or "sdpa",
                optimizer=optimizer,
            )
        progress("importing torch")
        from foretrace.capture import capture_graph

        return capture_graph(
            spec,
            phase=phase or "forward",
            batch=batch,
            seq=seq,
            context=context,
            dtype=dtype,
            attention=attention or "sdpa",
            optimizer=optimizer,
            dims=dims,
            world_size=world_size,
            rank=rank,
            progress=progress,
        )


def _plain(flag: str, value: str) -> str:
    from foretrace.ir import parse_dtype

    return parse_dtype(value).name if flag == "dtype" else value
