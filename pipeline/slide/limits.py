"""Limits of slides: headers that would cost all memory or time are refused before a pixel is read."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from nucpipe.errors import SlideError

LONGEST_PX = 4_000_000
"""Largest side of a slide: a metre at 0.25 um."""
MAX_PIXELS = 2**38
"""Most pixels of a slide: half a million squared."""
MAX_TILE_PIXELS = 2**26
"""Most pixels of a tile, which is decoded whole: 8192 squared."""
BOMB_BYTES, BOMB_RATIO = 2**29, 250
"""A plain image that grows to more bytes, and more times its file, than these is no photograph."""

SPARSE_BYTES, SPARSE_RATIO = 2**29, 20_000
"""A slide that grows to more bytes, and more times its files, than these holds nearly nothing of what it states: an
empty tile of JPEG takes 200 times as much memory as space, and most of a slide may be empty."""
MAX_PAGES, MAX_TAGS = 4096, 4096
"""Of a TIFF, and of one of its pages; slides have some dozens."""


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


def check_there(path: Path, size: tuple[int, int]) -> None:
    """See that the files of a slide can hold some of what it states.

    Raises:
        SlideError: they cannot.
    """
    width, height = size
    unpacked, there = 3 * width * height, 0
    if unpacked <= SPARSE_BYTES:
        return
    for packed in file_sizes(path):
        there += packed
        if unpacked <= SPARSE_RATIO * there:
            return
    raise SlideError(
        f"{path.name}: states {width} x {height} pixels, of which its {there:,} bytes hold next to none; it is broken "
        "or not whole. Copy it again."
    )


def file_sizes(path: Path) -> Iterator[int]:
    """Yield the sizes in bytes of a slide's files: of all in a folder, and of all in the folder beside an MRXS."""
    if path.is_file():
        yield path.stat().st_size
    for folder in (path, *([path.with_suffix("")] if path.suffix.lower() == ".mrxs" else [])):
        for parent, _, names in os.walk(folder):
            for name in names:
                yield (Path(parent) / name).stat().st_size


def check_pages(path: Path) -> None:
    """See that a TIFF's list of pages ends, which not all of the libraries that read it look at.

    What is cut off is left to these.

    Raises:
        SlideError: it leads back to itself, or there are more pages, or tags of a page, than a slide has.
    """
    with path.open("rb") as file:
        head = file.read(16)
        order = "<" if head.startswith(b"II") else ">"
        big = head[2:4] in (b"+\0", b"\0+")
        if not big and path.stat().st_size >= 2**32:
            return  # NDPI, whose offsets have more digits than TIFF says
        number, entry_bytes, pointer = (order + "Q", 20, order + "Q") if big else (order + "H", 12, order + "I")
        page, pages = _number(file, 8 if big else 4, pointer), set[int]()
        while page:
            if page in pages or len(pages) == MAX_PAGES:
                why = "leads back to itself" if page in pages else f"has more than {MAX_PAGES:,} entries"
                raise SlideError(f"{path.name}: expected a TIFF; its list of pages {why}. Copy it again.")
            pages.add(page)
            tags = _number(file, page, number)
            if tags > MAX_TAGS:
                raise SlideError(f"{path.name}: expected a TIFF; one of its pages has {tags:,} tags. Copy it again.")
            page = _number(file, page + struct.calcsize(number) + tags * entry_bytes, pointer)


def _number(file: BinaryIO, offset: int, form: str) -> int:
    """Return the number at a place of a file; 0 beyond its end."""
    if offset >= 2**63:
        return 0
    file.seek(offset)
    content = file.read(struct.calcsize(form))
    return int(struct.unpack(form, content)[0]) if len(content) == struct.calcsize(form) else 0
