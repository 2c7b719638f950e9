"""tiatoolbox without its noise: imported where it is used, for that takes seconds."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType


@contextmanager
def quiet() -> Iterator[None]:
    """Yield no warnings or log records: tiatoolbox warns of things that are of no account here, through the root
    logger.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # SimpleITK, which tiatoolbox imports, crashes Python where its warnings are turned into errors.
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def import_tiatoolbox(module: str) -> ModuleType:
    """Return a module of tiatoolbox, such as ``wsicore.wsireader``, or "" for itself.

    Importing it sets up the root logger, which is undone.

    Raises:
        ImportError: tiatoolbox, or what it needs, is not installed.
    """
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        with quiet(), ExitStack() as stack:
            if module:  # its libraries have numba compile hundreds of functions; the bare package imports at once
                from nucpipe.optional.jit import machine_code_in_cache

                stack.enter_context(machine_code_in_cache())
            return importlib.import_module(f"tiatoolbox.{module}".rstrip("."))
    finally:
        logging.captureWarnings(False)
        root.handlers[:] = handlers
        root.setLevel(level)
