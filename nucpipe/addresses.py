"""Addresses in object stores, such as ``s3://bucket/slide.svs``, told from paths on a disk.

Not universal_pathlib's paths: an address is only recognised and joined here, and everything else goes through fsspec
itself (``pipeline.batch.remote``), whose errors are turned into ours call by call.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath


def is_remote(text: str) -> bool:
    """Tell whether a text is an address rather than a path."""
    protocol, separator, _ = text.partition("://")
    return bool(separator) and protocol.replace("+", "").replace("-", "").isalnum()


class RemotePath(str):
    """An address, such as ``s3://bucket/folder/slide.svs``."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """The last part."""
        return PurePosixPath(self.partition("://")[2]).name

    def __truediv__(self, part: str | Path) -> RemotePath:
        return RemotePath("/".join((self.rstrip("/"), *PurePosixPath(part).parts)))
