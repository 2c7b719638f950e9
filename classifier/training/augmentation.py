"""Augmentation of windows on torch batches: stain, light and focus, then one resampling for all the geometry."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from nucpipe.training.augmentation import jitter_focus, jitter_stain

MAX_SIGMA_PX = 1.2
SCALE = 1.25
SHIFT_PX = 2.0
"""Found centroids differ from annotated ones by about so much."""


def resample(windows: Tensor, theta: Tensor, size_px: int) -> Tensor:
    """One affine resampling, reflected at the edge: windows (N, 3, S, S) float, theta (N, 2, 3) for ``affine_grid``."""
    grid = F.affine_grid(theta, [len(windows), 3, size_px, size_px], align_corners=False)
    return F.grid_sample(windows, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def random_affine(n: int, source_px: int, window_px: int, generator: Generator) -> Tensor:
    """Random turns, mirrorings, scales and shifts of a centred window, as (N, 2, 3) for :func:`resample`."""

    def uniform(*shape: int) -> Tensor:
        return 2 * torch.rand(shape, generator=generator) - 1

    angle = math.pi * uniform(n)
    extent = window_px / source_px * torch.exp(math.log(SCALE) * uniform(n))
    mirror = 1 - 2 * torch.randint(0, 2, (n,), generator=generator)
    shift = SHIFT_PX * 2 / source_px * uniform(n, 2)
    cos, sin = extent * torch.cos(angle), extent * torch.sin(angle)
    across = torch.stack([cos * mirror, -sin, shift[:, 0]], 1)
    down = torch.stack([sin * mirror, cos, shift[:, 1]], 1)
    return torch.stack([across, down], 1)


def augment(windows: Tensor, window_px: int, size_px: int, generator: Generator) -> Tensor:
    """Training input from stored windows.

    Args:
        windows: (N, 3, S, S) uint8 RGB, the nucleus in the middle.
        window_px: the side of the part that the network sees, in pixels of ``windows``; S is larger, so that a turned
            part still lies in real pixels.
        size_px: the side of the result.
        generator: on the CPU; the same state gives the same result.

    Returns:
        (N, 3, size_px, size_px) float32 in 0-255, on the device of ``windows``.
    """
    pixels = jitter_focus(jitter_stain(windows.float(), generator), generator, MAX_SIGMA_PX)
    theta = random_affine(len(windows), windows.shape[-1], window_px, generator).to(windows.device)
    return resample(pixels, theta, size_px)
