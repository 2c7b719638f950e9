"""torchvision's Mask R-CNN (He et al. 2017) and Faster R-CNN (Ren et al. 2015) as detectors of nuclei.

Both look at tiles of one size that stand on one grid for the whole slide, and what a tile's middle holds counts, so the
nuclei do not depend on how the slide was cut. Faster R-CNN knows boxes only; its outlines are rectangles.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from nucpipe.backends.model_file import load_model
from nucpipe.backends.network_checks import check_name
from nucpipe.errors import ModelError
from segmentation.detector import Detector
from segmentation.hovernet.postprocess import outline_instances
from segmentation.nuclei import Nuclei

INPUT_MPP = 0.25
CORE_PX, MARGIN_PX = 192, 64
TILE_PX = CORE_PX + 2 * MARGIN_PX
ANCHORS_PX = ((12,), (24,), (48,), (96,), (192,))
"""Sides of the boxes that are tried, by level of the pyramid; nuclei are 16 to 100 px wide."""
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
CHANNELS, BOX_SIDE, BOX_FEATURES = 64, 7, 256
"""Of the pyramid's levels and the mask's layers, and of a box; a quarter of torchvision's, as there is one class."""
BOXES_LEARNT = 128
"""Of a tile in a step: a quarter of torchvision's, which makes training on a CPU several times faster."""
MIN_SCORE = 0.5
MASK_LEVEL = 0.5
MIN_AREA_PX = 40


