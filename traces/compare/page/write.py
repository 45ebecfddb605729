"""The page itself: a frame of HTML around the data; the script draws the rest in the reader's browser."""

import json
import math
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from foretrace.ir import write_atomically
from foretrace.traces.compare.diff import Diff

from .data import Roofs, page_data

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def save_page(diff: Diff, path: str | Path, roofs: Roofs | None = None) -> None:
    """Write `render_page` to *path*; raises ForetraceError where it cannot be written, and leaves nothing behind."""
    write_atomically(Path(path), render_page(diff, roofs).encode())


def render_page(diff: Diff, roofs: Roofs | None = None) -> str:
    """*diff* as one HTML page: waterfall, causes, kinds, scatter, roofline, activity, memory and sortable tables.

    *roofs* are the ceilings that its roofline draws. The page opens offline and may by its own policy fetch nothing;
    text from traces reaches it as data only.
    """
    data = page_data(diff, roofs)
    # "<" is escaped, so that no text of a trace ends the script element
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    assets = files(__package__)
    style, script = (assets.joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    first, second = (side["label"] for side in data["sides"])
    title = " against ".join(dict.fromkeys(side["title"] for side in data["sides"]))
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{escape(title)}</title><style>{style}</style></head><body><main>",
            *_head(diff, data, title),
            _section("waterfall", "Where the difference comes from", f"From the {first} step to the {second} one."),
            _section(
                "causes",
                "Fix this first",
                f"Operators of a module, layers together; {second} slower or faster than {first}.",
            ),
            _section("kinds", "By kind of operator", "", more='<div id="kinds-table"></div>', two=True),
            '<div class="two"><section>',
            _section("scatter", "Operator by operator", "Dashed: half and twice. Click a kind to hide it.", key=True),
            "</section><section>",
            _section(
                "roofline", "Roofline", f"Hollow: {first}; filled: {second}; lines: the {first} device.", key=True
            ),
            "</section></div>",
            _section("activity", "What the device did", "", key=True, more='<div id="activity-table"></div>'),
            _section("memory", "Memory", ""),
            _section("modules", "By module", "", before=_DEPTH),
            _section("shapes", "By operator and shapes", ""),
            _section("operators", "Every matched operator", _left_out(data["left_out"])),
            _section("only-first", f"Only {first}", "Operators without a partner on the other side."),
            _section("only-second", f"Only {second}", "Operators without a partner on the other side."),
            '</main><div id="tip"></div>',
            f'<script type="application/json" id="data">{text}</script>',
            f"<script>{script}</script></body></html>\n",
        ]
    )


_DEPTH = (
    '<div class="tools"><label>names of the path <select id="depth">'
    '<option>1<option>2<option selected>3<option>4<option>5<option value="0">all</select></label></div>'
)


def _head(diff: Diff, data: dict[str, Any], title: str) -> list[str]:
    parts = [f"<h1>{escape(title)}</h1>"]
    for css, side in zip(("first", "second"), data["sides"], strict=True):
        system = f" on {escape(side['system'])}" if side["system"] else ""
        said = f"{escape(side['label'])}: {escape(side['title'])}{system}, {side['events']:,} events"
        parts.append(f'<p><span class="side {css}"></span>{said}</p>')
    mape = data["mape_ops"]
    figures = [
        (_milliseconds(diff.predicted_s), f"{data['sides'][0]['label']} step"),
        (_milliseconds(diff.measured_s), f"{data['sides'][1]['label']} step"),
        (f"{diff.error:+.1%}" if math.isfinite(diff.error) else "–", "error of the step"),
        (f"{diff.matched_share:.1%}", "of operator time matched"),
        (f"{mape:.1%}" if mape is not None else "–", "mean error per operator, by time"),
    ]
    boxes = "".join(f'<div class="figure"><b>{value}</b><span>{escape(label)}</span></div>' for value, label in figures)
    parts.append(f'<div class="figures">{boxes}</div>')
    warnings = [f"{side['label']}: {warning}" for side in data["sides"] for warning in side["warnings"]]
    if warnings:
        parts.append(f'<p class="warnings">{"<br>".join(map(escape, warnings[:20]))}</p>')
    names = {
        "waterfall": "waterfall", "causes": "fix this first", "kinds": "kinds", "scatter": "scatter",
        "roofline": "roofline", "activity": "activity", "memory": "memory", "modules": "modules", "shapes": "shapes",
        "operators": "operators", "only-first": "unmatched",
    }  # fmt: skip
    links = "".join(f'<a href="#{name}-title">{label}</a>' for name, label in names.items())
    return [*parts, f"<nav>{links}</nav>"]


def _section(
    name: str, title: str, said: str, *, before: str = "", more: str = "", key: bool = False, two: bool = False
) -> str:
    text = f"<p>{escape(said)}</p>" if said else ""
    legend = f'<div class="key" id="{name}-key"></div>' if key else ""
    inner = f'<div id="{name}"></div>{more}'
    body = f'<div class="two">{inner}</div>' if two else inner
    return f'<h2 id="{name}-title">{escape(title)}</h2>{text}{before}{legend}{body}'


def _left_out(rest: dict[str, Any]) -> str:
    if not rest["ops"]:
        return ""
    times = f"{_milliseconds(rest['predicted_s'])} and {_milliseconds(rest['measured_s'])}"
    return f"The longest; {rest['ops']:,} shorter ones, {times} in all, are in the sums above only."


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.4g} ms"
