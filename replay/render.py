"""A result for the terminal: rich renderables in human units. Imported by the command line alone."""

from collections.abc import Iterator, Sequence

from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from foretrace.hardware import format_quantity

from .attribution import Share
from .parallel import Parallel
from .result import Result

_COLOURS = {"compute": "green", "exposed_communication": "magenta", "host": "yellow", "bubble": "red", "idle": "blue"}
_BAR_CHARS = 40


def render_result(result: Result, modules: int = 10, ops: int = 10, depth: int = 4) -> RenderableType:
    """Everything a person wants to see first: time, where it goes, memory, the most expensive modules and operators."""
    parts: list[RenderableType] = [render_summary(result), render_breakdown(result)]
    if result.parallel is not None:
        parts.append(render_ranks(result.parallel, result.time_s))
    parts.append(render_memory(result))
    parts.append(render_shares(f"modules (to depth {depth})", result.by_module(depth, fold=True)[:modules]))
    parts.append(render_shares("operators", result.top_ops(ops)))
    parts += [f"[yellow]warning:[/] {escape(w)}" for w in result.warnings]
    return Group(*parts)


def render_summary(result: Result) -> Panel:
    """Time with its interval, what ran, FLOPs and MFU."""
    grid = Table.grid(padding=(0, 2))
    for name, value in _facts(result):
        grid.add_row(f"[dim]{name}[/]", escape(value))
    return Panel(
        grid,
        title=escape(" ".join(filter(None, (result.model, result.phase, result.dtype, "on", result.system)))),
        title_align="left",
        expand=False,
    )


def _facts(result: Result) -> Iterator[tuple[str, str]]:
    low, high = seconds(result.time_low_s), seconds(result.time_high_s)
    yield "time", f"{seconds(result.time_s)}  ({low} to {high})"
    phases = {name: s for name, s in result.phases_s.items() if s}
    if len(phases) > 1:
        yield "phases", ", ".join(f"{name} {seconds(s)}" for name, s in phases.items())
    if (parallel := result.parallel) is not None:
        run = parallel.run
        batches = f"{run.micro_batches} micro-batches of {run.plan.microbatch} a replica"
        schedule = f", {run.schedule.name}" if run.plan.pp > 1 else ""
        yield "plan", f"{result.plan} on {run.plan.ranks:,} accelerators, {batches}{schedule}"
        path = sorted(((s, name) for name, s in run.critical.items() if s), reverse=True)
        whole = sum(s for s, _ in path) or 1
        shown = ", ".join(f"{name.replace('_', ' ')} {s / whole:.1%}" for s, name in path[:4])
        yield "critical path", shown
    yield (
        "execution",
        f"{result.execution}, {result.kernels:,} kernels, {result.ops:,} operators, {result.costs} costs",
    )
    if result.bindings:
        yield "sizes", ", ".join(f"{name}={value}" for name, value in result.bindings.items())
    again = parallel.utilisation[1] if parallel is not None else result.mfu
    hfu = f", HFU {again:.1%}" if again > result.mfu else ""
    yield "work", f"{format_quantity(result.flops, 'work')}, MFU {result.mfu:.1%}{hfu}"


def render_breakdown(result: Result) -> Table:
    """Every instant of the step by cause, one bar after the other."""
    table = Table(title="time", title_justify="left", box=None, show_header=False, padding=(0, 2))
    begin = 0.0
    for name, s in result.breakdown_s.items():
        if s:
            bar = Bar(result.time_s, begin, begin + s, width=_BAR_CHARS, color=_COLOURS[name])
            table.add_row(name.replace("_", " "), seconds(s), _percent(s, result.time_s), bar)
        begin += s
    return table


def render_ranks(parallel: Parallel, time_s: float, most: int = 16) -> Table:
    """A line for each rank that differs: what it holds, where its time goes (bubbles and idling are waiting), how many
    micro-batches it holds at a time, its memory.
    """
    table = Table(title="ranks", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("rank", "stages", "layers", "compute", "comm", "host", "waiting", "held", "memory"):
        table.add_column(column, justify="right", no_wrap=True)
    for rank in parallel.ranks[:most]:
        b = rank.breakdown_s
        shares = (b["compute"], b["exposed_communication"], b["host"], b["bubble"] + b["idle"])
        stages = ",".join(str(s) for s in rank.stages[:4]) + ("…" if len(rank.stages) > 4 else "")
        table.add_row(
            f"{rank.rank:,}" + (f" (×{rank.count:,})" if rank.count > 1 else ""),
            stages,
            str(rank.layers),
            *(_percent(s, time_s) for s in shares),
            str(rank.memory.in_flight),
            size(rank.memory.peak_bytes),
        )
    if len(parallel.ranks) > most:
        table.caption = f"and {len(parallel.ranks) - most} more"
        table.caption_justify = "left"
    return table


def render_memory(result: Result) -> Table:
    """The peak by category against the capacity, and what is largest then."""
    memory = result.memory
    table = Table(title="memory at the peak", title_justify="left", box=None, padding=(0, 2))
    table.add_column("category")
    table.add_column("bytes", justify="right")
    table.add_column("of capacity", justify="right")
    for name, used in memory.by_category_bytes.items():
        if used:
            table.add_row(name.replace("_", " "), size(used), _percent(used, memory.capacity_bytes))
    verdict = "fits" if memory.fits else "[red]does not fit[/]"
    share = _percent(memory.peak_bytes, memory.capacity_bytes)
    table.add_row("[bold]peak[/]", size(memory.peak_bytes), f"{share} of {size(memory.capacity_bytes)}: {verdict}")
    if memory.peak_op:
        table.caption = escape(f"reached {seconds(memory.peak_time_s)} in, by {memory.peak_op}")
        table.caption_justify = "left"
    return table


def render_shares(title: str, shares: Sequence[Share]) -> Table:
    """A ranking of device time with what bounds each line."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("name", overflow="ellipsis", no_wrap=True, max_width=44)
    for column in ("time", "share", "kernels"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("bound by", no_wrap=True)
    for s in shares:
        name = s.name.removeprefix("aten.").removesuffix(".default")  # the short name that people know it by
        row = (escape(name or "(model)"), seconds(s.seconds), f"{s.share:.1%}", f"{s.kernels:,}", s.bound)
        table.add_row(*row)
    return table


def seconds(value: float) -> str:
    """``1.234 ms``."""
    return format_quantity(value, "time")


def size(value: float) -> str:
    """``79.1 GiB``."""
    return format_quantity(value, "size", digits=3)


def _percent(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "-"
