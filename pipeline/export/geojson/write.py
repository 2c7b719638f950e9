"""Nuclei as GeoJSON by the rules of QuPath's reader."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from classifier.decision_rule import DecisionRule, best_labels, decide, label_probabilities
from classifier.labels.libraries import Library
from nucpipe.files import written_whole
from nucpipe.geojson import probability_name
from pipeline.export.geojson.jsontext import CategoricalText, features_text
from pipeline.export.geojson.packing import Content, Gzip, Plain
from pipeline.export.polygons import coordinates_of
from pipeline.inference.executor import Stage, StageExecutor
from pipeline.inference.profiling import StageTimer
from pipeline.store.reader import Store

BATCH = 8192
"""Nuclei whose text is put together at a time."""
THREADS = 2

MEASUREMENTS = {
    "solidity": "Solidity",
    "max_diameter_um": "Max diameter µm",
    "min_diameter_um": "Min diameter µm",
    "haematoxylin_od": "Hematoxylin OD mean",
}
"""Names by which QuPath's users know what is measured of a nucleus, besides :func:`_shape`."""


def write_geojson(
    store: Store,
    path: Path,
    primary: str,
    rule: DecisionRule | None = None,
    centroids: bool = False,
    exact_outlines: bool = False,
) -> None:
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
        exact_outlines: outlines along the edges of pixels, as they are stored, see :mod:`pipeline.export.polygons`.

    Raises:
        UsageError: the store has no library ``primary``.
        OutputError: the file cannot be written.
    """
    library = store.info.outputs.library(primary)
    with written_whole(path) as partial, partial.open("wb") as file, StageExecutor(StageTimer()) as executor:
        packing = Gzip(file) if path.suffix.lower() == ".gz" else Plain(file)

        def made(part: Store) -> tuple[Content, Content]:
            text = _features(part, library, rule or store.info.rule, centroids, exact_outlines)
            return text, packing.pack(text)

        def write(text: bytes) -> None:
            packing.write(text, packing.pack(text))

        write(b'{"type":"FeatureCollection","features":[')
        separator = b"\n"
        # The compiled loops and zlib work in several threads at once.
        stage = Stage("text", executor.pool(THREADS, "geojson"), made)
        for text, packed in executor.map_ordered((stage,), store.batches(BATCH), depth=THREADS + 1):
            write(separator)
            packing.write(text, packed)
            separator = b",\n"
        write(b"\n]}\n")
        packing.finish()


def _features(part: Store, primary: Library, rule: DecisionRule, centroids: bool, exact_outlines: bool) -> Content:
    probabilities, outputs = part.probabilities, part.info.outputs
    numbers = best_labels(probabilities, outputs, rule)
    classification = [
        f'"classification":{json.dumps({"name": label, "color": list(colour)})},'
        for label, colour in zip(primary.labels, primary.colours, strict=True)
    ]
    offsets, hundredths = coordinates_of(part, centroids, exact_outlines, part.info.origin_l0)
    measurements = _measurements(part, probabilities, numbers)
    if not centroids:
        measurements |= _shape(offsets, hundredths, part.info.mpp)
    return features_text(
        part.ids,
        offsets,
        hundredths,
        centroids,
        CategoricalText([*classification, ""], numbers[primary.name]),
        measurements,
        _metadata(part, decide(probabilities, outputs, rule)),
    )


def _measurements(
    part: Store, probabilities: npt.NDArray[np.float32], numbers: dict[str, npt.NDArray[np.int8]]
) -> dict[str, npt.NDArray[np.float32]]:
    """Return what is measured of each nucleus, by name; NaN where it is missing."""
    columns = {"Detection probability": part.detection_p, "Area µm^2": part.area_um2}
    columns |= {name: part.measure(measure) for measure, name in MEASUREMENTS.items()}
    if (scores := part.ood_scores) is not None:
        columns["Out-of-distribution score"] = scores
    p = label_probabilities(probabilities, part.info.outputs, numbers)
    return columns | {probability_name(name): values for name, values in p.items()}


def _shape(
    offsets: npt.NDArray[np.int64], hundredths: npt.NDArray[np.int64], mpp: float
) -> dict[str, npt.NDArray[np.float32]]:
    """Perimeter and circularity (4 pi area / perimeter^2) of closed rings, as QuPath measures what it is given.

    Perimeters of stored outlines are estimated otherwise, see :func:`segmentation.morphology.with_morphology`.
    """
    if len(offsets) < 2:
        return {}
    starts = offsets[:-1]
    points = (hundredths - np.repeat(hundredths[starts], np.diff(offsets), axis=0)).astype(np.float64)
    (x, y), (next_x, next_y) = points[:-1].T, points[1:].T
    # The step from one ring to the next has no length; its part of the area is zero, for rings begin at (0, 0).
    sides = np.append(np.hypot(next_x - x, next_y - y), 0.0)
    sides[offsets[1:] - 1] = 0.0
    perimeter = np.add.reduceat(sides, starts)
    area = np.abs(np.add.reduceat(np.append(x * next_y - next_x * y, 0.0), starts)) / 2
    return {
        "Length µm": (perimeter * (mpp / 100)).astype(np.float32),
        "Circularity": (4 * np.pi * area / perimeter**2).astype(np.float32),
    }


def _metadata(part: Store, chosen: npt.NDArray[np.bool_]) -> list[CategoricalText]:
    """Return each nucleus's labels by library, several of one library as one text; its type, its region."""
    outputs = part.info.outputs
    members = []
    if types := part.info.segmentor_types:
        texts = [f'"Segmentor type":{json.dumps(name)}' for name in types]
        members.append(CategoricalText([*texts, ""], part.type_numbers))
    if part.regions is not None:
        texts = [f'"Region":{json.dumps(name)}' for name in part.regions.names]
        members.append(CategoricalText([*texts, ""], part.regions.smallest(part.centroids_l0)))
    for library in outputs.libraries:
        sets, which = _sets(chosen[:, outputs.slices[library.name]])
        labels = ["; ".join(label for label, yes in zip(library.labels, row, strict=True) if yes) for row in sets]
        members.append(
            CategoricalText(
                [f"{json.dumps(library.name)}:{json.dumps(text)}" if text else "" for text in labels], which
            )
        )
    return members


def _sets(chosen: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Return the rows that occur, and the number of each row's among them."""
    packed = np.packbits(chosen, axis=1)
    # As byte strings, which numpy sorts several times as fast as rows.
    _, first, which = np.unique(packed.view(f"S{packed.shape[1]}")[:, 0], return_index=True, return_inverse=True)
    return chosen[first], which
