"""The joint classifier: a timm backbone with one group of outputs per library, and its way from pixels to labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from classifier.labels.libraries import LabelSpace
from classifier.out_of_distribution import PREFIX as OOD_PREFIX
from classifier.spec import PATCH_PX, TWO_VIEWS, check_kind, stored_features
from nucpipe.backends.model_file import ModelHeader, load_model
from nucpipe.backends.network_checks import check_name, check_size
from nucpipe.errors import ModelError, UsageError

BACKBONE = "tf_efficientnet_lite0"
SIZE_PX, LARGEST_PX = 224, 1024
"""Side of the patch after it is enlarged, the network's input."""
MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)
"""Normalisation of RGB in 0-1 that the ImageNet weights of EfficientNet-Lite expect."""

PATCH_STRIDES = (1, 2, 2, 1, 2, 2, 1)
"""Strides of EfficientNet-Lite0's stages behind the 32x32 places of a :class:`PatchStem`."""
STEM_PX = 7
"""Side of the squares that the first layer takes the enlarged patch in."""


class JointClassifier(nn.Module):
    """Logits of every label of every library from an RGB patch; carries its own normalisation.

    Attributes:
        size_px: the side of the input that the network was last trained on.
        columns: the number of outputs.
        strides: of an EfficientNet's stem and of each of its stages where they are not the published ones (see
            :func:`set_strides`); else empty.
        projection: from pooled features to the few that a run stores; None where the model has none.
    """

    mean: Tensor
    std: Tensor
    projection: nn.Linear | None

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
        self.projection = None
        self.strides = strides
        self.backbone = timm.create_model(backbone, pretrained=False, num_classes=columns, drop_rate=dropout)
        if strides:
            set_strides(self.backbone, strides)
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, patches: Tensor) -> Tensor:
        """Logits (N, columns) of RGB patches (N, 3, H, W), uint8 or float in 0-255."""
        logits: Tensor = self.backbone((patches.float() - self.mean) / self.std)
        return logits

    def pooled(self, patches: Tensor) -> Tensor:
        """Features (N, F) that the last layer makes logits of."""
        backbone: Any = self.backbone
        maps = backbone.forward_features((patches.float() - self.mean) / self.std)
        features: Tensor = backbone.forward_head(maps, pre_logits=True)
        return features

    def last_layer(self) -> nn.Linear:
        """Return what makes logits of pooled features."""
        return self.backbone.get_classifier()  # type: ignore[operator, no-any-return]


def set_strides(backbone: nn.Module, strides: tuple[int, ...]) -> None:
    """Change, in place, where an EfficientNet halves its maps; the weights fit as before.

    The published strides are made for 224 px and leave 2x2 places of a patch of 64 px. With smaller ones it is looked
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
    """Return the convolution by which a stage's first block halves its maps, or would."""
    wide = [m for m in block.modules() if isinstance(m, nn.Conv2d) and m.kernel_size[0] > 1]
    return next((m for m in wide if m.stride[0] > 1), wide[0])


def enlarge(crops: Tensor, size_px: int = SIZE_PX) -> Tensor:
    """Return RGB crops (N, 3, h, w), uint8 or float in 0-255, as float32 (N, 3, size_px, size_px), bilinearly."""
    height, width = crops.shape[2:]
    if height == width == size_px:
        return crops.float()
    rows, columns = (_interpolation(int(side), size_px).to(crops.device) for side in (height, width))
    # Whole numbers round 0 lose nothing in bfloat16.
    return rows @ (crops.float() - 128) @ columns.T + 128


def _interpolation(size_px: int, wanted_px: int) -> Tensor:
    """Return the weights (wanted_px, size_px) of linear interpolation between pixel centres.

    Multiplied with them an image is enlarged in a fifth of the time that OpenVINO's own interpolation takes.
    """
    # Through numpy, so that a trace of the network holds the numbers and not how they came about.
    weights = F.interpolate(torch.eye(size_px)[None], wanted_px, mode="linear", align_corners=False)[0].T
    return torch.from_numpy(weights.numpy().copy())


