"""Loops compiled by numba, with their on-disk cache where one can be written. numba is imported by the first use."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """*function* compiled; the cache is left out on a read-only installation without a writable home."""
    import numba

    try:
        return cast(_Function, numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:  # numba: "no locator available", nowhere to keep the cache
        return cast(_Function, numba.njit(nogil=True)(function))
