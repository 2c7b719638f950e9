"""The watershed that parts touching nuclei, over the pixels of touching nuclei alone.

Not scikit-image's, which floods the whole map and lets equally low markers go on in an order that may depend on other
components. This one visits only components with several markers; with it post-processing takes 37 ms where tiatoolbox's
takes 303 (docs/segmentation.md), and a test holds both to the same result.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nucpipe.optional.jit import jit

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Places = npt.NDArray[np.int64]


@jit
def flood(landscape: Floats, components: Ints, wanted: npt.NDArray[np.bool_], labels: Ints) -> None:
    """Grow markers over their component, lowest pixel first, of equal pixels the one reached first.

    The rule is that of scikit-image's ``watershed`` with four neighbours; marker pixels that are equally low go on in
    the order of rows, so that no nucleus depends on what lies in other components.

    Args:
        landscape: (H, W) float32.
        components: (H, W) int32, connected components of the mask.
        wanted: for each number of a component, whether it is flooded.
        labels: (H, W) int32, markers in it, 0 elsewhere; wanted components are filled.
    """
    height, width = landscape.shape
    size = 0
    for row in range(height):
        for column in range(width):
            size += wanted[components[row, column]]
    # A heap of pixels, the lowest first; each pixel enters it once.
    values, ages, places = np.empty(size, np.float32), np.empty(size, np.int64), np.empty(size, np.int64)
    n = age = 0
    for row in range(height):
        for column in range(width):
            if (
                wanted[components[row, column]]
                and labels[row, column] != 0
                and _has_way(components, labels, row, column)
            ):
                _push(values, ages, places, n, landscape[row, column], age, row * width + column)
                n += 1
                age += 1
    while n > 0:
        row, column = places[0] // width, places[0] % width
        n -= 1
        _drop_first(values, ages, places, n)
        for side in range(4):
            r = row - (side == 0) + (side == 3)
            c = column - (side == 1) + (side == 2)
            if r < 0 or c < 0 or r >= height or c >= width:
                continue
            if labels[r, c] == 0 and components[r, c] == components[row, column]:
                labels[r, c] = labels[row, column]
                if _has_way(components, labels, r, c):
                    _push(values, ages, places, n, landscape[r, c], age, r * width + c)
                    n += 1
                    age += 1


@jit
def _has_way(components: Ints, labels: Ints, row: int, column: int) -> bool:
    """Tell whether a neighbour is still to be flooded; a pixel without one need not be queued."""
    height, width = labels.shape
    own = components[row, column]
    for side in range(4):
        r = row - (side == 0) + (side == 3)
        c = column - (side == 1) + (side == 2)
        if 0 <= r < height and 0 <= c < width and labels[r, c] == 0 and components[r, c] == own:
            return True
    return False


@jit
def _push(values: Floats, ages: Places, places: Places, n: int, value: float, age: int, place: int) -> None:
    """Add a pixel to a heap of ``n``."""
    hole = n
    while hole > 0:
        parent = (hole - 1) // 2
        if values[parent] < value or (values[parent] == value and ages[parent] < age):
            break
        values[hole], ages[hole], places[hole] = values[parent], ages[parent], places[parent]
        hole = parent
    values[hole], ages[hole], places[hole] = value, age, place


@jit
def _drop_first(values: Floats, ages: Places, places: Places, n: int) -> None:
    """Take the first pixel from a heap of which ``n`` are left."""
    value, age, place = values[n], ages[n], places[n]
    hole = 0
    while True:
        child = 2 * hole + 1
        if child >= n:
            break
        other = child + 1
        if other < n and (
            values[other] < values[child] or (values[other] == values[child] and ages[other] < ages[child])
        ):
            child = other
        if value < values[child] or (value == values[child] and age < ages[child]):
            break
        values[hole], ages[hole], places[hole] = values[child], ages[child], places[child]
        hole = child
    values[hole], ages[hole], places[hole] = value, age, place
