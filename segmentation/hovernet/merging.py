"""Joins parts of a nucleus that the watershed has parted where the maps hardly fall.

A marker is lost where a map falls at one pixel; a nucleus ends where it falls all along a border. So long nuclei, whose
maps have small waves, come out in pieces, and what tells a piece from a neighbour is the mean fall along the common
border (docs/segmentation.md has the figures).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nucpipe.optional.jit import jit

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


def merge_across_weak_borders(instances: Ints, right: Floats, down: Floats, threshold: float) -> None:
    """Join, in place, the parts between which the maps fall by less than ``threshold`` in the mean.

    A border is the pairs of pixels of two parts that lie side by side or one below the other. Its fall is the mean over
    them of the larger one of a pair: of the horizontal map where they lie side by side, for that of the vertical map
    falls at the edge of a nucleus, too. Parts are judged as they are before any is joined, so that the order does not
    matter.

    Args:
        instances: (H, W) int32, 0 = background; what is joined gets the smallest of its numbers.
        right, down: (H, W) float32, see ``segmentation.hovernet.postprocess.falls``.
        threshold: fall per pixel; 0 joins nothing.
    """
    if threshold <= 0:
        return
    keys, falls = _border_pixels(instances, right, down)
    if not len(keys):
        return
    borders, of_pixel, pixels = np.unique(keys, return_inverse=True, return_counts=True)
    weak = borders[np.bincount(of_pixel, falls) / pixels < threshold]
    if len(weak):
        _join(instances, weak, np.arange(int(instances.max()) + 1, dtype=np.int32))


@jit
def _border_pixels(
    instances: Ints, right: Floats, down: Floats
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return, of each pair of neighbouring pixels of two parts, both numbers as one key, and the larger fall."""
    height, width = instances.shape
    size = 0
    for write in range(2):
        if write:
            keys, falls = np.empty(size, np.int64), np.empty(size, np.float64)
            size = 0
        for row in range(height):
            for column in range(width):
                one = np.int64(instances[row, column])
                if one == 0:
                    continue
                for side in range(2):
                    r, c, fall = (row + 1, column, down) if side == 0 else (row, column + 1, right)
                    if r == height or c == width:
                        continue
                    other = np.int64(instances[r, c])
                    if other == 0 or other == one:
                        continue
                    if write:
                        keys[size] = (min(one, other) << 32) | max(one, other)
                        falls[size] = max(fall[row, column], fall[r, c])
                    size += 1
    return keys, falls


@jit
def _join(instances: Ints, borders: npt.NDArray[np.int64], first: Ints) -> None:
    """Give what borders (keys of two numbers) connect one number; ``first`` is 0, 1, 2, ... and is changed."""
    for key in borders:
        one, other = _root(first, key >> 32), _root(first, key & 0xFFFFFFFF)
        first[max(one, other)] = min(one, other)
    for row in range(instances.shape[0]):
        for column in range(instances.shape[1]):
            if instances[row, column]:
                instances[row, column] = _root(first, instances[row, column])


@jit
def _root(first: Ints, number: int) -> int:
    while first[number] != number:
        first[number] = first[first[number]]
        number = first[number]
    return number
