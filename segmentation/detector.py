"""The detector that the pipeline drives: pixels in, nuclei out."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from nucpipe.common.errors import ModelError
from nucpipe.common.modelfile import ModelHeader, load_model
from nucpipe.common.networks import check_size
from nucpipe.common.padding import fix_padding
from nucpipe.common.runtime import ready
from segmentation.model import ALIGN_PX, INPUT_MPP, HoVerNet, build
from segmentation.nuclei import Nuclei
from segmentation.postprocess import PostProcessing, find_nuclei

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
    calls: int = 1
    types: tuple[str, ...] = ()
    averages: bool = False

    def predict(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """What the network says of a window: (H, W, 3) uint8 RGB to an array that :meth:`nuclei` understands."""

    def nuclei(self, prediction: npt.NDArray[np.float32], mpp: float) -> Nuclei:
        """The nuclei of that window in pixels of the window; ``mpp`` is the window's true pixel size."""


class HoVerNetDetector(Detector):
    """The compact HoVer-Net with its post-processing.

    Args:
        model: with weights.
        header: of the model file.
        device: to run on.
        precision: type to compute in, None for float32.
        threads: processors that it may use.
        settings: constants of the post-processing.
    """

    align_px = ALIGN_PX
    averages = True
    margin_px = MARGIN_PX
    # The widest nuclei are about 25 um, and which of those that touch is cut where depends on their neighbours.
    context_px = 64

    def __init__(
        self,
        model: HoVerNet,
        header: ModelHeader,
        device: str | torch.device = "cpu",
        precision: torch.dtype | None = None,
        threads: int = 1,
        settings: PostProcessing | None = None,
    ) -> None:
        self.header = header
        self.input_mpp = header.mpp
        self.settings = settings or PostProcessing()
        self.runtime = ready(WithoutMargin(model).eval(), torch.device(device), precision, threads, rows=1)
        self.calls = self.runtime.calls

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
        return found.moved(1.0, (self.margin_px, self.margin_px))


class WithoutMargin(nn.Module):
    """The network's maps without those of the margin, which depend on where the window ends. Changes the network."""

    def __init__(self, model: HoVerNet) -> None:
        super().__init__()
        self.model = model
        fix_padding(model.encoder)  # all sides are multiples of 16, the encoder's largest stride

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, 3, H + 2 M, W + 2 M) to (N, 3, 2H, 2W)."""
        maps: torch.Tensor = self.model(pixels, MARGIN_PX)
        return maps


def read_hovernet(path: Path) -> tuple[HoVerNet, ModelHeader]:
    """The compact HoVer-Net in a model file of nucpipe, with its weights, and the file's header.

    Raises:
        ModelError: no such file, or no segmentor of a kind that this version knows.
    """
    header, tensors = load_model(path)
    if header.kind != "segmentor" or header.architecture.get("type") != "hovernet":
        raise ModelError(
            f"{path}: expected a HoVer-Net segmentor, found {header.kind} {header.architecture.get('type')}."
        )
    if header.mpp != INPUT_MPP:
        raise ModelError(f"{path}: made for pixels of {header.mpp} um; this version runs segmentors of {INPUT_MPP} um.")
    try:
        check_size(lambda: build(header.architecture, header.mean, header.std), tensors)
        model = build(header.architecture, header.mean, header.std)
        model.load_state_dict(tensors)
    except Exception as error:  # whatever a header that anybody wrote leads timm and torch to raise
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{path}: its weights do not fit its header ({first}).") from error
    return model, header


def load_hovernet(
    path: Path, device: str | torch.device = "cpu", precision: torch.dtype | None = None, threads: int = 1
) -> HoVerNetDetector:
    """The compact HoVer-Net in a model file of nucpipe, ready to run.

    Raises:
        ModelError: as :func:`read_hovernet`.
    """
    return HoVerNetDetector(*read_hovernet(path), device, precision, threads)
