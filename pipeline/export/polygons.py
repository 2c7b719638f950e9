"""Outlines as valid polygons: what many tools refuse to open otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nucpipe.optional.jit import jit
from pipeline.store.reader import Store

GRID_PX = 0.01  # QuPath snaps coordinates to it, so outlines must be valid on it
DECIMALS = 2


MAX_POINTS = 2000  # of a ring that is looked at by pairs of sides; GEOS takes less long for longer ones

Ints = npt.NDArray[np.int64]


def geometries_of(part: Store, centroids: bool = False) -> npt.NDArray[Any]:
    """(N,) valid shapely polygons, or points, in level-0 pixels with two decimals."""
    import shapely

    offsets, hundredths = coordinates_of(part, centroids)
    if centroids:
        return np.asarray(shapely.points(hundredths / 100))
    index = np.repeat(np.arange(len(part)), np.diff(offsets))
    return np.asarray(shapely.polygons(shapely.linearrings(hundredths / 100, indices=index)))


def coordinates_of(part: Store, centroids: bool = False, origin: tuple[int, int] = (0, 0)) -> tuple[Ints, Ints]:
    """Closed, valid rings, or points, in hundredths of a level-0 pixel from ``origin``.

    Returns:
        Offsets (N+1,) and coordinates (M, 2); nucleus i is ``coordinates[offsets[i]:offsets[i + 1]]``.
    """
    centres = part.centroids_l0 - origin
    if centroids:
        return np.arange(len(part) + 1), _hundredths(centres)
    offsets, points = part.contours()
    return valid_rings(offsets, _hundredths(points - np.array(origin, float)), centres)


def _hundredths(points: npt.NDArray[np.floating]) -> Ints:
    whole: Ints = np.rint(points * 100).astype(np.int64)
    return whole


def valid_rings(offsets: Ints, hundredths: Ints, centroids: npt.NDArray[np.float64]) -> tuple[Ints, Ints]:
    """Closed, valid rings from such as may be neither; all coordinates but the centroids' in hundredths of a pixel.

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
    """Offsets and points of the rings ``points[starts[i]:ends[i]]``, each with its first point at its end."""
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
    """(N,) whether a ring may be invalid: sides of it meet that are no neighbours, or lie on each other."""
    doubtful = np.zeros(len(offsets) - 1, np.bool_)
    for i in range(len(doubtful)):
        start, end = offsets[i], offsets[i + 1]
        if end - start > 1 and points[start, 0] == points[end - 1, 0] and points[start, 1] == points[end - 1, 1]:
            end -= 1
        doubtful[i] = not 3 <= end - start <= MAX_POINTS or _meets_itself(points[start:end])
    return doubtful


@jit
def _meets_itself(ring: Ints) -> bool:
    """Whether a ring is anything but simple. Exact, for the coordinates are whole numbers below 2**30."""
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
    """The closed ring of a polygon if that is valid, else of its largest piece, see :func:`_repaired`."""
    import shapely

    # Of fewer points there is no polygon, and shapely refuses them.
    polygon = shapely.Polygon(points) if len(points) >= 3 else None
    if not shapely.is_valid(polygon):
        polygon = _repaired(polygon, centroid)
    return np.asarray(shapely.get_coordinates(polygon))


def _repaired(invalid: Any, centroid: npt.NDArray[np.float64]) -> Any:
    """The largest piece of an invalid polygon, without holes; one pixel at the centroid where nothing is left."""
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
