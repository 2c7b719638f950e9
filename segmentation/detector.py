"""The detector that the pipeline drives: pixels in, nuclei out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from nucpipe.backends.conversion_cache import network_key
from nucpipe.backends.model_file import ModelHeader, read_header
from nucpipe.backends.select import Backend, select_backend
from nucpipe.errors import ModelError
from segmentation.hovernet.postprocess import PostProcessing, find_nuclei
from segmentation.nuclei import Nuclei

if TYPE_CHECKING:
    from torch import nn

INPUT_MPP = 0.5
"""Pixel size of the network's input, micrometres. The maps have half of it."""

ALIGN_PX = 16
"""Input sides are multiples of this; so are the corners of windows, in the slide-wide grid of input pixels."""

MARGIN_PX = 208
"""The maps of a pixel depend on nothing farther away than 193 pixels (found by changing pixels); a multiple of 16. So
they are the same in every window, to the bit where a convolution's rounding does not depend on the window's shape."""


class Detector(Protocol):
    """What a detector must offer. ``predict`` is the device's work, ``nuclei`` the processor's; they may overlap.

    Attributes:
        input_mpp: pixel size that the detector takes, micrometres: 0.5 or 0.25.
        align_px: sides of windows, and their corners in the slide-wide grid, are multiples of this; a margin left out.
        context_px: what the detector wants to see beyond the part of a window that counts.
        margin_px: rim of a window, on each side, that is looked at only: the maps are those of the rest.
        calls: how many calls of ``predict`` at once use the device fully; they come from as many threads.
        types: the detector's own names of the types that it gives to nuclei (``Nuclei.types``); none by default.
        averages: ``predict`` gives HoVer-Net's three maps, which may be averaged over mirror images of a window.
    """

    input_mpp: float
    align_px: int
    context_px: int
    margin_px: int = 0
    max_concurrency: int = 1
    types: tuple[str, ...] = ()
    supports_tta: bool = False

    def predict(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """What the network says of a window: (H, W, 3) uint8 RGB to an array that :meth:`nuclei` understands."""

    def nuclei(self, prediction: npt.NDArray[np.float32], mpp: float) -> Nuclei:
        """The nuclei of that window in pixels of the window; ``mpp`` is the window's true pixel size."""


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
        """The maps of a window.

        Args:
            pixels: (H + 2 M, W + 2 M, 3) uint8 RGB at ``input_mpp`` with M = ``margin_px``; H and W multiples of
                ``align_px``.

        Returns:
            (3, 2H, 2W) float32 at half the pixel size: nuclear logit, horizontal and vertical map.
        """
        maps: npt.NDArray[np.float32] = self.runtime(pixels[None])[0]
        return maps

    def nuclei(self, prediction: npt.NDArray[np.float32], mpp: float) -> Nuclei:
        """The nuclei in pixels of the window that :meth:`predict` was given; ``mpp`` is that window's pixel size."""
        found = find_nuclei(prediction, mpp / 2, self.settings, frame_scale=0.5)
        return found.transformed(1.0, (self.margin_px, self.margin_px))


def check_header(path: Path) -> ModelHeader:
    """The header of a model file that holds the compact HoVer-Net.

    Raises:
        ModelError: no such file, or no segmentor of a kind that this version knows.
    """
    header = read_header(path)
    if header.kind != "segmentor" or header.architecture.get("type") != "hovernet":
        raise ModelError(
            f"{path}: expected a HoVer-Net segmentor, found {header.kind} {header.architecture.get('type')}."
        )
    if header.mpp != INPUT_MPP:
        raise ModelError(f"{path}: made for pixels of {header.mpp} um; this version runs segmentors of {INPUT_MPP} um.")
    return header


def load_hovernet(path: Path, device: str = "cpu", precision: str = "fp32", threads: int = 1) -> HoVerNetDetector:
    """The compact HoVer-Net in a model file of nucpipe, ready to run.

    Args:
        path: of the file.
        device, precision: where and how it runs.
        threads: processors that it may use.

    Raises:
        ModelError: no such file, no segmentor of a kind that this version knows, or weights that do not fit it.
    """

    def build() -> nn.Module:
        from segmentation.hovernet.network import WithoutMargin, read_hovernet

        return WithoutMargin(read_hovernet(path)[0]).eval()

    header = check_header(path)
    code = [Path(__file__), *(Path(__file__).parent / "hovernet" / name for name in ("network.py", "padding.py"))]
    key = network_key(path, code)
    return HoVerNetDetector(select_backend(build, device, precision, threads, batch_rows=1, key=key), header.mpp)
