"""The joint classifier: a timm backbone with one group of outputs per library, and its way from pixels to labels."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from classifier.libraries import LabelSpace
from classifier.spec import WINDOW_PX, check_kind
from nucpipe.backends.model_file import ModelHeader, load_model
from nucpipe.backends.network_checks import check_name, check_size
from nucpipe.errors import ModelError, UsageError

BACKBONE = "tf_efficientnet_lite0"
SIZE_PX, LARGEST_PX = 224, 1024
"""Side of the window after it is enlarged, the network's input."""
MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)
"""Normalisation of RGB in 0-1 that the ImageNet weights of EfficientNet-Lite expect."""


class JointClassifier(nn.Module):
    """Logits of every label of every library from an RGB window; carries its own normalisation.

    Attributes:
        size_px: the side of the input that the network was last trained on.
        columns: the number of outputs.
        strides: of an EfficientNet's stem and of each of its stages where they are not the published ones (see
            :func:`set_strides`); else empty.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        columns: int,
        backbone: str = BACKBONE,
        size_px: int = SIZE_PX,
        mean: tuple[float, float, float] = MEAN,
        std: tuple[float, float, float] = STD,
        dropout: float = 0.0,
        strides: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.size_px = size_px
        self.columns = columns
        self.strides = strides
        self.backbone = timm.create_model(backbone, pretrained=False, num_classes=columns, drop_rate=dropout)
        if strides:
            set_strides(self.backbone, strides)
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, windows: Tensor) -> Tensor:
        """Logits (N, columns) of RGB windows (N, 3, H, W), uint8 or float in 0-255."""
        logits: Tensor = self.backbone((windows.float() - self.mean) / self.std)
        return logits


def set_strides(backbone: nn.Module, strides: tuple[int, ...]) -> None:
    """Change, in place, where an EfficientNet halves its maps; the weights fit as before.

    The published strides are made for 224 px and leave 2x2 places of a window of 64 px. With smaller ones it is looked
    at as it is, not enlarged, and its detail survives.

    Args:
        backbone: an EfficientNet, or another network that timm builds in its shape (``conv_stem`` and ``blocks``).
        strides: 1 or 2, of the stem and of each stage.

    Raises:
        UsageError: another kind of network, or another number of stages.
    """
    stages: list[nn.Sequential] = list(getattr(backbone, "blocks", []))
    stem = getattr(backbone, "conv_stem", None)
    if not stages or not isinstance(stem, nn.Conv2d):
        raise UsageError(f"strides can be set of EfficientNets only, not of {type(backbone).__name__}.")
    convolutions = [stem, *(_strided(stage[0]) for stage in stages)]
    if len(strides) != len(convolutions) or not set(strides) <= {1, 2}:
        given = ",".join(map(str, strides))
        raise UsageError(f"strides {given}: expected {len(convolutions)} of 1 or 2, for the stem and each stage.")
    for convolution, stride in zip(convolutions, strides, strict=True):
        convolution.stride = (stride, stride)


def _strided(block: nn.Module) -> nn.Conv2d:
    """The convolution by which a stage's first block halves its maps, or would."""
    wide = [m for m in block.modules() if isinstance(m, nn.Conv2d) and m.kernel_size[0] > 1]
    return next((m for m in wide if m.stride[0] > 1), wide[0])


def enlarge(crops: Tensor, size_px: int = SIZE_PX) -> Tensor:
    """RGB crops (N, 3, h, w), uint8 or float in 0-255, as float32 (N, 3, size_px, size_px), bilinearly."""
    height, width = crops.shape[2:]
    if height == width == size_px:
        return crops.float()
    rows, columns = (_interpolation(int(side), size_px).to(crops.device) for side in (height, width))
    # Whole numbers round 0 lose nothing in bfloat16.
    return rows @ (crops.float() - 128) @ columns.T + 128


def _interpolation(size_px: int, wanted_px: int) -> Tensor:
    """The weights (wanted_px, size_px) of linear interpolation between pixel centres.

    Multiplied with them an image is enlarged in a fifth of the time that OpenVINO's own interpolation takes.
    """
    # Through numpy, so that a trace of the network holds the numbers and not how they came about.
    weights = F.interpolate(torch.eye(size_px)[None], wanted_px, mode="linear", align_corners=False)[0].T
    return torch.from_numpy(weights.numpy().copy())


class Enlarged(nn.Module):
    """A network behind the enlargement of its windows."""

    def __init__(self, model: JointClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, crops: Tensor) -> Tensor:
        """(N, 3, S, S) to (N, columns)."""
        logits: Tensor = self.model(enlarge(crops, self.model.size_px))
        return logits


def build(header: ModelHeader) -> JointClassifier:
    """The network that a model file's header describes, in evaluation mode, its weights not yet set.

    Raises:
        ModelError: the header is not a classifier's, or names a backbone that timm does not know.
    """
    check_kind(header)
    try:
        backbone, size_px = str(header.architecture["backbone"]), int(header.architecture["size_px"])
        columns = len(LabelSpace.from_dict(header.outputs))
        if not WINDOW_PX // 2 <= size_px <= LARGEST_PX:
            raise ValueError(f"an input of {size_px} pixels")
        check_name(backbone)
        strides = tuple(map(int, header.architecture.get("strides", ())))
        model = JointClassifier(columns, backbone, size_px, header.mean, header.std, strides=strides)
    except Exception as error:  # whatever a header that anybody wrote leads timm and torch to raise
        raise ModelError(f"model '{header.name}' cannot be built ({error}); it may need a newer timm.") from error
    return model.eval()


def load_classifier(path: Path) -> tuple[JointClassifier, ModelHeader, LabelSpace]:
    """A classifier from its model file, on the CPU, in evaluation mode.

    Raises:
        ModelError: no such file, not a classifier, or weights that do not fit its header.
    """
    header, tensors = load_model(path)
    try:
        check_size(lambda: build(header), tensors)
        model = build(header)
        model.load_state_dict(tensors)
    except (RuntimeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise ModelError(f"{path}: its weights do not fit its header ({first}).") from error
    # Convolutions of few channels run fastest with the channels last.
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model, header, LabelSpace.from_dict(header.outputs)
