"""Places out of focus, hatched over the slide."""

from __future__ import annotations

import cv2
import numpy as np

from pipeline.export.focus import HATCH_PX, LINE_PX, MARK
from pipeline.regions.focus import FocusMap
from pipeline.web.viewer.drawing.nuclei import Picture
from pipeline.web.viewer.tiles import Tile


def draw_focus(focus: FocusMap, tile: Tile) -> Picture:
    """Return a tile with what is out of focus hatched and outlined: (h, w, 4) uint8, blue, green, red, opacity."""
    x0, y0, x1, y1 = tile.widened(LINE_PX).box
    across, down = np.arange(x0, x1), np.arange(y0, y1)
    cells = np.pad(focus.out_of_focus, 1)  # nothing is beyond the slide
    columns, rows = (
        np.clip(np.floor((at + 0.5) * (tile.l0_per_px / focus.cell_l0)).astype(np.int64) + 1, 0, count - 1)
        for at, count in ((across, cells.shape[1]), (down, cells.shape[0]))
    )
    blurred = cells[np.ix_(rows, columns)]
    inner = cv2.erode(blurred.astype(np.uint8), np.ones((2 * LINE_PX + 1,) * 2, np.uint8), borderValue=1) > 0
    stripes = np.add.outer(down, across) % HATCH_PX < LINE_PX
    drawn = np.zeros((*blurred.shape, 4), np.uint8)
    drawn[blurred] = (*MARK[::-1], 0)
    drawn[blurred & (stripes | ~inner), 3] = 255
    return drawn[LINE_PX:-LINE_PX, LINE_PX:-LINE_PX]
