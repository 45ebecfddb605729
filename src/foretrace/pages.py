"""Pages for the terminal that belong to no one room: a graph, the systems that ship, one system."""

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from foretrace.hardware import System, SystemSummary, format_quantity

from .console import printable


def _table(title: str, *columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def _add(table: Table, *values: str) -> None:
    """A row of plain text: brackets in names are no markup, control characters are shown."""
    table.add_row(*(Text(printable(v)) for v in values))


def graph_page(summary: dict[str, Any]) -> RenderableType:
    """`ir.summarize`'s summary of a graph as a short page."""
    meta = summary["metadata"]
    sizes = ", ".join(f"{n} = {s['value']}" for n, s in summary["symbols"].items()) or "all fixed"
    fixed = ", ".join(f"{k.removeprefix('fixed.')} = {v}" for k, v in meta.items() if k.startswith("fixed."))
    head = Table.grid(padding=(0, 2))
    for name, value in (
        ("model", f"{summary['name']} · {summary['phase']} · {meta.get('dtype', '')} · {meta.get('attention', '')}"),
        ("sizes", sizes + (f" (fixed: {fixed})" if fixed else "")),
        ("parameters", f"{summary['parameters']:,} ({format_quantity(summary['parameter_bytes'], 'size')})"),
        ("work", f"{format_quantity(summary['flops'], 'work')} in matmul-like and attention operators"),
        (
            "operators",
            f"{summary['ops']:,} in {summary['layers']} layers; {summary['folded_ops']:,} with each block once",
        ),
    ):
        head.add_row(Text(name, style="bold"), Text(printable(value)))
    figures = ("repeats", "ops", "kernels", "parameters", "FLOPs", "bytes")
    blocks = _table("\nRepeated blocks, each", "module", *figures, right=figures)
    for b in summary["blocks"]:
        counts = (f"{b[name]:,}" for name in ("repeats", "ops", "kernels", "parameters"))
        _add(blocks, b["module"], *counts, format_quantity(b["flops"], "work"), format_quantity(b["bytes"], "size"))
    kinds = _table("\nOperators by kind", "kind", "ops", right=("ops",))
    for kind, count in summary["ops_by_kind"].items():
        _add(kinds, kind, f"{count:,}")
    parts: list[RenderableType] = [head, blocks, kinds]
    if summary["unmodelled_ops"]:
        names = printable(", ".join(summary["unmodelled_ops"]))
        parts.append(Text(f"\nunmodelled, priced by bytes: {names}", style="yellow"))
    return Group(*parts)


def systems_page(systems: Sequence[SystemSummary]) -> RenderableType:
    """The shipped systems, one a line."""
    right = ("memory", "bandwidth")
    table = _table("", "name", "vendor", "kind", "memory", "bandwidth", "dense peak", right=right)
    for s in systems:
        memory, bandwidth, peak = (
            "measured" if value is None else format_quantity(value, dimension)
            for value, dimension in (
                (s.memory_bytes, "size"),
                (s.bandwidth, "bandwidth"),
                (s.peak_flops, "compute rate"),
            )
        )
        _add(table, s.name, s.vendor, s.kind, memory, bandwidth, f"{peak} {s.peak_dtype or ''}")
    return table


def system_page(system: System) -> RenderableType:
    """Every figure of a system: value, meaning with its unit, source."""
    table = _table(escape(system.name), "field", "value", "meaning", "source")
    for row in system.describe():
        _add(table, row.field, row.value, row.meaning, row.source)
    return table
