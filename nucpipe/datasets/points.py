"""The points layout, for a library that a user brings: ``images/*`` with ``labels/<same stem>.csv`` of x, y, label.

``library.toml`` in the folder names the library, its labels and the pixel size. A column ``group`` (patient, slide)
keeps images of one group on one side of a split; without it the image is the group.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nucpipe.datasets.base import AnnotatedImage, Annotation, library_fields, read_rgb
from nucpipe.errors import DataError

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff"}


@dataclass(frozen=True)
class PointsImage(AnnotatedImage):
    """One image with its points."""

    image_path: Path
    csv_path: Path

    def pixels(self) -> npt.NDArray[np.uint8]:  # noqa: D102
        return read_rgb(self.image_path)

    def annotation(self) -> Annotation:
        """Return the points; there are no outlines.

        Raises:
            DataError: the table is broken or has a point outside the image, or the image cannot be read.
        """
        points, labels = [], []
        for line, row in enumerate(_rows(self.csv_path), start=2):
            try:
                points.append((float(row["x"]), float(row["y"])))
            except (TypeError, ValueError) as error:
                raise DataError(f"{self.csv_path}, line {line}: x and y are not numbers ({error}).") from error
            labels.append((row["label"] or "").strip())
            if not labels[-1]:
                raise DataError(f"{self.csv_path}, line {line}: it has no label.")
        centroids = np.array(points, float).reshape(-1, 2)
        height, width = self.pixels().shape[:2]
        if not ((centroids >= 0) & (centroids <= (width, height))).all():
            raise DataError(f"{self.csv_path}: a point lies outside its image of {width} x {height} pixels.")
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
    if not (path / "images").is_dir() or not (path / "labels").is_dir():
        return []
    fields = library_fields(path)
    if fields is None:
        raise DataError(f"{path / 'library.toml'}: missing; it names the library of these points, its labels and mpp.")
    mpp = fields.get("mpp")
    if not isinstance(mpp, int | float) or not 0.05 <= mpp <= 5:
        raise DataError(f"{path / 'library.toml'}: expected mpp, the pixel size in micrometres, found {mpp}.")
    pictures = {p.stem: p for p in sorted((path / "images").iterdir()) if p.suffix.lower() in SUFFIXES}
    tables = {p.stem: p for p in (path / "labels").glob("*.csv")}
    for stem in sorted(pictures.keys() ^ tables.keys()):
        there, missing = (pictures[stem], "table") if stem in pictures else (tables[stem], "image")
        raise DataError(f"{there}: its {missing} is missing; images/ and labels/ need files of the same names.")
    images: list[AnnotatedImage] = []
    for stem, picture in pictures.items():
        groups = {row["group"] for row in _rows(tables[stem]) if row.get("group")}
        if len(groups) > 1:
            raise DataError(f"{tables[stem]}: an image has one group, found {', '.join(sorted(groups))}.")
        images.append(PointsImage(stem, groups.pop() if groups else stem, float(mpp), picture, tables[stem]))
    return images
