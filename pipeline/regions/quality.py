"""Where a slide's tissue is of poor quality, and why: cells that are out of focus, or under the ink of a pen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.regions.focus import MAX_BLUR, Floats, blur_of_cells
from pipeline.regions.pen_marks import pen_shares
from pipeline.regions.tissue import (
    INK_MM2,
    THUMBNAIL_UM,
    Mask,
    TissueMask,
    find_ink,
    glass_white,
    keep_components,
    optical_density,
)
from pipeline.slide.base import Slide
from pipeline.slide.resample import Image

UM_PER_PX, CELL_UM = 1.0, 64.0
CELL_PX = round(CELL_UM / UM_PER_PX)
BLOCK_CELLS = 16  # that are read at once, along each side
MIN_SHARE = 0.25
"""A cell is judged where so much of it is tissue, and pen-marked where so much of it is ink."""

CAUSES = {"out_of_focus": "out of focus", "pen_marked": "under pen marks"}
"""Why a place is of poor quality: the names of columns and of facts in ``run.json``, in words."""


@dataclass(frozen=True)
class QualityMap:
    """What each cell of a slide is like.

    Attributes:
        blur: (rows, columns) float32, 0 (sharp) to 1; NaN where a cell holds too little tissue to be judged.
        pen_marked: (rows, columns) bool, on tissue and beside it.
        cell_l0: side of a cell, level-0 pixels.
    """

    blur: Floats
    pen_marked: Mask
    cell_l0: float

    @cached_property
    def causes(self) -> Mapping[str, Mask]:
        """(rows, columns) bool for each of ``CAUSES``: the cells of which it is true."""
        return {"out_of_focus": np.asarray(self.blur > MAX_BLUR), "pen_marked": self.pen_marked}  # NaN is not blurred

    def share(self, cause: str) -> float:
        """Return the share of the cells with a cause; 0 where none could be judged.

        Of those that could be judged, for pen marks with the marks themselves, beneath which no tissue is found.
        """
        could = ~np.isnan(self.blur)
        judged = np.count_nonzero(could | self.pen_marked if cause == "pen_marked" else could)
        return float(np.count_nonzero(self.causes[cause]) / judged) if judged else 0.0

    def blur_at(self, points_l0: npt.NDArray[np.float64]) -> Floats:
        """Return (N,) float32 the blur of the cell that each of (N, 2) points lies in; NaN beyond the slide."""
        found = np.full(len(points_l0), np.nan, np.float32)
        inside, cells = self._cells_of(points_l0)
        found[inside] = self.blur[cells]
        return found

    def causes_at(self, points_l0: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.bool_]]:
        """Return (N,) bool for each of ``CAUSES``: whether it is true where each of (N, 2) points lies."""
        found = {cause: np.zeros(len(points_l0), bool) for cause in self.causes}
        inside, cells = self._cells_of(points_l0)
        for cause, mask in self.causes.items():
            found[cause][inside] = mask[cells]
        return found

    def _cells_of(self, points_l0: npt.NDArray[np.float64]) -> tuple[Mask, tuple[npt.NDArray[np.int64], ...]]:
        """Return which points lie on the slide, and the row and the column of the cells of those."""
        index = np.floor(points_l0 / self.cell_l0).astype(np.int64)
        rows, columns = self.blur.shape
        inside = np.all((index >= 0) & (index < (columns, rows)), axis=1)
        return inside, (index[inside, 1], index[inside, 0])


def measure_quality(slide: Slide, tissue: TissueMask, thumbnail: Image) -> QualityMap | None:
    """Measure a slide's quality in cells of 64 µm, on pixels of 1 µm that are read once.

    Pen marks are looked for on tissue and where ink was found on the thumbnail (which is left out of the tissue that
    is found), as far as it touches tissue. Memory does not grow with the slide, but for the map.

    Args:
        slide: open.
        tissue: where to look.
        thumbnail: (h, w, 3) uint8 RGB, the whole slide: for the colour of the glass and the ink.

    Returns:
        The map; None of a slide whose own pixels are coarser than 1 µm, where one cannot tell.

    Raises:
        SlideError: the slide cannot be read at some place.
    """
    l0_per_px = UM_PER_PX / slide.mpp
    if l0_per_px < 1:
        return None
    small, um_per_px = _shrunk(thumbnail, slide)
    white = glass_white(small)
    ink = TissueMask.of(find_ink(optical_density(small, white), INK_MM2 / (um_per_px / 1000) ** 2), slide)
    cell_l0 = CELL_PX * l0_per_px
    size = [int(length // l0_per_px) for length in slide.size_l0]
    columns, rows = (-(-length // CELL_PX) for length in size)
    blur = np.full((rows, columns), np.nan, np.float32)
    is_tissue, is_pen = np.zeros((rows, columns), bool), np.zeros((rows, columns), bool)
    for row in range(0, rows, BLOCK_CELLS):
        for column in range(0, columns, BLOCK_CELLS):
            part = np.s_[row : min(row + BLOCK_CELLS, rows), column : min(column + BLOCK_CELLS, columns)]
            on_tissue, on_ink = (_shares(mask, part, cell_l0) >= MIN_SHARE for mask in (tissue, ink))
            if not (on_tissue | on_ink).any():
                continue
            box = [edge * CELL_PX for edge in (part[1].start, part[0].start, part[1].stop, part[0].stop)]
            read = slide.shrunk(l0_per_px, (box[0], box[1], min(box[2], size[0]), min(box[3], size[1])))
            blur[part] = np.where(on_tissue, blur_of_cells(read, CELL_PX), np.nan)
            is_pen[part] = on_ink | (on_tissue & (pen_shares(read, CELL_PX, white) >= MIN_SHARE))
            is_tissue[part] = on_tissue
    beside = cv2.dilate(is_tissue.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    return QualityMap(blur, keep_components(is_pen, 1, beside & is_pen), cell_l0)


def _shrunk(thumbnail: Image, slide: Slide) -> tuple[Image, float]:
    """Return a thumbnail whose pixels are no smaller than the 8 µm on which tissue is found, and their size."""
    um_per_px = slide.size_l0[0] * slide.mpp / thumbnail.shape[1]
    if um_per_px >= THUMBNAIL_UM:
        return thumbnail, um_per_px
    height, width = (max(1, round(length * um_per_px / THUMBNAIL_UM)) for length in thumbnail.shape[:2])
    small = cv2.resize(thumbnail, (width, height), interpolation=cv2.INTER_AREA)
    return small.astype(np.uint8, copy=False), THUMBNAIL_UM


def _shares(mask: TissueMask, part: tuple[slice, slice], cell_l0: float) -> Floats:
    """Return the share of each cell of a part that is set in a mask."""
    down, across = (np.arange(one.start, one.stop + 1) * cell_l0 for one in part)
    return (mask.areas_in_mm2(across, down) / (cell_l0 * mask.mpp / 1000) ** 2).astype(np.float32)
