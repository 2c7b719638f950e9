"""Outlines drawn as pixels: which nucleus each pixel belongs to."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nucpipe.optional.jit import jit

EPSILON = 1e-12  # a pixel's centre that is no farther from a corner lies on it

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@jit
def draw_rings(
    drawn: npt.NDArray[np.int32], left: int, top: int, rings: Floats, offsets: Ints, centres: Ints, numbers: Ints
) -> None:
    """Set the pixels whose centres lie in a ring, or on it, to its number; a later ring lies above an earlier one.

    A ring that holds no pixel's centre sets the pixel of its own centre, where nothing else is drawn yet. Pixels are
    those of ``skimage.draw.polygon``, whose test this is (O'Rourke, Computational Geometry in C, 1998, section 7.4).

    Args:
        drawn: (h, w) int32, a part of the image, changed in place.
        left: place of its first column in the image.
        top: place of its first row.
        rings: (M, 2) float64, x and y in the image; whole numbers are centres of pixels.
        offsets: (N+1,) int64, ring i is ``rings[offsets[i]:offsets[i + 1]]``.
        centres: (N, 2) int64, x and y of the pixel of each ring's centre.
        numbers: (K,) int64, the rings to draw, in this order; ring i is drawn as i + 1.
    """
    height, width = drawn.shape
    for i in numbers:
        ring = rings[offsets[i] : offsets[i + 1]]
        if len(ring) == 0:
            continue
        x, y = centres[i, 0] - left, centres[i, 1] - top
        if _fill(drawn, left, top, ring, i + 1) or not (0 <= x < width and 0 <= y < height) or drawn[y, x]:
            continue
        if _holds_nothing(ring):
            drawn[y, x] = i + 1


@jit
def _extent(ring: Floats, axis: int) -> tuple[float, float]:
    low, high = ring[0, axis], ring[0, axis]
    for k in range(len(ring)):
        low, high = min(low, ring[k, axis]), max(high, ring[k, axis])
    return low, high


@jit
def _fill(drawn: npt.NDArray[np.int32], left: int, top: int, ring: Floats, value: int) -> bool:
    """Set the pixels in a ring to a value; tells whether there are any."""
    height, width = drawn.shape
    first, last = _extent(ring, 0)
    lowest, highest = _extent(ring, 1)
    any_set = False
    sides = np.empty(len(ring), np.int64)
    for y in range(max(top, int(np.floor(lowest))), min(top + height - 1, int(np.ceil(highest))) + 1):
        count = _sides_of_row(ring, y, sides)
        for x in range(max(left, int(np.floor(first))), min(left + width - 1, int(np.ceil(last))) + 1):
            if _inside(ring, sides[:count], x, y):
                drawn[y - top, x - left] = value
                any_set = True
    return any_set


@jit
def _holds_nothing(ring: Floats) -> bool:
    """Tell whether no pixel's centre lies in a ring."""
    left, right = _extent(ring, 0)
    top, bottom = _extent(ring, 1)
    sides = np.empty(len(ring), np.int64)
    for row in range(int(np.floor(top)), int(np.ceil(bottom)) + 1):
        count = _sides_of_row(ring, row, sides)
        for column in range(int(np.floor(left)), int(np.ceil(right)) + 1):
            if _inside(ring, sides[:count], column, row):
                return False
    return True


@jit
def _sides_of_row(ring: Floats, row: int, sides: Ints) -> int:
    """List the sides, by the number of their end, that have a say in a row; returns how many they are."""
    count = 0
    y1 = ring[-1, 1] - row
    for k in range(len(ring)):
        y0 = ring[k, 1] - row
        if (y0 > 0) != (y1 > 0) or (y0 < 0) != (y1 < 0) or -EPSILON < y0 < EPSILON:
            sides[count] = k
            count += 1
        y1 = y0
    return count


@jit
def _inside(ring: Floats, sides: Ints, x: int, y: int) -> bool:
    """Tell whether a point lies in a ring, or on it, by the sides that meet its row."""
    to_right, to_left = 0, 0
    for k in sides:
        x0, y0, x1, y1 = ring[k, 0] - x, ring[k, 1] - y, ring[k - 1, 0] - x, ring[k - 1, 1] - y
        if -EPSILON < x0 < EPSILON and -EPSILON < y0 < EPSILON:
            return True
        if (y0 > 0) != (y1 > 0) and (x0 * y1 - x1 * y0) / (y1 - y0) > 0:
            to_right += 1
        if (y0 < 0) != (y1 < 0) and (x0 * y1 - x1 * y0) / (y1 - y0) < 0:
            to_left += 1
    return to_right % 2 == 1 or to_left % 2 == 1
