"""BreCaHAD's layout: ``images/Case_<n>-<mm>.*`` with points in ``groundTruth/<same stem>.json`` (Aksac et al. 2019)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nucpipe.datasets.base import AnnotatedImage, Annotation, mpp_of
from nucpipe.errors import DataError

MPP = 0.25
"""40x; the data state no pixel size."""

SUFFIXES = {".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp"}


@dataclass(frozen=True)
class BrecahadImage(AnnotatedImage):
    """One image with its points; the case (a patient) is the group."""

    outlined = False

    def annotation(self) -> Annotation:
        """Return the points; there are no outlines.

        Raises:
            DataError: the ``.json`` is broken or has a point outside the image, or the image
                cannot be read.
        """
        labels: list[str] = []
        points: list[tuple[float, float]] = []
        for name, entries in _parse(self.label_path).items():
            try:
                points += [(float(entry["x"]), float(entry["y"])) for entry in entries]
            except (TypeError, KeyError, ValueError) as error:
                raise DataError(f"{self.label_path}: a point of '{name}' has no x and y ({error}).") from error
            labels += [name] * len(entries)
        fractions = np.array(points, float).reshape(-1, 2)
        if not ((fractions >= 0) & (fractions <= 1)).all():
            raise DataError(f"{self.label_path}: expected x and y from 0 to 1 (parts of width and height).")
        height, width = self.pixels().shape[:2]
        return Annotation(fractions * (width, height), tuple(labels), None)


def _parse(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected BreCaHAD's points; it cannot be read ({error}). Fetch it again.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected an object of labels with points, found a {type(content).__name__}.")
    return content


def read(path: Path) -> list[AnnotatedImage]:
    """Return the images of a folder with ``images`` and ``groundTruth``; empty for another layout.

    Raises:
        DataError: an image has no points, or points have no image; or ``library.toml`` states a pixel size that cannot
            be true.
    """
    if not (path / "images").is_dir() or not (path / "groundTruth").is_dir():
        return []
    pictures = {p.stem: p for p in sorted((path / "images").iterdir()) if p.suffix.lower() in SUFFIXES}
    points = {p.stem: p for p in (path / "groundTruth").glob("*.json")}
    for stem in sorted(pictures.keys() ^ points.keys()):
        there, missing = (pictures[stem], "groundTruth") if stem in pictures else (points[stem], "image")
        raise DataError(f"{there}: its {missing} is missing; fetch the data set again.")
    mpp = mpp_of(path, MPP)
    return [BrecahadImage(s, s.rsplit("-", 1)[0], mpp, p, points[s]) for s, p in pictures.items()]
