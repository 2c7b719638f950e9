"""Published sets of annotated nuclei, each read from its owner's own layout, all with one interface.

Segmentation takes the instance maps, the classifier the points with labels; a format is read in one place.
"""

from __future__ import annotations

from pathlib import Path

from nucpipe.datasets import brecahad, consep, monusac, nucls, outlines, pannuke, points
from nucpipe.datasets.base import AnnotatedImage, Annotation, check_hold_out, choose_images, is_named, split_groups
from nucpipe.errors import DataError

__all__ = [
    "AnnotatedImage",
    "Annotation",
    "check_hold_out",
    "choose_images",
    "is_named",
    "open_dataset",
    "split_groups",
]

READERS = (nucls.read, points.read, outlines.read, consep.read, brecahad.read, monusac.read, pannuke.read)
"""Each returns the images of a folder in its layout, or none where the folder has another."""


def open_dataset(path: Path) -> list[AnnotatedImage]:
    """Return the annotated images of the data set at ``path``; the layout is recognised by its files.

    Raises:
        DataError: no known layout, or an incomplete set.
    """
    if not path.is_dir():
        raise DataError(f"{path}: expected the folder of a data set; it does not exist.")
    for read in READERS:
        images = read(path)
        if images:
            return images
    raise DataError(
        f"{path}: no data set recognised. Expected images/ with labels/ of the same names: .csv (points), .mat "
        "(CoNSeP, Kumar), .png, .tif, .npy or .geojson (outlines); or images/ with groundTruth/*.json (BreCaHAD), "
        "<patient>/*.xml beside tiles (MoNuSAC), images.npy with masks.npy (PanNuke), or rgb/ with csv/ (NuCLS) in it."
    )
