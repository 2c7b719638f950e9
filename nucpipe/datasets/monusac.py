"""MoNuSAC's layout: ``<patient>/<patient>_<n>.{tif,svs}`` with Aperio's ``.xml`` beside (Verma et al. 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import numpy.typing as npt

from nucpipe.datasets.base import AnnotatedImage, Annotation, labels_of, mpp_of, read_rgb
from nucpipe.errors import DataError
from nucpipe.optional.xml import parse_xml

LABELS = ("epithelial", "lymphocyte", "neutrophil", "macrophage")
SKIPPED = "ambiguous"
"""Regions of the test set whose class the owners leave open."""

MPP = 0.25
"""Default where the ``.xml`` states none."""

SUFFIXES = {".tif", ".tiff", ".svs"}

_Polygon = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MonusacImage(AnnotatedImage):
    """One tile with its outlines; the patient is the group."""

    names: tuple[str, ...] = LABELS

    def pixels(self) -> npt.NDArray[np.uint8]:
        """Return RGB (H, W, 3) uint8; of a slide file its level 0, whole.

        Raises:
            DataError: the tile cannot be read.
        """
        return _read_slide(self.image_path) if self.image_path.suffix.lower() == ".svs" else read_rgb(self.image_path)

    def annotation(self) -> Annotation:
        """Return the nuclei; where outlines overlap, the later one owns the pixels of the instance map.

        Raises:
            DataError: the ``.xml`` is broken or names an unknown class, or the tile cannot be read.
        """
        labels, polygons = _nuclei(_parse(self.label_path), self.label_path, self.names)
        height, width = self.pixels().shape[:2]
        instances = np.zeros((height, width), np.int32)
        for number, polygon in enumerate(polygons, start=1):
            # Vertices are whole pixels; cv2 fills their squares, the outline's own included.
            cv2.fillPoly(instances, [np.round(polygon).astype(np.int32)], number)
        centroids = np.array([_centroid(polygon) for polygon in polygons]).reshape(-1, 2)
        return Annotation(centroids, tuple(labels), instances)


def _read_slide(path: Path) -> npt.NDArray[np.uint8]:
    import openslide

    try:
        with openslide.OpenSlide(str(path)) as slide:
            return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    except (openslide.OpenSlideError, OSError) as error:
        raise DataError(f"{path}: expected a tile that OpenSlide reads ({error}). Fetch the data set again.") from error


def _parse(path: Path) -> ElementTree.Element:
    """Return the root of an XML file. A document type is refused: through it entities could swell a small file."""

    try:
        return parse_xml(path.read_bytes())
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: expected Aperio's annotations ({error}); fetch the file again.") from error


def _nuclei(root: ElementTree.Element, path: Path, names: tuple[str, ...]) -> tuple[list[str], list[_Polygon]]:
    labels: list[str] = []
    polygons: list[_Polygon] = []
    for annotation in root.iter("Annotation"):
        attribute = annotation.find("Attributes/Attribute")
        name = (attribute.get("Name") if attribute is not None else None) or annotation.get("Name") or ""
        label = name.strip().lower()
        if label == SKIPPED:
            continue
        regions = annotation.findall("Regions/Region")
        if label not in names and regions:
            raise DataError(f"{path}: unknown class '{name}'; expected one of {', '.join(names)} or {SKIPPED}.")
        for region in regions:
            try:
                vertices = [(float(v.attrib["X"]), float(v.attrib["Y"])) for v in region.findall("Vertices/Vertex")]
            except (KeyError, ValueError) as error:
                raise DataError(f"{path}: a vertex has no X and Y ({error}); fetch the file again.") from error
            if vertices:
                labels.append(label)
                polygons.append(np.array(vertices))
    return labels, polygons


def _centroid(polygon: _Polygon) -> tuple[float, float]:
    """Return the centre of mass of what a polygon of pixel centres encloses, in corner-based pixels."""
    x, y = polygon.T
    next_x, next_y = np.roll(x, -1), np.roll(y, -1)
    cross = x * next_y - next_x * y
    area = cross.sum() / 2
    if math.isclose(area, 0.0, abs_tol=1e-9):  # a point or a line
        return float(x.mean() + 0.5), float(y.mean() + 0.5)
    return (
        float(((x + next_x) * cross).sum() / (6 * area) + 0.5),
        float(((y + next_y) * cross).sum() / (6 * area) + 0.5),
    )


def _mpp(root: ElementTree.Element, path: Path, published: float) -> float:
    stated = root.get("MicronsPerPixel")
    if stated is None:
        return published
    try:
        mpp = float(stated)
    except ValueError:
        mpp = math.nan
    if not 0.05 <= mpp <= 2:
        raise DataError(f"{path}: MicronsPerPixel is '{stated}', expected about 0.25; fetch the file again.")
    return mpp


def read(path: Path) -> list[AnnotatedImage]:
    """Return the tiles of every patient's folder in ``path``, or of one patient's folder; empty for another layout.

    Raises:
        DataError: an outline file lacks its tile, a tile its outlines, or the outlines cannot be read.
    """
    images: list[AnnotatedImage] = []
    names, published = tuple(name.lower() for name in labels_of(path, LABELS)), mpp_of(path, MPP)
    for folder in (path, *sorted(p for p in path.iterdir() if p.is_dir())):
        outlines = {p.stem: p for p in folder.glob("*.xml")}
        if not outlines:
            continue
        tiles = {p.stem: p for p in sorted(folder.iterdir()) if p.suffix.lower() in SUFFIXES}
        for stem in sorted(outlines.keys() ^ tiles.keys()):
            there, missing = (outlines[stem], "tile") if stem in outlines else (tiles[stem], ".xml of outlines")
            raise DataError(f"{there}: its {missing} is missing in {folder}; fetch the data set again.")
        for stem, tile in tiles.items():
            mpp = _mpp(_parse(outlines[stem]), outlines[stem], published)
            images.append(MonusacImage(stem, folder.name, mpp, tile, outlines[stem], names))
    return images
