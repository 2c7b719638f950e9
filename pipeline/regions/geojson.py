"""Read polygons from GeoJSON, as QuPath and other tools export it.

The coordinates are parsed here: ``shapely.geometry.shape`` takes no ring that mixes positions of two and three numbers,
which tools do write, and does not refuse a ring of two points.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

GEOJSON_ERRORS = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    IndexError,
    ArithmeticError,
    RecursionError,
    EOFError,
)
"""Errors of a file that is no GeoJSON, or a malformed one."""


def read_features(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the features of a file, plain or gzipped; a bare geometry becomes one.

    Raises:
        OSError: the file cannot be read.
        Exception: one of ``GEOJSON_ERRORS``.
    """
    content = path.read_bytes()
    yield from _features(json.loads(gzip.decompress(content) if path.suffix == ".gz" else content))


def _features(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, list):
        for one in node:
            yield from _features(one)
    elif node["type"] == "FeatureCollection":
        yield from _features(node["features"])
    elif node["type"] == "Feature":
        yield node
    else:
        yield {"geometry": node}


def polygons_of(geometry: Any) -> Iterator[list[npt.NDArray[np.float64]]]:
    """Yield the rings of each polygon of a geometry, the outer one first: (K, 2) x and y, not closed.

    The parts of a MultiPolygon or a collection come one by one; points, lines and empty polygons yield nothing.

    Raises:
        Exception: one of ``GEOJSON_ERRORS``.
    """
    if geometry is None:
        return
    if geometry["type"] == "GeometryCollection":
        for part in geometry["geometries"]:
            yield from polygons_of(part)
    elif geometry["type"] in ("Polygon", "MultiPolygon"):
        coordinates = geometry["coordinates"]
        for rings in [coordinates] if geometry["type"] == "Polygon" else coordinates:
            if rings:  # GeoJSON allows a polygon of nothing
                yield [_ring(ring) for ring in rings]


def _ring(positions: list[list[float]]) -> npt.NDArray[np.float64]:
    ring = np.asarray([position[:2] for position in positions], np.float64).reshape(-1, 2)
    if len(ring) and (ring[0] == ring[-1]).all():
        ring = ring[:-1]
    if len(ring) < 3 or not np.isfinite(ring).all():
        raise ValueError("a ring of fewer than three points, or one that is not a number")
    return ring
