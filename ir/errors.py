"""The one family of errors: everything the house raises on purpose derives from `ForetraceError`."""

import difflib
from collections.abc import Iterable


class ForetraceError(Exception):
    """Something the user can mend: the message names the place, what was expected and what came."""


class UnknownNameError(ForetraceError):
    """A name that is not in a list we know; the message ends with the nearest names."""

    def __init__(self, what: str, name: str, known: Iterable[str], hint: str = "") -> None:
        """Build ``unknown WHAT 'NAME'; nearest: ...`` from the *known* names."""
        nearest = nearest_names(name, known)
        message = f"unknown {what} {name!r}"
        if nearest:
            message += "; nearest: " + ", ".join(nearest)
        if hint:
            message += f" ({hint})"
        super().__init__(message)


class GraphError(ForetraceError):
    """A graph that does not hold together: a cycle, a dangling input, shapes that disagree."""


class FormatError(ForetraceError):
    """A file that cannot be read as what it claims to be: cut off, corrupt, or of a newer version."""


def nearest_names(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The *count* known names most like *name*, best first; empty where nothing is near."""
    by_lower = {k.lower(): k for k in known}
    return [by_lower[k] for k in difflib.get_close_matches(name.lower(), by_lower, n=count, cutoff=0.4)]
