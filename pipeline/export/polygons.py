"""Outlines as every export writes them: smooth, closed, valid polygons.

A segmented nucleus is a set of pixels and its stored outline runs along their edges, as a staircase. Exports cut half
a pixel off both sides of every corner: what is left runs through the middles of the pixels' edges (the contour of
marching squares at one half). No point of it is more than a quarter of a pixel away from the stored outline, no centre
of a pixel changes sides, and a simple outline loses half a pixel of area. Outlines of other shapes, those that would
change their area by more than a percent (nuclei of fewer than 50 pixels) and those that would not stay simple are
written as they are stored.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nucpipe.optional.jit import jit
from pipeline.slide.grid import WorkingGrid
from pipeline.store.reader import Store

GRID_PX = 0.01  # QuPath snaps coordinates to it, so outlines must be valid on it
DECIMALS = 2
MAX_AREA_CHANGE = 0.01  # share of the stored area
MAX_POINTS = 2000  # of a ring that is looked at by pairs of sides; GEOS takes less long for longer ones

Ints = npt.NDArray[np.int64]


def geometries_of(part: Store, centroids: bool = False, exact: bool = False) -> npt.NDArray[Any]:
    """Return (N,) valid shapely polygons, or points, in level-0 pixels; see :func:`coordinates_of`."""
    import shapely

    offsets, hundredths = coordinates_of(part, centroids, exact)
    if centroids:
        return np.asarray(shapely.points(hundredths / 100))
    index = np.repeat(np.arange(len(part)), np.diff(offsets))
    return np.asarray(shapely.polygons(shapely.linearrings(hundredths / 100, indices=index)))


def coordinates_of(
    part: Store, centroids: bool = False, exact: bool = False, origin: tuple[int, int] = (0, 0)
) -> tuple[Ints, Ints]:
    """Return closed, valid rings, or points, in hundredths of a level-0 pixel from ``origin``.

    Args:
        part: the nuclei.
        centroids: points instead of outlines.
        exact: outlines along the edges of pixels, as they are stored, instead of smooth ones.
        origin: x and y in level-0 pixels.

    Returns:
        Offsets (N+1,) and coordinates (M, 2); nucleus i is ``coordinates[offsets[i]:offsets[i + 1]]``.
    """
    centres = part.centroids_l0 - origin
    if centroids:
        return np.arange(len(part) + 1), _hundredths(centres)
    offsets, points = part.contours()
    hundredths = _hundredths(points - np.array(origin, float))
    if not exact:
        pixel = 100 * WorkingGrid.for_slide(part.info.size_l0, part.info.mpp).l0_per_w
        offsets, hundredths = smooth_rings(offsets, hundredths, pixel)
    return valid_rings(offsets, hundredths, centres)


def _hundredths(points: npt.NDArray[np.floating]) -> Ints:
    whole: Ints = np.rint(points * 100).astype(np.int64)
    return whole


@jit
def smooth_rings(offsets: Ints, hundredths: Ints, pixel: float) -> tuple[Ints, Ints]:
    """Cut the corners of outlines that run along the edges of pixels; others stay as they are.

    Args:
        offsets: (N+1,) ``hundredths[offsets[i]:offsets[i + 1]]`` is the open ring i.
        hundredths: (M, 2) in hundredths of a level-0 pixel.
        pixel: the side of the pixels, in the same unit.

    Returns:
        Offsets (N+1,) and points of the new open rings.
    """
    new_offsets = np.zeros_like(offsets)
    new = np.empty((2 * len(hundredths), 2), np.int64)
    end = 0
    for i in range(len(offsets) - 1):
        ring = hundredths[offsets[i] : offsets[i + 1]]
        smooth = _smooth(ring, pixel)
        if len(smooth) == 0:
            smooth = ring
        new[end : end + len(smooth)] = smooth
        end += len(smooth)
        new_offsets[i + 1] = end
    return new_offsets, new[:end].copy()


@jit
def _smooth(ring: Ints, pixel: float) -> Ints:
    """Return the ring with its corners cut; empty where it is to stay as it is."""
    count = len(ring)
    # In half pixels from the first point: whole numbers, so that what lies on a line is known exactly.
    halves = np.empty((count, 2), np.int64)
    for k in range(count):
        for axis in range(2):
            halves[k, axis] = 2 * round((ring[k, axis] - ring[0, axis]) / pixel)
            if abs(ring[0, axis] + halves[k, axis] * pixel / 2 - ring[k, axis]) > 1:
                return halves[:0]
    new = np.empty((2 * count, 2), np.int64)
    kept = 0
    for k in range(count):
        before, here, after = halves[k - 1], halves[k], halves[(k + 1) % count]
        if ((here[0] == before[0]) == (here[1] == before[1])) or ((here[0] == after[0]) == (here[1] == after[1])):
            return halves[:0]
        for neighbour in (before, after):
            x, y = here[0] + np.sign(neighbour[0] - here[0]), here[1] + np.sign(neighbour[1] - here[1])
            if kept and new[kept - 1, 0] == x and new[kept - 1, 1] == y:
                continue
            if kept > 1 and _straight(new[kept - 2], new[kept - 1], x, y):
                kept -= 1
            new[kept, 0], new[kept, 1] = x, y
            kept += 1
    first = 0
    if kept > 1 and new[kept - 1, 0] == new[0, 0] and new[kept - 1, 1] == new[0, 1]:
        kept -= 1
    if kept > 2 and _straight(new[kept - 2], new[kept - 1], new[0, 0], new[0, 1]):
        kept -= 1
    if kept > 2 and _straight(new[kept - 1], new[0], new[1, 0], new[1, 1]):
        first = 1
    new = new[first:kept]
    area = _twice_area(halves)
    if len(new) < 3 or abs(_twice_area(new) - area) > MAX_AREA_CHANGE * area or _meets_itself(new):
        return halves[:0]
    smooth = np.empty_like(new)
    for k in range(len(new)):
        for axis in range(2):
            smooth[k, axis] = ring[0, axis] + round(new[k, axis] * pixel / 2)
    return smooth


@jit
def _straight(p: Ints, q: Ints, x: int, y: int) -> bool:
    return bool((q[0] - p[0]) * (y - q[1]) == (q[1] - p[1]) * (x - q[0]))


@jit
def _twice_area(ring: Ints) -> int:
    twice = 0
    for k in range(len(ring)):
        twice += ring[k - 1, 0] * ring[k, 1] - ring[k, 0] * ring[k - 1, 1]
    return abs(twice)


def valid_rings(offsets: Ints, hundredths: Ints, centroids: npt.NDArray[np.float64]) -> tuple[Ints, Ints]:
    """Close and mend rings; all coordinates but the centroids' are in hundredths of a pixel.

    GEOS takes many times as long for this as a look at all pairs of sides does, so it is asked about those rings only
    in which sides meet.
    """
    starts, ends = offsets[:-1].copy(), offsets[1:].copy()
    rings, count = [hundredths], len(hundredths)
    for i in np.flatnonzero(_doubtful(offsets, hundredths)).tolist():
        ring = _hundredths(_valid_ring(hundredths[starts[i] : ends[i]] / 100, centroids[i]))
        rings.append(ring)
        starts[i], ends[i] = count, count + len(ring)
        count += len(ring)
    closed: tuple[Ints, Ints] = _closed(starts, ends, np.concatenate(rings))
    return closed


@jit
def _closed(starts: Ints, ends: Ints, points: Ints) -> tuple[Ints, Ints]:
    """Return offsets and points of the rings ``points[starts[i]:ends[i]]``, each with its first point at its end."""
    offsets = np.zeros(len(starts) + 1, np.int64)
    for i in range(len(starts)):
        first, last = points[starts[i]], points[ends[i] - 1]
        is_open = first[0] != last[0] or first[1] != last[1]
        offsets[i + 1] = offsets[i] + ends[i] - starts[i] + is_open
    rings = np.empty((offsets[-1], 2), np.int64)
    for i in range(len(starts)):
        for k in range(offsets[i], offsets[i + 1]):
            source = starts[i] + k - offsets[i]
            if source == ends[i]:
                source = starts[i]
            rings[k, 0], rings[k, 1] = points[source, 0], points[source, 1]
    return offsets, rings


@jit
def _doubtful(offsets: Ints, points: Ints) -> npt.NDArray[np.bool_]:
    """Return (N,) whether a ring may be invalid: sides of it meet that are no neighbours, or lie on each other."""
    doubtful = np.zeros(len(offsets) - 1, np.bool_)
    for i in range(len(doubtful)):
        start, end = offsets[i], offsets[i + 1]
        if end - start > 1 and points[start, 0] == points[end - 1, 0] and points[start, 1] == points[end - 1, 1]:
            end -= 1
        doubtful[i] = not 3 <= end - start <= MAX_POINTS or _meets_itself(points[start:end])
    return doubtful


@jit
def _meets_itself(ring: Ints) -> bool:
    """Tell whether a ring is anything but simple. Exact, for the coordinates are whole numbers below 2**30."""
    count = len(ring)
    for i in range(count):
        px, py = ring[i]
        qx, qy = ring[(i + 1) % count]
        rx, ry = ring[(i + 2) % count]
        if (qx - px) * (ry - qy) == (qy - py) * (rx - qx) and (qx - px) * (rx - qx) + (qy - py) * (ry - qy) <= 0:
            return True  # a side without length, or one that goes back along the one before it
    for i in range(count - 2):
        px, py = ring[i]
        qx, qy = ring[i + 1]
        left, right, top, bottom = min(px, qx), max(px, qx), min(py, qy), max(py, qy)
        rx, ry = ring[i + 2]
        for k in range(i + 2, count - (i == 0)):
            sx, sy = ring[(k + 1) % count]
            if min(rx, sx) <= right and max(rx, sx) >= left and min(ry, sy) <= bottom and max(ry, sy) >= top:
                of_r = (qx - px) * (ry - py) - (qy - py) * (rx - px)
                of_s = (qx - px) * (sy - py) - (qy - py) * (sx - px)
                of_p = (sx - rx) * (py - ry) - (sy - ry) * (px - rx)
                of_q = (sx - rx) * (qy - ry) - (sy - ry) * (qx - rx)
                # Boxes that meet, and on neither line both ends of the other on the same side.
                if not (_same_side(of_r, of_s) or _same_side(of_p, of_q)):
                    return True
            rx, ry = sx, sy
    return False


@jit
def _same_side(a: int, b: int) -> bool:
    return (a > 0 and b > 0) or (a < 0 and b < 0)


def _valid_ring(points: npt.NDArray[np.float64], centroid: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the closed ring of a polygon if that is valid, else of its largest piece, see :func:`_repaired`."""
    import shapely

    # Of fewer points there is no polygon, and shapely refuses them.
    polygon = shapely.Polygon(points) if len(points) >= 3 else None
    if not shapely.is_valid(polygon):
        polygon = _repaired(polygon, centroid)
    return np.asarray(shapely.get_coordinates(polygon))


def _repaired(invalid: Any, centroid: npt.NDArray[np.float64]) -> Any:
    """Return an invalid polygon's largest piece, without holes; a pixel at the centroid where nothing is left."""
    import shapely

    # make_valid cuts lines where they cross, which is seldom on the grid; set_precision brings the cuts onto it.
    pieces = shapely.get_parts(shapely.get_parts(shapely.set_precision(shapely.make_valid(invalid), GRID_PX)))
    largest = max(pieces, key=shapely.area, default=None)
    if largest is not None and largest.area > 0:
        polygon = shapely.Polygon(np.round(shapely.get_coordinates(largest.exterior), DECIMALS) + 0.0)
        if polygon.is_valid:
            return polygon
    x, y = np.round(centroid, DECIMALS)
    return shapely.box(x - 0.5, y - 0.5, x + 0.5, y + 0.5)
