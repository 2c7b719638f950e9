"""The pyramid that the viewer's page asks for: which tile is which part of the slide."""

from __future__ import annotations

from dataclasses import dataclass, replace

TILE_PX = 512
OVERLAP_PX = 1
"""Overlap of the slide's tiles, so that a browser that enlarges them shows no seams."""
ENLARGED_LEVELS = 3
"""Levels beyond the slide's own pixels, on which outlines are drawn finer than the slide's pixels are."""


@dataclass(frozen=True)
class Tile:
    """A rectangle of the slide on a grid of square pixels.

    Attributes:
        box: x0, y0, x1, y1 in its own pixels.
        l0_per_px: level-0 pixels per pixel; below 1 where it is enlarged.
    """

    box: tuple[int, int, int, int]
    l0_per_px: float

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.box[2] - self.box[0], self.box[3] - self.box[1]

    @property
    def box_l0(self) -> tuple[float, float, float, float]:
        """The same rectangle at level 0."""
        x0, y0, x1, y1 = (edge * self.l0_per_px for edge in self.box)
        return x0, y0, x1, y1

    def widened(self, rim_px: int) -> Tile:
        """Widen by a number of pixels on each side."""
        x0, y0, x1, y1 = self.box
        return replace(self, box=(x0 - rim_px, y0 - rim_px, x1 + rim_px, y1 + rim_px))


@dataclass(frozen=True)
class Pyramid:
    """Levels as Deep Zoom counts them: on level 0 the slide is one pixel, each next one is twice as large.

    Attributes:
        size_l0: (width, height) of the slide.
    """

    size_l0: tuple[int, int]

    @property
    def full_level(self) -> int:
        """The level of the slide's own pixels."""
        return (max(self.size_l0) - 1).bit_length()

    def slide_tile(self, level: int, column: int, line: int) -> Tile | None:
        """Return a tile of the slide's pixels, with its overlap; None where there is none."""
        return self._tile(level, column, line, OVERLAP_PX) if level <= self.full_level else None

    def nuclei_tile(self, level: int, column: int, line: int) -> Tile | None:
        """Return a tile of nuclei, also on levels beyond the slide's own pixels; None where there is none."""
        return self._tile(level, column, line, 0) if level <= self.full_level + ENLARGED_LEVELS else None

    def _tile(self, level: int, column: int, line: int, overlap_px: int) -> Tile | None:
        """As wide as the others or, at the slide's right and lower edges, as much as is left."""
        l0_per_px = 2.0 ** (self.full_level - level)
        width, height = (-int(-length // l0_per_px) for length in self.size_l0)
        x0, y0 = column * TILE_PX, line * TILE_PX
        if level < 0 or not (0 <= x0 < width and 0 <= y0 < height):
            return None
        x1, y1 = min(x0 + TILE_PX + overlap_px, width), min(y0 + TILE_PX + overlap_px, height)
        return Tile((max(x0 - overlap_px, 0), max(y0 - overlap_px, 0), x1, y1), l0_per_px)
