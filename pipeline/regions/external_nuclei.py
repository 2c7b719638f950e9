"""Nuclei that another tool found, from a file: they take detection's place (``--nuclei``)."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
import shapely

from nucpipe.errors import SlideError, UsageError
from nucpipe.geojson import GEOJSON_ERRORS, class_name, read_nuclei
from nucpipe.label_images import SUFFIXES as LABEL_IMAGES
from nucpipe.label_images import instances_of, read_label_image
from pipeline.slide.base import Slide
from pipeline.slide.identity import slide_name
from segmentation.nuclei import Nuclei

SUFFIXES = (".geojson", ".geojson.gz", ".json", *LABEL_IMAGES)
ASPECT_TOLERANCE = 0.01
MAX_TYPES = 127
"""A type's number is an int8."""


@dataclass(frozen=True)
class ExternalNuclei:
    """The nuclei of a file, in level-0 pixels.

    Attributes:
        nuclei_l0: with the numbers of their types where the file has classes, and their ids where it has UUIDs.
        types: the classes of the file; empty where it has none, or too many.
    """

    nuclei_l0: Nuclei
    types: tuple[str, ...]


def check_nuclei_option(option: str | None) -> None:
    """See that ``--nuclei`` names something before any slide is opened.

    Raises:
        UsageError: there is no such file or folder, or the file is of no kind that is read.
    """
    if option is None:
        return
    path = Path(option)
    if not path.exists():
        raise UsageError(f"--nuclei {option}: no such file; expected a GeoJSON, a label image, or a folder of them.")
    if not path.is_dir() and not path.name.lower().endswith(SUFFIXES):
        raise UsageError(f"--nuclei {option}: expected a file that ends in {', '.join(SUFFIXES)}.")


def nuclei_file(option: str, slide: Path) -> Path:
    """Return the file of a slide's nuclei: ``option`` itself, or in that folder the one with the slide's name.

    Raises:
        SlideError: the folder has none.
    """
    path = Path(option)
    if not path.is_dir():
        return path
    candidates = [path / f"{slide_name(slide)}{suffix}" for suffix in SUFFIXES]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        raise SlideError(f"--nuclei {option}: has no file for {slide.name}; expected {candidates[0].name} or the like.")
    return found


def read_external_nuclei(path: Path, slide: Slide) -> ExternalNuclei:
    """Return the nuclei in a GeoJSON or a label image.

    GeoJSON is in pixels of full resolution as QuPath shows the slide, as nucpipe's own export is (level 0 counted from
    ``slide.origin_l0``); a label image covers the slide, at any resolution.

    Raises:
        SlideError: the file cannot be read, holds no nuclei, or is not of this slide.
    """
    try:
        changed = path.stat().st_mtime_ns
    except OSError as error:
        raise SlideError(f"{path.name}: cannot be read ({error.strerror}).") from error
    return _read(path, changed, slide.path.name, slide.size_l0, slide.origin_l0, slide.mpp)


@functools.lru_cache(maxsize=1)
def _read(
    path: Path, _: int, slide: str, size_l0: tuple[int, int], origin_l0: tuple[int, int], mpp: float
) -> ExternalNuclei:
    if path.name.lower().endswith((".geojson", ".geojson.gz", ".json")):
        nuclei, types = _from_geojson(path, origin_l0, mpp)
    else:
        nuclei, types = _from_labels(path, slide, size_l0, mpp), ()
    if not len(nuclei):
        raise SlideError(f"{path.name}: expected outlines of nuclei; it holds none.")
    outside = np.flatnonzero(((nuclei.centroids < 0) | (nuclei.centroids >= size_l0)).any(1))
    if len(outside):
        x, y = nuclei.centroids[outside[0]] - origin_l0
        raise SlideError(
            f"{path.name}: {len(outside)} of {len(nuclei)} nuclei, as that at ({x:.0f}, {y:.0f}), lie outside "
            f"{slide} of {size_l0[0]} x {size_l0[1]} pixels; they must be in pixels of its full resolution."
        )
    flat = np.flatnonzero(~(nuclei.area_um2 > 0))
    if len(flat):
        x, y = nuclei.centroids[flat[0]] - origin_l0
        raise SlideError(
            f"{path.name}: {len(flat)} of {len(nuclei)} nuclei, as that at ({x:.0f}, {y:.0f}), have no area; expected "
            "outlines that enclose something."
        )
    return ExternalNuclei(nuclei, types)


