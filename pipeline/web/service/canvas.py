"""Images of several requests laid side by side as one slide, so that the engine works on all of them at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.inference.engine import halo_w, read_grid_w
from pipeline.inference.models import Models
from pipeline.regions.region import Region, cut_regions
from pipeline.regions.tissue import TissueMask
from pipeline.slide.base import Level, Slide
from pipeline.slide.grid import WorkingGrid
from pipeline.slide.resample import Box, Image
from segmentation.nuclei import Nuclei

SLOT_W = 2**20
"""From an image to the next, in working pixels: farther than any read box reaches."""
SLOTS = 1024
"""Images of one sheet at most."""
REGION_W = 2048


class BatchCanvas(Slide):
    """Images of one pixel size, each in a slot of its own; each is looked at as if it were alone.

    Attributes:
        grid: the working grid of the sheet; the images' own grids but for the size.
        tissue: all of it.
    """

    def __init__(self, first: Slide) -> None:
        """Make a canvas of images that have the pixel size of ``first``."""
        own = WorkingGrid.for_slide(first.size_l0, first.mpp)
        self.grid = replace(own, size_w=(SLOT_W * SLOTS, SLOT_W))
        side = round(self.grid.to_l0(float(SLOT_W * SLOTS)))
        super().__init__(Path("requests"), (Level((side, side), 1.0),), first.mpp, "requests")
        self.tissue = TissueMask(np.ones((1, 1), bool), (float(side), float(side)), first.mpp)
        self._slots: list[tuple[Slide, WorkingGrid]] = []

    def __len__(self) -> int:
        return len(self._slots)

    def add(self, image: Slide, models: Models) -> Iterator[Region]:
        """Lay an image in the next slot; its regions, on the sheet, numbered by nothing but their order."""
        grid = WorkingGrid.for_slide(image.size_l0, image.mpp)
        x, y = self._corner_w(len(self._slots))
        self._slots.append((image, grid))
        tissue = TissueMask.of(np.ones((1, 1), bool), image)
        for region in cut_regions(
            grid, tissue, REGION_W, halo_w(models.detector, models.classifier.context), *read_grid_w(models.detector)
        ):
            (a, b, c, d), (e, f, g, h) = region.core_w, region.read_box_w
            yield Region(region.index, (a + x, b + y, c + x, d + y), (e + x, f + y, g + x, h + y))

    def slot(self, region: Region) -> int:
        """Return the image that a region is of."""
        return region.core_w[0] // SLOT_W

    def in_image(self, region: Region, nuclei_l0: Nuclei) -> Nuclei:
        """Return a region's nuclei in level-0 pixels of its image."""
        x, y = (self.grid.to_l0(float(edge)) for edge in self._corner_w(self.slot(region)))
        return nuclei_l0.transformed(1.0, (-x, -y))

    @staticmethod
    def _corner_w(slot: int) -> tuple[int, int]:
        return slot * SLOT_W + SLOT_W // 2, SLOT_W // 2

    def read(self, grid: WorkingGrid, read_box_w: Box) -> Image:
        """As :meth:`Slide.read`, of the image in whose slot the read box lies."""
        slot = read_box_w[0] // SLOT_W
        x, y = self._corner_w(slot)
        image, own = self._slots[slot]
        x0, y0, x1, y1 = read_box_w
        return image.read(own, (x0 - x, y0 - y, x1 - x, y1 - y))

    def content_w(self, grid: WorkingGrid, read_box_w: Box) -> Box:
        """As :meth:`Slide.content_w`, of the image in whose slot the read box lies."""
        slot = read_box_w[0] // SLOT_W
        x, y = self._corner_w(slot)
        width, height = self._slots[slot][1].size_w
        return x, y, x + width, y + height

    def read_level(self, level: int, box: Box) -> Image:
        """Return a sheet has no pixels beside those of its images."""
        raise NotImplementedError

    def close(self) -> None:
        """Release the images."""
        self._slots.clear()