class PatchStem(nn.Module):
    """An enlargement and a convolution whose stride is its side, computed as one layer.

    Attributes:
        weight: (channels out, channels in, side, side) of the convolution.
        size_px: side of the enlarged image.
    """

    def __init__(self, channels_in: int, channels_out: int, side_px: int = STEM_PX, size_px: int = SIZE_PX) -> None:
        super().__init__()
        self.size_px = size_px
        self.weight = nn.Parameter(torch.empty(channels_out, channels_in, side_px, side_px))
        nn.init.kaiming_normal_(self.weight, mode="fan_out")

    def forward(self, patches: Tensor) -> Tensor:
        """Return (N, C, S, S) to (N, channels out, P, P), where P is the number of squares along a side."""
        side = int(self.weight.shape[-1])
        stride, rest = divmod(int(patches.shape[-1]) * side, self.size_px)
        if rest:
            return F.conv2d(enlarge(patches, self.size_px), self.weight, stride=side)
        return F.conv2d(F.pad(patches, (1, 1, 1, 1), mode="replicate"), self.kernel(stride), stride=stride)

    def kernel(self, stride: int) -> Tensor:
        """Return the layer as it is for patches of which a square covers ``stride`` px: (out, in, stride + 2, stride +
        2).
        """
        weights = square_interpolation(stride, self.weight.shape[-1], self.weight.device).to(self.weight)
        # Products and sums, and no matrix product, whose last bit depends on where its operands lie in memory.
        rows = (self.weight[..., :, None, :] * weights[:, :, None]).sum(2)
        kernel = (rows[..., None] * weights).sum(3)
        # Through numpy, so that a trace of the network holds the numbers and not how they came about.
        tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        return torch.from_numpy(kernel.detach().cpu().numpy()).to(kernel) if tracing else kernel

    @torch.no_grad()
    def start_from(self, stem: Tensor) -> None:
        """Begin as a convolution of 3x3 and stride 1 on the patch as it is, in the mean over each square of 2x2 px.

        Args:
            stem: (out, in, 3, 3), its weights.
        """
        mean = F.conv_transpose2d(stem.flatten(0, 1)[:, None], torch.full((1, 1, 2, 2), 0.25))
        mean = mean.reshape(*stem.shape[:2], *mean.shape[2:])
        back = torch.linalg.pinv(square_interpolation(2, self.weight.shape[-1], self.weight.device).double()).T
        self.weight.copy_(torch.einsum("oipq,ap,bq->oiab", mean.double(), back, back))


def square_interpolation(stride: int, side_px: int, device: torch.device) -> Tensor:
    """Linear interpolation within a square: (side_px, stride + 2) weights of its px and of one px on each side.

    Args:
        stride: px of the image that the square covers.
        side_px: px of the enlarged image that it covers.
        device: of the weights.
    """
    at = (torch.arange(side_px, device=device) + 0.5) * stride / side_px + 0.5
    return (1 - (at[:, None] - torch.arange(stride + 2, device=device)).abs()).clamp(min=0)


class TwoViewClassifier(nn.Module):
    """Logits of every label of every library from a patch and its context; carries its own normalisation.

    Args:
        columns: the number of outputs.
        backbone, context_backbone: EfficientNets of timm.
        strides: of the patch's stages, behind the first layer; empty: as published.
        context_strides: of the context's stem and stages; empty: as published.
        size_px: side of the enlarged patch.
        mean, std: of RGB in 0-1.
        dropout: of the joined features.

    Attributes:
        projection: from pooled features to the few that a run stores; None where the model has none.
    """

    mean: Tensor
    std: Tensor
    projection: nn.Linear | None

    def __init__(
        self,
        columns: int,
        backbone: str = BACKBONE,
        context_backbone: str = BACKBONE,
        strides: tuple[int, ...] = (),
        context_strides: tuple[int, ...] = (),
        size_px: int = SIZE_PX,
        mean: tuple[float, float, float] = MEAN,
        std: tuple[float, float, float] = STD,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.columns, self.size_px, self.projection = columns, size_px, None
        patch: Any = timm.create_model(backbone, pretrained=False, num_classes=0)
        if strides:
            set_strides(patch, (1, *strides))
        patch.conv_stem = PatchStem(3, patch.conv_stem.out_channels, size_px=size_px)
        context: Any = timm.create_model(context_backbone, pretrained=False, num_classes=0, in_chans=4)
        if context_strides:
            set_strides(context, context_strides)
        self.patch, self.context = patch, context
        self.no_context = nn.Parameter(torch.zeros(context.num_features))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(patch.num_features + context.num_features, columns)
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, patches: Tensor, contexts: Tensor) -> Tensor:
        """Logits (N, columns).

        Args:
            patches: (N, 3, S, S) RGB, uint8 or float in 0-255.
            contexts: (N, 4, C, C) likewise, with a fourth channel of how far a pixel is there, 0-255; none is for a
                nucleus whose context is not known.
        """
        logits: Tensor = self.head(self.dropout(self.pooled(patches, contexts)))
        return logits

    def pooled(self, patches: Tensor, contexts: Tensor) -> Tensor:
        """Features (N, F) of both views, that the last layer makes logits of."""
        patch = self.patch((patches.float() - self.mean) / self.std)
        there = contexts[:, 3:].float() / 255
        colour = (contexts[:, :3].float() - self.mean) / self.std * (there > 0)
        known = there.amax((2, 3))
        context = known * self.context(torch.cat([colour, there], 1)) + (1 - known) * self.no_context
        return torch.cat([patch, context], 1)

    def last_layer(self) -> nn.Linear:
        """Return what makes logits of pooled features."""
        return self.head


