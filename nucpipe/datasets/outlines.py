"""The outlines layout, for nuclei that a user outlined: ``images/*`` with label images or GeoJSON in ``labels``.

``library.toml`` in the folder states the pixel size. Images of one subfolder (patient, slide) are a group; else each
image stands for itself. GeoJSON, as QuPath exports it, is in pixels of its image; classes are labels there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely

from nucpipe.datasets.base import (
    LABEL_FILES,
    AnnotatedImage,
    Annotation,
    centroids_of,
    group_of,
    labelled_folders,
    mpp_of,
    paired_files,
)
from nucpipe.errors import DataError
from nucpipe.geojson import GEOJSON_ERRORS, class_name, is_no_nucleus, read_nuclei
from nucpipe.label_images import fill_rings, instances_of, read_label_image


@dataclass(frozen=True)
class OutlinesImage(AnnotatedImage):
    """One image with a label image, or with GeoJSON."""

    def annotation(self) -> Annotation:
        """Return the nuclei; labels are "" in label images, and where GeoJSON has no class.

        Objects of a class that ends in ``*`` (QuPath's ``Ignore*``, ``Region*``) are no nuclei. Where outlines overlap,
        the later one owns the pixels.

        Raises:
            DataError: the file is broken, no label image, or has outlines outside the image.
        """
        if self.label_path.suffix.lower() == ".geojson":
            return self._from_geojson()
        try:
            instances = instances_of(read_label_image(self.label_path))
        except ValueError as error:
            raise DataError(f"{self.label_path}: {error}.") from error
        centroids = centroids_of(instances)
        return Annotation(centroids, ("",) * len(centroids), instances)

    def _from_geojson(self) -> Annotation:
        height, width = self.pixels().shape[:2]
        try:
            nuclei = [(class_name(f.get("properties") or {}), ring) for f, ring in read_nuclei(self.label_path)]
        except (OSError, *GEOJSON_ERRORS) as error:
            raise DataError(
                f"{self.label_path}: expected GeoJSON with outlines; it cannot be read ({error})."
            ) from error
        nuclei = [(label, ring) for label, ring in nuclei if not is_no_nucleus(label)]
        for _, ring in nuclei:
            (left, top), (right, bottom) = ring.min(0), ring.max(0)
            far = left < -width or top < -height or right > 2 * width or bottom > 2 * height  # no nucleus at the edge
            if far or right <= 0 or bottom <= 0 or left >= width or top >= height:
                raise DataError(
                    f"{self.label_path}: an outline at ({left:.0f}, {top:.0f}) lies outside its image of {width} x "
                    f"{height} pixels; expected outlines in pixels of the image, not of the slide."
                )
        polygons = np.array([shapely.Polygon(ring) for _, ring in nuclei], object)
        if (flat := np.flatnonzero(~(shapely.area(polygons) > 0))).size:
            x, y = nuclei[flat[0]][1][0]
            raise DataError(f"{self.label_path}: the outline at ({x:.0f}, {y:.0f}) encloses nothing; remove it.")
        centroids = shapely.get_coordinates(shapely.centroid(polygons)).reshape(-1, 2)
        instances = fill_rings([ring for _, ring in nuclei], (height, width))
        return Annotation(np.clip(centroids, 0, (width, height)), tuple(label for label, _ in nuclei), instances)


def read(path: Path) -> list[AnnotatedImage]:
    """Return the images of a folder with ``images`` and such ``labels``; empty for another layout.

    Raises:
        DataError: ``library.toml`` is missing or states no pixel size, an image has no label file or a label file no
            image.
    """
    if (folders := labelled_folders(path, "outlines")) is None:
        return []
    mpp = mpp_of(path)
    pairs = paired_files(*folders, LABEL_FILES["outlines"])
    return [OutlinesImage(name, group_of(name), mpp, image, label) for name, image, label in pairs]
