"""The cache folder of nucpipe and the libraries that it uses."""

from __future__ import annotations

import contextlib
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


def keep_libraries_in_cache() -> None:
    """Have libraries keep their files in nucpipe's cache instead of the user's home, and tell nobody of the user.

    For a process of nucpipe's own, before it imports them; those that it starts inherit it. What the user has set in
    the environment stays.
    """
    with contextlib.suppress(RuntimeError):  # without a home they write nothing there
        os.environ.setdefault("MPLCONFIGDIR", str(cache_folder() / "matplotlib"))
        os.environ.setdefault("HF_HOME", str(cache_folder() / "huggingface"))
    # Of what is fetched from huggingface.co, it learns neither who asks nor with which libraries.
    os.environ.setdefault("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
