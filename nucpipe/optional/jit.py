"""Loops over pixels, compiled by numba. They hold no interpreter lock, so threads run them side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numba

F = TypeVar("F", bound=Callable[..., object])


def jit(function: F) -> F:
    """Compile a function when it is first called.

    The machine code is kept on the disk (beside the source, or where that cannot be written in numba's own folder of
    the user or ``NUMBA_CACHE_DIR``), so that only the first run after an installation compiles.
    """
    try:
        made: F = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no place to keep it: every process compiles
        made = numba.njit(nogil=True)(function)
    return made
