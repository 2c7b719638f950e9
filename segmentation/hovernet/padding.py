"""TensorFlow's padding ("same") without a look at the sides.

Where sides vary, OpenVINO pads in a step of its own in front of each convolution, with pads that it works out anew;
constant ones become part of the convolution.
"""

from __future__ import annotations

import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn


class FixedPadding(nn.Module):
    """A convolution that pads as "same" does where sides are multiples of its stride."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        missing = [
            max(0, dilation * (size - 1) + 1 - stride)
            for size, stride, dilation in zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)
        ]
        (up, down), (left, right) = ((pixels // 2, pixels - pixels // 2) for pixels in missing)
        self.pads = [left, right, up, down]

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        conv = self.conv
        return F.conv2d(F.pad(x, self.pads), conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)


def fix_padding(network: nn.Module) -> None:
    """Replace, in place, timm's convolutions that look at the sides of a map.

    Args:
        network: each map that such a convolution gets has sides that are multiples of its stride.
    """
    for parent in list(network.modules()):
        for name, conv in parent.named_children():
            if isinstance(conv, Conv2dSame):
                setattr(parent, name, FixedPadding(conv))
