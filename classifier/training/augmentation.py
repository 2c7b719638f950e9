"""Augmentation of patches on torch batches: stain, light and focus, then one resampling for all the geometry."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from classifier.patches import CONTEXT_W
from classifier.spec import CONTEXT_PX, PATCH_PX
from nucpipe.training.augmentation import (
    draw_stain_change,
    jitter_focus,
    jitter_stain,
    optical_density,
    rgb_of_density,
)

MAX_SIGMA_PX = 1.2
SCALE = 1.25
SHIFT_PX = 2.0
"""Found centroids differ from annotated ones by about so much."""
STAIN_STRENGTH, STAIN_VECTORS = 1.25, 0.15
"""Range of the change of colour for two views, see ``draw_stain_change``."""
TILE_PX = 64
"""Side of the tile, in pixels of the context, to which contexts are cut at random: that of PanNuke's images."""
CUT_SHARE = 0.5
"""Share of the whole contexts that are cut to a tile."""
SMALLEST_DEVIATION, LARGEST_RATIO = 0.02, 2.0
"""Of optical densities, and of two images' deviations: empty glass gets no structure from its noise."""
UNKNOWN = 127.5
"""Colour where a context is not known: nothing, once normalised."""
RINGS = 40
"""Rings of spatial frequencies to a cycle a pixel."""
COARSE, FINE = 0.08, 0.14
"""Cycles a pixel: up to the first sharpness says nothing (waves of 3 um), from the second on it is exchanged."""
LARGEST_GAIN = 3.0
"""Of a frequency, by another's sharpness: noise is no structure."""


class Views(NamedTuple):
    """What a network is shown of N nuclei.

    Attributes:
        patches: (N, 3, S, S) float32, RGB 0-255.
        contexts: (N, 4, 64, 64) float32, RGB, and 255 where it is known; None for a network of patches alone.
    """

    patches: Tensor
    contexts: Tensor | None = None


