"""The shapes of an operator's inputs, as the one text that traces carry: ``[1,16,768][768,2304]``."""

from typing import Any


def shape_text(dims: Any) -> str:
    """*dims*, a list of shapes or of lists of them, as text; what has no dimensions is left out."""
    if not isinstance(dims, list) or not dims:
        return ""
    if all(type(d) is int for d in dims):
        return "[" + ",".join(map(str, dims)) + "]"
    return "".join(map(shape_text, dims))
