"""Places of poor quality, hatched over the slide."""

from __future__ import annotations

import numpy as np

from pipeline.export.quality import LINE_PX, marks
from pipeline.regions.quality import QualityMap
from pipeline.web.viewer.drawing.nuclei import Picture
from pipeline.web.viewer.tiles import Tile


def draw_quality(quality: QualityMap, tile: Tile) -> Picture:
    """Return a tile on which places of poor quality are hatched: (h, w, 4) uint8, blue, green, red, opacity."""
    x0, y0, x1, y1 = tile.widened(LINE_PX).box  # so that an outline knows its neighbours
    drawn = np.zeros((y1 - y0, x1 - x0, 4), np.uint8)
    for colour, lines in marks(quality, range(x0, x1), range(y0, y1), (tile.l0_per_px,) * 2):
        drawn[lines] = (*colour[::-1], 255)
    return drawn[LINE_PX:-LINE_PX, LINE_PX:-LINE_PX]
