"""Nuclei as GeoJSON by the rules of QuPath's reader."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from classifier.decide import Rule, best_labels, decide
from classifier.libraries import Library
from pipeline.crew import Crew, Stage
from pipeline.export.outlines import geometries_of
from pipeline.files import written_whole
from pipeline.store import Store
from pipeline.watch import Watch

BATCH = 8192
"""Nuclei whose text is put together at a time."""
THREADS = 2
COMPRESSION = 2
"""Of zlib: higher levels take several times as long for a tenth less."""

MEASUREMENTS = {
    "perimeter_um": "Length µm",
    "circularity": "Circularity",
    "solidity": "Solidity",
    "max_diameter_um": "Max diameter µm",
    "min_diameter_um": "Min diameter µm",
    "haematoxylin_od": "Hematoxylin OD mean",
}
"""Names by which QuPath's users know what is measured of a nucleus."""


def write_geojson(store: Store, path: Path, primary: str, rule: Rule | None = None, centroids: bool = False) -> int:
    """Write a FeatureCollection with one ``detection`` a nucleus, as QuPath 0.4.4 and later open it.

    Outlines are valid, closed polygons in pixels of the image as QuPath shows it (level 0 minus ``origin_l0``), with
    two decimals. The label of the primary library is the classification, the labels of all libraries are metadata.
    The text is pure ASCII. Memory does not grow with the number of nuclei.

    Args:
        store: the nuclei.
        path: compressed where it ends in ``.gz``.
        primary: name of a library, in any case of letters.
        rule: how labels are decided on, from the stored probabilities; None: as in the run.
        centroids: points instead of outlines.

    Returns:
        The number of features.

    Raises:
        UsageError: the store has no library ``primary``.
        OutputError: the file cannot be written.
    """
    library = store.info.outputs.library(primary)

    def text(part: Store) -> bytes:
        return ",\n".join(_features(part, library, rule or store.info.rule, centroids)).encode("ascii")

    with written_whole(path) as partial, _opened(partial, path.suffix.lower() == ".gz") as file, Crew(Watch()) as crew:
        file.write(b'{"type":"FeatureCollection","features":[')
        separator = b"\n"
        # GEOS and zlib work while another thread puts the text together.
        stage = Stage("text", crew.pool(THREADS, "geojson"), text)
        for part in crew.through((stage,), store.batches(BATCH), depth=THREADS + 1):
            file.write(separator + part)
            separator = b",\n"
        file.write(b"\n]}\n")
    return len(store)


@contextmanager
def _opened(path: Path, compressed: bool) -> Iterator[BinaryIO | gzip.GzipFile]:
    with path.open("wb") as file:
        if compressed:
            # No name and no time in its header: the same nuclei give the same bytes.
            with gzip.GzipFile("", "wb", compresslevel=COMPRESSION, fileobj=file, mtime=0) as packed:
                yield packed
        else:
            yield file


def _features(part: Store, primary: Library, rule: Rule, centroids: bool) -> Iterator[str]:
    probabilities, outputs = part.probabilities, part.info.outputs
    numbers = best_labels(probabilities, outputs, rule)
    chosen = decide(probabilities, outputs, rule)
    classification = [
        f'"classification":{json.dumps({"name": label, "color": list(colour)})},'
        for label, colour in zip(primary.labels, primary.colours, strict=True)
    ] + [""]  # the last one is number -1, no label
    members = zip(
        part.ids,
        _geometries(part, centroids),
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
    columns |= {name: part.measure(measure) for measure, name in MEASUREMENTS.items()}
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


def _geometries(part: Store, centroids: bool) -> list[str]:
    """The outline or centroid of each nucleus as a GeoJSON geometry, whole numbers without their ``.0``."""
    import shapely

    geometries = geometries_of(part, centroids, part.info.origin_l0)
    if centroids:
        texts: list[str] = shapely.to_geojson(geometries).tolist()
        return [text.replace(".0,", ",").replace(".0]", "]") for text in texts]
    points, of = shapely.get_coordinates(geometries, return_index=True)
    ends = np.cumsum(np.bincount(of, minlength=len(geometries))).tolist()
    # Ten digits hold hundredths of every pixel of a slide; a format is many times as fast as GEOS's own text.
    number = "%d" if (points == np.floor(points)).all() else "%.10g"
    flat: list[float] = points.ravel().tolist()
    pair = f"[{number},{number}],"
    formats: dict[int, str] = {}
    texts, start = [], 0
    for end in ends:
        count = end - start
        if count not in formats:
            formats[count] = '{"type":"Polygon","coordinates":[[' + (pair * count)[:-1] + "]]}"
        texts.append(formats[count] % tuple(flat[2 * start : 2 * end]))
        start = end
    return texts
