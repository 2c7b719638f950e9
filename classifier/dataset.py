"""Nuclei of published data sets with labels, and the images that their patches and contexts are cut from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from classifier.labels.label_mapping import Matching
from classifier.labels.libraries import Library
from classifier.patches import CONTEXT_W, at_working_mpp, cut_contexts, patch_corners, reflected
from classifier.spec import CONTEXT_PX
from nucpipe.datasets import AnnotatedImage
from nucpipe.errors import DataError

SOURCE_PX = 96
"""Side of a patch for training: the 64 px that the network sees and what comes into sight when it is turned."""


@dataclass(frozen=True)
class PatchDataset:
    """N nuclei of one or more libraries.

    Attributes:
        pixels: RGB uint8 of each image at 0.25 micrometres per pixel, with 48 px of reflection on each side.
        points: (N, 2) float64, x and y of each nucleus in pixels of its image, without the reflection.
        library: (N,) int64, the place of each sample's own library among ``Matching.sources``.
        label: (N,) int64, its label's number there; -1 where only a group of labels is known.
        targets: (N, columns) bool, what it teaches (see ``classifier.labels.label_mapping``).
        image: (N,) int64, the place of its image in ``images``.
        images: (group, name) of each image.
        centroids: (N, 2) float64, x and y in the image's own pixels, as annotated.
    """

    pixels: tuple[npt.NDArray[np.uint8], ...]
    points: npt.NDArray[np.float64]
    library: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    targets: npt.NDArray[np.bool_]
    image: npt.NDArray[np.int64]
    images: tuple[tuple[str, str], ...]
    centroids: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.label)

    @classmethod
    def concatenate(cls, parts: Iterable[PatchDataset]) -> PatchDataset:
        """Return all samples of ``parts`` (at least one), in order."""
        some = list(parts)
        starts = np.cumsum([0, *(len(p.images) for p in some)])
        return cls(
            tuple(pixels for p in some for pixels in p.pixels),
            np.concatenate([p.points for p in some]),
            np.concatenate([p.library for p in some]),
            np.concatenate([p.label for p in some]),
            np.concatenate([p.targets for p in some]),
            np.concatenate([p.image + start for p, start in zip(some, starts, strict=False)]),
            tuple(image for p in some for image in p.images),
            np.concatenate([p.centroids for p in some]),
        )

    def select(self, rows: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> PatchDataset:
        """Return the samples at ``rows`` (a mask or places)."""
        return PatchDataset(
            self.pixels,
            self.points[rows],
            self.library[rows],
            self.label[rows],
            self.targets[rows],
            self.image[rows],
            self.images,
            self.centroids[rows],
        )

    def patches(self, rows: npt.NDArray[np.int64], side_px: int = SOURCE_PX) -> npt.NDArray[np.uint8]:
        """Return the patches of the samples at ``rows``, reflected at the image's edge: (n, side_px, side_px, 3) uint8
        RGB.
        """
        patches = np.empty((len(rows), side_px, side_px, 3), np.uint8)
        corners = patch_corners(self.points[rows], side_px) + SOURCE_PX // 2
        for patch, image, (x, y) in zip(patches, self.image[rows], corners, strict=True):
            patch[:] = self.pixels[image][y : y + side_px, x : x + side_px]
        return patches

    def contexts(self, rows: npt.NDArray[np.int64], side_px: int = CONTEXT_PX) -> npt.NDArray[np.uint8]:
        """Return the contexts of the samples at ``rows``: (n, side_px, side_px, 4), see ``classifier.patches``."""
        contexts = np.empty((len(rows), side_px, side_px, 4), np.uint8)
        edge, reach = SOURCE_PX // 2, side_px * CONTEXT_W // 2 + 1
        images = self.image[rows]
        for image in np.unique(images):
            mine = np.flatnonzero(images == image)
            points = self.points[rows[mine]]
            inside = self.pixels[image][edge:-edge, edge:-edge]
            height, width = inside.shape[:2]
            left, top = np.maximum(np.floor(points.min(0)).astype(int) - reach, 0)
            right, bottom = np.minimum(np.floor(points.max(0)).astype(int) + reach + 1, (width, height))
            part = inside[top:bottom, left:right]
            whole = (0, 0, part.shape[1], part.shape[0])
            contexts[mine] = cut_contexts(part, points - (left, top), whole, side_px=side_px)
        return contexts

    @property
    def groups(self) -> npt.NDArray[np.int64]:
        """(N,) int64: samples of one group (patient, case, tissue) of one library have one number."""
        names = [group for group, _ in self.images]
        numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
        of_image = np.array([numbers[name] for name in names], np.int64)
        return of_image[self.image] * (int(self.library.max(initial=0)) + 1) + self.library


def extract_patches(library: Library, images: Sequence[AnnotatedImage], matching: Matching) -> PatchDataset:
    """Return every nucleus of some images of one library.

    Raises:
        DataError: a data set without labels, or with labels that are not the library's.
    """
    place = [lib.name for lib in matching.sources].index(library.name)
    kept: list[npt.NDArray[np.uint8]] = []
    points = [np.zeros((0, 2))]
    centroids = [np.zeros((0, 2))]
    texts: list[str] = []
    image_of: list[int] = []
    known: dict[str, npt.NDArray[np.bool_]] = {}
    for i, image in enumerate(images):
        annotation = image.annotation()
        if "" in annotation.labels:
            raise DataError(
                f"{image.label_path}: its nuclei have no labels; the classifier needs those of {library.name}."
            )
        pixels, at = at_working_mpp(image.pixels(), annotation.centroids, image.mpp)
        kept.append(reflected(pixels, SOURCE_PX // 2))
        points.append(at)
        centroids.append(annotation.centroids)
        texts += annotation.labels
        image_of += [i] * len(annotation.labels)
        for text in dict.fromkeys(annotation.labels):
            try:
                known[text] = matching.targets(library.name, text)
            except DataError as error:
                raise DataError(f"{image.label_path}: {error}") from error
    numbers = {text: library.resolve(text) for text in known}
    return PatchDataset(
        tuple(kept),
        np.concatenate(points),
        np.full(len(texts), place),
        np.array([numbers[t][0] if len(numbers[t]) == 1 else -1 for t in texts], np.int64),
        np.array([known[t] for t in texts], bool).reshape(-1, matching.columns),
        np.array(image_of, np.int64),
        tuple((image.group, image.name) for image in images),
        np.concatenate(centroids),
    )


BALANCES = {"none": 1.0, "root": 0.5, "equal": 0.0}
"""Exponent of the number of nuclei in the share of the samples."""


def sampling_weights(
    samples: PatchDataset, balance: str = "root", factors: Mapping[int, float] | None = None
) -> npt.NDArray[np.float64]:
    """Return how likely each sample is drawn: (N,), sum 1.

    By ``root`` a library's share goes with the square root of its number of nuclei, inside it a label's share
    likewise, and inside that the share of each group (patient, case or tissue): rare labels are seen more often than
    they occur, and in no label does one tissue drown the others, without the few samples being seen all the time.
    ``none`` draws every nucleus alike, ``equal`` every library, every label in it, and every group that has it. Nuclei
    that are known by a group of labels count as a label of their own.

    Args:
        samples: to draw from.
        balance: one of ``BALANCES``.
        factors: how much more often a library, by its place, is drawn than that; 1 where it is not named.
    """
    power = BALANCES[balance]
    weights: npt.NDArray[np.float64] = np.zeros(len(samples))
    for library in np.unique(samples.library):
        mine = np.flatnonzero(samples.library == library)
        kinds = np.unique(samples.targets[mine], axis=0, return_inverse=True)[1].reshape(-1)
        parts = np.unique(np.stack([kinds, samples.groups[mine]]), axis=1, return_inverse=True)[1].reshape(-1)
        each = np.bincount(parts)[parts] ** (power - 1)
        counts = np.bincount(kinds)
        each *= (counts**power / np.bincount(kinds, each))[kinds]
        weights[mine] = (factors or {}).get(int(library), 1.0) * len(mine) ** power * each / each.sum()
    weights /= weights.sum()
    return weights
