"""Changes of colour and focus that H&E slides really show, applied to batches on the training device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F

from nucpipe.stains import stain_matrix


@cache
def _stain_matrices() -> tuple[torch.Tensor, torch.Tensor]:
    stains = torch.from_numpy(stain_matrix()).float()
    return stains, torch.linalg.inv(stains)


def _uniform(n: int, channels: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return torch.empty(n, channels, 1, 1).uniform_(low, high, generator=generator)


def optical_density(rgb: torch.Tensor) -> torch.Tensor:
    """Return the natural optical density of RGB 0-255; 0 is white."""
    return -torch.log((rgb.clamp(0, 255) + 1) / 256)


def rgb_of_density(density: torch.Tensor) -> torch.Tensor:
    """Return what :func:`optical_density` was made of; not clamped."""
    return 256 * torch.exp(-density) - 1


@dataclass(frozen=True)
class StainChange:
    """A change of colour for each of N images; several views of one specimen are changed alike.

    Attributes:
        to_density: (N, 3, 3), from optical densities of red, green and blue to those after the change, one row each.
        offset: (N, 3, 1), added to the densities.
        contrast: (N, 1, 1, 1), a factor on the distance from the mean colour.
        brightness: (N, 1, 1, 1), added to RGB 0-255.
    """

    to_density: torch.Tensor
    offset: torch.Tensor
    contrast: torch.Tensor
    brightness: torch.Tensor

    def __call__(self, batch: torch.Tensor, pivot: torch.Tensor | None = None) -> torch.Tensor:
        """Return the changed images.

        Args:
            batch: (N, 3, H, W) float, RGB 0-255.
            pivot: images of the same N specimens whose mean colour, after the change of stain, keeps its contrast;
                None for ``batch`` itself.

        Returns:
            (N, 3, H, W) float, 0-255.
        """
        rgb = self._stained(batch)
        mean = (rgb if pivot is None else self._stained(pivot)).mean(dim=(2, 3), keepdim=True)
        device = batch.device
        return ((rgb - mean) * self.contrast.to(device) + mean + self.brightness.to(device)).clamp(0, 255)

    def _stained(self, batch: torch.Tensor) -> torch.Tensor:
        density = optical_density(batch).flatten(2)
        changed = torch.baddbmm(self.offset.to(batch.device), self.to_density.to(batch.device), density)
        return rgb_of_density(changed).reshape(batch.shape)


def draw_stain_change(
    n: int, generator: torch.Generator, strength: float = 1.0, stain_vectors: float = 0.0
) -> StainChange:
    """Random changes of amount and offset of each stain, then of brightness and contrast.

    Stains are separated by optical density (Tellez et al. 2018, "H&E stain augmentation").

    Args:
        n: how many images.
        generator: a CPU generator; the same seed gives the same change on every device.
        strength: 0 changes nothing, 1 is the usual range.
        stain_vectors: by which share at most each stain's density of a colour is changed, which turns its hue; 0: not.
    """
    to_rgb, to_stains = _stain_matrices()
    amount = 1 + strength * _uniform(n, 3, -0.3, 0.3, generator)[..., 0]
    offset = strength * _uniform(n, 3, -0.06, 0.06, generator)[..., 0]
    contrast = 1 + strength * _uniform(n, 1, -0.15, 0.15, generator)
    brightness = 255 * strength * _uniform(n, 1, -0.06, 0.06, generator)
    changed = to_rgb.expand(n, 3, 3)
    if stain_vectors:
        changed = changed * (1 + stain_vectors * _uniform(n, 9, -1.0, 1.0, generator).reshape(n, 3, 3))
        changed = changed / changed.norm(dim=2, keepdim=True)
    from_stains = changed.transpose(1, 2)
    return StainChange(from_stains @ (amount * to_stains.T), from_stains @ offset, contrast, brightness)


def jitter_stain(batch: torch.Tensor, generator: torch.Generator, strength: float = 1.0) -> torch.Tensor:
    """Change the stain of each image by itself, see :func:`draw_stain_change`: (N, 3, H, W) float, RGB 0-255."""
    return draw_stain_change(len(batch), generator, strength)(batch)


def jitter_focus(batch: torch.Tensor, generator: torch.Generator, max_sigma_px: float, p: float = 0.3) -> torch.Tensor:
    """Blur a share ``p`` of the images by a Gaussian of up to ``max_sigma_px``, and add sensor noise to another share.

    Args:
        batch: (N, 3, H, W) float, RGB 0-255.
        generator: a CPU generator; the same seed gives the same change on every device.
        max_sigma_px: of the Gaussian.
        p: the share.

    Returns:
        (N, 3, H, W) float, 0-255.
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
    changed = flat.reshape(batch.shape)
    noisy = torch.nonzero(torch.rand(n, generator=generator) < p)[:, 0]
    noise = torch.randn((len(noisy), *batch.shape[1:]), generator=generator)
    noise *= _uniform(len(noisy), 1, 0.0, 6.0, generator)
    return changed.index_add(0, noisy.to(device), noise.to(device, batch.dtype)).clamp(0, 255)
