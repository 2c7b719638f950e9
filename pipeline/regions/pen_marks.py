"""How much of each cell of a picture lies under the ink of a pen: nothing there is as pale as tissue between nuclei."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.regions.focus import Floats
from pipeline.regions.tissue import optical_density
from pipeline.slide.resample import Image

SMALL_PX, SQUARE_PX = 4, 16
"""Side of what is averaged first, against the noise of a JPEG's colours, and of the squares that are judged."""
PALE_SHARE = 0.25
MIN_COLD = 0.08
"""Blue and green ink take up so much more of red light than of green light. No tissue does."""
MIN_BLACK, MAX_BLACK_SPREAD = 0.9, 0.25
"""Black ink takes up so much of all light, and of each colour the same but for that share of it."""
MIN_RED, MAX_RED_SHARE = 1.3, 0.35
"""Red ink takes up so much of green light, and of red light at most that share of it."""


def pen_shares(pixels: Image, cell_px: int, white: npt.NDArray[np.float64]) -> Floats:
    """Return the share of each cell of a picture that is pen-marked.

    Ink covers a place, and its optical density adds to that of the tissue. So the palest quarter of a square has nearly
    the ink's own colour: tissue has little haematoxylin there, and often it is glass. Purple ink has the colour of
    haematoxylin, and pale red ink that of eosin and blood: they are not told (figures in docs/measure.md).

    Args:
        pixels: (h, w, 3) uint8 RGB, of 1 µm.
        cell_px: side of a cell, a multiple of ``SQUARE_PX``; the last ones may be cut off by the picture's edge.
        white: (3,) red, green and blue of the slide's glass.

    Returns:
        (rows, columns) float32.
    """
    height, width = pixels.shape[:2]
    rows, columns, side = -(-height // cell_px), -(-width // cell_px), cell_px // SQUARE_PX
    below, right = rows * cell_px - height, columns * cell_px - width
    whole = cv2.copyMakeBorder(pixels, 0, below, 0, right, cv2.BORDER_REPLICATE) if below or right else pixels
    size = (columns * cell_px // SMALL_PX, rows * cell_px // SMALL_PX)
    density = optical_density(cv2.resize(whole, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False), white)
    ink = _is_ink(_palest(density, SQUARE_PX // SMALL_PX))
    return np.asarray(ink.reshape(rows, side, columns, side).mean(axis=(1, 3)), np.float32)


def _palest(density: Floats, side: int) -> Floats:
    """Return (3, h / side, w / side), the mean of the palest quarter of each square of (3, h, w) optical densities."""
    _, height, width = density.shape
    squares = density.reshape(3, height // side, side, width // side, side).swapaxes(2, 3)
    squares = squares.reshape(3, height // side, width // side, side * side)
    order = np.argsort(squares.sum(axis=0), axis=-1, kind="stable")[..., : round(PALE_SHARE * side * side)]
    return np.asarray(np.take_along_axis(squares, order[None], axis=-1).mean(axis=-1))


def _is_ink(density: Floats) -> npt.NDArray[np.bool_]:
    """Tell which of (3, ...) optical densities are those of ink."""
    red, green, _ = density
    mean, spread = density.mean(axis=0), np.ptp(density, axis=0)
    cold = red - green > MIN_COLD
    black = (mean > MIN_BLACK) & (spread < MAX_BLACK_SPREAD * mean)
    warm = (green > MIN_RED) & (red < MAX_RED_SHARE * green)
    return np.asarray(cold | black | warm)
