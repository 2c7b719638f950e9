"""Nuclei as GeoJSON by the rules of QuPath's reader."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from classifier.decide import Rule, best_labels, decide
from classifier.libraries import Library
from pipeline.files import written_whole
from pipeline.store import Store

GRID_PX = 0.01  # QuPath snaps coordinates to it, so outlines must be valid on it
DECIMALS = 2


def write_geojson(store: Store, path: Path, primary: str, rule: Rule | None = None) -> int:
    """Write a FeatureCollection with one ``detection`` a nucleus, as QuPath 0.4.4 and later open it.

    Outlines are valid, closed polygons in pixels of the image as QuPath shows it (level 0 minus ``origin_l0``), with
    two decimals. The label of the primary library is the classification, the labels of all libraries are metadata.
    The text is pure ASCII. Memory does not grow with the number of nuclei.

    Args:
        store: the nuclei.
        path: compressed where it ends in ``.gz``.
        primary: name of a library, in any case of letters.
        rule: how labels are decided on, from the stored probabilities; None: as in the run.

    Returns:
        The number of features.

    Raises:
        UsageError: the store has no library ``primary``.
        OutputError: the file cannot be written.
    """
    library = store.info.outputs.library(primary)
    with written_whole(path) as partial, _opened(partial, path.suffix.lower() == ".gz") as file:
        file.write(b'{"type":"FeatureCollection","features":[')
        separator = "\n"
        for part in store.batches():
            file.write((separator + ",\n".join(_features(part, library, rule or store.info.rule))).encode("ascii"))
            separator = ",\n"
        file.write(b"\n]}\n")
    return len(store)


@contextmanager
def _opened(path: Path, compressed: bool) -> Iterator[BinaryIO | gzip.GzipFile]:
    with path.open("wb") as file:
        if compressed:
            # No name and no time in its header: the same nuclei give the same bytes.
            with gzip.GzipFile("", "wb", compresslevel=5, fileobj=file, mtime=0) as packed:
                yield packed
        else:
            yield file


def _features(part: Store, primary: Library, rule: Rule) -> Iterator[str]:
    probabilities, outputs = part.probabilities, part.info.outputs
    numbers = best_labels(probabilities, outputs, rule)
    chosen = decide(probabilities, outputs, rule)
    classification = [
        f'"classification":{json.dumps({"name": label, "color": list(colour)})},'
        for label, colour in zip(primary.labels, primary.colours, strict=True)
    ] + [""]  # the last one is number -1, no label
    members = zip(
        part.ids,
        _geometries(part),
        numbers[primary.name],
        _measurements(part, probabilities, numbers),
        _metadata(part, chosen),
        strict=True,
    )
    for identity, geometry, number, measurements, metadata in members:
        yield (
            f'{{"type":"Feature","id":"{identity}","geometry":{geometry},'
            f'"properties":{{"objectType":"detection",{classification[number]}'
            f'"measurements":{{{measurements}}},"metadata":{{{metadata}}}}}}}'
        )


def _measurements(
    part: Store, probabilities: npt.NDArray[np.float32], numbers: dict[str, npt.NDArray[np.int8]]
) -> Iterator[str]:
    """The members of each nucleus's ``measurements``; what is not finite is left out."""
    columns = {"Detection probability": part.detection_p, "Area µm^2": part.area_um2}
    for name, columns_of in part.info.outputs.slices.items():
        number = numbers[name]
        best = probabilities[np.arange(len(number)), columns_of.start + np.maximum(number, 0)]
        columns[f"{name} probability"] = np.where(number < 0, np.float32(np.nan), best)
    members = []
    for name, values in columns.items():
        key = json.dumps(name)
        rounded = np.round(values.astype(np.float64), 4)
        finite = np.isfinite(values).tolist()
        members.append([f"{key}:{v}" if ok else "" for v, ok in zip(rounded.tolist(), finite, strict=True)])
    return (",".join(filter(None, row)) for row in zip(*members, strict=True))


def _metadata(part: Store, chosen: npt.NDArray[np.bool_]) -> Iterator[str]:
    """The members of each nucleus's ``metadata``: its labels by library, several of one library as one text, and the
    detector's own type; what it has not is left out."""
    outputs = part.info.outputs
    members = []
    if types := part.info.segmentor_types:
        texts = [f'"Segmentor type":{json.dumps(name)}' for name in types] + [""]  # the last one is number -1
        members.append([texts[number] for number in part.type_numbers.tolist()])
    for library in outputs.libraries:
        rows, which = np.unique(chosen[:, outputs.slices[library.name]], axis=0, return_inverse=True)
        sets = ["; ".join(label for label, yes in zip(library.labels, row, strict=True) if yes) for row in rows]
        texts = [f"{json.dumps(library.name)}:{json.dumps(labels)}" if labels else "" for labels in sets]
        members.append([texts[k] for k in which.reshape(-1).tolist()])
    return (",".join(filter(None, row)) for row in zip(*members, strict=True))


def _geometries(part: Store) -> list[str]:
    """The outline of each nucleus as a GeoJSON Polygon, whole numbers without their ``.0``."""
    import shapely

    offsets, points = part.contours()
    origin = np.array(part.info.origin_l0, float)
    # Adding 0 makes -0.0 (a value just below 0, rounded) 0.0.
    polygons = _polygons(offsets, np.round(points - origin, DECIMALS) + 0.0, part.centroids_l0 - origin)
    return [text.replace(".0,", ",").replace(".0]", "]") for text in shapely.to_geojson(polygons)]


def _polygons(
    offsets: npt.NDArray[np.int64], points: npt.NDArray[np.float64], centroids: npt.NDArray[np.float64]
) -> npt.NDArray[Any]:
    """(N,) valid shapely polygons from rings that may be invalid; ``points`` lie on the grid."""
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
