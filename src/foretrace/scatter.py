"""Predicted against measured as a picture: one HTML file, an SVG inside, no scripts and nothing fetched."""

import math
import os
import tempfile
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Final

from foretrace.hardware import format_quantity

from .console import printable
from .scores import Group, Point, Validation

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 900, 780, 70, 20, 20, 50
MOST_POINTS: Final = 6000
"""Points of one picture; what is beyond is left out evenly."""
COLOURS: Final = (
    "#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22",
)  # fmt: skip
SHAPES: Final = ("circle", "square", "diamond")

_STYLE: Final = """
body{font:14px system-ui,sans-serif;margin:24px;color:#222;max-width:1100px}
table{border-collapse:collapse;margin-top:16px}td,th{padding:2px 10px;text-align:right;border-bottom:1px solid #eee}
td:nth-child(-n+3),th:nth-child(-n+3){text-align:left}.grid{stroke:#e6e6e6}.one{stroke:#222}.two{stroke:#bbb;
stroke-dasharray:4 4}text{font:12px system-ui,sans-serif;fill:#444}.p{fill-opacity:.55}.p:hover{fill-opacity:1;
stroke:#000}
"""


def save_scatter(result: Validation, path: str | Path) -> int:
    """Write *result* as an HTML page at *path*: points, a line of equality, the lines of half and twice, the scores.

    What comes back is how many points it shows.

    Raises `OSError` where it cannot be written; nothing is left behind then.
    """
    target = Path(path)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(render(result))
        os.chmod(name, 0o644)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return len(chosen(result))


def chosen(result: Validation) -> list[Point]:
    """The points that the picture shows: all of the sample, or `MOST_POINTS` of it at even steps."""
    points = list(result.points)
    count = min(len(points), MOST_POINTS)
    return [points[i * len(points) // count] for i in range(count)]


def render(result: Validation) -> str:
    """The page."""
    title = f"{result.costs} costs, predicted against measured"
    shown = chosen(result)
    total = result.rows.group.size
    said = f"{len(shown):,} of {total:,} rows, at random the same for the same tables; hold the pointer over one."
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{_STYLE}</style>",
        f"<h1>{escape(title)}</h1><p>{escape(', '.join(Path(t).name for t in result.tables))}. {said}</p>",
        *_picture(shown, list(result.scores)),
        *_scores(result),
        "</html>\n",
    ]
    return "\n".join(parts)


def _picture(points: list[Point], groups: list[Group]) -> Iterator[str]:
    if not points:
        yield "<p>No row could be priced.</p>"
        return
    times = [t for p in points for t in (p.predicted_s, p.measured_s)]
    low, high = math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)))
    high = max(high, low + 1)

    def place(seconds: float, start: float, end: float) -> float:
        return start + (math.log10(seconds) - low) / (high - low) * (end - start)

    def x(seconds: float) -> float:
        return place(seconds, LEFT, WIDTH - RIGHT)

    def y(seconds: float) -> float:
        return place(seconds, HEIGHT - BOTTOM, TOP)

    yield f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">'
    for decade in range(low, high + 1):
        at, label = 10.0**decade, escape(format_quantity(10.0**decade, "time"))
        yield f'<path class="grid" d="M{x(at):.1f} {TOP}V{HEIGHT - BOTTOM}M{LEFT} {y(at):.1f}H{WIDTH - RIGHT}"/>'
        yield f'<text x="{x(at):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{label}</text>'
        yield f'<text x="{LEFT - 6}" y="{y(at) + 4:.1f}" text-anchor="end">{label}</text>'
    for factor, name in ((1.0, "one"), (0.5, "two"), (2.0, "two")):
        first, last = 10.0**low * max(1.0, 1 / factor), 10.0**high * min(1.0, 1 / factor)
        line = f"M{x(first):.1f} {y(first * factor):.1f}L{x(last):.1f} {y(last * factor):.1f}"
        yield f'<path class="{name}" d="{line}"/>'
    middle = (HEIGHT - BOTTOM + TOP) / 2
    yield f'<text x="{(WIDTH + LEFT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">measured</text>'
    yield f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">predicted</text>'
    for point in points:
        number = groups.index(point.group)
        colour, shape = style_of(number)
        yield f'<path class="p" fill="{colour}" d="{_mark(shape, x(point.measured_s), y(point.predicted_s))}">'
        yield f"<title>{escape(_hover(point))}</title></path>"
    yield "</svg>"


def style_of(number: int) -> tuple[str, str]:
    """(colour, shape) of a group by its place."""
    return COLOURS[number % len(COLOURS)], SHAPES[number // len(COLOURS) % len(SHAPES)]


def _mark(shape: str, x: float, y: float) -> str:
    if shape == "circle":
        return f"M{x - 3:.1f} {y:.1f}a3 3 0 1 0 6 0a3 3 0 1 0-6 0"
    if shape == "square":
        return f"M{x - 2.5:.1f} {y - 2.5:.1f}h5v5h-5z"
    return f"M{x:.1f} {y - 3.5:.1f}l3.5 3.5l-3.5 3.5l-3.5-3.5z"


def _hover(p: Point) -> str:
    predicted, measured = (format_quantity(t, "time") for t in (p.predicted_s, p.measured_s))
    bound = f", bound by {p.bound}" if p.bound else ""
    where = f"{Path(p.table).name} row {p.row}"
    text = f"{p.group.kind} · {p.group.gpu} · {p.group.dtype}\n{p.what}\npredicted {predicted}, measured {measured}"
    return printable(f"{text} ({p.ratio - 1:+.1%}){bound}\n{where}")


def _scores(result: Validation) -> Iterator[str]:
    yield "<table><tr><th>kind<th>gpu<th>dtype<th>n<th>MAPE<th>median<th>p90<th>bias<th>in interval</tr>"
    for number, (group, s) in enumerate(result.scores.items()):
        colour, shape = style_of(number)
        mark = f'<svg width="12" height="12"><path fill="{colour}" d="{_mark(shape, 6, 6)}"/></svg> '
        names = "".join(f"<td>{escape(printable(v))}" for v in (group.gpu, group.dtype))
        figures = f"<td>{s.n:,}<td>{s.mape:.1%}<td>{s.median_ape:.1%}<td>{s.p90_ape:.1%}<td>{s.bias:.3f}"
        yield f"<tr><td>{mark}{escape(printable(group.kind))}{names}{figures}<td>{s.coverage:.0%}</tr>"
    yield "</table>"
