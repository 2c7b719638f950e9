"""Where nucpipe keeps what it can fetch or make anew."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$NUCPIPE_CACHE``, else ``nucpipe`` in the user's cache (``$XDG_CACHE_HOME``, else ``~/.cache``).

    Raises:
        RuntimeError: the user has no home.
    """
    if chosen := os.environ.get("NUCPIPE_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nucpipe"
