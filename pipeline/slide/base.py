"""A slide: its size, its pixel size, and its pixels on the working grid, whatever file it came in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from pipeline.slide.block_cache import Blocks
from pipeline.slide.grid import WorkingGrid
from pipeline.slide.identity import slide_name
from pipeline.slide.resample import Box, Image, fold, resample

BLOCK_PX = 2048, 4096  # width and height of what is shrunk at a time
SQUARE_PX, SQUARES = 1024, 24
"""Side of the squares that a thumbnail is read in, and how many are remembered: all that a block looks at, for its
neighbour in the row looks at half of them too."""
LEVEL_TOLERANCE = 0.01  # a level that misses the wanted pixel size by less is not called too coarse


@dataclass(frozen=True)
class Level:
    """One level of the pyramid: ``size`` = (width, height) pixels, each ``downsample`` level-0 pixels wide."""

    size: tuple[int, int]
    downsample: float


class Slide(ABC):
    """Interface of every reader. Reading is safe from several threads at once.

    Attributes:
        path: the file or folder.
        name: its name without the extension.
        levels: the pyramid, finest first; level 0 is the slide's full resolution.
        mpp: micrometres per level-0 pixel, in x and in y.
        origin_l0: (x, y), what QuPath subtracts from level-0 coordinates: the corner of the scanned part where the
            file states one (openslide.bounds-x and -y), else (0, 0).
        vendor: OpenSlide's name of the format, or that of the reader.
    """

    def __init__(
        self, path: Path, levels: tuple[Level, ...], mpp: float, vendor: str, origin_l0: tuple[int, int] = (0, 0)
    ) -> None:
        self.path = path
        self.name = slide_name(path)
        self.levels = levels
        self.mpp = mpp
        self.vendor = vendor
        self.origin_l0 = origin_l0
        self._blocks: dict[WorkingGrid, Blocks] = {}

    @abstractmethod
    def read_level(self, level: int, box: Box) -> Image:
        """Return a level's own pixels.

        Args:
            level: 0 is the finest.
            box: x0, y0, x1, y1 in pixels of that level, within it.

        Returns:
            (y1 - y0, x1 - x0, 3) uint8 RGB; what was not scanned or is transparent is white.

        Raises:
            SlideError: the file is broken there.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the file; nothing can be read afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def size_l0(self) -> tuple[int, int]:
        """(width, height) in level-0 pixels."""
        return self.levels[0].size

    @property
    def level_count(self) -> int:
        """Number of levels in the pyramid, level 0 among them."""
        return len(self.levels)

    def read(self, grid: WorkingGrid, read_box_w: Box) -> Image:
        """Return pixels on the working grid.

        A slide on its own grid gives its level-0 pixels to the bit. A resampled one gives every pixel a value that
        depends on its place on the slide alone, so read boxes that overlap agree to the bit. Beyond the slide's edges
        its own pixels go on reflected (the edge pixel not repeated), however far the read box reaches. What read boxes
        have in common is read once, as long as not too much was read in between.

        Args:
            grid: this slide's grid, ``WorkingGrid.for_slide(slide.size_l0, slide.mpp)``.
            read_box_w: x0, y0, x1, y1 in working pixels, multiples of ``grid.stride``; may be negative.

        Returns:
            ((y1 - y0) / stride, (x1 - x0) / stride, 3) uint8 RGB.

        Raises:
            SlideError: the file is broken there.
        """
        if any(edge % grid.stride for edge in read_box_w):
            raise ValueError(f"read box {read_box_w} is not aligned to the grid's stride of {grid.stride}")
        x0, y0, x1, y1 = (edge // grid.stride for edge in read_box_w)
        width, height = grid.size_read
        if min(x0, y0) >= 0 and x1 <= width and y1 <= height:
            return self._remembered(grid, (x0, y0, x1, y1))
        columns, rows = fold(np.arange(x0, x1), width), fold(np.arange(y0, y1), height)
        left, top = int(columns.min()), int(rows.min())
        inside = self._remembered(grid, (left, top, int(columns.max()) + 1, int(rows.max()) + 1))
        return inside.take(rows - top, axis=0).take(columns - left, axis=1)

    def content_w(self, grid: WorkingGrid, read_box_w: Box) -> Box:
        """x0, y0, x1, y1 in working pixels: where a read box shows pixels of the slide and not its reflection.

        Args:
            grid: this slide's.
            read_box_w: the read box.
        """
        return (0, 0, *grid.size_w)

    def forget(self) -> None:
        """Drop cached pixels; they are read again when needed."""
        self._blocks.clear()

    def _remembered(self, grid: WorkingGrid, box: Box) -> Image:
        """As :meth:`_read_inside`, from blocks."""
        # Of two blocks that two threads set at once one is lost, and no pixel.
        blocks = self._blocks.setdefault(grid, Blocks(grid.size_read))
        return blocks.read(box, lambda block: self._read_inside(grid, block))

    def _read_inside(self, grid: WorkingGrid, box: Box) -> Image:
        """As :meth:`read`, for a box in read pixels that lies within the slide."""
        if grid.l0_per_read == 1:
            return self.read_level(0, box)
        return self._resampled(grid.l0_per_read, grid.l0_per_read, box)

    def _resampled(
        self, l0_per_px_x: float, l0_per_px_y: float, box: Box, read: Callable[[Box], Image] | None = None
    ) -> Image:
        """``box`` on a grid of the given pixel size, from the coarsest level that is not coarser than it, or from
        ``read``, which gives that level's pixels.
        """
        index = self._best_level(min(l0_per_px_x, l0_per_px_y))
        level = self.levels[index]
        scale = (l0_per_px_x / level.downsample, l0_per_px_y / level.downsample)
        return resample(read or partial(self.read_level, index), level.size, scale, box)

    def _best_level(self, l0_per_px: float) -> int:
        """Return the coarsest level whose pixels are no coarser than ``l0_per_px``; else level 0."""
        finest = l0_per_px * (1 + LEVEL_TOLERANCE)
        return max((i for i, level in enumerate(self.levels) if level.downsample <= finest), default=0)

    def thumbnail(self, max_px: int) -> Image:
        """Return the whole slide in small, never enlarged.

        Returns:
            (h, w, 3) uint8 RGB, its longest side at most ``max_px``; one of its pixels is ``size_l0[0] / w`` by
            ``size_l0[1] / h`` level-0 pixels.
        """
        width, height = self.size_l0
        w, h = shrunk_size(self.size_l0, max_px)
        if (w, h) == self.size_l0:
            return self.read_level(0, (0, 0, w, h))
        shrink = width / w, height / h
        level = self._best_level(min(shrink))
        squares = Blocks(self.levels[level].size, SQUARE_PX, 3 * SQUARE_PX**2 * SQUARES)
        return self._in_blocks(*shrink, (0, 0, w, h), lambda box: squares.read(box, partial(self.read_level, level)))

    def shrunk(self, l0_per_px: float, box: Box) -> Image:
        """Return a part of the slide in small.

        Args:
            l0_per_px: level-0 pixels per pixel, at least 1.
            box: x0, y0, x1, y1 in such pixels, within the slide's extent rounded up.

        Returns:
            (y1 - y0, x1 - x0, 3) uint8 RGB; boxes that overlap agree to the bit, whatever they are cut into.

        Raises:
            SlideError: the file is broken there.
        """
        return self.read_level(0, box) if l0_per_px == 1 else self._in_blocks(l0_per_px, l0_per_px, box)

    def _in_blocks(
        self, l0_per_px_x: float, l0_per_px_y: float, box: Box, read: Callable[[Box], Image] | None = None
    ) -> Image:
        """As :meth:`_resampled`, block by block, so that a slide without a pyramid is never held whole."""
        x0, y0, x1, y1 = box
        shrink = min(l0_per_px_x, l0_per_px_y)
        downsample = self.levels[self._best_level(shrink)].downsample
        width, height = (max(16, int(length * downsample / shrink)) for length in BLOCK_PX)
        image = np.empty((y1 - y0, x1 - x0, 3), np.uint8)
        for y in range(y0, y1, height):
            for x in range(x0, x1, width):
                part = (x, y, min(x + width, x1), min(y + height, y1))
                resampled = self._resampled(l0_per_px_x, l0_per_px_y, part, read)
                image[y - y0 : part[3] - y0, x - x0 : part[2] - x0] = resampled
        return image


def shrunk_size(size: tuple[int, int], max_px: int) -> tuple[int, int]:
    """Return (width, height) of an image of ``size`` in small: its longest side at most ``max_px``, never enlarged."""
    shrink = max(1.0, max(size) / max_px)
    return max(1, round(size[0] / shrink)), max(1, round(size[1] / shrink))


def describe(slide: Slide) -> dict[str, object]:
    """Return what ``nucpipe info`` tells of a slide: names and values for people, in order."""
    width, height = slide.size_l0
    grid = WorkingGrid.for_slide(slide.size_l0, slide.mpp)
    how = "its own pixels" if grid.l0_per_read == 1 else "resampled"
    return {
        "slide": str(slide.path),
        "format": slide.vendor,
        "size": f"{width} x {height} pixels",
        "pixel size": f"{slide.mpp:.4g} um",
        "extent": f"{width * slide.mpp / 1000:.2f} x {height * slide.mpp / 1000:.2f} mm",
        "levels": ", ".join(f"{w} x {h}" for (w, h) in (level.size for level in slide.levels)),
        "origin": f"{slide.origin_l0[0]}, {slide.origin_l0[1]}",
        "read at": f"{grid.mpp_read:.4g} um per pixel ({how})",
    }
