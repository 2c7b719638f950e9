"""Read polygons from GeoJSON, as QuPath and other tools export it.

The coordinates are parsed here: ``shapely.geometry.shape`` takes no ring that mixes positions of two and three numbers,
which tools do write, and does not refuse a ring of two points.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
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
    zlib.error,
)
"""Errors of a file that is no GeoJSON, or a malformed one."""

OTHER_OBJECTS = frozenset({"detection", "cell", "tile", "tmacore", "tma_core", "root"})
"""QuPath's types of objects besides annotations, in small letters; QuPath takes any other word for an annotation."""
LEGACY_IDS = {
    "PathDetectionObject": "detection",
    "PathCellObject": "cell",
    "PathTileObject": "tile",
    "TMACoreObject": "tmacore",
    "PathRootObject": "root",
}
"""QuPath 0.2 stored an object's type as its id."""
IGNORED_CLASS = "Ignore*"
NUCLEAR_OBJECTS = ("detection", "cell")
"""QuPath's object types that are nuclei; a file may also hold the annotation in which they were found."""


@dataclass(frozen=True)
class Annotation:
    """An annotation of QuPath's, or a polygon of any other tool.

    Attributes:
        name: what its author called it; "" where it has no name.
        label: its class, such as ``Tumor`` or ``Immune cells: CD3``; "" where it has none.
        polygons: the rings of each of its polygons, the outer one first: (K, 2) x and y, not closed.
    """

    name: str
    label: str
    polygons: tuple[list[npt.NDArray[np.float64]], ...]

    @property
    def is_ignored(self) -> bool:
        """Tell whether its class is QuPath's ``Ignore*``, or one derived from it."""
        return self.label.split(":")[0] == IGNORED_CLASS


def read_annotations(path: Path) -> list[Annotation]:
    """Return the annotations of a file that have an area, in the file's order; other objects are left out.

    Raises:
        OSError: the file cannot be read.
        Exception: one of ``GEOJSON_ERRORS``.
    """
    annotations = []
    for feature in read_features(path):
        if object_type(feature) in OTHER_OBJECTS:
            continue
        properties = feature.get("properties") or {}
        polygons = tuple(polygons_of(feature.get("geometry")))
        if polygons:
            annotations.append(Annotation(_writable(properties.get("name")), class_name(properties), polygons))
    return annotations


def read_nuclei(path: Path) -> list[tuple[dict[str, Any], npt.NDArray[np.float64]]]:
    """Return the nuclei of a file: the feature, and the outer ring (K, 2) of each of its polygons.

    Of a file with detections or cells these are the nuclei, of a cell its nucleus; of another all that has an area.

    Raises:
        OSError: the file cannot be read.
        Exception: one of ``GEOJSON_ERRORS``.
    """
    features = list(read_features(path))
    nuclear = [feature for feature in features if object_type(feature) in NUCLEAR_OBJECTS]
    return [
        (feature, outer)
        for feature in nuclear or features
        for outer, *_ in polygons_of(feature.get("nucleusGeometry") or feature.get("geometry"))
    ]


def object_type(feature: dict[str, Any]) -> str:
    """Return QuPath's type of an object in small letters, by the rules of its own reader; "" where there is none."""
    properties = feature.get("properties") or {}
    names = ("objectType", "object_type", "type")
    stated = next((properties[name] for name in names if properties.get(name)), None)
    return str(stated or LEGACY_IDS.get(str(feature.get("id")), "")).lower()


def probability_name(library: str) -> str:
    """Return the name of the measurement that holds the probability of a nucleus' label in a library."""
    return f"{library} probability"


def class_name(properties: dict[str, Any]) -> str:
    """Return the name of an object's class; derived classes as QuPath shows them, ``Tumor: Positive``."""
    classification = properties.get("classification")
    if isinstance(classification, dict):
        classification = classification.get("name") or ": ".join(map(str, classification.get("names", ())))
    return _writable(classification)


def is_no_nucleus(name: str) -> bool:
    """Tell whether the name of a class, or of what it is derived from, ends in ``*``, as QuPath's ``Ignore*`` does."""
    return name.split(":")[0].endswith("*")


def _writable(name: Any) -> str:
    """Return a name as text; half a character, which JSON may hold, could be written to no file."""
    return str(name or "").encode("utf-8", "replace").decode("utf-8")


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
