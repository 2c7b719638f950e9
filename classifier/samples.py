"""Nuclei of published data sets as windows with labels, held in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from classifier.libraries import Library
from classifier.matching import Matching
from nucpipe.common.datasets import AnnotatedImage
from nucpipe.common.errors import DataError

MPP = 0.25
SOURCE_PX = 96
"""Side of a stored window: the 64 px that the network sees and what comes into sight when it is turned."""
SAME_MPP = 0.05
"""Images within this share of the working pixel size are used on their own grid."""


@dataclass(frozen=True)
class Samples:
    """N nuclei of one or more libraries.

    Attributes:
        windows: (N, 96, 96, 3) uint8 RGB at 0.25 micrometres per pixel, the nucleus in the middle.
        library: (N,) int64, the place of each sample's own library.
        label: (N,) int64, its label's number there.
        targets: (N, L) int64, what it teaches each library, or -1 (see ``classifier.matching``).
    """

    windows: npt.NDArray[np.uint8]
    library: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.label)

    @classmethod
    def concatenate(cls, parts: Iterable[Samples]) -> Samples:
        """All samples of ``parts`` (at least one), in order."""
        some = list(parts)
        return cls(
            np.concatenate([p.windows for p in some]),
            np.concatenate([p.library for p in some]),
            np.concatenate([p.label for p in some]),
            np.concatenate([p.targets for p in some]),
        )


def cut_windows(
    image: npt.NDArray[np.uint8], centroids: npt.NDArray[np.float64], side_px: int
) -> npt.NDArray[np.uint8]:
    """Square windows round points, reflected at the image's edge.

    Args:
        image: (H, W, 3) RGB uint8.
        centroids: (N, 2) x and y in corner-based pixels, inside the image.
        side_px: an even number.

    Returns:
        (N, side_px, side_px, 3) uint8; pixel ``side_px // 2`` begins at the corner nearest to the centroid.
    """
    half = side_px // 2
    padded = cv2.copyMakeBorder(image, half, half, half, half, cv2.BORDER_REFLECT_101)
    corners = np.floor(centroids + 0.5).astype(int)
    windows = [padded[y : y + side_px, x : x + side_px] for x, y in corners]
    return np.stack(windows).astype(np.uint8) if windows else np.zeros((0, side_px, side_px, 3), np.uint8)


def _at_working_mpp(
    image: npt.NDArray[np.uint8], centroids: npt.NDArray[np.float64], mpp: float
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
    if abs(mpp / MPP - 1) <= SAME_MPP:
        return image, centroids
    height, width = image.shape[:2]
    size = max(1, round(width * mpp / MPP)), max(1, round(height * mpp / MPP))
    resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if mpp < MPP else cv2.INTER_LINEAR)
    return resized.astype(np.uint8), centroids * (size[0] / width, size[1] / height)


def gather(library: Library, images: Sequence[AnnotatedImage], matching: Matching) -> Samples:
    """Every nucleus of some images of one library.

    Raises:
        DataError: a data set without labels, or with labels that are not the library's.
    """
    place = [lib.name for lib in matching.libraries].index(library.name)
    windows = [np.zeros((0, SOURCE_PX, SOURCE_PX, 3), np.uint8)]
    targets = [np.zeros((0, len(matching.libraries)), np.int64)]
    for image in images:
        annotation = image.annotation()
        if "" in annotation.labels:
            raise DataError(f"{image.name}: its nuclei have no labels; the classifier needs those of {library.name}.")
        pixels, centroids = _at_working_mpp(image.pixels(), annotation.centroids, image.mpp)
        windows.append(cut_windows(pixels, centroids, SOURCE_PX))
        if annotation.labels:
            targets.append(np.stack([matching.targets(library.name, label) for label in annotation.labels]))
    stacked = np.concatenate(targets)
    return Samples(np.concatenate(windows), np.full(len(stacked), place), stacked[:, place], stacked)


def sampling_weights(samples: Samples) -> npt.NDArray[np.float64]:
    """How likely each sample is drawn: (N,), sum 1.

    A library's share goes with the square root of its number of nuclei, and inside it a label's share likewise: rare
    labels are seen more often than they occur, without their few samples being seen all the time.
    """
    share_of_library = np.sqrt(np.bincount(samples.library))
    weights: npt.NDArray[np.float64] = np.zeros(len(samples))
    for library in np.unique(samples.library):
        mine = samples.library == library
        counts = np.bincount(samples.label[mine])
        # sqrt(count) shared among count samples
        each = 1 / np.sqrt(counts[samples.label[mine]])
        weights[mine] = share_of_library[library] * each / each.sum()
    weights /= weights.sum()
    return weights
