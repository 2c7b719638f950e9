"""How blurred the cells of a picture are: how little a further blur changes them."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.slide.resample import Image

AGAIN_PX = 5  # width of the further blur
MAX_BLUR = 0.6
"""Above it a cell is out of focus, see docs/measure.md for how it was chosen."""
MIN_STEP = 0.005
"""A cell is judged where neighbouring pixels differ by so much optical density."""

Floats = npt.NDArray[np.float32]


def blur_of_cells(pixels: Image, cell_px: int) -> Floats:
    """Return the blur of each cell of a picture.

    The measure is that of Crete et al. (The blur effect, SPIE 2007), cell by cell: a picture is blurred once more, and
    what its neighbouring pixels then differ less by is compared with what they differed by before. A sharp place loses
    most of it, a blurred one has little to lose. It knows of no stain and no tissue, and strength and contrast cancel.

    Args:
        pixels: (h, w, 3) uint8 RGB, of 1 µm.
        cell_px: side of a cell; the last ones may be cut off by the picture's edge.

    Returns:
        (rows, columns) float32, 0 (sharp) to 1; NaN where neighbouring pixels hardly differ.
    """
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    table = -np.log(np.maximum(np.arange(256), 1) / 255).astype(np.float32)
    density = table[grey]
    result = None
    for axis in (0, 1):
        again = cv2.blur(density, (1, AGAIN_PX) if axis == 0 else (AGAIN_PX, 1))
        steps, left = (np.abs(np.diff(plane, axis=axis, append=np.float32(np.nan))) for plane in (density, again))
        known = ~np.isnan(steps)
        before = _cell_sums(np.where(known, steps, 0), cell_px)
        after = before - _cell_sums(np.where(known, np.maximum(steps - left, 0), 0), cell_px)
        enough = before >= MIN_STEP * np.maximum(_cell_sums(known.astype(np.float32), cell_px), 1)
        ratio = np.full(before.shape, np.nan, np.float32)
        np.divide(after, before, out=ratio, where=enough)
        result = ratio if result is None else np.fmax(result, ratio)
    assert result is not None
    return result


def _cell_sums(plane: Floats, cell_px: int) -> Floats:
    height, width = plane.shape
    rows, columns = np.arange(0, height, cell_px), np.arange(0, width, cell_px)
    return np.asarray(np.add.reduceat(np.add.reduceat(plane, rows, axis=0), columns, axis=1), np.float32)
