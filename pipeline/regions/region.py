"""Cutting a slide into regions: each owns the nuclei whose centroid lies in its core, and looks at a halo round it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.config import REGION_ALIGN_W
from pipeline.regions.tissue import TissueMask
from pipeline.slide.grid import WorkingGrid

EDGE_W = 32
"""Least reach of a read box beyond the slide, into its reflection, where tissue is near the edge: half of a
crop."""

BAND_W = 8192
"""Width of the bands in which regions follow each other: what the read boxes of two rows have in common is still
remembered then (see ``pipeline.slide.block_cache``), however wide the slide is."""

BoxW = tuple[int, int, int, int]


@dataclass(frozen=True)
class Region:
    """A square of the slide, the unit of work.

    Attributes:
        index: its number in the slide-wide grid of regions, row by row; the same whatever tissue is there.
        core_w: x0, y0, x1, y1 in working pixels; what it owns. Cores tile the slide without gap or overlap.
        read_box_w: x0, y0, x1, y1; the tissue in the core and a halo round it, aligned to the detector's grid, and the
            detector's margin. At the slide's edge it reaches at least ``EDGE_W`` beyond the slide.
    """

    index: int
    core_w: BoxW
    read_box_w: BoxW

    def owns(self, points_w: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Return which of (N, 2) points lie in the core, whose left and upper edges belong to it and the others not."""
        x0, y0, x1, y1 = self.core_w
        x, y = points_w[:, 0], points_w[:, 1]
        return (x >= x0) & (x < x1) & (y >= y0) & (y < y1)


def cut_regions(
    grid: WorkingGrid, tissue: TissueMask, size_w: int, halo_w: int, align_w: int = REGION_ALIGN_W, margin_w: int = 0
) -> list[Region]:
    """Return the regions that have tissue in their core: band by band, and row by row in each.

    Args:
        grid: the slide's working grid.
        tissue: where to look.
        size_w: side of a core, a multiple of 32.
        halo_w: how far a read box reaches at least beyond the tissue in its core, its margin not counted.
        align_w: corners of read boxes without their margin are multiples of this many working pixels.
        margin_w: rim of a read box, on each side, that the detector only looks at.
    """
    width, height = grid.size_w
    # Beyond the slide's edge a read box reaches half of a crop at least.
    beyond = align(max(0, EDGE_W - margin_w), align_w)
    right_most, lowest = (align(length, align_w) + beyond for length in (width, height))
    columns, rows = -(-width // size_w), -(-height // size_w)
    regions, band = [], max(1, BAND_W // size_w)
    for index in sorted(range(columns * rows), key=lambda k: (k % columns // band, k)):
        x0, y0 = index % columns * size_w, index // columns * size_w
        core = (x0, y0, min(x0 + size_w, width), min(y0 + size_w, height))
        extent = tissue.extent((grid.to_l0(core[0]), grid.to_l0(core[1]), grid.to_l0(core[2]), grid.to_l0(core[3])))
        if extent is None:
            continue
        left, top = (align(math.floor(grid.to_w(edge)) - halo_w + 1 - align_w, align_w) for edge in extent[:2])
        right, bottom = (align(math.ceil(grid.to_w(edge)) + halo_w, align_w) for edge in extent[2:])
        read_box = (
            max(left, -beyond) - margin_w,
            max(top, -beyond) - margin_w,
            min(right, right_most) + margin_w,
            min(bottom, lowest) + margin_w,
        )
        regions.append(Region(index, core, read_box))
    return regions


def align(length_w: int, step_w: int) -> int:
    """Return the next multiple of ``step_w``."""
    return -(-length_w // step_w) * step_w


def region_mm2(region: Region, grid: WorkingGrid, tissue: TissueMask) -> float:
    """Return the area of tissue in a region's core, square millimetres."""
    x0, y0, x1, y1 = (grid.to_l0(float(edge)) for edge in region.core_w)
    return tissue.area_in_mm2((x0, y0, x1, y1))
