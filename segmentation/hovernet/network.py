"""A compact HoVer-Net: light ImageNet encoder, U-Net-shaped decoder, nuclear-pixel and horizontal-vertical branches.

Method: Graham et al. 2019, "HoVer-Net", Medical Image Analysis 58. Two changes make it cheap: the pixels are taken at
0.5 um while the maps come out at 0.25 um (sub-pixel convolution, Shi et al. 2016), and both branches share the deeper
part of one decoder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from nucpipe.backends.model_file import ModelHeader, load_model
from nucpipe.backends.network_checks import check_name, check_size
from nucpipe.errors import ModelError
from segmentation.hovernet.padding import fix_padding
from segmentation.hovernet.spec import MARGIN_PX, check_header

WIDTHS = (80, 48, 32)
"""Channels of the decoder at strides 8, 4 and 2, by default."""


RIMS_PX = (48, 24, 12, 6)
"""Rim beyond the wanted maps, in which the decoder looks at the encoder's features of strides 16 and 8, of 4 and of
2, and a branch at the decoder's: two convolutions a block and each branch's three, rounded up to whole features."""


def _conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class UpBlock(nn.Module):
    """Enlarge twofold, join the encoder's features of that size, two convolutions."""

    def __init__(self, inputs: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.skip = skip
        self.convs = nn.Sequential(_conv(inputs + skip, outputs), _conv(outputs, outputs))

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """Return (N, inputs, H, W) and (N, skip, 2H, 2W) to (N, outputs, 2H, 2W)."""
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.convs(torch.cat([x, skip], dim=1))  # type: ignore[no-any-return]


class Branch(nn.Module):
    """From features at a quarter of the maps' resolution to maps, by two sub-pixel convolutions.

    The last one's four parts are left beside each other: those of both branches are put in place at once.
    """

    def __init__(self, inputs: int, hidden: int, maps: int) -> None:
        super().__init__()
        self.own = _conv(inputs, inputs)
        self.widen = nn.Conv2d(inputs, hidden * 4, 3, padding=1)
        self.maps = nn.Conv2d(hidden + 3, maps * 4, 3, padding=1)

    def forward(self, x: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """Return (N, inputs, H, W) and the normalised image (N, 3, 2H, 2W) to (N, 4 maps, 2H, 2W)."""
        x = F.relu(F.pixel_shuffle(self.widen(self.own(x)), 2))
        return self.maps(torch.cat([x, image], dim=1))  # type: ignore[no-any-return]


class HoVerNet(nn.Module):
    """The network. It carries its own normalisation and is fully convolutional.

    Args:
        encoder: a timm backbone with features at strides 2, 4, 8 and 16.
        widths: channels of the decoder at strides 8, 4 and 2.
        hidden: channels of a branch at stride 1.
        mean, std: normalisation of RGB in 0-1.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        encoder: str = "tf_efficientnet_lite0",
        widths: tuple[int, int, int] = WIDTHS,
        hidden: int = 12,
        mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        std: tuple[float, float, float] = (0.5, 0.5, 0.5),
    ) -> None:
        import timm

        super().__init__()
        check_name(encoder)
        self.widths, self.hidden = widths, hidden
        self.encoder = timm.create_model(encoder, features_only=True, out_indices=(0, 1, 2, 3), pretrained=False)
        features: Any = self.encoder.feature_info
        c2, c4, c8, c16 = features.channels()
        # timm keeps the blocks behind the last feature that is asked for and computes them in vain.
        last_block = features.module_name()[-1].removeprefix("blocks.")
        if last_block.isdigit() and isinstance(blocks := self.encoder.blocks, nn.Sequential):
            del blocks[int(last_block) + 1 :]
        self.up8 = UpBlock(c16, c8, widths[0])
        self.up4 = UpBlock(widths[0], c4, widths[1])
        self.up2 = UpBlock(widths[1], c2, widths[2])
        self.np_branch = Branch(widths[2], hidden, 1)
        self.hv_branch = Branch(widths[2], hidden, 2)
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: torch.Tensor, margin_px: int = 0) -> torch.Tensor:
        """Return the maps of a batch.

        Only the encoder looks at all of the margin; each layer of the decoder leaves out what no map depends on.

        Args:
            pixels: (N, 3, H + 2 M, W + 2 M) RGB 0-255 at 0.5 um, uint8 or float; all sides multiples of 16.
            margin_px: M, the rim whose maps are not wanted: 0, or a multiple of 16 from 48 on.

        Returns:
            (N, 3, 2H, 2W) at 0.25 um: the logit of the nuclear-pixel map, then the horizontal and the vertical map
            (-1 at a nucleus' left / upper end, +1 at its right / lower end).
        """
        deep, four, two, branch = (min(rim, margin_px) for rim in RIMS_PX)
        image = (pixels.to(self.mean.dtype) - self.mean) / self.std
        f2, f4, f8, f16 = self.encoder(image)
        x = self.up8(_trim(f16, 16, margin_px, deep), _trim(f8, 8, margin_px, deep))
        x = self.up4(_trim(x, 8, deep, four), _trim(f4, 4, margin_px, four))
        x = self.up2(_trim(x, 4, four, two), _trim(f2, 2, margin_px, two))
        x, image = _trim(x, 2, two, branch), _trim(image, 1, margin_px, branch)
        parts = torch.cat([self.np_branch(x, image), self.hv_branch(x, image)], dim=1)
        return F.pixel_shuffle(_trim(parts, 1, branch, 0), 2)


def _trim(x: torch.Tensor, stride: int, rim_px: int, wanted_px: int) -> torch.Tensor:
    """Crop features of a stride to ``wanted_px`` of a rim of ``rim_px``, in input pixels."""
    cut = (rim_px - wanted_px) // stride
    return x[..., cut:-cut, cut:-cut] if cut else x


class WithoutMargin(nn.Module):
    """The network's maps without those of the margin, which depend on where the read box ends. Changes the network."""

    def __init__(self, model: HoVerNet) -> None:
        super().__init__()
        self.model = model
        fix_padding(model.encoder)  # all sides are multiples of 16, the encoder's largest stride

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return (N, 3, H + 2 M, W + 2 M) to (N, 3, 2H, 2W)."""
        maps: torch.Tensor = self.model(pixels, MARGIN_PX)
        return maps


def build(architecture: dict[str, Any], mean: tuple[float, float, float], std: tuple[float, float, float]) -> HoVerNet:
    """Return the network that a model file's header describes, without weights."""
    eight, four, two = architecture["widths"]
    return HoVerNet(architecture["encoder"], (eight, four, two), architecture["hidden"], mean, std)


def read_hovernet(path: Path) -> tuple[HoVerNet, ModelHeader]:
    """Return the compact HoVer-Net in a model file of nucpipe, with its weights, and the file's header.

    Raises:
        ModelError: no such file, or no segmentor of a kind that this version knows.
    """
    check_header(path)
    header, tensors = load_model(path)
    try:
        check_size(lambda: build(header.architecture, header.mean, header.std), tensors)
        model = build(header.architecture, header.mean, header.std)
        model.load_state_dict(tensors)
    except Exception as error:  # whatever a header that anybody wrote leads timm and torch to raise
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{path}: its weights do not fit its header ({first}).") from error
    return model, header


def widen(small: HoVerNet, large: HoVerNet) -> None:
    """Give a network the weights of one with narrower decoder layers, so that it computes the same maps.

    The further channels start at random, and what was there before does not listen to them yet (Chen et al. 2016,
    "Net2Net").

    Args:
        small: the network whose weights are taken; of the same encoder and ``hidden``.
        large: is given them; none of its decoder's layers is narrower.

    Raises:
        ValueError: a layer is narrower.
    """
    weights = large.state_dict()
    for name, old in small.state_dict().items():
        new = weights[name]
        if any(n < o for n, o in zip(new.shape, old.shape, strict=True)):
            raise ValueError(f"{name}: {tuple(old.shape)} does not fit into {tuple(new.shape)}")
        outputs = slice(old.shape[0]) if old.ndim else ...
        if old.ndim == 4:
            # A layer's first inputs are the layer's before it, the last ones the encoder's, of which there are as many.
            skip = _skip(small, name)
            inputs = [*range(old.shape[1] - skip), *range(new.shape[1] - skip, new.shape[1])]
            new[outputs] = 0
            new[outputs, inputs] = old
        else:
            new[outputs] = old
    large.load_state_dict(weights)


def _skip(model: HoVerNet, name: str) -> int:
    """Return how many inputs of a layer come from the encoder, past the decoder's layer before it."""
    block = getattr(model, name.split(".")[0])
    return block.skip if isinstance(block, UpBlock) and ".convs.0.0." in name else 0
