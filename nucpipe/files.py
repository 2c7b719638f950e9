"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nucpipe.errors import OutputError

EXPORTED = "nucpipe_export"
"""Stands in the file by which a folder is known to be an export, which may be replaced by another."""


PARTIAL = ".partial"
"""Ends the name of a file or folder that is being written."""


def cannot_write(path: Path, error: Exception) -> OutputError:
    """Return what to tell a user whose disk is full or whose folder is closed to writing."""
    why = getattr(error, "strerror", None) or error
    return OutputError(f"{path}: cannot be written ({why}); make room or give a folder that can be written.")


@contextmanager
def written_whole(path: Path, writer: str = "") -> Iterator[Path]:
    """Yield a path to write a file to; it becomes ``path`` when the block ends well, else it is removed.

    Args:
        path: of the file.
        writer: where several processes may write the same file at once, something unique to this one.

    Raises:
        OutputError: the file cannot be written (a full disk, no permission).
    """
    partial = path.with_name(path.name + writer + PARTIAL)
    if os.path.lexists(partial):  # somebody's own file, or what a killed process left
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())  # else a power cut after the rename could leave an empty file
        partial.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):  # a disk that cannot be written has none, and would say so a second time
            partial.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(path: Path, sign: str = "zarr.json") -> Iterator[Path]:
    """As :func:`written_whole`, for a folder; one that exists at ``path`` is replaced if an export wrote it.

    Args:
        path: of the folder.
        sign: the file in it that holds the word ``EXPORTED``; the block writes it.

    Raises:
        OutputError: it cannot be written, or ``path`` is something else.
    """
    mark = uuid.uuid4().hex[:8]  # no folder of anybody else has these names
    partial, old = path.with_name(f"{path.name}.{mark}.partial"), path.with_name(f"{path.name}.{mark}.old")
    if path.exists() and not ((path / sign).is_file() and EXPORTED in (path / sign).read_text("utf-8")):
        raise OutputError(f"{path}: already exists and is not an export of nucpipe; give another --out.")
    try:
        partial.mkdir(parents=True)
        yield partial
        if path.exists():
            path.rename(old)
        partial.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def spreadsheet_text(text: str) -> str:
    """Return a text for a cell of a CSV, which no spreadsheet takes for a formula: such a one gets an apostrophe."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
