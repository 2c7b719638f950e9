"""Changes of colour and focus that H&E slides really show, applied to batches on the training device."""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F

# Optical densities of haematoxylin, eosin and the rest, one row each (Ruifrok and Johnston 2001).
_STAINS = ((0.650, 0.704, 0.286), (0.072, 0.990, 0.105), (0.268, 0.570, 0.776))


@cache
def _stain_matrices() -> tuple[torch.Tensor, torch.Tensor]:
    stains = torch.tensor(_STAINS)
    stains = stains / stains.norm(dim=1, keepdim=True)
    return stains, torch.linalg.inv(stains)


def _uniform(n: int, channels: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return torch.empty(n, channels, 1, 1).uniform_(low, high, generator=generator)


def jitter_stain(batch: torch.Tensor, generator: torch.Generator, strength: float = 1.0) -> torch.Tensor:
    """Change amount and offset of each stain, then brightness and contrast, per image.

    Stains are separated by optical density (Tellez et al. 2018, "H&E stain augmentation").

    Args:
        batch: (N, 3, H, W) float, RGB 0-255.
        generator: a CPU generator; the same seed gives the same change on every device.
        strength: 0 changes nothing, 1 is the usual range.

    Returns:
        (N, 3, H, W) float, 0-255.
    """
    n, device = len(batch), batch.device
    to_rgb, to_stains = (m.to(device) for m in _stain_matrices())
    density = -torch.log((batch.clamp(0, 255) + 1) / 256)
    stains = torch.einsum("nchw,cs->nshw", density, to_stains)
    amount = 1 + strength * _uniform(n, 3, -0.3, 0.3, generator)
    offset = strength * _uniform(n, 3, -0.06, 0.06, generator)
    stains = stains * amount.to(device) + offset.to(device)
    rgb = 256 * torch.exp(-torch.einsum("nshw,sc->nchw", stains, to_rgb)) - 1
    contrast = 1 + strength * _uniform(n, 1, -0.15, 0.15, generator)
    brightness = 255 * strength * _uniform(n, 1, -0.06, 0.06, generator)
    mean = rgb.mean(dim=(2, 3), keepdim=True)
    return ((rgb - mean) * contrast.to(device) + mean + brightness.to(device)).clamp(0, 255)


def jitter_focus(batch: torch.Tensor, generator: torch.Generator, max_sigma_px: float, p: float = 0.3) -> torch.Tensor:
    """Blur a share ``p`` of the images by a Gaussian of up to ``max_sigma_px``, and add sensor noise to another share.

    Args and returns are those of :func:`jitter_stain`.
    """
    n, device = len(batch), batch.device
    radius = max(1, math.ceil(2 * max_sigma_px))
    sigma = _uniform(n, 1, 0.2, 1.0, generator).view(n, 1) * max_sigma_px
    x = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-(x**2) / (2 * sigma**2))
    identity = (x == 0).float().expand(n, -1)
    blurred = torch.rand(n, 1, generator=generator) < p
    kernel = torch.where(blurred, kernel / kernel.sum(1, keepdim=True), identity).to(device, batch.dtype)
    kernel = kernel.repeat_interleave(3, 0)
    flat = batch.reshape(1, n * 3, *batch.shape[2:])
    flat = F.conv2d(F.pad(flat, (radius, radius, 0, 0), mode="reflect"), kernel[:, None, None, :], groups=n * 3)
    flat = F.conv2d(F.pad(flat, (0, 0, radius, radius), mode="reflect"), kernel[:, None, :, None], groups=n * 3)
    noisy = (torch.rand(n, 1, 1, 1, generator=generator) < p) * _uniform(n, 1, 0.0, 6.0, generator)
    noise = torch.randn(batch.shape, generator=generator).to(device)
    return (flat.reshape(batch.shape) + noise * noisy.to(device)).clamp(0, 255)
