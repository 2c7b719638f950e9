"""Regions of interest that somebody drew: which nuclei lie in which, by the geometry itself."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import shapely

from nucpipe.errors import SlideError, UsageError
from nucpipe.geojson import Annotation
from pipeline.regions.tissue import LARGEST_COORDINATE, annotations_of

Points = npt.NDArray[np.float64]
SMALL_MM2 = 100e-6
"""A nucleus and what lies round it."""
POLYGONS = (3, 6)
"""Shapely's numbers of polygons and multi-polygons."""


@dataclass(frozen=True)
class RegionsOfInterest:
    """R regions of one slide; they may overlap and lie within each other.

    Attributes:
        names: of each region, unique: what its author called it, else its class, numbered where it would be repeated.
        labels: the class of each region; "" where it has none.
        shapes: (R,) shapely polygons in level-0 pixels, cut at the slide's edges and free of what is to be ignored.
        mpp: micrometres per level-0 pixel.
    """

    names: tuple[str, ...]
    labels: tuple[str, ...]
    shapes: npt.NDArray[np.object_]
    mpp: float

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def areas_mm2(self) -> Points:
        """(R,) area of each region, square millimetres."""
        return np.asarray(shapely.area(self.shapes) * (self.mpp / 1000) ** 2, np.float64)

    def contain(self, number: int, points_l0: Points) -> npt.NDArray[np.bool_]:
        """Return which of (N, 2) points, x and y at level 0, lie in a region.

        Edges are half open, as in :func:`pipeline.regions.tissue.inside_ring`: of two regions that share an edge
        exactly one has a point on it.
        """
        shape, x, y = self.shapes[number], points_l0[:, 0], points_l0[:, 1]
        x0, y0, x1, y1 = shapely.bounds(shape)  # NaN of a region without area: nothing is near
        near = np.flatnonzero((x >= x0) & (x <= x1) & (y >= y0) & (y <= y1))
        inside = np.zeros(len(x), bool)
        inside[near] = shapely.contains_xy(shape, x[near], y[near])
        on_edge = near[shapely.intersects_xy(shape, x[near], y[near]) & ~inside[near]]
        inside[on_edge] = _half_open(shape, points_l0[on_edge])
        return inside

    def smallest(self, points_l0: Points) -> npt.NDArray[np.int32]:
        """Return (N,) the number of the smallest region that each point lies in, as in QuPath's hierarchy; -1: none."""
        found = np.full(len(points_l0), -1, np.int32)
        for number in np.argsort(-self.areas_mm2, kind="stable").tolist():
            found[self.contain(number, points_l0)] = number
        return found

    def number_of(self, name: str) -> int:
        """Return the number of a region.

        Raises:
            UsageError: no region has the name.
        """
        if name not in self.names:
            raise UsageError(f"--region {name}: no such region; expected one of {', '.join(self.names)}.")
        return self.names.index(name)


def read_regions(
    path: Path, slide_name: str, size_l0: tuple[int, int], origin_l0: tuple[int, int], mpp: float
) -> RegionsOfInterest:
    """Return the annotations of a GeoJSON as QuPath exports it.

    What has the class ``Ignore*`` is no region and is cut out of the others; points and detections are left out.

    Args:
        path: of the file.
        slide_name: for the message of an error.
        size_l0: (width, height) of the slide, level-0 pixels.
        origin_l0: (x, y) from which the file's coordinates count.
        mpp: micrometres per level-0 pixel.

    Raises:
        SlideError: the file cannot be read, holds no region, or none that meets the slide.
    """
    annotations = annotations_of(path, "regions (annotations with an area)")
    extent = shapely.box(0, 0, *size_l0)
    kept = [one for one in annotations if not one.is_ignored]
    ignored = shapely.union_all([_shape(one, origin_l0) for one in annotations if one.is_ignored])
    shapes = np.array(
        [shapely.difference(_polygons(shapely.intersection(_shape(one, origin_l0), extent)), ignored) for one in kept],
        np.object_,
    )
    if not shapely.area(shapes).any():
        raise SlideError(
            f"{path.name}: its regions lie outside {slide_name} of {size_l0[0]} x {size_l0[1]} pixels, or within those "
            "of the class Ignore*; they must be in pixels of full resolution."
        )
    shapely.prepare(shapes)
    regions = RegionsOfInterest(_unique_names(kept), tuple(one.label for one in kept), shapes, mpp)
    _warn_of_small(path, regions)
    return regions


def _warn_of_small(path: Path, regions: RegionsOfInterest) -> None:
    """Warn of regions that can hold no nuclei: often coordinates in another unit, or of another slide."""
    small = np.flatnonzero(regions.areas_mm2 < SMALL_MM2)
    if len(small):
        logging.getLogger(__name__).warning(
            "%s: %d of %d regions, as %s, lie outside the slide or are smaller than %.0f µm²; "
            "expected coordinates in pixels of full resolution.",
            path.name,
            len(small),
            len(regions),
            regions.names[small[0]],
            SMALL_MM2 * 1e6,
        )


def _shape(annotation: Annotation, origin_l0: tuple[int, int]) -> shapely.Geometry:
    parts = []
    for rings in annotation.polygons:
        outer, *holes = (np.clip(ring, -LARGEST_COORDINATE, LARGEST_COORDINATE) + origin_l0 for ring in rings)
        parts.append(_polygons(shapely.make_valid(shapely.Polygon(outer, holes))))
    return shapely.union_all(parts)


def _polygons(geometry: shapely.Geometry) -> shapely.Geometry:
    """Return what has an area of a geometry: a polygon that crosses itself may leave lines over."""
    parts = shapely.get_parts(shapely.get_parts(geometry))
    return shapely.union_all(parts[np.isin(shapely.get_type_id(parts), POLYGONS)])


def _unique_names(annotations: list[Annotation]) -> tuple[str, ...]:
    wanted = [one.name or one.label or "region" for one in annotations]
    times = Counter(wanted)
    taken = {name for name in wanted if times[name] == 1}
    numbers = {name: itertools.count(1) for name in times}
    names = []
    for name in wanted:
        unique = name
        while times[name] > 1 and (unique == name or unique in taken):
            unique = f"{name} {next(numbers[name])}"
        taken.add(unique)
        names.append(unique)
    return tuple(names)


def _half_open(shape: shapely.Geometry, points: Points) -> npt.NDArray[np.bool_]:
    """Return which of (N, 2) points are inside by the even-odd rule with edges that belong to their right and below."""
    inside = np.zeros(len(points), bool)
    if not len(points):
        return inside
    for part in shapely.get_parts(shape):
        for ring in shapely.get_rings(part):
            for start, stop in itertools.pairwise(shapely.get_coordinates(ring)):
                (x0, y0), (x1, y1) = (start, stop) if start[1] <= stop[1] else (stop, start)
                if y0 < y1:
                    met = (y0 <= points[:, 1]) & (points[:, 1] < y1)
                    inside ^= met & (points[:, 0] >= x0 + (points[:, 1] - y0) / (y1 - y0) * (x1 - x0))
    return inside
