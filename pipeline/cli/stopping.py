"""Ctrl-C and SIGTERM end a command with one line, and a second one ends it at once; what is done stays either way."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

AT_ONCE = b"nucpipe: stopped at once; what is done stays.\n"
AGAIN_S = 0.05


class Terminated(KeyboardInterrupt):
    """SIGTERM came, as from ``kill``, a job system or a shutdown."""


def _interrupt(number: int) -> None:
    """Send the main thread a signal, which wakes it from whatever it waits for; Windows only marks that one came."""
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        signal.pthread_kill(main, number)
    else:
        _thread.interrupt_main(signal.Signals(number))


def stop_on_signals() -> None:
    """Let the first Ctrl-C or SIGTERM raise in the main thread, and the next one end the process at once.

    A signal that this process was started to ignore, as under ``nohup``, stays ignored.
    """
    came: list[int] = []

    def stop(number: int, _: FrameType | None) -> NoReturn:
        if came:  # all that is written is written whole or not at all, and a lock of a dead process is free
            if sys.stderr is not None and sys.stderr.isatty():
                os.write(2, b"\x1b[?25h\n")  # the cursor, which a progress bar hides
            os.write(2, AT_ONCE)
            os._exit(128 + number)
        came.append(number)
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    def unraisable(what: UnraisableHookArgs) -> None:
        """Raise once more what was raised where Python drops it: while an object was removed, in a callback."""
        if not isinstance(what.exc_value, KeyboardInterrupt) or not came:
            sys.__unraisablehook__(what)
            return
        again = threading.Timer(AGAIN_S, _interrupt, (came.pop(),))
        again.daemon = True
        with suppress(RuntimeError):  # Python is ending anyway
            again.start()

    def in_thread(what: threading.ExceptHookArgs) -> None:
        if not came:  # else a thread that misses what is gone
            threading.__excepthook__(what)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)
    sys.unraisablehook, threading.excepthook = unraisable, in_thread
