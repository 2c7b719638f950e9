"""A time limit for what is done with a slide by libraries that have none."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from nucpipe.errors import SlideError, UsageError
from pipeline.slide.limits import file_sizes

TIMEOUT_VARIABLE = "NUCPIPE_SLIDE_TIMEOUT"
BASE_S, BYTES_PER_S = 60.0, 5_000_000
"""A slide has so many seconds, and more as it is larger: one without small levels is read whole to find its tissue."""
MAX_FILES = 10_000  # of a folder that are looked at to know how large it is

T = TypeVar("T")


class _Abandoned(BaseException):
    """Nobody waits any more."""


def within_time(path: Path, what: str, work: Callable[[], T]) -> T:
    """Return ``work()``, which is done in a thread of its own.

    Args:
        path: the slide.
        what: is done, for the error: "opening it".
        work: what is to be done.

    Raises:
        SlideError: it takes too long. The thread ends as soon as Python code runs in it.
        UsageError: the environment's ``NUCPIPE_SLIDE_TIMEOUT`` is no number of seconds.
        Exception: what ``work`` raised.
    """
    limit_s = time_limit_s(path)
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(work())
        except BaseException as error:
            answer.set_exception(error)

    # A daemon: it does not keep the process from ending.
    thread = threading.Thread(target=run, name="nucpipe-slide", daemon=True)
    thread.start()
    try:
        return answer.result(limit_s)
    except TimeoutError:
        if answer.done():
            return answer.result()
        _abandon(thread)
        raise SlideError(
            f"{path.name}: {what} took more than {limit_s:g} s; it is broken, or slow to read. If it is only slow, "
            f"set {TIMEOUT_VARIABLE} to more seconds."
        ) from None
    except BaseException:
        if not answer.done():  # Ctrl-C
            _abandon(thread)
        raise


def time_limit_s(path: Path) -> float:
    """Return how many seconds a slide may take to be opened, and again for its tissue to be found.

    Raises:
        UsageError: the environment's ``NUCPIPE_SLIDE_TIMEOUT`` is no number of seconds.
    """
    if text := os.environ.get(TIMEOUT_VARIABLE):
        try:
            seconds = float(text)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds <= threading.TIMEOUT_MAX:
            raise UsageError(f"{TIMEOUT_VARIABLE}={text}: expected a number of seconds.")
        return seconds
    total = 0
    try:
        for k, size in enumerate(file_sizes(path)):
            total += size
            if k == MAX_FILES:
                break
    except OSError:  # opening it tells
        pass
    return BASE_S + total // BYTES_PER_S


def _abandon(thread: threading.Thread) -> None:
    """Have a thread end when it next runs Python code."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_Abandoned))
