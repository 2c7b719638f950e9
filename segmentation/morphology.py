"""Shape and stain of nuclei, measured on their outlines and pixels in one pass."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt

from nucpipe.optional.jit import jit
from nucpipe.stains import stain_matrix
from segmentation.nuclei import MEASURES, Nuclei

Floats = npt.NDArray[np.float64]

STRAIGHT, DIAGONAL, TURN = 0.980, 1.406, -0.091
"""Weights of a chain code's steps and of its corners, for lengths without bias (Vossepoel & Smeulders 1982)."""


def with_morphology(
    nuclei: Nuclei, pixels: npt.NDArray[np.uint8], origin: tuple[float, float], px: float, mpp: float
) -> Nuclei:
    """Return the same nuclei with their measures.

    Perimeters of outlines that run along pixel edges are estimated as Vossepoel & Smeulders do (a staircase is a
    quarter longer than the edge that it stands for); of other outlines they are the sum of the sides. Circularity is
    4 pi area / perimeter^2, at most 1. Solidity is the area's share of its convex hull's. The maximum diameter is that
    of the smallest circle round the nucleus, the minimum diameter the smallest distance of two parallel lines with the
    nucleus between them, both as in QuPath. The stain is the mean optical density of haematoxylin over the pixels whose
    centre lies inside, by QuPath's default stain vectors; NaN where there is none.

    Args:
        nuclei: with outlines in a frame whose unit is the pixel edge that outlines run along.
        pixels: (H, W, 3) uint8 RGB.
        origin: x and y of the corner of ``pixels`` in that frame.
        px: side of one of ``pixels`` in that frame.
        mpp: micrometres per unit of that frame.
    """
    values = np.empty((len(nuclei), len(MEASURES)), np.float64)
    points = nuclei.contour_points - np.asarray(origin, float)
    hulls, hull_offsets = _enclose(points, nuclei.contour_offsets, values[:, MEASURES.index("max_diameter_um")])
    _measure(points, nuclei.contour_offsets, hulls, hull_offsets, pixels, float(px), haematoxylin_table(), values)
    lengths = [MEASURES.index(name) for name in ("perimeter_um", "max_diameter_um", "min_diameter_um")]
    values[:, lengths] *= mpp
    return replace(nuclei, measures=values.astype(np.float32))


def _enclose(points: Floats, offsets: npt.NDArray[np.int64], diameters: Floats) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Fill ``diameters`` (N,) of the smallest circles round rings, and return the rings' convex hulls, concatenated."""
    hulls: list[npt.NDArray[np.float32]] = [np.zeros((0, 2), np.float32)]
    for i, (start, stop) in enumerate(pairwise(offsets)):
        # Relative to a point of its own a ring keeps its exact place in OpenCV's float32.
        ring = (points[start:stop] - points[start:stop][:1]).astype(np.float32)
        hull = np.asarray(cv2.convexHull(ring), np.float32).reshape(-1, 2) if len(ring) else ring
        hulls.append(hull)
        diameters[i] = 2 * cv2.minEnclosingCircle(hull)[1] if len(hull) else 0.0
    hull_offsets = np.cumsum([len(hull) for hull in hulls])
    return np.concatenate(hulls).astype(np.float64), hull_offsets


def haematoxylin_table() -> npt.NDArray[np.float32]:
    """Return (3, 256): what a value of red, green or blue adds to the optical density of haematoxylin."""
    share = np.linalg.inv(stain_matrix())[:, 0]
    density = -np.log10(np.maximum(np.arange(256), 1) / 255)
    return np.asarray(share[:, None] * density, np.float32)


