"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nucpipe.common.errors import OutputError


def cannot_write(path: Path, error: Exception) -> OutputError:
    """What to tell a user whose disk is full or whose folder is closed to writing."""
    why = getattr(error, "strerror", None) or error
    return OutputError(f"{path}: cannot be written ({why}); make room or give a folder that can be written.")


@contextmanager
def written_whole(path: Path, writer: str = "") -> Iterator[Path]:
    """A path beside ``path`` to write a file to; when the block ends well it becomes ``path``, else it is removed.

    Args:
        path: of the file.
        writer: where several processes may write the same file at once, something unique to this one.

    Raises:
        OutputError: the file cannot be written (a full disk, no permission).
    """
    partial = path.with_name(path.name + writer + ".partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())  # else a power cut after the rename could leave an empty file
        partial.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        partial.unlink(missing_ok=True)
