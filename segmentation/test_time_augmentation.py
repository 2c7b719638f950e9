"""The mean of what a detector says of a read box and of its mirror images (``--tta``)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nucpipe.errors import UsageError
from segmentation.detector import Detector
from segmentation.nuclei import Nuclei

FLIPS = ((False, False), (True, False), (False, True), (True, True))
"""Left to right, and top to bottom."""


class FlipTTA(Detector):
    """A detector asked four times: HoVer-Net's maps are averaged, the horizontal and vertical one with their sign.

    Args:
        detector: one whose maps can be averaged.

    Raises:
        UsageError: its cannot.
    """

    def __init__(self, detector: Detector) -> None:
        if not detector.supports_tta:
            raise UsageError("--tta: this segmentor's answers cannot be averaged over flips; leave --tta out.")
        self.detector = detector
        self.input_mpp, self.align_px, self.max_concurrency = (
            detector.input_mpp,
            detector.align_px,
            detector.max_concurrency,
        )
        self.context_px, self.margin_px, self.types = detector.context_px, detector.margin_px, detector.types
        self.default_filter = detector.default_filter

    def predict(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """As the detector's own, see there."""
        total: npt.NDArray[np.float32] | None = None
        for across, down in FLIPS:
            step = np.s_[:: -1 if down else 1, :: -1 if across else 1]
            maps = self.detector.predict(np.ascontiguousarray(pixels[step]))[(slice(None), *step)]
            signs = np.array([1, -1 if across else 1, -1 if down else 1], np.float32)
            maps = maps * signs[:, None, None]
            total = maps if total is None else total + maps
        assert total is not None
        return np.ascontiguousarray(total / np.float32(len(FLIPS)))

    def nuclei(self, prediction: npt.NDArray[np.float32], mpp: float) -> Nuclei:
        """As the detector's own, see there."""
        return self.detector.nuclei(prediction, mpp)
