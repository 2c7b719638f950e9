"""Files that are written in parts which several threads make ready, plain or compressed.

Not ``gzip.open``, which compresses in one thread; a reader sees the same format.
"""

from __future__ import annotations

import struct
import zlib
from typing import BinaryIO, Protocol, TypeAlias

LEVEL = 2
"""Level of zlib: higher ones take several times as long for a tenth less."""
# No name and no time: the same content gives the same bytes.
HEADER = b"\x1f\x8b\x08\x00" + struct.pack("<I", 0) + b"\x00\xff"
LAST_BLOCK = b"\x03\x00"  # empty

Content: TypeAlias = bytes | memoryview


class ChunkEncoder(Protocol):
    """Encoder of the parts of a file."""

    def pack(self, part: Content) -> Content:
        """Return what will stand in the file for a part; may be called in any thread."""

    def write(self, part: Content, packed: Content) -> None:
        """Append a part to the file."""

    def finish(self) -> None:
        """Return what follows the last part."""


class Plain(ChunkEncoder):
    """The parts as they are."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def pack(self, part: Content) -> Content:
        """See :class:`ChunkEncoder`."""
        return part

    def write(self, part: Content, packed: Content) -> None:
        """See :class:`ChunkEncoder`."""
        self.file.write(packed)

    def finish(self) -> None:
        """See :class:`ChunkEncoder`."""


class Gzip(ChunkEncoder):
    """One ordinary gzip stream: every part's blocks end at a whole byte, so that they can be laid side by side."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.checksum, self.length = 0, 0
        file.write(HEADER)

    def pack(self, part: Content) -> Content:
        """See :class:`ChunkEncoder`."""
        deflate = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
        return deflate.compress(part) + deflate.flush(zlib.Z_SYNC_FLUSH)

    def write(self, part: Content, packed: Content) -> None:
        """See :class:`ChunkEncoder`."""
        self.checksum = zlib.crc32(part, self.checksum)
        self.length += len(part)
        self.file.write(packed)

    def finish(self) -> None:
        """See :class:`ChunkEncoder`."""
        self.file.write(LAST_BLOCK + struct.pack("<II", self.checksum, self.length % 2**32))
