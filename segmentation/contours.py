"""Outlines of pixel masks that run along pixel edges, as QuPath and vector formats want them.

Not OpenCV's ``findContours``, whose outlines run through the centres of border pixels: a nucleus loses half a pixel all
round, and one of a single pixel has no area.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from nucpipe.optional.jit import jit

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Outlines:
    """The outer outlines of an instance map, in the order of their first pixel (row by row).

    Attributes:
        ids: (N,) int64, in the map.
        offsets: (N+1,) int64; ring i is ``points[offsets[i]:offsets[i + 1]]``.
        points: (M, 2) int64, x and y of pixel corners; rings are clockwise on screen, not closed, no three in a line.
        areas: (N,) float64, square pixels, holes filled.
        centroids: (N, 2) float64, centres of mass of the rings.
        pixels: (N,) int64, how many pixels have the id.
        sums: (N,) float64, sum of the given values over those pixels.
    """

    ids: Longs
    offsets: Longs
    points: Longs
    areas: npt.NDArray[np.float64]
    centroids: npt.NDArray[np.float64]
    pixels: Longs
    sums: npt.NDArray[np.float64]


def trace_instances(instances: Ints, values: npt.NDArray[np.float32]) -> Outlines:
    """Trace the outlines of all instances, and sum ``values`` over their pixels, in one pass.

    Of several parts of one instance that touch nowhere the one with the largest outline counts; holes are ignored.
    Outlines are simple polygons: where an instance hangs together by a mere corner, the pixels round it are filled.

    Args:
        instances: (H, W) int32, 0 = background, ids need not be consecutive.
        values: (H, W) float32.
    """
    count = int(instances.max(initial=0)) + 1
    ids, starts, lengths, touching, pixels, sums = _survey(instances, values, count)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    points = np.empty((offsets[-1], 2), np.int64)
    _write_rings(instances, ids, starts, offsets, points)
    if touching.any():
        rings = np.split(points, offsets[1:-1])
        for i in np.flatnonzero(touching):
            rings[i] = _ring_of(instances, int(ids[i]))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum([len(ring) for ring in rings])])
        points = np.concatenate(rings)
    return Outlines(ids, offsets, points, *_moments(points, offsets), pixels[ids], sums[ids])


@jit
def _follow(
    instances: Ints, row: int, column: int, seen: npt.NDArray[np.uint8], corners: Longs
) -> tuple[int, int, bool]:
    """Walk once round a part of an instance, from the upper edge of its pixel (row, column) to the right.

    Pixels that meet at a corner belong together. Twice the walk's area is negative round a hole.

    Args:
        instances: (H, W).
        row, column: of a pixel whose upper neighbour is no part of the instance.
        seen: (H, W) or empty; pixels whose upper edge the walk passes become 1.
        corners: (K, 2); the first K corners of the walk are written into it.

    Returns:
        Number of corners, twice the area, and whether the walk comes by one corner twice.
    """
    height, width = instances.shape
    own = instances[row, column]
    x, y, direction = column, row, 0  # 0 right, 1 down, 2 left, 3 up; the instance lies on the right hand
    count, twice = 0, 0
    passed = np.empty((64, 2), np.int64)
    n_passed, touching = 0, False
    before = -1
    while True:
        if direction != before and before >= 0:
            if count < len(corners):
                corners[count, 0], corners[count, 1] = x, y
            count += 1
        before = direction
        next_x, next_y = x + (direction == 0) - (direction == 2), y + (direction == 1) - (direction == 3)
        if direction == 0 and len(seen):
            seen[y, x] = 1
        twice += x * next_y - next_x * y
        x, y = next_x, next_y
        # The two pixels ahead: left and right of the way.
        left_x, left_y = x - (direction == 2) - (direction == 3), y - (direction == 0) - (direction == 3)
        right_x, right_y = x - (direction == 1) - (direction == 2), y - (direction == 2) - (direction == 3)
        left = 0 <= left_x < width and 0 <= left_y < height and instances[left_y, left_x] == own
        right = 0 <= right_x < width and 0 <= right_y < height and instances[right_y, right_x] == own
        if left and not right:
            for k in range(min(n_passed, len(passed))):
                touching |= passed[k, 0] == x and passed[k, 1] == y
            if n_passed < len(passed):
                passed[n_passed, 0], passed[n_passed, 1] = x, y
                n_passed += 1
            else:
                touching = True
        if left:
            direction = (direction + 3) % 4
        elif not right:
            direction = (direction + 1) % 4
        if x == column and y == row and direction == 0:
            break
    if before != 0:  # the start is a corner, too
        if count < len(corners):
            corners[count, 0], corners[count, 1] = x, y
        count += 1
    return count, twice, touching


@jit
def _survey(
    instances: Ints, values: npt.NDArray[np.float32], count: int
) -> tuple[Longs, Longs, Longs, npt.NDArray[np.bool_], Longs, npt.NDArray[np.float64]]:
    """Find each instance's largest outer ring: id, first pixel, number of corners, whether it touches itself; and, by
    id, the number of pixels and the sum of their values."""
    height, width = instances.shape
    seen = np.zeros((height, width), np.uint8)
    pixels, sums = np.zeros(count, np.int64), np.zeros(count, np.float64)
    largest, starts, lengths = np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros(count, np.int64)
    touching = np.zeros(count, np.bool_)
    order, n = np.empty(count, np.int64), 0
    no_corners = np.empty((0, 2), np.int64)
    for row in range(height):
        for column in range(width):
            own = instances[row, column]
            if own <= 0:
                continue
            if pixels[own] == 0:
                order[n] = own
                n += 1
            pixels[own] += 1
            sums[own] += values[row, column]
            if seen[row, column] or (row > 0 and instances[row - 1, column] == own):
                continue
            corners, twice, touches = _follow(instances, row, column, seen, no_corners)
            if twice > largest[own]:
                largest[own], starts[own], lengths[own] = twice, row * width + column, corners
                touching[own] = touches
    ids = order[:n].copy()
    return ids, starts[ids], lengths[ids], touching[ids], pixels, sums


@jit
def _write_rings(instances: Ints, ids: Longs, starts: Longs, offsets: Longs, points: Longs) -> None:
    width = instances.shape[1]
    nothing = np.empty((0, 0), np.uint8)
    for i in range(len(ids)):
        place = points[offsets[i] : offsets[i + 1]]
        _follow(instances, starts[i] // width, starts[i] % width, nothing, place)


@jit
def _moments(points: Longs, offsets: Longs) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return areas and centroids of rings of whole numbers (shoelace formula), exact but for the last division."""
    n = len(offsets) - 1
    areas, centroids = np.zeros(n, np.float64), np.zeros((n, 2), np.float64)
    for i in range(n):
        start, stop = offsets[i], offsets[i + 1]
        x0, y0 = points[start, 0], points[start, 1]  # so that the sums do not depend on where the read box lies
        twice, six_x, six_y = 0, 0, 0
        for k in range(start, stop):
            following = k + 1 if k + 1 < stop else start
            ax, ay = points[k, 0] - x0, points[k, 1] - y0
            bx, by = points[following, 0] - x0, points[following, 1] - y0
            cross = ax * by - bx * ay
            twice += cross
            six_x += cross * (ax + bx)
            six_y += cross * (ay + by)
        areas[i] = twice / 2
        centroids[i, 0], centroids[i, 1] = x0 + six_x / (3 * twice), y0 + six_y / (3 * twice)
    return areas, centroids


