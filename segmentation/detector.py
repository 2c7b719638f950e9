"""The interface of a detector: pixels in, nuclei out."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from segmentation.nuclei import KEEP_ALL, Nuclei, NucleusFilter


class Detector(Protocol):
    """Interface of a detector. ``predict`` is the device's work, ``nuclei`` the processor's; they may overlap.

    Attributes:
        input_mpp: pixel size that the detector takes, micrometres: 0.5 or 0.25.
        align_px: sides of read boxes, and their corners in the slide-wide grid, are multiples of this, without margins.
        context_px: what the detector wants to see beyond the part of a read box that counts.
        margin_px: rim of a read box, on each side, that is looked at only: the maps are those of the rest.
        max_concurrency: how many calls of ``predict`` at once use the device fully; they come from as many threads.
        types: the detector's own names of the types that it gives to nuclei (``Nuclei.types``); none by default.
        supports_tta: ``predict`` gives HoVer-Net's three maps, which may be averaged over mirror images of a read box.
        default_filter: the nuclei that are kept unless a run says otherwise; :meth:`nuclei` gives all.
    """

    input_mpp: float
    align_px: int
    context_px: int
    margin_px: int = 0
    max_concurrency: int = 1
    types: tuple[str, ...] = ()
    supports_tta: bool = False
    default_filter: NucleusFilter = KEEP_ALL

    def predict(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the maps of a read box: (H, W, 3) uint8 RGB to an array that :meth:`nuclei` understands."""

    def nuclei(self, prediction: npt.NDArray[np.float32], mpp: float) -> Nuclei:
        """Return the nuclei of that read box in pixels of the read box; ``mpp`` is the read box's true pixel size."""


def predict_image(detector: Detector, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return what a detector says of a whole image, which is mirrored at its edges.

    Args:
        detector: any.
        pixels: (H, W, 3) uint8 RGB at ``detector.input_mpp``.

    Returns:
        As of ``detector.predict``, for the image and what fills it up to multiples of ``detector.align_px``.
    """
    margin = detector.margin_px
    rims = [(margin, -side % detector.align_px + margin) for side in pixels.shape[:2]]
    return detector.predict(np.ascontiguousarray(np.pad(pixels, (*rims, (0, 0)), mode="reflect")))
