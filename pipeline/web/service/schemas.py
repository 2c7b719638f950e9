"""The service's answers, as JSON and as GeoJSON."""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from classifier.decision_rule import DecisionRule, best_labels, label_probabilities
from classifier.labels.libraries import LabelSpace
from pipeline.export.geojson.write import write_geojson
from pipeline.export.polygons import coordinates_of
from pipeline.store.reader import Store


class GivenLabel(BaseModel):
    """A label and its probability."""

    label: str
    p: float


class Nucleus(BaseModel):
    """A nucleus; lengths are pixels of the image that was sent, x right, y down, on pixel corners."""

    id: str
    centroid: tuple[float, float]
    outline: list[tuple[float, float]]
    area_um2: float
    detection_p: float
    labels: dict[str, GivenLabel | None]
    probabilities: dict[str, dict[str, float]] | None = None


class NucleiAnswer(BaseModel):
    """The nuclei of an image."""

    width: int
    height: int
    mpp: float
    count: int
    nuclei: list[Nucleus]


class NamedImage(BaseModel):
    """The labels of an image of a single nucleus."""

    image: str
    labels: dict[str, GivenLabel | None]
    probabilities: dict[str, dict[str, float]]


class LabelsAnswer(BaseModel):
    """The labels of images of single nuclei, in the order in which they were sent."""

    images: list[NamedImage]


class LabelInfo(BaseModel):
    """A label of a library."""

    label: str
    colour: tuple[int, int, int]
    trained: bool


class LibraryInfo(BaseModel):
    """A label system."""

    library: str
    citation: str
    licence: str
    labels: list[LabelInfo]


class ModelInfo(BaseModel):
    """A model that is loaded."""

    kind: str
    name: str
    fingerprint: str


class Health(BaseModel):
    """Health of the service."""

    status: str


def as_json(store: Store, rule: DecisionRule, with_probabilities: bool) -> dict[str, Any]:
    """Return the nuclei in the form of :class:`NucleiAnswer`."""
    info = store.info
    offsets, hundredths = coordinates_of(store)  # closed rings, as in GeoJSON
    labels = given_labels(store.probabilities, info.outputs, rule)
    probabilities = every_probability(store.probabilities, info.outputs) if with_probabilities else None
    rings = (hundredths / 100).tolist()
    members = zip(
        store.ids.tolist(),
        np.round(store.centroids_l0, 2).tolist(),
        itertools.pairwise(offsets.tolist()),
        np.round(store.area_um2.astype(float), 2).tolist(),
        np.round(store.detection_p.astype(float), 4).tolist(),
        labels,
        strict=True,
    )
    nuclei: list[dict[str, Any]] = [
        {
            "id": identity,
            "centroid": centroid,
            "outline": rings[start : stop - 1],
            "area_um2": area,
            "detection_p": p,
            "labels": named,
        }
        for identity, centroid, (start, stop), area, p, named in members
    ]
    for k, nucleus in enumerate(nuclei):
        if probabilities is not None:
            nucleus["probabilities"] = probabilities[k]
    width, height = info.size_l0
    return {"width": width, "height": height, "mpp": info.mpp, "count": len(nuclei), "nuclei": nuclei}


def as_geojson(store: Store, primary: str, rule: DecisionRule) -> bytes:
    """Return the nuclei as QuPath takes them, like ``nuclei.geojson`` of a run."""
    with tempfile.TemporaryDirectory(prefix="nucpipe-") as folder:
        path = Path(folder) / "nuclei.geojson"
        write_geojson(store, path, primary, rule)
        return path.read_bytes()


def given_labels(
    probabilities: npt.NDArray[np.float32], outputs: LabelSpace, rule: DecisionRule
) -> list[dict[str, dict[str, Any] | None]]:
    """Return for each row, by library, the label that the rule gives, or None."""
    numbers = best_labels(probabilities, outputs, rule)
    p = label_probabilities(probabilities, outputs, numbers)
    rows: list[dict[str, dict[str, Any] | None]] = [{} for _ in range(len(probabilities))]
    for library in outputs.libraries:
        values = p[library.name].astype(float).round(4).tolist()
        for row, number, value in zip(rows, numbers[library.name].tolist(), values, strict=True):
            row[library.name] = None if number < 0 else {"label": library.labels[number], "p": value}
    return rows


def every_probability(probabilities: npt.NDArray[np.float32], outputs: LabelSpace) -> list[dict[str, dict[str, float]]]:
    """Return for each row, by library and label, its probability; labels that nothing has taught are left out."""
    rounded = probabilities.astype(float).round(5).tolist()
    columns = [
        (library, label, k)
        for k, ((library, label), trained) in enumerate(zip(outputs.columns, outputs.trained, strict=True))
        if trained
    ]
    rows: list[dict[str, dict[str, float]]] = [
        {library.name: {} for library in outputs.libraries} for _ in range(len(rounded))
    ]
    for row, values in zip(rows, rounded, strict=True):
        for library, label, k in columns:
            row[library][label] = values[k]
    return rows


def describe_libraries(outputs: LabelSpace) -> list[dict[str, Any]]:
    """Describe the libraries in the form of :class:`LibraryInfo`."""
    return [
        {
            "library": library.name,
            "citation": library.citation,
            "licence": library.licence,
            "labels": [
                {"label": label, "colour": colour, "trained": trained}
                for label, colour, trained in zip(
                    library.labels, library.colours, outputs.trained_in(library.name), strict=True
                )
            ],
        }
        for library in outputs.libraries
    ]


def dumped(answer: Any) -> bytes:
    """As JSON text, without blanks."""
    return json.dumps(answer, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
