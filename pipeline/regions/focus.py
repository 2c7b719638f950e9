"""Where a slide is out of focus: how little a further blur changes it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.regions.tissue import Mask, TissueMask
from pipeline.slide.base import Slide
from pipeline.slide.resample import Image

UM_PER_PX, CELL_UM = 1.0, 64.0
CELL_PX = round(CELL_UM / UM_PER_PX)
BLOCK_CELLS = 16  # that are read at once, along each side
AGAIN_PX = 5  # width of the further blur
MAX_BLUR = 0.6
"""Above it a cell is out of focus, see docs/measure.md for how it was chosen."""
MIN_TISSUE, MIN_STEP = 0.25, 0.005
"""A cell is judged where so much of it is tissue, and where neighbouring pixels differ by so much optical density."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FocusMap:
    """How blurred each cell of a slide is.

    Attributes:
        blur: (rows, columns) float32, 0 (sharp) to 1; NaN where a cell holds too little tissue to be judged.
        cell_l0: side of a cell, level-0 pixels.
        cell_mm2: area of a cell, square millimetres.
    """

    blur: Floats
    cell_l0: float
    cell_mm2: float

    @property
    def out_of_focus(self) -> Mask:
        """(rows, columns) bool, the cells that are out of focus."""
        return np.asarray(self.blur > MAX_BLUR)  # NaN is not

    @property
    def out_of_focus_share(self) -> float:
        """Share of the cells that could be judged; 0 where none could."""
        judged = np.count_nonzero(~np.isnan(self.blur))
        return float(np.count_nonzero(self.out_of_focus) / judged) if judged else 0.0

    def at(self, points_l0: npt.NDArray[np.float64]) -> Floats:
        """Return (N,) float32 the blur of the cell that each of (N, 2) points lies in; NaN beyond the slide."""
        index = np.floor(points_l0 / self.cell_l0).astype(np.int64)
        rows, columns = self.blur.shape
        inside = np.all((index >= 0) & (index < (columns, rows)), axis=1)
        found = np.full(len(index), np.nan, np.float32)
        found[inside] = self.blur[index[inside, 1], index[inside, 0]]
        return found


def measure_focus(slide: Slide, tissue: TissueMask) -> FocusMap | None:
    """Measure how blurred a slide is, in cells of 64 µm, on pixels of 1 µm.

    The measure is that of Crete et al. (The blur effect, SPIE 2007), cell by cell: a picture is blurred once more, and
    what its neighbouring pixels then differ less by is compared with what they differed by before. A sharp place loses
    most of it, a blurred one has little to lose. It knows of no stain and no tissue, and strength and contrast cancel.

    Memory does not grow with the slide, but for the map.

    Args:
        slide: open.
        tissue: where to look.

    Returns:
        The map; None of a slide whose own pixels are coarser than 1 µm, where one cannot tell.

    Raises:
        SlideError: the slide cannot be read at some place.
    """
    l0_per_px = UM_PER_PX / slide.mpp
    if l0_per_px < 1:
        return None
    cell_l0 = CELL_PX * l0_per_px
    size = [int(length // l0_per_px) for length in slide.size_l0]
    columns, rows = (-(-length // CELL_PX) for length in size)
    blur = np.full((rows, columns), np.nan, np.float32)
    for row in range(0, rows, BLOCK_CELLS):
        for column in range(0, columns, BLOCK_CELLS):
            part = np.s_[row : min(row + BLOCK_CELLS, rows), column : min(column + BLOCK_CELLS, columns)]
            shares = _tissue_shares(tissue, part, cell_l0, cell_l0 * cell_l0 * (slide.mpp / 1000) ** 2)
            if (shares >= MIN_TISSUE).any():
                box = [edge * CELL_PX for edge in (part[1].start, part[0].start, part[1].stop, part[0].stop)]
                read = (box[0], box[1], min(box[2], size[0]), min(box[3], size[1]))
                found = blur_of_cells(slide.shrunk(l0_per_px, read))
                blur[part] = np.where(shares >= MIN_TISSUE, found, np.nan)
    return FocusMap(blur, cell_l0, (CELL_UM / 1000) ** 2)


def blur_of_cells(pixels: Image) -> Floats:
    """Return the blur of each cell of ``CELL_PX`` pixels; the last ones may be cut off by the picture's edge.

    Args:
        pixels: (h, w, 3) uint8 RGB, of 1 µm.

    Returns:
        (rows, columns) float32; NaN where neighbouring pixels hardly differ.
    """
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    table = -np.log(np.maximum(np.arange(256), 1) / 255).astype(np.float32)
    density = table[grey]
    result = None
    for axis in (0, 1):
        again = cv2.blur(density, (1, AGAIN_PX) if axis == 0 else (AGAIN_PX, 1))
        steps, left = (np.abs(np.diff(plane, axis=axis, append=np.float32(np.nan))) for plane in (density, again))
        known = ~np.isnan(steps)
        before = _cell_sums(np.where(known, steps, 0))
        after = before - _cell_sums(np.where(known, np.maximum(steps - left, 0), 0))
        enough = before >= MIN_STEP * np.maximum(_cell_sums(known.astype(np.float32)), 1)
        ratio = np.full(before.shape, np.nan, np.float32)
        np.divide(after, before, out=ratio, where=enough)
        result = ratio if result is None else np.fmax(result, ratio)
    assert result is not None
    return result


def _cell_sums(plane: Floats) -> Floats:
    height, width = plane.shape
    rows, columns = np.arange(0, height, CELL_PX), np.arange(0, width, CELL_PX)
    return np.asarray(np.add.reduceat(np.add.reduceat(plane, rows, axis=0), columns, axis=1), np.float32)


def _tissue_shares(tissue: TissueMask, part: tuple[slice, slice], cell_l0: float, cell_mm2: float) -> Floats:
    rows, columns = part
    return np.array(
        [
            [
                tissue.area_in_mm2((x * cell_l0, y * cell_l0, (x + 1) * cell_l0, (y + 1) * cell_l0)) / cell_mm2
                for x in range(columns.start, columns.stop)
            ]
            for y in range(rows.start, rows.stop)
        ],
        np.float32,
    )
