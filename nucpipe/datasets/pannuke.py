"""PanNuke's layout: folds of ``images.npy``, ``masks.npy`` and ``types.npy`` (Gamper et al. 2020), memory-mapped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nucpipe.datasets.base import AnnotatedImage, Annotation, centroids_of, labels_of, mpp_of, renumbered
from nucpipe.errors import DataError

LABELS = ("neoplastic", "inflammatory", "connective", "dead", "epithelial")
"""Channels 0 to 4 of ``masks.npy``; channel 5 is background."""

MPP = 0.25


@dataclass(frozen=True)
class PanNukeImage(AnnotatedImage):
    """One image of a fold; the tissue is the group, because neighbouring numbers can come from one slide."""

    index: int
    names: tuple[str, ...] = LABELS

    def pixels(self) -> npt.NDArray[np.uint8]:  # noqa: D102
        return np.load(self.image_path, mmap_mode="r")[self.index].astype(np.uint8)  # type: ignore[no-any-return]

    def annotation(self) -> Annotation:
        """Return the nuclei. Instance ids are made unique across the five channels."""
        masks = np.load(self.label_path, mmap_mode="r")[self.index]
        instances = np.zeros(masks.shape[:2], np.int32)
        labels: list[str] = []
        for channel, label in enumerate(self.names):
            layer = masks[..., channel].astype(np.int64)
            for instance in np.unique(layer[layer > 0]):
                labels.append(label)
                instances[layer == instance] = len(labels)
        # A later channel may have overwritten an earlier nucleus wholly.
        kept = np.unique(instances[instances > 0])
        instances = renumbered(instances)
        return Annotation(centroids_of(instances), tuple(labels[i - 1] for i in kept), instances)


def _masks_for(images: Path, root: Path) -> Path:
    candidates = [images.with_name("masks.npy")]
    parts = images.relative_to(root).parts
    if "images" in parts:
        k = len(parts) - 1 - parts[::-1].index("images")
        candidates.append(root.joinpath(*parts[:k], "masks", *parts[k + 1 : -1], "masks.npy"))
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise DataError(f"{candidates[-1]}: missing, though {images} is there; fetch the fold again.")


def read(path: Path) -> list[AnnotatedImage]:
    """Return the images of every fold below ``path`` (``Fold 1/images/fold1/images.npy`` or flat); empty if there is
    none.

    Raises:
        DataError: a file of a fold is missing, or arrays of a fold differ in length.
    """
    images: list[AnnotatedImage] = []
    names, mpp = labels_of(path, LABELS), mpp_of(path, MPP)
    channels = len(names) + 1
    for images_path in sorted(path.rglob("images.npy")):
        masks_path = _masks_for(images_path, path)
        types_path = images_path.with_name("types.npy")
        if not types_path.is_file():
            raise DataError(f"{types_path}: missing; it names each image's tissue, by which the data is split.")
        try:
            shapes = [np.load(p, mmap_mode="r").shape for p in (images_path, masks_path)]
            types = [str(t) for t in np.load(types_path)]
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{images_path.parent}: a .npy file cannot be read ({error}); fetch it again.") from error
        n = len(types)
        if shapes[0] != (n, *shapes[0][1:3], 3) or shapes[1] != (n, *shapes[0][1:3], channels):
            raise DataError(
                f"{images_path}: expected {n} images of 3 and masks of {channels} channels, "
                f"found {shapes[0]} and {shapes[1]}."
            )
        fold = images_path.parent.name if images_path.parent != path else "fold"
        images += [PanNukeImage(f"{fold}_{k}", types[k], mpp, images_path, masks_path, k, names) for k in range(n)]
    return images
