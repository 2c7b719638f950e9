"""Tiles of nuclei as transparent pictures: outlines where they are large enough, dots or their density where not."""

from __future__ import annotations

import itertools
import math

import cv2
import numpy as np
import numpy.typing as npt

from classifier.labels.libraries import no_label_colour
from pipeline.export.figures.overview import SUBPIXEL_BITS
from pipeline.web.viewer.nuclei import Choice, NucleiMap, Outlines
from pipeline.web.viewer.tiles import Tile

Picture = npt.NDArray[np.uint8]

OUTLINE_PX = 6.0  # nuclei of a larger diameter are drawn with their outline
DOT_PX = 1.25  # larger ones as dots, smaller ones as the colour of all that lie on a pixel
WIDE_LINE_PX = 40.0
RIM_PX = 4  # drawn round a tile and cut off: OpenCV draws a line otherwise where the picture ends
FILL = 80  # of 255: how opaque the inside of an outline is
BOOST, SEEN = 2.0, 0.4  # a pixel is more opaque than its nuclei cover of it, so that few are seen too


def draw_nuclei(nuclei: NucleiMap, tile: Tile, choice: Choice, filled: bool = True) -> Picture:
    """Return the nuclei of a tile: (h, w, 4) uint8, blue, green, red, opacity; outlines are filled or not.

    Raises:
        UsageError: no such library.
    """
    library = nuclei.store.info.outputs.library(choice.library)
    colours = np.array([*library.colours, no_label_colour()], np.uint8)[:, ::-1]  # the last one is number -1
    tile = tile.widened(RIM_PX)
    width, height = tile.size
    colour, opacity = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8)
    diameter_px = nuclei.diameter_l0 / tile.l0_per_px
    if diameter_px >= OUTLINE_PX:
        line_px = 2 if diameter_px >= WIDE_LINE_PX else 1
        for part in nuclei.outlines(tile.box_l0):
            visible = np.flatnonzero(part.touching(tile.box_l0) & nuclei.shown(part.rows, choice))
            numbers = nuclei.labels(choice.library, choice.adapted)[0][part.rows[visible]]
            _draw_outlines(colour, opacity, part.select(visible), tile, colours[numbers], line_px, filled)
    else:
        rows = nuclei.rows_in(tile.box_l0, reach=True)
        rows = rows[nuclei.shown(rows, choice)]
        numbers = nuclei.labels(choice.library, choice.adapted)[0][rows]
        places = np.floor(nuclei.centroids_l0[rows] / np.float32(tile.l0_per_px)).astype(np.int32) - tile.box[:2]
        if diameter_px >= DOT_PX:
            order = nuclei.shuffled(rows)
            _draw_dots(colour, opacity, places[order], colours[numbers[order]], diameter_px)
        else:
            _draw_density(colour, opacity, places, numbers, colours, math.pi / 4 * diameter_px**2)
    return np.asarray(cv2.merge([colour, opacity]), np.uint8)[RIM_PX:-RIM_PX, RIM_PX:-RIM_PX]


def _draw_outlines(
    colour: Picture, opacity: Picture, outlines: Outlines, tile: Tile, colours: Picture, line_px: int, filled: bool
) -> None:
    # OpenCV's whole numbers are pixel centres, ours pixel corners.
    moved = outlines.points / np.float32(tile.l0_per_px) - np.array(tile.box[:2], np.float32) - np.float32(0.5)
    fixed = np.rint(moved * 2**SUBPIXEL_BITS).astype(np.int32)
    rings = [[fixed[start:stop]] for start, stop in itertools.pairwise(outlines.offsets.tolist())]
    # Colour reaches further than opacity: a blend with the black of what is empty would give dark fringes.
    for ring, bgr in zip(rings, colours.tolist(), strict=True):
        if filled:
            cv2.fillPoly(opacity, ring, FILL, cv2.LINE_AA, SUBPIXEL_BITS)
            cv2.fillPoly(colour, ring, bgr, cv2.LINE_8, SUBPIXEL_BITS)
        cv2.polylines(colour, ring, True, bgr, line_px + 2, cv2.LINE_8, SUBPIXEL_BITS)
    for ring in rings:
        cv2.polylines(opacity, ring, True, 255, line_px, cv2.LINE_AA, SUBPIXEL_BITS)


def _draw_dots(
    colour: Picture, opacity: Picture, places: npt.NDArray[np.int32], colours: Picture, diameter_px: float
) -> None:
    """Small discs; where they overlap the last one is seen."""
    x, y = places.T
    height, width = opacity.shape
    side = max(2, round(diameter_px))
    middle = (side - 1) / 2
    for dy, dx in np.argwhere(np.hypot(*(np.indices((side, side)) - middle)) <= max(side / 2, 1)).tolist():
        column, line = x + dx - side // 2, y + dy - side // 2
        inside = (column >= 0) & (column < width) & (line >= 0) & (line < height)
        colour[line[inside], column[inside]] = colours[inside]
        opacity[line[inside], column[inside]] = 255


def _draw_density(
    colour: Picture,
    opacity: Picture,
    places: npt.NDArray[np.int32],
    numbers: npt.NDArray[np.int8],
    colours: Picture,
    share: float,
) -> None:
    """Paint the mean colour of a pixel's nuclei, each of which covers that share of it; the more, the more opaque."""
    height, width = opacity.shape
    x, y = places.T
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    kinds = len(colours)
    label = np.where(numbers < 0, kinds - 1, numbers)
    counts = np.bincount(((y * width + x) * kinds + label)[inside], minlength=height * width * kinds)
    by_label = counts.reshape(-1, kinds).astype(np.float32)
    total = by_label.sum(axis=1)
    mean = by_label @ colours.astype(np.float32) / np.maximum(total, 1)[:, None]
    colour[:] = np.rint(mean).reshape(colour.shape)
    covered = np.where(total > 0, 1 - (1 - SEEN) * np.exp(-BOOST * share * total), 0)
    opacity[:] = np.rint(255 * covered).reshape(opacity.shape)
