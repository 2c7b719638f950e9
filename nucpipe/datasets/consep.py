"""CoNSeP's layout: ``Images/*`` with ``Labels/<same stem>.mat`` (Graham et al. 2019).

Copies of Kumar, NuInsSeg and TNBC use it too.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.io
import scipy.io.matlab

from nucpipe.datasets.base import (
    LABEL_FILES,
    AnnotatedImage,
    Annotation,
    centroids_of,
    labelled_folders,
    labels_of,
    mpp_of,
    paired_files,
    subfolder,
)
from nucpipe.errors import DataError
from nucpipe.label_images import instances_of

LABELS = (
    "other",
    "inflammatory",
    "healthy_epithelial",
    "malignant_epithelial",
    "fibroblast",
    "muscle",
    "endothelial",
)
"""Codes 1 to 7 of ``inst_type``."""

MPP = 0.25
# Broken files make SciPy raise nearly anything.
UNREADABLE = (
    scipy.io.matlab.MatReadError,
    OSError,
    KeyError,
    ValueError,
    NotImplementedError,
    TypeError,
    IndexError,
    zlib.error,
)
GROUPS = (
    re.compile(r"(?:human|mouse)_(?P<group>[a-z_]+)_\d+"),  # NuInsSeg (Mahbod et al. 2024): an organ of either species
    re.compile(r"(?P<group>\d\d)_\d+"),  # TNBC (Naylor et al. 2019): a patient
)
"""Names of images that say what belongs together; of others each image stands for itself."""


@dataclass(frozen=True)
class ConsepImage(AnnotatedImage):
    """One image with its ``.mat``; the group is the organ (NuInsSeg), the patient (TNBC) or else the image."""

    names: tuple[str, ...] = LABELS

    def annotation(self) -> Annotation:
        """Return the nuclei; labels are "" where the ``.mat`` has no ``inst_type`` (Kumar).

        Raises:
            DataError: the ``.mat`` is broken, or its arrays do not fit each other.
        """
        try:
            mat = scipy.io.loadmat(str(self.label_path))
        except UNREADABLE as error:
            raise DataError(
                f"{self.label_path}: expected a MATLAB file of version 7 or older; it cannot be read ({error})."
            ) from error
        arrays = [name for name in mat if not name.startswith("__")]
        if "inst_map" not in arrays:
            raise DataError(
                f"{self.label_path}: expected the array inst_map, with one number for each nucleus; "
                f"found {', '.join(arrays) or 'no array'}."
            )
        instances, centroids = self._instances(mat["inst_map"])
        if "inst_type" not in mat:
            return Annotation(centroids, ("",) * len(centroids), instances)
        types = mat["inst_type"].ravel().astype(int)
        if len(types) != len(centroids) or (len(types) and not (types.min() >= 1 and types.max() <= len(self.names))):
            raise DataError(
                f"{self.label_path}: inst_type has {len(types)} entries for {len(centroids)} nuclei, "
                f"expected one of 1 to {len(self.names)} each; fetch the file again."
            )
        return Annotation(centroids, tuple(self.names[t - 1] for t in types), instances)

    def _instances(self, stored: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
        try:
            if stored.ndim != 2 or stored.dtype.kind not in "biuf":
                raise ValueError(f"expected a map of numbers, found {stored.ndim} dimensions of {stored.dtype}")
            instances = instances_of(stored)
        except ValueError as error:
            raise DataError(f"{self.label_path}: inst_map: {error}.") from error
        return instances, centroids_of(instances)


def read(path: Path) -> list[AnnotatedImage]:
    """Return the images of a folder in CoNSeP's layout, or of its ``Train`` and ``Test``; empty for another layout.

    Raises:
        DataError: an image has no label file, or a label file no image.
    """
    images: list[AnnotatedImage] = []
    names, mpp = labels_of(path, LABELS), mpp_of(path, MPP)
    for folder in filter(None, (path, subfolder(path, "train"), subfolder(path, "test"))):
        if (folders := labelled_folders(folder, "consep")) is not None:
            for name, image, label in paired_files(*folders, LABEL_FILES["consep"]):
                images.append(ConsepImage(name, _group(name), mpp, image, label, names))
    return images


def _group(name: str) -> str:
    """Return what a split must keep together with the image of that name."""
    return next((found["group"] for form in GROUPS if (found := form.fullmatch(name))), name)