def _from_geojson(path: Path, origin_l0: tuple[int, int], mpp: float) -> tuple[Nuclei, tuple[str, ...]]:
    try:
        rings, names, scores, ids = [], [], [], list[bytes]()
        known: set[bytes] = {b""}
        for feature, outer in read_nuclei(path):
            properties = feature.get("properties") or {}
            identity = _uuid(feature.get("id"))
            rings.append(_clockwise(outer))
            names.append(class_name(properties))
            scores.append(_probability((properties.get("measurements") or {}).get("Detection probability")))
            # An id stands for one nucleus: of several parts, or of objects that share it, the first one keeps it.
            ids.append(b"" if identity in known else identity)
            known.add(identity)
    except OSError as error:
        raise SlideError(f"{path.name}: cannot be read ({error}).") from error
    except GEOJSON_ERRORS as error:
        raise SlideError(
            f"{path.name}: expected GeoJSON with outlines of nuclei; it cannot be read ({error})."
        ) from error
    if not rings:
        return Nuclei.empty(), ()
    lengths = [len(ring) for ring in rings]
    points = np.concatenate(rings) + np.asarray(origin_l0, float)
    polygons = shapely.polygons(shapely.linearrings(points, indices=np.repeat(np.arange(len(rings)), lengths)))
    with np.errstate(over="ignore", invalid="ignore"):  # of coordinates far from any slide, which are refused
        centroids = shapely.get_coordinates(shapely.centroid(polygons))
        areas_um2 = (shapely.area(polygons) * mpp * mpp).astype(np.float32)
    found = sorted({name for name in names if name})
    types = tuple(found) if len(found) <= MAX_TYPES else ()
    numbers = {name: number for number, name in enumerate(types)}
    nuclei = Nuclei(
        centroids,
        np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
        points,
        np.asarray(scores, np.float32),
        areas_um2,
        np.array([numbers.get(name, -1) for name in names], np.int8) if types else None,
        ids=np.array(ids, "S36") if any(ids) else None,
    )
    return nuclei, types


def _probability(value: Any) -> float:
    """Return a detection probability; 1 where there is none, which QuPath writes as NaN."""
    probability = 1.0 if value is None or value != value else float(value)
    if not 0 <= probability <= 1:
        raise ValueError(f"a detection probability of {probability:g}, not of 0 to 1")
    return probability


def _uuid(identity: Any) -> bytes:
    """Return the id of a GeoJSON feature in a UUID's usual form; b"" for any other id, which QuPath drops, too."""
    try:
        return str(UUID(str(identity))).encode()
    except ValueError:
        return b""


def _clockwise(ring: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return a ring (K, 2) clockwise on screen."""
    following = np.roll(ring, -1, 0)
    twice = float((ring[:, 0] * following[:, 1] - following[:, 0] * ring[:, 1]).sum())
    return ring if twice >= 0 else ring[::-1]


def _from_labels(path: Path, slide: str, size_l0: tuple[int, int], mpp: float) -> Nuclei:
    from segmentation.hovernet.postprocess import outline_instances

    try:
        image = read_label_image(path)
    except ValueError as error:
        raise SlideError(f"{path.name}: {error}.") from error
    (height, width), (width_l0, height_l0) = image.shape, size_l0
    if abs(width * height_l0 / (height * width_l0) - 1) > ASPECT_TOLERANCE:
        raise SlideError(
            f"{path.name}: the label image is {width} x {height} pixels and {slide} {width_l0} x {height_l0}; "
            "their shapes must agree within 1 %."
        )
    try:
        labels = instances_of(image)
    except ValueError as error:
        raise SlideError(f"{path.name}: {error}.") from error
    scale = width_l0 / width
    nuclei = outline_instances(labels, np.ones(labels.shape, np.float32), mpp * scale, 1)
    return nuclei.transformed(scale, (0, 0))
