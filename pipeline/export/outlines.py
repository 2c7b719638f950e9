"""Outlines as valid polygons: what many tools refuse to open otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.store import Store

GRID_PX = 0.01  # QuPath snaps coordinates to it, so outlines must be valid on it
DECIMALS = 2


def geometries_of(part: Store, centroids: bool = False, origin: tuple[int, int] = (0, 0)) -> npt.NDArray[Any]:
    """(N,) shapely polygons, or points, in level-0 pixels less ``origin``, with two decimals."""
    import shapely

    centres = part.centroids_l0 - origin
    if centroids:
        return np.asarray(shapely.points(np.round(centres, DECIMALS)))
    offsets, points = part.contours()
    # Adding 0 makes -0.0 (a value just below 0, rounded) 0.0.
    return valid_polygons(offsets, np.round(points - np.array(origin, float), DECIMALS) + 0.0, centres)


def valid_polygons(
    offsets: npt.NDArray[np.int64], points: npt.NDArray[np.float64], centroids: npt.NDArray[np.float64]
) -> npt.NDArray[Any]:
    """(N,) valid shapely polygons from rings that may be invalid; ``points`` lie on the grid of 0.01 pixels."""
    import shapely

    lengths = np.diff(offsets)
    polygons = np.empty(len(lengths), object)
    ring = lengths >= 3  # fewer points are none, and shapely refuses them
    which = np.repeat(ring, lengths)
    index = np.repeat(np.arange(ring.sum()), lengths[ring])
    if len(index):
        polygons[ring] = shapely.polygons(shapely.linearrings(points[which], indices=index))
    for i in np.flatnonzero(~shapely.is_valid(polygons)):
        polygons[i] = _repaired(polygons[i], centroids[i])
    return polygons


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