class FeaturePyramid(nn.Module):
    """Features of an encoder at strides 4 to 32, joined into a pyramid (Lin et al. 2017) with a fifth level.

    Args:
        encoder: a timm backbone with features at these strides.
    """

    def __init__(self, encoder: str) -> None:
        import timm
        from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

        super().__init__()
        check_name(encoder)
        self.encoder: nn.Module = timm.create_model(
            encoder, features_only=True, out_indices=(1, 2, 3, 4), pretrained=False
        )
        features: Any = self.encoder.feature_info
        self.pyramid = FeaturePyramidNetwork(features.channels(), CHANNELS, LastLevelMaxPool())
        self.out_channels = CHANNELS

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return (N, 3, S, S) to the five levels (N, ``CHANNELS``, S / stride, S / stride) by name."""
        levels = self.encoder(image)
        return self.pyramid({str(number): level for number, level in enumerate(levels)})  # type: ignore[no-any-return]


def build_rcnn(kind: str, encoder: str) -> nn.Module:
    """Return the network with random weights.

    Args:
        kind: ``maskrcnn`` or ``fasterrcnn``.
        encoder: a timm backbone, such as ``tf_efficientnet_lite0``.

    Raises:
        ValueError: no such encoder, or it has no features at strides 4 to 32.
    """
    from torchvision.models import detection
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
    from torchvision.models.detection.rpn import AnchorGenerator

    try:
        backbone = FeaturePyramid(encoder)
    except (AttributeError, AssertionError, IndexError, RuntimeError, TypeError) as error:  # as timm says so
        raise ValueError(f"{encoder} has no features at strides 4 to 32") from error
    parts: dict[str, Any] = {
        "box_head": TwoMLPHead(CHANNELS * BOX_SIDE**2, BOX_FEATURES),
        "box_predictor": FastRCNNPredictor(BOX_FEATURES, 2),
    }
    if kind == "maskrcnn":
        parts["mask_head"] = MaskRCNNHeads(CHANNELS, (CHANNELS,) * 4, 1)
        parts["mask_predictor"] = MaskRCNNPredictor(CHANNELS, CHANNELS, 2)
    architecture = detection.MaskRCNN if kind == "maskrcnn" else detection.FasterRCNN
    network: nn.Module = architecture(
        backbone,
        min_size=TILE_PX,
        max_size=TILE_PX,
        image_mean=MEAN,
        image_std=STD,
        rpn_anchor_generator=AnchorGenerator(ANCHORS_PX, ((0.5, 1.0, 2.0),) * len(ANCHORS_PX)),
        box_score_thresh=MIN_SCORE,
        box_detections_per_img=400,
        box_batch_size_per_image=BOXES_LEARNT,
        **parts,
    )
    return network


class RCNNDetector(Detector):
    """Mask R-CNN or Faster R-CNN with its weights.

    Args:
        network: from :func:`build_rcnn`, on its device.
    """

    input_mpp = INPUT_MPP
    align_px = CORE_PX
    context_px = MARGIN_PX
    margin_px = MARGIN_PX

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval()
        self.device = next(network.parameters()).device

    def predict(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the instances of a region's read box.

        Where nuclei overlap, the surer one has the pixels; one that is then more than half covered is dropped.

        Args:
            pixels: (H + 2 M, W + 2 M, 3) uint8 RGB at 0.25 um with M = ``margin_px``; H and W multiples of
                ``align_px``.

        Returns:
            (2, H + 2 M, W + 2 M) float32: number of the nucleus, 0 = background, and its score.
        """
        height, width = pixels.shape[:2]
        found = []
        for y in range(0, height - TILE_PX + 1, CORE_PX):
            for x in range(0, width - TILE_PX + 1, CORE_PX):
                found += [(score, x, y, mask) for score, mask in self._tile(pixels[y : y + TILE_PX, x : x + TILE_PX])]
        found.sort(key=lambda one: -one[0])
        maps = np.zeros((2, height, width), np.float32)
        for number, (score, x, y, mask) in enumerate(found, 1):
            rows, columns = np.nonzero(mask)
            rows, columns = rows + y, columns + x
            free = maps[0, rows, columns] == 0
            if 2 * free.sum() > len(free):
                maps[0, rows[free], columns[free]] = number
                maps[1, rows[free], columns[free]] = score
        return maps

    def _tile(self, tile: npt.NDArray[np.uint8]) -> list[tuple[float, npt.NDArray[np.bool_]]]:
        """Score and mask (in the tile) of each nucleus whose box has its centre in the tile's middle."""
        image = torch.from_numpy(np.ascontiguousarray(tile)).to(self.device).permute(2, 0, 1).float() / 255
        with torch.inference_mode():
            (said,) = self.network([image])
        boxes, scores = said["boxes"].cpu().numpy(), said["scores"].cpu().numpy()
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2 - MARGIN_PX
        middle = ((centres >= 0) & (centres < CORE_PX)).all(1)
        masks = said["masks"][:, 0].cpu().numpy() > MASK_LEVEL if "masks" in said else [_box_mask(b) for b in boxes]
        return [(float(scores[i]), masks[i]) for i in np.flatnonzero(middle)]

    def nuclei(self, prediction: npt.NDArray[np.float32], mpp: float) -> Nuclei:
        """Return the nuclei in pixels of the read box that :meth:`predict` was given; ``mpp`` is that read box's pixel
        size.
        """
        return outline_instances(prediction[0].astype(np.int32), prediction[1], mpp, MIN_AREA_PX)


def _box_mask(box: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    mask = np.zeros((TILE_PX, TILE_PX), bool)
    x0, y0, x1, y1 = np.round(box).astype(int)
    mask[max(0, y0) : y1, max(0, x0) : x1] = True
    return mask


def load_rcnn(path: Path, device: str | torch.device = "cpu") -> RCNNDetector:
    """Return the detector in a model file.

    Raises:
        ModelError: no such file, or its weights are those of another network.
    """
    header, tensors = load_model(path)
    try:
        network = build_rcnn(header.architecture["type"], header.architecture["encoder"])
        network.load_state_dict(tensors)
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        first = str(error).splitlines()[0]
        raise ModelError(f"{path}: its weights do not fit its header ({first}).") from error
    return RCNNDetector(network.to(device))
