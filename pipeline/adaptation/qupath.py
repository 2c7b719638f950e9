"""Corrections that were made in QuPath: a GeoJSON of nuclei whose classes were changed there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from classifier.labels.libraries import LabelSpace, Library
from nucpipe.errors import DataError
from nucpipe.geojson import GEOJSON_ERRORS, class_name, probability_name, read_features
from pipeline.adaptation.corrections import Correction, now
from pipeline.store.reader import Store
from pipeline.store.schema import NOT_A_NUCLEUS

IGNORED = "*"
"""Ends the names of QuPath's classes of what is to be ignored, such as ``Ignore*``."""
PROBABILITY_TOLERANCE = 1e-4
"""Exports write four decimals."""


def corrections_from_geojson(path: Path, store: Store, library: str) -> list[Correction]:
    """Return a correction for each nucleus whose class is another than the label that its export gave it.

    The metadata of an object hold that label, base or adapted, whatever became of the result since. QuPath before 0.6
    leaves metadata out; there the label's probability, a measurement, says which of the result's labels it was.

    Args:
        path: exported by QuPath, plain or gzipped; its nuclei have the ids that nucpipe gave them.
        store: the result that they are of.
        library: whose labels the classes are. A class that ends in ``*``, as ``Ignore*``, says "not a nucleus".

    Raises:
        DataError: no GeoJSON, no nucleus of this result in it, a class that is no label of the library, or labels
            that the result has no longer.
        UsageError: no such library.
    """
    known = store.info.outputs.library(library)
    try:
        features = list(read_features(path))
        objects = {
            str(feature["id"]): one
            for feature in features
            if "id" in feature and (one := _exported(feature, known, store.info.outputs)) is not None
        }
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except GEOJSON_ERRORS as error:
        raise DataError(f"{path}: expected GeoJSON as QuPath exports it; it cannot be read ({error}).") from error
    if not objects:
        raise DataError(
            f"{path}: no object of {len(features)} has both an id and a class, and a nucleus is known by its id; "
            "export the detections that came from this result, with QuPath 0.4 or later."
        )
    ids = store.ids
    rows = np.flatnonzero(np.isin(ids.astype(str), np.array(list(objects), str)))
    if not len(rows):
        raise DataError(
            f"{path}: no object of {len(objects)} with a class has the id of a nucleus of "
            f"{store.info.slide_name}; export the detections that came from this result."
        )
    sets = [store.base(), *([store.with_labels(adapted=True)] if store.adapted_libraries else [])]
    shown = [(one.label_numbers(known.name), one.label_probabilities(known.name)) for one in sets]
    centroids, when = store.centroids_l0, now()
    found, unknown = [], 0
    for row in rows.tolist():
        one = objects[str(ids[row])]
        x, y = centroids[row].tolist()
        if one.name.endswith(IGNORED):
            found.append(Correction(x, y, "", NOT_A_NUCLEUS, str(ids[row]), when))
            continue
        try:
            label = known.spelled(one.name)
        except DataError as error:
            raise DataError(f"{path}: {error} Give the library that its classes are of (--library).") from error
        has = [(known.labels[number] if number >= 0 else "", p) for number, p in ((n[row], q[row]) for n, q in shown)]
        given = one.labels(has)
        if label not in (given or {name for name, _ in has}):
            unknown += given is None
            found.append(Correction(x, y, known.name, label, str(ids[row]), when))
    if unknown:
        raise DataError(
            f"{path}: {unknown} of its classes cannot be told from labels that {store.info.slide_name} had when they "
            "were exported and has no longer (another run, or nucpipe adapt); export and correct them anew, or use "
            "QuPath 0.6 or later, which keeps the labels."
        )
    return found


@dataclass(frozen=True)
class _Exported:
    """An object of the file.

    Attributes:
        name: its class now.
        metadata: the labels of the library that it was exported with, "" for none; None where QuPath left the
            metadata out.
        probability: of the label that it was exported with; None where it is not told.
    """

    name: str
    metadata: set[str] | None
    probability: float | None

    def labels(self, has: list[tuple[str, float]]) -> set[str] | None:
        """Return the labels that the export may have given; None where it is none that the nucleus ``has``.

        Args:
            has: label, "" for none, and probability in each set of labels of the result.
        """
        p = self.probability
        likely = {label for label, its in has if p is None or abs(its - p) <= PROBABILITY_TOLERANCE}
        if self.metadata is None:
            return likely or None
        # Of several labels that reach a threshold one was the class.
        return self.metadata & likely or self.metadata


def _exported(feature: dict[str, object], library: Library, outputs: LabelSpace) -> _Exported | None:
    """Return what a feature says; None of one without a class."""
    properties = feature.get("properties")
    if not isinstance(properties, dict) or not (name := class_name(properties)):
        return None
    metadata, measured = properties.get("metadata"), properties.get("measurements")
    labels = None
    if isinstance(metadata, dict) and any(one.name in metadata for one in outputs.libraries):
        labels = set(str(metadata.get(library.name, "")).split("; "))
    p = measured.get(probability_name(library.name)) if isinstance(measured, dict) else None
    return _Exported(name, labels, float(p) if isinstance(p, float | int) else None)
