"""Corrections that were made in QuPath: a GeoJSON of nuclei whose classes were changed there."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nucpipe.errors import DataError
from pipeline.adaptation.corrections import Correction, now
from pipeline.regions.geojson import GEOJSON_ERRORS, read_features
from pipeline.store.reader import Store
from pipeline.store.schema import NOT_A_NUCLEUS

IGNORED = "*"
"""Ends the names of QuPath's classes of what is to be ignored, such as ``Ignore*``."""


def corrections_from_geojson(path: Path, store: Store, library: str) -> list[Correction]:
    """Return a correction for each nucleus whose class is another than its base label.

    Args:
        path: exported by QuPath, plain or gzipped; its nuclei have the ids that nucpipe gave them.
        store: the result that they are of.
        library: whose labels the classes are. A class that ends in ``*``, as ``Ignore*``, says "not a nucleus".

    Raises:
        DataError: no GeoJSON, no nucleus of this result in it, or a class that is no label of the library.
        UsageError: no such library.
    """
    known = store.info.outputs.library(library)
    try:
        classes = {
            str(feature["id"]): name
            for feature in read_features(path)
            if "id" in feature and (name := _class(feature)) is not None
        }
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except GEOJSON_ERRORS as error:
        raise DataError(f"{path}: expected GeoJSON as QuPath exports it; it cannot be read ({error}).") from error
    ids = store.ids
    rows = np.flatnonzero(np.isin(ids.astype(str), np.array(list(classes), str)))
    if not len(rows):
        raise DataError(
            f"{path}: none of its {len(classes)} objects with a class has the id of a nucleus of "
            f"{store.info.slide_name}; export the detections that came from this result."
        )
    numbers, centroids, when = store.base().label_numbers(known.name), store.centroids_l0, now()
    found = []
    for row in rows.tolist():
        name = classes[str(ids[row])]
        x, y = centroids[row].tolist()
        if name.endswith(IGNORED):
            found.append(Correction(x, y, "", NOT_A_NUCLEUS, str(ids[row]), when))
            continue
        try:
            said, label = known.resolve(name), known.spelled(name)
        except DataError as error:
            raise DataError(f"{path}: {error} Give the library that its classes are of (--library).") from error
        if said != (int(numbers[row]),):
            found.append(Correction(x, y, known.name, label, str(ids[row]), when))
    return found


def _class(feature: dict[str, object]) -> str | None:
    properties = feature.get("properties")
    given = properties.get("classification") if isinstance(properties, dict) else None
    name = given.get("name") if isinstance(given, dict) else given
    return name if isinstance(name, str) and name else None
