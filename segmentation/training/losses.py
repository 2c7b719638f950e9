"""HoVer-Net's losses (Graham et al. 2019, equations 1 to 6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def _sobel(size_px: int, device: torch.device) -> torch.Tensor:
    """Return horizontal derivative kernel of the paper's reference: x / (x^2 + y^2)."""
    r = torch.arange(size_px, dtype=torch.float32, device=device) - size_px // 2
    y, x = torch.meshgrid(r, r, indexing="ij")
    return x / (x * x + y * y + 1e-15)


def hv_gradients(hv: torch.Tensor, size_px: int = 5) -> torch.Tensor:
    """Return dH/dx and dV/dy.

    Args:
        hv: (N, 2, H, W), horizontal and vertical maps.
        size_px: side of the Sobel kernel, odd.

    Returns:
        (N, 2, H, W).
    """
    kernel = _sobel(size_px, hv.device)
    kernels = torch.stack([kernel, kernel.T])[:, None]
    return F.conv2d(hv, kernels, padding=size_px // 2, groups=2)


BETWEEN = 3.0
"""Weight of a pixel between two nuclei; that of others is 1."""


def hovernet_loss(
    maps: torch.Tensor, nuclear: torch.Tensor, hv: torch.Tensor, between: torch.Tensor, known: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return the four terms; their weighted sum is trained.

    Pixels between neighbouring nuclei weigh more in the cross-entropy (after Ronneberger et al. 2015, "U-Net") and in
    the gradients, by whose fall nuclei are parted: they are few and decide whether two nuclei are found or one.
    Pixels of which nothing is known count nowhere.

    Args:
        maps: (N, 3, H, W) float32, the network's output.
        nuclear: (N, H, W) float32, 1 inside a nucleus.
        hv: (N, 2, H, W) float32, the true distances.
        between: (N, H, W) float32, 1 where two nuclei are near.
        known: (N, H, W) float32, 1 where it is known whether a pixel is nuclear; 0 in no nucleus.

    Returns:
        ``cross_entropy`` and ``dice`` of the nuclear-pixel branch, ``mse`` and ``gradient_mse`` of the
        horizontal-vertical branch, and their sum as ``total``; each a scalar.
    """
    logit, predicted = maps[:, 0], maps[:, 1:]
    p = torch.sigmoid(logit)
    dice = 1 - (2 * (p * nuclear).sum() + 1) / ((p * known).sum() + nuclear.sum() + 1)
    weight = (1 + (BETWEEN - 1) * between) * known
    inside = (nuclear * weight)[:, None]
    difference = hv_gradients(predicted) - hv_gradients(hv)
    terms = {
        "cross_entropy": F.binary_cross_entropy_with_logits(logit, nuclear, weight, reduction="sum")
        / weight.sum().clamp(min=1),
        "dice": dice,
        "mse": ((predicted - hv).square() * known[:, None]).sum() / (2 * known.sum().clamp(min=1)),
        "gradient_mse": (difference.square() * inside).sum() / (2 * inside.sum() + 1e-6),
    }
    terms["total"] = terms["cross_entropy"] + terms["dice"] + 2 * terms["mse"] + 2 * terms["gradient_mse"]
    return terms
