"""NuCLS's layout: ``rgb/*.png`` with ``csv/<same stem>.csv`` of rectangles and polylines (Amgad et al. 2022)."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nucpipe.datasets.base import AnnotatedImage, Annotation, mpp_of
from nucpipe.errors import DataError

MPP = 0.2
LEVELS = ("raw_classification", "main_classification", "super_classification")
"""From the finest classes to the coarsest."""

UNKNOWN = {"", "unlabeled", "ambiguous", "nan"}
CORRECTED = "correction_"
"""Stands before a class that a pathologist corrected."""


@dataclass(frozen=True)
class NuclsImage(AnnotatedImage):
    """One field of view; the patient is the group."""

    outlined = False

    def annotation(self) -> Annotation:
        """Return the nuclei by their finest known class, which may be a main or a super class; those of no class are
        left out.

        A rectangle has no outline, so there is no instance map; the centre of a polyline's box is its centroid too.

        Raises:
            DataError: the table is broken, or the image cannot be read.
        """
        height, width = self.pixels().shape[:2]
        points, labels = [], []
        for line, row in enumerate(_rows(self.label_path), start=2):
            label = _finest(row)
            if label is None:
                continue
            try:
                x0, y0, x1, y1 = (float(row[name]) for name in ("xmin", "ymin", "xmax", "ymax"))
            except (TypeError, ValueError) as error:
                raise DataError(f"{self.label_path}, line {line}: its box is not four numbers ({error}).") from error
            # Boxes at the edge of a field can reach beyond it.
            points.append((min(max((x0 + x1) / 2, 0), width), min(max((y0 + y1) / 2, 0), height)))
            labels.append(label)
        return Annotation(np.array(points, float).reshape(-1, 2), tuple(labels), None)


def _finest(row: dict[str, str]) -> str | None:
    for level in LEVELS:
        label = (row.get(level) or "").strip().removeprefix(CORRECTED)
        if label.lower() not in UNKNOWN:
            return label
    return None


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            names = set(reader.fieldnames or ())
            missing = {"xmin", "ymin", "xmax", "ymax"} - names
            if missing or not names & set(LEVELS):
                wanted = ", ".join(sorted(missing)) or " or ".join(LEVELS)
                raise DataError(f"{path}: its first line lacks {wanted}; fetch the data set again.")
            return list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: expected a table of nuclei; it cannot be read ({error}).") from error


def read(path: Path) -> list[AnnotatedImage]:
    """Return the fields of view of a folder with ``rgb`` and ``csv``; empty for another layout.

    Raises:
        DataError: a field has no table, or a table no field; ``library.toml`` states a pixel size that cannot be true.
    """
    if not (path / "rgb").is_dir() or not (path / "csv").is_dir():
        return []
    pictures = {p.stem: p for p in sorted((path / "rgb").glob("*.png"))}
    tables = {p.stem: p for p in (path / "csv").glob("*.csv")}
    for stem in sorted(pictures.keys() ^ tables.keys()):
        there, missing = (pictures[stem], "table in csv/") if stem in pictures else (tables[stem], "image in rgb/")
        raise DataError(f"{there}: its {missing} is missing; fetch the data set again.")
    mpp = mpp_of(path, MPP)
    return [NuclsImage(stem, _patient(stem), mpp, picture, tables[stem]) for stem, picture in pictures.items()]


def _patient(stem: str) -> str:
    """TCGA-A1-A0SP of TCGA-A1-A0SP-DX1_id-5ea4095addda5f8398977ebc_left-7053_top-53967_bottom-54231_right-7311."""
    return "-".join(stem.split("_")[0].split("-")[:3])
