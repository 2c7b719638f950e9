"""The classifier's view of each nucleus, cut from the pixels that the detector saw."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

CROP_W = 64
"""Side of a crop in working pixels: 16 um."""


def cut_crops(pixels: npt.NDArray[np.uint8], centroids: npt.NDArray[np.float64], stride: int) -> npt.NDArray[np.uint8]:
    """A square of 64x64 working pixels round each centroid.

    Args:
        pixels: (H, W, 3) uint8 RGB of a region's window.
        centroids: (N, 2) x and y in pixels of that window, at least half a crop from its edges (a region's halo is
            wider than that; at the slide's edge the window holds the slide's reflection).
        stride: working pixels per pixel of the window, 1 or 2.

    Returns:
        (N, 64 / stride, 64 / stride, 3) uint8.
    """
    side = CROP_W // stride
    if len(centroids) == 0:
        return np.zeros((0, side, side, 3), np.uint8)
    corners = np.floor(centroids + 0.5).astype(int) - side // 2
    views = np.lib.stride_tricks.sliding_window_view(pixels, (side, side), axis=(0, 1))  # type: ignore[call-overload]
    return np.ascontiguousarray(views[corners[:, 1], corners[:, 0]].transpose(0, 2, 3, 1))
