"""`validate`'s result as a page for the terminal."""

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.text import Text

from foretrace.hardware import format_quantity

from .console import printable
from .pages import _add, _table
from .scores import Score, Validation

_FIGURES = ("n", "MAPE", "median", "p90", "bias", "inside")


def _percent(value: float) -> str:
    return f"{value:.1%}" if value < 10 else f"{value:.0f}x"


def _figures(score: Score) -> tuple[str, ...]:
    errors = (_percent(v) for v in (score.mape, score.median_ape, score.p90_ape))
    return (f"{score.n:,}", *errors, f"{score.bias:.3f}", f"{score.coverage:.0%}")


def validation_page(result: Validation) -> RenderableType:
    """Scores by (kind, gpu, dtype), the worst rows, and what was skipped."""
    title = f"{escape(result.costs)} costs against {len(result.tables)} table{'s' if len(result.tables) > 1 else ''}"
    table = _table(title, "gpu", "dtype", *_FIGURES, right=_FIGURES)
    kind = ""
    for group, score in result.scores.items():
        if group.kind != kind:
            kind = group.kind
            table.add_row(Text(printable(kind), style="bold"))
        _add(table, f"  {group.gpu}", group.dtype, *_figures(score))
    for group, score in result.beside.items():
        if group.kind != kind:
            kind = group.kind
            table.add_row(Text(printable(kind), style="bold"))
        _add(table, f"  {group.gpu}", group.dtype, *_figures(score))
    if (overall := result.overall) is not None:
        table.add_section()
        _add(table, "overall", "", *_figures(overall))
    parts: list[RenderableType] = [table]
    if result.verdicts:
        right_ones = ("n", "right", "precision", "recall", "missed", "false")
        judged = _table("\nverdicts", "what", "gpu", *right_ones, right=right_ones)
        for g, v in result.verdicts.items():
            shares = (f"{share:.1%}" for share in (v.right, v.precision, v.recall))
            _add(judged, g.kind, g.gpu, f"{v.n:,}", *shares, f"{v.only_measured:,}", f"{v.only_predicted:,}")
        parts.append(judged)
    if result.worst:
        right = ("predicted", "measured", "ratio")
        worst = _table("\nworst rows", *right, "bound by", "what", right=right)
        for p in result.worst:
            times = (format_quantity(t, "time") for t in (p.predicted_s, p.measured_s))
            place = f"{p.table.rsplit('/', 1)[-1]} row {p.row}"
            what = f"{p.group.kind} {p.group.gpu} {p.group.dtype}, {p.what} ({place})"
            _add(worst, *times, f"{p.ratio:.3g}", p.bound, what)
        parts.append(worst)
    if result.skipped:
        skipped = _table("\nskipped", "rows", "reason", right=("rows",))
        for reason, count in result.skipped.items():
            _add(skipped, f"{count:,}", reason)
        parts.append(skipped)
    if result.unmodelled:
        parts.append(Text(f"\npriced by their bytes alone: {', '.join(result.unmodelled)}", style="yellow"))
    if result.notes:
        parts.append(Text("\n" + "\n".join(f"note: {printable(note)}" for note in result.notes), style="dim"))
    return Group(*parts)
