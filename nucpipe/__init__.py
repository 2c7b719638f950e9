"""Every nucleus of an H&E slide, outlined and named in five published label systems."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nucpipe._version import __version__

if TYPE_CHECKING:
    from pipeline.batch.run import run as run
    from pipeline.export.figures.plot import plot as plot
    from pipeline.result import Result as Result
    from pipeline.result import open_result as open

__all__ = ["Result", "__version__", "open", "plot", "run"]

_FACE = {
    "run": ("pipeline.batch.run", "run"),
    "open": ("pipeline.result", "open_result"),
    "Result": ("pipeline.result", "Result"),
    "plot": ("pipeline.export.figures.plot", "plot"),
}


def __getattr__(name: str) -> Any:
    # Importing nucpipe stays quick; the pipeline is imported when it is first asked for.
    if name not in _FACE:
        raise AttributeError(f"module 'nucpipe' has no attribute '{name}'")
    module, attribute = _FACE[name]
    return getattr(import_module(module), attribute)
