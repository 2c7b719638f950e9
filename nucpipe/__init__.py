"""Every nucleus of an H&E slide, outlined and named in five published label systems."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

try:
    __version__ = version("nucpipe")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+source"

if TYPE_CHECKING:
    from pipeline.result import Result as Result
    from pipeline.result import open_result as open
    from pipeline.run_slide import run as run

__all__ = ["Result", "__version__", "open", "run"]


def __getattr__(name: str) -> Any:
    # Importing nucpipe stays quick; the pipeline is imported when it is first asked for.
    if name == "run":
        from pipeline.run_slide import run

        return run
    if name in ("open", "Result"):
        from pipeline import result

        return result.Result if name == "Result" else result.open_result
    raise AttributeError(f"module 'nucpipe' has no attribute '{name}'")
