"""Limits of slides: headers that would cost all memory or time are refused before a pixel is read."""

from __future__ import annotations

from pathlib import Path

from nucpipe.errors import SlideError

LONGEST_PX = 4_000_000
"""Largest side of a slide: a metre at 0.25 um."""
MAX_PIXELS = 2**38
"""Most pixels of a slide: half a million squared."""
MAX_TILE_PIXELS = 2**26
"""Most pixels of a tile, which is decoded whole: 8192 squared."""
BOMB_BYTES, BOMB_RATIO = 2**29, 250
"""A plain image that grows to more bytes, and more times its file, than these is no photograph."""


def check_slide(path: Path, sizes: list[tuple[int, int]]) -> None:
    """See that a slide's levels can be true.

    Raises:
        SlideError: they cannot.
    """
    for width, height in sizes:
        if min(width, height) < 1 or max(width, height) > LONGEST_PX or width * height > MAX_PIXELS:
            raise SlideError(f"{path.name}: states {width} x {height} pixels, which no slide has; it is broken.")


def check_tile(path: Path, width: int, height: int) -> None:
    """See that a tile can be held in memory.

    Raises:
        SlideError: it is too large.
    """
    if width * height > MAX_TILE_PIXELS:
        raise SlideError(
            f"{path.name}: its tiles of {width} x {height} pixels are too large; convert it, for example with: "
            "vips tiffsave IN OUT.tif --tile --pyramid"
        )


def check_bomb(path: Path, width: int, height: int) -> None:
    """See that a plain image is not many times what its file can hold.

    Raises:
        SlideError: it is.
    """
    unpacked, packed = 3 * width * height, path.stat().st_size
    if unpacked > BOMB_BYTES and unpacked > BOMB_RATIO * packed:
        raise SlideError(
            f"{path.name}: {width} x {height} pixels in {packed:,} bytes are not a photograph; refused, as "
            "unpacking it would fill the memory."
        )
