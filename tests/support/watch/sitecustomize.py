"""Watches the Python process that starts with this folder on its PYTHONPATH, and all Python processes that it starts.

What turns to another machine (a connection, a datagram, the lookup of a name) is refused, and written down in
``$WATCH_REPORT``. What makes a file outside the folders of ``$WATCH_MAY_WRITE`` is written down. Python tells of both
beforehand, whichever module asks; C libraries that do it themselves are not seen.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from pathlib import Path
from typing import Any

FOLDERS = tuple(os.path.realpath(folder) + os.sep for folder in os.environ["WATCH_MAY_WRITE"].split(os.pathsep))
NAMES = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}
ADDRESSES = {"socket.connect", "socket.sendto", "socket.sendmsg", "socket.bind", "socket.getnameinfo"}
NEW = {"os.mkdir": 0, "os.rename": 1, "os.link": 1, "os.symlink": 1}
"""Which argument of these events is a new file or folder."""


def is_here(host: Any) -> bool:
    """Whether a host is this machine; None and an empty name are."""
    text = os.fsdecode(host or "")
    return text in ("", "localhost", "::1") or text.startswith("127.")


def unwanted(event: str, arguments: tuple[Any, ...]) -> str | None:
    """What an event of Python's would do that it should not; None: nothing."""
    if event in NAMES:
        return None if is_here(arguments[0]) else f"{event} {arguments[0]}"
    if event in ADDRESSES:
        to = arguments[-1]  # a path where it is a Unix socket, None where the socket is connected
        return None if not isinstance(to, tuple) or is_here(to[0]) else f"{event} {to[0]}"
    if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        path = arguments[0]
    elif event in NEW:
        path = arguments[NEW[event]]
    else:
        return None
    if isinstance(path, int):  # a file that is open already
        return None
    place = os.path.realpath(os.fsdecode(path))
    allowed = f"{place}{os.sep}".startswith(FOLDERS) or place == os.devnull
    # A folder that is there already stays what it is, or a file without a name is opened in it.
    return None if allowed or Path(place).is_dir() else f"{event} {place}"


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Write it down, and refuse what would be sent."""
    what = unwanted(event, arguments)
    if what is not None:
        callers = " < ".join(f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_stack()[-2::-1])
        report.write(f"{what} ({callers})\n".encode())
        if event in NAMES or event in ADDRESSES:
            raise OSError(errno.EACCES, f"refused: {what}")


report = Path(os.environ["WATCH_REPORT"]).open("ab", buffering=0)  # noqa: SIM115 - of all processes, line by line
sys.addaudithook(watch)
