"""The common face of an annotated data set: images, each with nuclei."""

from __future__ import annotations

import fnmatch
import hashlib
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import scipy.ndimage

from nucpipe.errors import DataError, UsageError


@dataclass(frozen=True)
class Annotation:
    """The annotated nuclei of one image.

    Attributes:
        centroids: (N, 2) float64, x and y in pixels; pixel i covers [i, i+1).
        labels: the label of each nucleus in its library's own words (snake_case); "" where none is published.
        instances: (H, W) int32, 0 = background, k + 1 = nucleus k (which has no pixel where others cover it wholly);
            None where the library publishes no outlines.
    """

    centroids: npt.NDArray[np.float64]
    labels: tuple[str, ...]
    instances: npt.NDArray[np.int32] | None


@dataclass(frozen=True)
class AnnotatedImage(ABC):
    """One annotated image of a data set; pixels and nuclei are read when asked for.

    Attributes:
        name: the image's name inside its set, such as ``train_6``.
        group: what a split into training and validation must keep together (image, patient, case or tissue).
        mpp: pixel size in micrometres.
    """

    name: str
    group: str
    mpp: float

    @abstractmethod
    def pixels(self) -> npt.NDArray[np.uint8]:
        """RGB, (H, W, 3) uint8."""

    @abstractmethod
    def annotation(self) -> Annotation:
        """Return the nuclei."""


def read_rgb(path: Path) -> npt.NDArray[np.uint8]:
    """Return an image file as RGB (H, W, 3) uint8.

    Raises:
        DataError: the file is missing, or not an image that OpenCV reads.
    """
    if not path.is_file():
        what = "it is a folder; give the images in it" if path.is_dir() else "there is no such file"
        raise DataError(f"{path}: expected an image; {what}.")
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise DataError(f"{path}: expected an image (PNG, JPEG, TIFF); the file is something else, or cut off.")
    return np.ascontiguousarray(image[..., ::-1]).astype(np.uint8, copy=False)


def check_outlines(name: str, instances: npt.NDArray[np.integer], pixels: npt.NDArray[np.uint8]) -> None:
    """See that an instance map (H, W) is of the size of its image (H, W, 3).

    Raises:
        DataError: it is not; ``name`` is the image's.
    """
    (height, width), (image_height, image_width) = instances.shape, pixels.shape[:2]
    if (height, width) != (image_height, image_width):
        raise DataError(
            f"{name}: its outlines are on {width} x {height} pixels, its image has {image_width} x {image_height}; "
            "expected the same size."
        )


def centroids_of(instances: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """Return the centroids (N, 2), x and y in pixels, of an instance map (H, W) with the ids 1 to N."""
    ids = np.arange(1, int(instances.max(initial=0)) + 1)
    centres = scipy.ndimage.center_of_mass(instances > 0, instances, ids)
    return np.asarray(centres, float).reshape(-1, 2)[:, ::-1] + 0.5


def renumbered(instances: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Return the instance map (H, W) with its ids made 1 to N, in their order."""
    ids = np.unique(instances[instances > 0])
    numbers = np.searchsorted(ids, instances) + 1
    return np.where(instances > 0, numbers, 0).astype(np.int32)


def library_fields(path: Path) -> dict[str, Any] | None:
    """Return what the ``library.toml`` of a data folder says; None without one.

    Raises:
        DataError: it is no TOML.
    """
    file = path / "library.toml"
    if not file.is_file():
        return None
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: expected a library in TOML; it cannot be read ({error}).") from error


def labels_of(path: Path, published: tuple[str, ...]) -> tuple[str, ...]:
    """Return the labels, in order, of a data folder's ``library.toml``; without one ``published``."""
    fields = library_fields(path)
    return tuple(map(str, fields.get("labels", ()))) if fields is not None else published


def split_groups(
    images: Sequence[AnnotatedImage], hold_out: Iterable[str] = (), fraction: float = 0.15
) -> tuple[list[AnnotatedImage], list[AnnotatedImage]]:
    """Split images into training and validation by group, never by nucleus.

    ``hold_out`` names groups, or images whose groups are meant (wildcards allowed). Where none of the names is found
    in this set, about ``fraction`` of its images are held out, whole groups in the order of a hash of their names, so
    that the same set is always split the same way.

    Raises:
        UsageError: everything would be held out.
    """
    patterns = list(hold_out)
    groups = {i.group for i in images if is_named(i, patterns)}
    held = {i.name for i in images if i.group in groups}
    if not held and len({i.group for i in images}) > 1:
        order = sorted({i.group for i in images}, key=lambda g: hashlib.sha256(g.encode()).digest())
        for group in order[:-1]:
            if len(held) >= fraction * len(images):
                break
            held |= {i.name for i in images if i.group == group}
    train = [i for i in images if i.name not in held]
    if not train:
        raise UsageError("every image would be held out for validation and none is left to train on; hold out fewer.")
    return train, [i for i in images if i.name in held]


def choose_images(images: list[AnnotatedImage], name: str, patterns: Sequence[str]) -> list[AnnotatedImage]:
    """Return the images that patterns name by image or group; all without patterns. ``name`` is the set's, for the
    message.

    Raises:
        UsageError: there is none.
    """
    found = [image for image in images if is_named(image, patterns)]
    if patterns and not found:
        raise UsageError(f"{name}: no image or group is called {', '.join(patterns)}; name others by --hold-out.")
    return found or images


def is_named(image: AnnotatedImage, patterns: Sequence[str]) -> bool:
    """Tell whether one of the patterns (wildcards allowed) names an image or its group."""
    return any(fnmatch.fnmatchcase(name, p) for name in (image.name, image.group) for p in patterns)
