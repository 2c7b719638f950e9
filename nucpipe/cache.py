"""Where nucpipe keeps what it can fetch or make anew."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """Return ``$NUCPIPE_CACHE``, else ``nucpipe`` in the user's cache (on Linux ``$XDG_CACHE_HOME`` or ``~/.cache``).

    Raises:
        RuntimeError: the user has no home.
    """
    if chosen := os.environ.get("NUCPIPE_CACHE"):
        return Path(chosen)
    if not os.environ.get("XDG_CACHE_HOME"):
        Path.home()  # raises where platformdirs would take a folder named ~
    return platformdirs.user_cache_path("nucpipe", appauthor=False)
