"""`plans`' answer as a page for the terminal."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.markup import escape

from .pages import _add, _table
from .plans import Ranked

_RIGHT = ("step", "80 % of", "MFU", "comm.", "bubble", "memory")


def plans_page(title: str, ranked: Sequence[Ranked], top: int) -> RenderableType:
    """The *top* plans that fit, and what became of the others; ``comm.`` is exposed communication."""
    fits = [r for r in ranked if r.fits]
    table = _table(title, "plan", *_RIGHT, right=_RIGHT)
    for column in table.columns[1:]:
        column.no_wrap = True  # where the terminal is narrow plans are folded, figures are not cut
    for r in fits[:top]:
        shares = (r.breakdown_s[part] / r.time_s for part in ("exposed_communication", "bubble"))
        _add(
            table,
            str(r.plan),
            _seconds(r.time_s),
            _between(r.time_low_s, r.time_high_s),
            f"{r.mfu:.0%}",
            *(f"{share:.0%}" for share in shares),
            f"{r.peak_bytes / 2**30:.1f} GiB",
        )
    large = [r for r in ranked if not r.fits and not r.refused]
    refused = [r for r in ranked if r.refused]
    lines = [f"{len(ranked):,} plans: {len(fits):,} fit, {len(large):,} do not, {len(refused):,} cannot run"]
    if large:
        least = min(large, key=lambda r: r.time_s)
        lines.append(f"fastest of those that do not fit: {least.plan}, {_seconds(least.time_s)}, "
                     f"{least.peak_bytes / 2**30:.1f} GiB")  # fmt: skip
    if refused:
        lines.append(f"first that cannot run: {refused[0].plan}: {refused[0].refused}")
    return Group(table, *(escape(line) for line in lines))


def _between(low: float, high: float) -> str:
    return f"{low:.3g} - {high:.3g} s" if low >= 1 else f"{low * 1e3:.0f} - {high * 1e3:.0f} ms"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"
