"""Heat maps: how dense nuclei lie, or how sure their labels are, as colours over the slide."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.web.viewer.drawing.nuclei import Picture
from pipeline.web.viewer.nuclei import Choice, NucleiMap
from pipeline.web.viewer.tiles import Tile

Grid = npt.NDArray[np.float32]
Kind = Literal["density", "certainty"]

CELL_UM, MOST_CELLS = 32.0, 1024
"""Side of a cell, which is larger where a side of the slide would have more cells than that."""
SIGMA_CELLS = 1.5  # of the Gaussian that smooths counts
ALONE = 1 / (2 * math.pi * SIGMA_CELLS**2)
"""What is left of 1 in a cell whose neighbours have 0: with a nucleus in it, a cell is fully coloured."""
OPACITY = 200  # of 255
CERTAINTY_SCALE = (0.4, 1.0)
"""Ends of the colours of certainty: the same on every slide, so that slides can be compared."""
HIGH_PERCENTILE = 99.5  # of the cells, where the colours of density end


@dataclass(frozen=True)
class HeatMap:
    """Sums over cells of the slide, smoothed.

    Attributes:
        weight: (rows, columns) number of nuclei.
        presence: (rows, columns) 1 where nuclei are, 0 where none is.
        certainty: (rows, columns) sum of their certainty; None where the map shows density.
        cell_l0: side of a cell, level-0 pixels.
        cell_mm2: its area, square millimetres.
        scale: the values at which the colours begin and end.
    """

    weight: Grid
    presence: Grid
    certainty: Grid | None
    cell_l0: float
    cell_mm2: float
    scale: tuple[float, float]


def measure_heat(nuclei: NucleiMap, choice: Choice, kind: Kind) -> HeatMap:
    """Measure the nuclei that are shown.

    Args:
        nuclei: of the slide.
        choice: which of them count, and the library whose label's probability is the certainty.
        kind: ``density``, nuclei per square millimetre; ``certainty``, the mean probability of the labels.

    Returns:
        The map. With a Gaussian of 48 µm it shows places rather than single nuclei.
    """
    width, height = nuclei.store.info.size_l0
    mpp = nuclei.store.info.mpp
    cell_l0 = max(CELL_UM / mpp, max(width, height) / MOST_CELLS)
    columns, rows = int(width // cell_l0) + 1, int(height // cell_l0) + 1
    p = nuclei.labels(choice.library, choice.adapted)[1]
    shown = nuclei.shown(slice(None), choice) & (~np.isnan(p) if kind == "certainty" else True)
    column, row = np.clip(nuclei.centroids_l0[shown] // cell_l0, 0, (columns - 1, rows - 1)).astype(np.int64).T
    cell = row * columns + column
    counts = np.bincount(cell, minlength=rows * columns)
    weight, presence = _smoothed(counts, rows), _smoothed(counts > 0, rows)
    cell_mm2 = (cell_l0 * mpp / 1000) ** 2
    if kind == "certainty":
        certainty = _smoothed(np.bincount(cell, p[shown], rows * columns), rows)
        return HeatMap(weight, presence, certainty, cell_l0, cell_mm2, CERTAINTY_SCALE)
    coloured = weight[presence >= ALONE]
    high = float(np.percentile(coloured, HIGH_PERCENTILE)) / cell_mm2 if len(coloured) else 1.0
    return HeatMap(weight, presence, None, cell_l0, cell_mm2, (0.0, _round_up(high)))


def draw_heat(heat: HeatMap, tile: Tile) -> Picture:
    """Return a tile of a heat map: (h, w, 4) uint8, blue, green, red, opacity."""
    x0, y0, x1, y1 = tile.box
    across, down = (
        (np.arange(start, stop) + 0.5) * (tile.l0_per_px / heat.cell_l0) - 0.5 for start, stop in ((x0, x1), (y0, y1))
    )
    weight, presence = (_between(_between(grid, down).T, across).T for grid in (heat.weight, heat.presence))
    if heat.certainty is None:
        value = weight / np.float32(heat.cell_mm2)
    else:
        value = _between(_between(heat.certainty, down).T, across).T / np.maximum(weight, np.float32(1e-9))
    low, high = heat.scale
    level = np.rint(255 * np.clip((value - low) / (high - low), 0, 1)).astype(np.uint8)
    colour = cv2.applyColorMap(level, cv2.COLORMAP_VIRIDIS)
    opacity = np.rint(OPACITY * np.minimum(presence / ALONE, 1)).astype(np.uint8)
    return np.asarray(cv2.merge([colour, opacity]), np.uint8)


def _smoothed(sums: npt.NDArray[Any], rows: int) -> Grid:
    return cv2.GaussianBlur(
        sums.astype(np.float32).reshape(rows, -1), (0, 0), SIGMA_CELLS, borderType=cv2.BORDER_CONSTANT
    ).astype(np.float32, copy=False)


def _between(grid: Grid, places: npt.NDArray[np.floating[Any]]) -> Grid:
    """Return a grid's rows at places between them, linearly."""
    first = np.clip(np.floor(places), 0, len(grid) - 1).astype(np.int64)
    second = np.minimum(first + 1, len(grid) - 1)
    share = np.clip(places - first, 0, 1).astype(np.float32)[:, None]
    return np.asarray(grid[first] * (1 - share) + grid[second] * share, np.float32)


def _round_up(value: float) -> float:
    """Return the next number of two digits."""
    step = 10.0 ** (math.floor(math.log10(max(value, 1e-6))) - 1)
    return math.ceil(value / step) * step
