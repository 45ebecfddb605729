"""A Diff for the terminal: rich renderables, so that the command line only prints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .diff import Diff
from .naming import fold_indices, short_name
from .tables import DiffRow, OpDiff, Unmatched

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table
    from rich.text import Text

BAR = 18  # columns of the longest bar of a waterfall
NOTABLE = 0.005  # share of the longer step under which a step of the waterfall is summed with others
VISIBLE = 1e-4  # share of the span under which an activity is left out


def diff_page(diff: Diff, depth: int | None = 3, top: int = 12) -> Group:
    """Everything: the totals, where the difference comes from, what to fix first, activity, then the tables.

    Modules are cut after *depth* names. At most *top* rows a table, the largest first; what is left out is summed in
    a last line.
    """
    from rich.columns import Columns
    from rich.console import Group

    beside = Columns([diff_waterfall(diff), diff_activity(diff)], padding=(0, 3))
    parts: list[RenderableType] = [diff_summary(diff), "", beside]
    if diff.causes:
        parts += ["", diff_causes(diff, top)]
    half = (top + 1) // 2
    for table in (diff_rows("module", diff.modules(depth), top), diff_rows("kind", diff.by_kind, half)):
        parts += ["", table]
    parts += ["", diff_ops(diff, top)]
    if diff.unmatched_predicted or diff.unmatched_measured:
        parts += ["", diff_unmatched(diff, half)]
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


def diff_waterfall(diff: Diff) -> Table:
    """From the predicted to the measured step, with bars; steps too small to see are summed in one line."""
    from rich.text import Text

    first, *steps, last = diff.waterfall
    least = NOTABLE * max(first.seconds, last.seconds)
    shown = [step for step in steps if abs(step.seconds) >= least]
    rest = sum(step.seconds for step in steps if abs(step.seconds) < least)
    lines = [("", first.label, first.seconds), *(("+", s.label, s.seconds) for s in shown)]
    if len(shown) < len(steps):
        lines.append(("+", f"{len(steps) - len(shown)} more", rest))
    lines.append(("", last.label, last.seconds))
    ends, level = [], 0.0
    for sign, _, seconds in lines:
        before = level if sign else 0.0
        level = before + seconds
        ends.append((min(before, level), max(before, level)))
    low, high = min(e[0] for e in ends), max(e[1] for e in ends)
    scale = BAR / (high - low) if high > low else 0.0
    table = _table("waterfall", "time", "")
    table.columns[2].justify = "left"
    for (sign, label, seconds), (start, end) in zip(lines, ends, strict=True):
        bar = " " * round((start - low) * scale) + "█" * max(round((end - start) * scale), 1 if seconds else 0)
        style = "" if not sign else "red" if seconds > 0 else "green"
        time = human_time(seconds) if not sign else _signed(seconds)
        table.add_row(_plain(label), time, Text(bar, style, no_wrap=True))
    return table


def diff_causes(diff: Diff, top: int = 12) -> Table:
    """What to fix first: causes by their difference."""
    table = _table("fix this first", "module", "ops", "predicted", "measured", "difference")
    table.columns[0].max_width = 26
    for cause in diff.causes[:top]:
        name = short_name(cause.name) or cause.kind or "all of it"
        times = human_time(cause.predicted_s), human_time(cause.measured_s), _signed(cause.difference_s)
        what = _plain(cause.what)
        what.stylize("red" if cause.difference_s > 0 else "green")
        module = _plain(short_path(cause.module, 22) or "(none)")
        table.add_row(what.append(f" {name}"), module, str(cause.ops), *times)
    if rest := diff.causes[top:]:
        table.add_row(f"{len(rest)} more", "", "", "", "", _signed(sum(c.difference_s for c in rest)), style="dim")
    return table


def diff_activity(diff: Diff) -> Table:
    """What the device does on both sides, and why it idles."""
    table = _table("activity", "predicted", "measured")
    a, b = diff.activity
    for label, x, y in (
        ("compute", a.compute_s, b.compute_s),
        ("copies", a.copy_s, b.copy_s),
        ("comm., exposed", a.exposed_communication_s, b.exposed_communication_s),
        ("comm., overlapped", a.overlapped_communication_s, b.overlapped_communication_s),
        ("idle, not launched", a.launch_idle_s, b.launch_idle_s),
        ("idle, other", a.other_idle_s, b.other_idle_s),
    ):
        if max(x, y) > VISIBLE * max(a.span_s, b.span_s):
            table.add_row(label, human_time(x), human_time(y))
    return table


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


def diff_unmatched(diff: Diff, top: int = 12) -> Table:
    """Operators that one side alone has, the same one of repeated layers in one line; at most *top* of each side."""
    table = _table("on one side only", "module", "ops", "predicted", "measured")
    for side, lonely in enumerate((diff.unmatched_predicted, diff.unmatched_measured)):
        groups: dict[tuple[str, str], list[Unmatched]] = {}
        for u in lonely:
            groups.setdefault((short_name(u.name), fold_indices(u.module)), []).append(u)
        rows = [(sum(u.seconds for u in us), sum(u.count for u in us), *key) for key, us in groups.items()]
        rows.sort(key=lambda r: (-r[0], r[2:]))
        for seconds, count, name, module in rows[:top]:
            times = [human_time(seconds), ""]
            table.add_row(_plain(name), _plain(short_path(module, 22)), str(count), *times[:: -1 if side else 1])
        if rest := rows[top:]:
            times = [human_time(sum(r[0] for r in rest)), ""]
            count = sum(r[1] for r in rest)
            table.add_row(f"{len(rest)} more", "", str(count), *times[:: -1 if side else 1], style="dim")
    return table


def human_time(seconds: float) -> str:
    """Four figures in the unit that fits: "12.34 ms"."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= scale:
            return f"{seconds / scale:.4g} {unit}"
    return f"{seconds / 1e-9:.4g} ns" if seconds else "0"


def short_path(path: str, width: int = 40) -> str:
    """The end of a *path* that is too long: its last names say most."""
    return path if len(path) <= width else "…" + path[1 - width :]


def _signed(seconds: float) -> str:
    return f"{'-' if seconds < 0 else '+'}{human_time(abs(seconds))}" if seconds else "0"


def _table(first: str, *others: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in (first, *others):
        if name == "module" and others[0] == "module":
            table.add_column(name, no_wrap=True, max_width=22)
        elif name == first:
            table.add_column(name, no_wrap=True, max_width=20 if others[0] == "module" else 44)
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