@jit
def _measure(
    points: Floats,
    offsets: npt.NDArray[np.int64],
    hulls: Floats,
    hull_offsets: npt.NDArray[np.int64],
    pixels: npt.NDArray[np.uint8],
    px: float,
    stain: npt.NDArray[np.float32],
    values: Floats,
) -> None:
    """Fill ``values`` (N, 6), in the order of ``MEASURES``, but for the largest diameter."""
    for i in range(len(offsets) - 1):
        ring = points[offsets[i] : offsets[i + 1]]
        area = _area(ring)
        perimeter = _perimeter(ring)
        hull = hulls[hull_offsets[i] : hull_offsets[i + 1]]
        values[i, 0] = perimeter
        values[i, 1] = min(1.0, 4 * math.pi * area / perimeter**2) if perimeter > 0 else math.nan
        whole = _area(hull)
        values[i, 2] = area / whole if whole > 0 else math.nan
        values[i, 4] = _width(hull)
        values[i, 5] = _mean_stain(ring, pixels, px, stain)


@jit
def _area(ring: Floats) -> float:
    twice = 0.0
    for k in range(len(ring)):
        ax, ay = ring[k - 1, 0], ring[k - 1, 1]
        twice += (ax - ring[0, 0]) * (ring[k, 1] - ring[0, 1]) - (ring[k, 0] - ring[0, 0]) * (ay - ring[0, 1])
    return abs(twice) / 2


@jit
def _perimeter(ring: Floats) -> float:
    """Measure along the chain through the middles of pixel edges.

    Two edges in a line are a straight step, two at an angle half a diagonal one.
    """
    sides, steps, changes = 0.0, 0.0, 0
    staircase = True
    n = len(ring)
    for k in range(n):
        dx, dy = abs(ring[k, 0] - ring[k - 1, 0]), abs(ring[k, 1] - ring[k - 1, 1])
        side = math.hypot(dx, dy)
        sides += side
        staircase &= (dx == 0) != (dy == 0) and side == math.floor(side)
        steps += side - 1
        changes += 2 * (side > 1)  # from diagonal to straight, and back
    if not staircase or n == 0:
        return sides
    return STRAIGHT * steps + DIAGONAL / 2 * n + TURN * changes


@jit
def _width(hull: Floats) -> float:
    """Return the smallest distance of two parallel lines with the hull between them; one of them lies on a side."""
    n = len(hull)
    if n < 3:
        return 0.0
    least = math.inf
    for k in range(n):
        dx, dy = hull[k, 0] - hull[k - 1, 0], hull[k, 1] - hull[k - 1, 1]
        length = math.hypot(dx, dy)
        if length == 0:
            continue
        farthest = 0.0
        for j in range(n):
            farthest = max(farthest, abs(dx * (hull[j, 1] - hull[k, 1]) - dy * (hull[j, 0] - hull[k, 0])) / length)
        least = min(least, farthest)
    return least


@jit
def _mean_stain(ring: Floats, pixels: npt.NDArray[np.uint8], px: float, stain: npt.NDArray[np.float32]) -> float:
    """Return mean over the pixels whose centre lies inside the ring (even-odd rule); NaN where there is none."""
    height, width = pixels.shape[:2]
    n, total, count = len(ring), 0.0, 0
    if n < 3:
        return math.nan
    top = max(0, math.floor(ring[:, 1].min() / px - 0.5))
    bottom = min(height, math.ceil(ring[:, 1].max() / px + 0.5))
    crossings = np.empty(n, np.float64)
    for row in range(top, bottom):
        y = (row + 0.5) * px
        m = 0
        for k in range(n):
            ay, by = ring[k - 1, 1], ring[k, 1]
            if (ay <= y) != (by <= y):
                crossings[m] = ring[k - 1, 0] + (y - ay) / (by - ay) * (ring[k, 0] - ring[k - 1, 0])
                m += 1
        inside = np.sort(crossings[:m])
        for k in range(0, m - 1, 2):
            first = max(0, math.ceil(inside[k] / px - 0.5))
            last = min(width, math.ceil(inside[k + 1] / px - 0.5))
            for column in range(first, last):
                for channel in range(3):
                    total += stain[channel, pixels[row, column, channel]]
            count += max(0, last - first)
    return total / count if count else math.nan
