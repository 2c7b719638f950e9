"""The classifier's view of each nucleus: the patches of training, run, service and viewer are cut here."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from classifier.spec import MPP, WINDOW_PX

SAME_MPP = 0.05
"""Images within this share of the working pixel size are used on their own grid."""


def patch_corners(centroids: npt.NDArray[np.float64], side_px: int) -> npt.NDArray[np.int64]:
    """Return the upper left pixel of each patch: (N, 2) int64 x and y.

    Pixel ``side_px // 2`` of a patch begins at the pixel corner that is nearest to the centroid.

    Args:
        centroids: (N, 2) x and y; pixel i covers [i, i+1).
        side_px: of the patches, an even number.
    """
    return np.floor(centroids + 0.5).astype(np.int64) - side_px // 2


def patch_box_w(centre_w: npt.NDArray[np.float64], stride: int) -> tuple[int, int, int, int]:
    """Return the patch round a point of a slide as a box x0, y0, x1, y1 of working pixels.

    Args:
        centre_w: (2,) x and y in working pixels.
        stride: working pixels per pixel that is read, 1 or 2; the box is aligned to it.
    """
    side = WINDOW_PX // stride
    x, y = patch_corners(centre_w / stride, side).tolist()
    return x * stride, y * stride, (x + side) * stride, (y + side) * stride


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
    side = WINDOW_PX // stride
    if len(centroids) == 0:
        return np.zeros((0, side, side, 3), np.uint8)
    corners = patch_corners(centroids, side)
    views = np.lib.stride_tricks.sliding_window_view(pixels, (side, side), axis=(0, 1))  # type: ignore[call-overload]
    return np.ascontiguousarray(views[corners[:, 1], corners[:, 0]].transpose(0, 2, 3, 1))


def cut_windows(
    image: npt.NDArray[np.uint8], centroids: npt.NDArray[np.float64], side_px: int
) -> npt.NDArray[np.uint8]:
    """Cut square patches round points of an image, reflected at its edge.

    Args:
        image: (H, W, 3) RGB uint8.
        centroids: (N, 2) x and y in corner-based pixels, inside the image.
        side_px: an even number.

    Returns:
        (N, side_px, side_px, 3) uint8; pixel ``side_px // 2`` begins at the corner nearest to the centroid.
    """
    half = side_px // 2
    padded = cv2.copyMakeBorder(image, half, half, half, half, cv2.BORDER_REFLECT_101)
    corners = patch_corners(centroids, side_px) + half
    windows = [padded[y : y + side_px, x : x + side_px] for x, y in corners]
    return np.stack(windows).astype(np.uint8) if windows else np.zeros((0, side_px, side_px, 3), np.uint8)


def at_working_mpp(
    image: npt.NDArray[np.uint8], centroids: npt.NDArray[np.float64], mpp: float
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
    """Return an image (H, W, 3) and points (N, 2) of it at 0.25 micrometres per pixel, resampled where need be."""
    if abs(mpp / MPP - 1) <= SAME_MPP:
        return image, centroids
    height, width = image.shape[:2]
    size = max(1, round(width * mpp / MPP)), max(1, round(height * mpp / MPP))
    resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if mpp < MPP else cv2.INTER_LINEAR)
    return resized.astype(np.uint8), centroids * (size[0] / width, size[1] / height)