def _ring_of(instances: Ints, number: int) -> Longs:
    """Return the outline of an instance that hangs together by corners."""
    rows, columns = np.nonzero(instances == number)
    top, left = int(rows.min()), int(columns.min())
    mask = instances[top : rows.max() + 1, left : columns.max() + 1] == number
    ring = trace_outline(mask)
    ring += np.array([left, top])
    return ring


def trace_outline(mask: npt.NDArray[np.bool_]) -> Longs:
    """Return the outer outline of one mask through pixel corners, as :func:`trace_instances` gives it.

    Args:
        mask: (H, W) bool with at least one True.

    Returns:
        (K, 2) int64 x and y of the corners, clockwise on screen, not closed, no three in a line. A square of
        10x10 pixels gives four corners and area 100.
    """
    ring = largest_ring(mask)
    while True:
        passed: set[tuple[int, int]] = set()
        twice = []
        for corner in map(tuple, ring.tolist()):
            if corner in passed:
                twice.append(corner)
            passed.add(corner)
        if not twice:
            return ring
        # The outline comes by one corner twice: fill the four pixels round it.
        mask = np.pad(mask, 1)
        for x, y in twice:
            mask[y : y + 2, x : x + 2] = True
        ring = largest_ring(mask) - 1
        mask = mask[1:-1, 1:-1]


def largest_ring(mask: npt.NDArray[np.bool_]) -> Longs:
    """Return corners of the largest outer ring; it may touch itself at a corner."""
    doubled = mask.astype(np.uint8).repeat(2, 0).repeat(2, 1)
    rings, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    ring = max(rings, key=lambda r: (cv2.contourArea(r), len(r)))[:, 0, :].astype(np.int64)
    # cv2 gives centres of boundary pixels. In the doubled mask a left or upper boundary lies on an even number, a
    # right or lower one on an odd number, so halving upwards takes every one of them to its pixel corner.
    corners = (ring + 1) >> 1
    step = np.diff(corners, axis=0, append=corners[:1])
    moves = step.any(1)
    corners, after = corners[moves], step[moves]
    before = np.concatenate([after[-1:], after[:-1]])
    # cv2 goes counter-clockwise on screen.
    clockwise: Longs = corners[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]][::-1]
    return clockwise
