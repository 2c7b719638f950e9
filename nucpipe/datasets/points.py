"""The points layout, for a library that a user brings: ``images/*`` with ``labels/<same stem>.csv`` of x, y, label.

``library.toml`` in the folder names the library, its labels and the pixel size. A column ``group`` (patient, slide)
keeps images of one group on one side of a split; without it those of one subfolder are a group, or else the image.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nucpipe.datasets.base import (
    LABEL_FILES,
    AnnotatedImage,
    Annotation,
    group_of,
    labelled_folders,
    mpp_of,
    paired_files,
)
from nucpipe.errors import DataError


@dataclass(frozen=True)
class PointsImage(AnnotatedImage):
    """One image with its points."""

    outlined = False

    def annotation(self) -> Annotation:
        """Return the points; there are no outlines.

        Raises:
            DataError: the table is broken or has a point outside the image, or the image cannot be read.
        """
        points, labels = [], []
        for line, row in enumerate(_rows(self.label_path), start=2):
            try:
                points.append((float(row["x"]), float(row["y"])))
            except (TypeError, ValueError) as error:
                raise DataError(f"{self.label_path}, line {line}: x and y are not numbers ({error}).") from error
            labels.append((row["label"] or "").strip())
            if not labels[-1]:
                raise DataError(f"{self.label_path}, line {line}: it has no label.")
        centroids = np.array(points, float).reshape(-1, 2)
        height, width = self.pixels().shape[:2]
        if not ((centroids >= 0) & (centroids <= (width, height))).all():
            raise DataError(f"{self.label_path}: a point lies outside its image of {width} x {height} pixels.")
        return Annotation(centroids, tuple(labels), None)


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = {"x", "y", "label"} - set(reader.fieldnames or ())
            if missing:
                raise DataError(f"{path}: its first line lacks {', '.join(sorted(missing))}; expected x,y,label.")
            return list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: expected a table of x,y,label; it cannot be read ({error}).") from error


def read(path: Path) -> list[AnnotatedImage]:
    """Return the images of a folder with ``images`` and ``labels``; empty for another layout.

    Raises:
        DataError: ``library.toml`` is missing or states no pixel size, an image has no table or a table no image.
    """
    if (folders := labelled_folders(path, "points")) is None:
        return []
    mpp = mpp_of(path)
    images: list[AnnotatedImage] = []
    for name, picture, table in paired_files(*folders, LABEL_FILES["points"]):
        groups = {row["group"] for row in _rows(table) if row.get("group")}
        if len(groups) > 1:
            raise DataError(f"{table}: an image has one group, found {', '.join(sorted(groups))}.")
        images.append(PointsImage(name, groups.pop() if groups else group_of(name), mpp, picture, table))
    return images
