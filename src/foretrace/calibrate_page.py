"""`calibrate`'s result as a page for the terminal."""

from rich.console import Group, RenderableType
from rich.markup import escape

from foretrace.replay.calibration import Errors

from .calibrate import CalibrationResult
from .pages import _add, _table

_RIGHT = ("rows", "MAPE", "→", "median", "→ ")


def calibration_page(result: CalibrationResult) -> RenderableType:
    """A class each: rows, error of the physics and of what was kept, on rows held back."""
    title = f"{result.rows:,} rows of {escape(result.gpu)} ({', '.join(result.software)}), errors on rows held back"
    table = _table(title, "class", *_RIGHT, "kept", right=_RIGHT)
    for o in result.outcomes:
        _add(
            table,
            o.kernels,
            f"{o.before.n:,}",
            *_pair(o.before, o.after, "mape"),
            *_pair(o.before, o.after, "median"),
            o.kept,
        )
    parts: list[RenderableType] = [table]
    if result.skipped:
        skipped = _table("\nskipped", "rows", "reason", right=("rows",))
        for reason, count in result.skipped.items():
            _add(skipped, f"{count:,}", reason)
        parts.append(skipped)
    return Group(*parts)


def _pair(before: Errors, after: Errors, name: str) -> tuple[str, str]:
    return f"{getattr(before, name):.1%}", f"{getattr(after, name):.1%}"
