"""A Diff for the terminal: rich renderables, so that the command line only prints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .diff import Diff, DiffRow, OpDiff, Unmatched

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table
    from rich.text import Text


def diff_page(diff: Diff, depth: int | None = 3, top: int = 12) -> Group:
    """Everything: the totals, then modules (cut after *depth* names), kinds, operators, what has no partner.

    At most *top* rows a table, the largest first; what is left out is summed in a last line.
    """
    from rich.console import Group

    parts: list[RenderableType] = [diff_summary(diff)]
    parts.append(diff_rows("module", diff.modules(depth), top))
    parts.append(diff_rows("kind", diff.by_kind, top))
    parts.append(diff_ops(diff, top))
    for side, lonely in (("predicted", diff.unmatched_predicted), ("measured", diff.unmatched_measured)):
        if lonely:
            parts.append(diff_unmatched(f"{side} only", lonely, top))
    return Group(*parts)


def diff_summary(diff: Diff) -> Text:
    """Step times, their error, and how much of the measured operator time was matched."""
    from rich.text import Text

    text = Text()
    for side, trace in (("predicted", diff.predicted), ("measured", diff.measured)):
        text.append(f"{side:9}  {trace.title or trace.model or trace.source}", "dim")
        text.append(f" on {trace.system}\n" if trace.system and trace.system not in trace.title else "\n", "dim")
    text.append_text(Text.assemble("predicted ", (human_time(diff.predicted_s), "bold"), ", measured "))
    text.append(human_time(diff.measured_s), "bold")
    text.append(", error ").append_text(_error(diff.error))
    text.append(f"; {diff.matched_share:.1%} of measured operator time matched")
    if diff.mape_ops is not None:
        text.append(f", mean error per operator {diff.mape_ops:.1%} (time-weighted)")
    return text


def diff_rows(label: str, rows: Sequence[DiffRow], top: int = 12) -> Table:
    """A table of *rows*: label, number of operators, seconds on both sides, signed error."""
    table = _table(label, "ops", "predicted", "measured", "error")
    for row in rows[:top]:
        times = human_time(row.predicted_s), human_time(row.measured_s)
        table.add_row(_plain(short_path(row.label) or "(none)"), str(row.count), *times, _error(row.error))
    rest = rows[top:]
    if rest:
        left = DiffRow(
            "", sum(r.predicted_s for r in rest), sum(r.measured_s for r in rest), sum(r.count for r in rest)
        )
        times = human_time(left.predicted_s), human_time(left.measured_s)
        table.add_row(f"{len(rest)} more", str(left.count), *times, _error(left.error), style="dim")
    return table


def diff_ops(diff: Diff, top: int = 12) -> Table:
    """Matched operators, the same one of repeated layers in one line (``h.*.mlp``), the longest measured first."""
    groups: dict[tuple[str, str], list[OpDiff]] = {}
    for op in diff.by_op:
        groups.setdefault((short_name(op.name), fold_indices(op.module)), []).append(op)
    rows = [
        (name, module, DiffRow("", sum(o.predicted_s for o in ops), sum(o.measured_s for o in ops), len(ops)))
        for (name, module), ops in groups.items()
    ]
    rows.sort(key=lambda r: (-r[2].measured_s, r[:2]))
    table = _table("operator", "module", "ops", "predicted", "measured", "error")
    for name, module, row in rows[:top]:
        times = human_time(row.predicted_s), human_time(row.measured_s)
        table.add_row(_plain(name), _plain(short_path(module, 22)), str(row.count), *times, _error(row.error))
    if len(rows) > top:
        table.add_row(f"{len(rows) - top} more", "", "", "", "", "", style="dim")
    return table


def diff_unmatched(title: str, lonely: Sequence[Unmatched], top: int = 12) -> Table:
    """Operators that one side alone has, the same one of repeated layers in one line."""
    groups: dict[tuple[str, str], list[Unmatched]] = {}
    for u in lonely:
        groups.setdefault((short_name(u.name), fold_indices(u.module)), []).append(u)
    rows = [(sum(u.seconds for u in us), sum(u.count for u in us), *key) for key, us in groups.items()]
    rows.sort(key=lambda r: (-r[0], r[2:]))
    table = _table(title, "module", "ops", "time")
    for seconds, count, name, module in rows[:top]:
        table.add_row(_plain(name), _plain(short_path(module)), str(count), human_time(seconds))
    if rest := rows[top:]:
        left = str(sum(r[1] for r in rest)), human_time(sum(r[0] for r in rest))
        table.add_row(f"{len(rest)} more", "", *left, style="dim")
    return table


def human_time(seconds: float) -> str:
    """Four figures in the unit that fits: "12.34 ms"."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= scale:
            return f"{seconds / scale:.4g} {unit}"
    return f"{seconds / 1e-9:.4g} ns" if seconds else "0"


def fold_indices(module: str) -> str:
    """``h.3.mlp`` and ``h.7.mlp`` are both ``h.*.mlp``."""
    return ".".join("*" if part.isdigit() else part for part in module.split("."))


def short_name(name: str) -> str:
    """The name people know an operator by: ``aten.addmm.default`` is ``addmm``."""
    return name.removeprefix("aten.").removeprefix("aten::").removesuffix(".default")


def short_path(path: str, width: int = 40) -> str:
    """The end of a *path* that is too long: its last names say most."""
    return path if len(path) <= width else "…" + path[1 - width :]


def _table(first: str, *others: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for name in (first, *others):
        if name == "module" and others[0] == "module":
            table.add_column(name, no_wrap=True, max_width=22)
        elif name == first:
            table.add_column(name, no_wrap=True, max_width=16 if others[0] == "module" else 44)
        else:  # figures never give way
            table.add_column(name, justify="right", no_wrap=True, min_width=3 if name == "ops" else 9)
    return table


def _plain(text: str) -> Text:
    from rich.text import Text

    return Text(text, no_wrap=True, overflow="ellipsis")  # not a str: brackets in shapes are no markup


def _error(error: float) -> Text:
    from rich.text import Text

    if math.isinf(error):
        return Text("–")
    size = abs(error)
    return Text(f"{error:+.1%}", style="green" if size < 0.1 else "yellow" if size < 0.25 else "red")
