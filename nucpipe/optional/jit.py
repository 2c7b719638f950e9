"""Loops over pixels, compiled by numba. They hold no interpreter lock, so threads run them side by side."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import numba

from nucpipe.cache import cache_folder

F = TypeVar("F", bound=Callable[..., object])


@contextlib.contextmanager
def machine_code_in_cache() -> Iterator[None]:
    """Have numba keep the machine code of the functions that are defined here in nucpipe's cache.

    Else it lies beside the source, or, where that cannot be written, in numba's own folder in the user's home. The user
    may have chosen another by ``NUMBA_CACHE_DIR``.
    """
    chosen = numba.config.CACHE_DIR
    with contextlib.suppress(RuntimeError):  # a user without a home
        numba.config.CACHE_DIR = chosen or str(cache_folder() / "numba")
    try:
        yield
    finally:
        numba.config.CACHE_DIR = chosen


def jit(function: F) -> F:
    """Compile a function when it is first called.

    The machine code is kept (see :func:`machine_code_in_cache`), so that only the first run after an installation
    compiles.
    """
    try:
        with machine_code_in_cache():
            made: F = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no place to keep it: every process compiles
        made = numba.njit(nogil=True)(function)
    return made
