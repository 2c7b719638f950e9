"""The compact HoVer-Net as a detector."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from nucpipe.backends.base import Backend, squared
from nucpipe.backends.conversion_cache import network_key
from nucpipe.backends.select import select_backend
from segmentation.detector import Detector
from segmentation.hovernet.postprocess import PostProcessing, find_nuclei
from segmentation.hovernet.spec import ALIGN_PX, INPUT_MPP, MARGIN_PX, check_header
from segmentation.nuclei import Nuclei

if TYPE_CHECKING:
    from torch import nn


class HoVerNetDetector(Detector):
    """The compact HoVer-Net with its post-processing.

    Args:
        runtime: the network without its margin (see ``segmentation.hovernet.network.WithoutMargin``), ready to run.
        mpp: pixel size that it takes, micrometres.
        settings: constants of the post-processing.
    """

    align_px = ALIGN_PX
    supports_tta = True
    margin_px = MARGIN_PX
    # The widest nuclei are about 25 um, and which of those that touch is cut where depends on their neighbours.
    context_px = 64

    def __init__(self, runtime: Backend, mpp: float = INPUT_MPP, settings: PostProcessing | None = None) -> None:
        self.runtime = runtime
        self.max_concurrency = runtime.max_concurrency
        self.input_mpp = mpp
        self.settings = settings or PostProcessing()

    def predict(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the maps of a read box.

        Args:
            pixels: (H + 2 M, W + 2 M, 3) uint8 RGB at ``input_mpp`` with M = ``margin_px``; H and W multiples of
                ``align_px``.

        Returns:
            (3, 2H, 2W) float32 at half the pixel size: nuclear logit, horizontal and vertical map.
        """
        # No map that is wanted depends on what lies beyond the margin.
        height, width = (2 * (side - 2 * self.margin_px) for side in pixels.shape[:2])
        maps: npt.NDArray[np.float32] = self.runtime(squared(pixels, self.runtime.side_step_px)[None])[0]
        return np.ascontiguousarray(maps[:, :height, :width])

    def nuclei(self, prediction: npt.NDArray[np.float32], mpp: float) -> Nuclei:
        """Return the nuclei in pixels of the read box that :meth:`predict` was given; ``mpp`` is that read box's pixel
        size.
        """
        found = find_nuclei(prediction, mpp / 2, self.settings, frame_scale=0.5)
        return found.transformed(1.0, (self.margin_px, self.margin_px))


def load_hovernet(path: Path, device: str = "cpu", precision: str = "fp32", threads: int = 1) -> HoVerNetDetector:
    """Return the compact HoVer-Net in a model file of nucpipe, ready to run.

    Args:
        path: of the file.
        device, precision: where and how it runs.
        threads: processors that it may use.

    Raises:
        ModelError: no such file, no segmentor of a kind that this version knows, or weights that do not fit it.
    """

    def build() -> nn.Module:
        # late: torch takes seconds to import
        from segmentation.hovernet.network import WithoutMargin, read_hovernet

        return WithoutMargin(read_hovernet(path)[0]).eval()

    header = check_header(path)
    code = [Path(__file__).with_name(name) for name in ("spec.py", "network.py", "padding.py")]
    key = network_key(path, code)
    return HoVerNetDetector(select_backend(build, device, precision, threads, batch_rows=1, key=key), header.mpp)