def resample(patches: Tensor, theta: Tensor, size_px: int) -> Tensor:
    """Return one affine resampling, reflected at the edge: patches (N, 3, S, S) float, theta (N, 2, 3) for
    ``affine_grid``.
    """
    grid = F.affine_grid(theta, [len(patches), 3, size_px, size_px], align_corners=False)
    return F.grid_sample(patches, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def random_affine(n: int, source_px: int, patch_px: int, generator: Generator) -> Tensor:
    """Random turns, mirrorings, scales and shifts of a centred patch, as (N, 2, 3) for :func:`resample`."""

    def uniform(*shape: int) -> Tensor:
        return 2 * torch.rand(shape, generator=generator) - 1

    angle = math.pi * uniform(n)
    extent = patch_px / source_px * torch.exp(math.log(SCALE) * uniform(n))
    mirror = 1 - 2 * torch.randint(0, 2, (n,), generator=generator)
    shift = SHIFT_PX * 2 / source_px * uniform(n, 2)
    cos, sin = extent * torch.cos(angle), extent * torch.sin(angle)
    across = torch.stack([cos * mirror, -sin, shift[:, 0]], 1)
    down = torch.stack([sin * mirror, cos, shift[:, 1]], 1)
    return torch.stack([across, down], 1)


def augment(patches: Tensor, patch_px: int, size_px: int, generator: Generator) -> tuple[Views, Views]:
    """Training input from stored patches.

    Args:
        patches: (N, 3, S, S) uint8 RGB, the nucleus in the middle.
        patch_px: the side of the part that the network sees, in pixels of ``patches``; S is larger, so that a turned
            part still lies in real pixels.
        size_px: the side of the result.
        generator: on the CPU; the same state gives the same result.

    Returns:
        Patches of ``size_px``, on the device of ``patches``: for the pupil, and the same ones moved likewise but with
        stain and focus as they are, for its teachers.
    """
    pixels = jitter_focus(jitter_stain(patches.float(), generator), generator, MAX_SIGMA_PX)
    theta = random_affine(len(patches), patches.shape[-1], patch_px, generator).to(patches.device)
    return Views(resample(pixels, theta, size_px)), Views(resample(patches.float(), theta, size_px))


def augment_views(
    patches: Tensor,
    contexts: Tensor,
    context_dropout: float,
    colour_exchange: Tensor,
    sharpness_exchange: Tensor,
    generator: Generator,
) -> tuple[Views, Views]:
    """Training input of a classifier of two views, both turned, mirrored, scaled, moved and recoloured alike.

    PanNuke's images are 64 um wide, so that all its contexts lack a part; half of those of larger images are cut to
    such a tile, so that this says nothing of the library.

    Args:
        patches: (N, 3, S, S) uint8 RGB at 0.25 um, the nucleus in the middle.
        contexts: (N, 4, C, C) uint8 at 1 um, see ``classifier.patches.cut_contexts``, likewise.
        context_dropout: share of the samples that get no context.
        colour_exchange: (N,) on the CPU, how likely each gets the colours of another, see :func:`exchange_colours`.
        sharpness_exchange: likewise, see :func:`exchange_sharpness`.
        generator: on the CPU; the same state gives the same result.

    Returns:
        What the pupil is shown, patches of 64 px and contexts, which are the middle grey where they are not known; and
        the same moved likewise, with stain and focus as they are, for its teachers.
    """
    n, device = len(patches), patches.device
    theta = random_affine(n, patches.shape[-1], PATCH_PX, generator).to(device)
    turned = resample(patches.float(), theta, PATCH_PX)
    # The same movement, in a context's pixels.
    scale = torch.tensor([1.0, 1.0, patches.shape[-1] / contexts.shape[-1] / CONTEXT_W], device=device)
    extent = CONTEXT_PX / contexts.shape[-1] / (PATCH_PX / patches.shape[-1])
    theta = theta * scale * torch.tensor([extent, extent, 1.0], device=device)
    there = contexts[:, 3:] == 255
    there &= _tiles(there.all((1, 2, 3)).cpu(), contexts.shape[-1], generator).to(device)
    grid = F.affine_grid(theta, [n, 4, CONTEXT_PX, CONTEXT_PX], align_corners=False)
    source = torch.cat([contexts[:, :3].float(), 255.0 * there], 1)
    context = F.grid_sample(source, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    kept = (torch.rand(n, 1, 1, 1, generator=generator) >= context_dropout).to(device)
    there = context[:, 3:] > 254.9
    known = there & kept
    around = context[:, :3]
    plain = Views(turned, torch.cat([torch.where(known, around, UNKNOWN), 255.0 * known], 1))
    if sharpness_exchange.any():
        turned = exchange_sharpness(turned, sharpness_exchange, generator)
    if colour_exchange.any():
        turned, around = exchange_colours(turned, around, there, colour_exchange, generator)
    change = draw_stain_change(n, generator, STAIN_STRENGTH, STAIN_VECTORS)
    colour = torch.where(known, change(around, turned), UNKNOWN)
    shown = Views(jitter_focus(change(turned), generator, MAX_SIGMA_PX), torch.cat([colour, 255.0 * known], 1))
    return shown, plain


def exchange_colours(
    patches: Tensor, contexts: Tensor, there: Tensor, chances: Tensor, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Give some of the samples the colours of another sample of the batch, both views alike.

    Mean and standard deviation of red's, green's and blue's optical density become those of the other one (after
    Reinhard et al. 2001, "Color transfer between images"). So a library's labels are not told by its laboratory's stain
    and scanner.

    Args:
        patches: (N, 3, S, S) float, RGB 0-255.
        contexts: (N, 3, C, C) float, likewise.
        there: (N, 1, C, C) bool, where a context is known. Colours are measured on it, or on the patch where less than
            a fifth of it is known.
        chances: (N,) on the CPU, how likely each sample is one of them, 0-1.
        generator: on the CPU; the same state gives the same result.

    Returns:
        Patches and contexts, 0-255.
    """
    n, device = len(patches), patches.device
    enough = there.float().mean((1, 2, 3), keepdim=True) > 0.2
    measured = zip(
        _density_moments(contexts, there), _density_moments(patches, torch.ones_like(patches[:, :1])), strict=True
    )
    mean, deviation = (torch.where(enough, around, near) for around, near in measured)
    other = torch.randperm(n, generator=generator).to(device)
    taken = (torch.rand(n, 1, 1, 1, generator=generator) < chances[:, None, None, None]).to(device)
    ratio = (deviation[other] / deviation).clamp(1 / LARGEST_RATIO, LARGEST_RATIO)

    def exchanged(rgb: Tensor) -> Tensor:
        density = (optical_density(rgb) - mean) * ratio + mean[other]
        return torch.where(taken, rgb_of_density(density).clamp(0, 255), rgb)

    return exchanged(patches), exchanged(contexts)


def exchange_sharpness(patches: Tensor, chances: Tensor, generator: Generator) -> Tensor:
    """Give some of the patches the sharpness of another one of the batch.

    How strong the fine spatial frequencies of the optical densities are beside the coarse ones becomes that of the
    other one, ring by ring; phases stay (after Yang and Soatto 2020, "FDA: Fourier domain adaptation", who exchange the
    coarse ones). So a library's labels are not told by its scanner's sharpness.

    Args:
        patches: (N, 3, S, S) float, RGB 0-255.
        chances: (N,) on the CPU, how likely each patch is one of them, 0-1.
        generator: on the CPU.

    Returns:
        Patches, 0-255.
    """
    n, side = len(patches), patches.shape[-1]
    other = torch.randperm(n, generator=generator).to(patches.device)
    taken = (torch.rand(n, generator=generator) < chances).to(patches.device)
    ring, mean = (tensor.to(patches.device) for tensor in _rings(side))
    waves = torch.fft.rfft2(optical_density(patches))
    strength = waves.abs().mean(1).flatten(1) @ mean + 1e-3
    frequency = torch.arange(strength.shape[1], device=patches.device) / RINGS
    gain = strength[other] / strength
    coarse = (frequency > 1 / RINGS) & (frequency <= COARSE + 0.5 / RINGS)
    gain = gain / gain[:, coarse].mean(1, keepdim=True)
    fine = ((frequency - COARSE) / (FINE - COARSE)).clamp(0, 1)
    gain = gain.clamp(1 / LARGEST_GAIN, LARGEST_GAIN) ** fine
    changed = torch.fft.irfft2(waves * gain[:, ring][:, None], s=(side, side))
    return torch.where(taken[:, None, None, None], rgb_of_density(changed).clamp(0, 255), patches)


@cache
def _rings(side_px: int) -> tuple[Tensor, Tensor]:
    """Return the ring (S, S // 2 + 1) of each frequency of ``rfft2``, and what takes its mean (frequencies, rings)."""
    across, down = torch.fft.rfftfreq(side_px), torch.fft.fftfreq(side_px)
    ring = (RINGS * (down[:, None] ** 2 + across**2).sqrt()).round().long().clamp(max=RINGS // 2)
    members = F.one_hot(ring.flatten(), RINGS // 2 + 1).float()
    return ring, members / members.sum(0)


def _density_moments(rgb: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (N, 3, 1, 1) of the optical densities where ``there`` (N, 1, H, W)."""
    density, weight = optical_density(rgb), there.float()
    count = weight.sum((2, 3), keepdim=True).clamp(min=1)
    mean = (density * weight).sum((2, 3), keepdim=True) / count
    variance = ((density - mean).square() * weight).sum((2, 3), keepdim=True) / count
    return mean, variance.sqrt().clamp(min=SMALLEST_DEVIATION)


def _tiles(whole: Tensor, side_px: int, generator: Generator) -> Tensor:
    """Masks (N, 1, S, S) of random tiles with the nucleus in them, for a share of those that are ``whole`` (N,)."""
    start = side_px / 2 - TILE_PX * torch.rand(len(whole), 2, 1, generator=generator)
    at = torch.arange(side_px) + 0.5
    inside = (at >= start) & (at < start + TILE_PX)
    cut = whole & (torch.rand(len(whole), generator=generator) < CUT_SHARE)
    return (inside[:, 1, :, None] & inside[:, 0, None, :] | ~cut[:, None, None])[:, None]