Classifier = JointClassifier | TwoViewClassifier


class Enlarged(nn.Module):
    """A network behind the enlargement of its patches."""

    def __init__(self, model: nn.Module, size_px: int) -> None:
        super().__init__()
        self.model, self.size_px = model, size_px

    def forward(self, crops: Tensor) -> Tensor:
        """Return (N, 3, S, S) to (N, columns)."""
        logits: Tensor = self.model(enlarge(crops, self.size_px))
        return logits


class Pooled(nn.Module):
    """A classifier's pooled features in its logits' place."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, *views: Tensor) -> Tensor:
        """Return (N, F)."""
        return self.model.pooled(*views)


class WithFeatures(nn.Module):
    """A classifier's logits and, behind them, the projection of its pooled features."""

    def __init__(self, model: Classifier, projection: nn.Linear) -> None:
        super().__init__()
        self.model, self.projection = model, projection

    def forward(self, *views: Tensor) -> Tensor:
        """Return (N, columns + features)."""
        pooled = self.model.pooled(*views)
        return torch.cat([self.model.last_layer()(pooled), self.projection(pooled)], 1)


Gives = Literal["logits", "pooled", "logits and features"]


def of_patches(model: Classifier, gives: Gives = "logits") -> nn.Module:
    """Return a classifier, in evaluation mode, of patches of any side, and of contexts if it looks at them.

    Args:
        model: the classifier.
        gives: what it gives of a nucleus; there are no features where the model has no projection.
    """
    network: nn.Module = model
    if gives == "pooled":
        network = Pooled(model)
    elif gives == "logits and features" and model.projection is not None:
        network = WithFeatures(model, model.projection)
    return (network if isinstance(model, TwoViewClassifier) else Enlarged(network, model.size_px)).eval()


def build(header: ModelHeader) -> Classifier:
    """Return the network that a model file's header describes, in evaluation mode, its weights not yet set.

    Raises:
        ModelError: the header is not a classifier's, or names a backbone that timm does not know.
    """
    check_kind(header)
    model: Classifier
    try:
        backbone, size_px = str(header.architecture["backbone"]), int(header.architecture["size_px"])
        columns = len(LabelSpace.from_dict(header.outputs))
        if not PATCH_PX // 2 <= size_px <= LARGEST_PX:
            raise ValueError(f"an input of {size_px} pixels")
        check_name(backbone)
        strides = tuple(map(int, header.architecture.get("strides", ())))
        if header.architecture.get("type") == TWO_VIEWS:
            context = header.architecture["context"]
            check_name(str(context["backbone"]))
            context_strides = tuple(map(int, context.get("strides", ())))
            model = TwoViewClassifier(
                columns, backbone, str(context["backbone"]), strides, context_strides, size_px, header.mean, header.std
            )
        else:
            model = JointClassifier(columns, backbone, size_px, header.mean, header.std, strides=strides)
        if features := stored_features(header):
            model.projection = nn.Linear(model.last_layer().in_features, features)
    except Exception as error:  # whatever a header that anybody wrote leads timm and torch to raise
        raise ModelError(f"model '{header.name}' cannot be built ({error}); it may need a newer timm.") from error
    return model.eval()


def load_classifier(path: Path) -> tuple[Classifier, ModelHeader, LabelSpace]:
    """Return a classifier from its model file, on the CPU, in evaluation mode.

    Raises:
        ModelError: no such file, not a classifier, or weights that do not fit its header.
    """
    header, tensors = load_model(path)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(OOD_PREFIX)}
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
