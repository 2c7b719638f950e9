"""The patch cutter of training, run, service and viewer."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from classifier.spec import CONTEXT_PX, MPP, PATCH_PX

SAME_MPP = 0.05
"""Images within this share of the working pixel size are used on their own grid."""
CONTEXT_W = 4
"""Working pixels (of 0.25 um) that a pixel of a context covers."""
CONTEXT_HALF_W = CONTEXT_PX * CONTEXT_W // 2
"""Working pixels that a context reaches to each side of its nucleus."""


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
    side = PATCH_PX // stride
    x, y = patch_corners(centre_w / stride, side).tolist()
    return x * stride, y * stride, (x + side) * stride, (y + side) * stride


def cut_crops(pixels: npt.NDArray[np.uint8], centroids: npt.NDArray[np.float64], stride: int) -> npt.NDArray[np.uint8]:
    """Return a square of 64x64 working pixels round each centroid.

    Args:
        pixels: (H, W, 3) uint8 RGB of a region's read box.
        centroids: (N, 2) x and y in pixels of that read box, at least half a crop from its edges (a region's halo is
            wider than that; at the slide's edge the read box holds the slide's reflection).
        stride: working pixels per pixel of the read box, 1 or 2.

    Returns:
        (N, 64 / stride, 64 / stride, 3) uint8.
    """
    side = PATCH_PX // stride
    if len(centroids) == 0:
        return np.zeros((0, side, side, 3), np.uint8)
    corners = patch_corners(centroids, side)
    views = np.lib.stride_tricks.sliding_window_view(pixels, (side, side), axis=(0, 1))  # type: ignore[call-overload]
    return np.ascontiguousarray(views[corners[:, 1], corners[:, 0]].transpose(0, 2, 3, 1))


def cut_padded_patches(
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
    padded = reflected(image, half)
    corners = patch_corners(centroids, side_px) + half
    patches = [padded[y : y + side_px, x : x + side_px] for x, y in corners]
    return np.stack(patches).astype(np.uint8) if patches else np.zeros((0, side_px, side_px, 3), np.uint8)


def reflected(image: npt.NDArray[np.uint8], edge_px: int) -> npt.NDArray[np.uint8]:
    """Return an image (H, W, 3) with its reflection round it."""
    padded = cv2.copyMakeBorder(image, edge_px, edge_px, edge_px, edge_px, cv2.BORDER_REFLECT_101)
    return padded.astype(np.uint8, copy=False)


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


def cut_contexts(
    pixels: npt.NDArray[np.uint8],
    centroids: npt.NDArray[np.float64],
    inside: tuple[int, int, int, int],
    stride: int = 1,
    side_px: int = CONTEXT_PX,
) -> npt.NDArray[np.uint8]:
    """Cut a square of tissue round each centroid; what does not exist is marked and not made up.

    A pixel is the mean of those that it covers, counted from the corner nearest to the centroid, so that a context is
    the same to the bit whatever larger image it is cut from.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        centroids: (N, 2) x and y in pixels.
        inside: left, top, right and bottom of the part of ``pixels`` that shows tissue and is no reflection or padding.
        stride: working pixels per pixel, 1 or 2.
        side_px: an even number.

    Returns:
        (N, side_px, side_px, 4) uint8: RGB, and 255 where it is known. Where it is not, all four are 0.
    """
    contexts = np.zeros((len(centroids), side_px, side_px, 4), np.uint8)
    left, top, right, bottom = inside
    covered = CONTEXT_W // stride
    real = pixels[top:bottom, left:right]
    height, width = real.shape[:2]
    if not len(centroids) or height < covered or width < covered:
        return contexts
    # A sum and one division: the rounding of OpenCV's own mean is stated nowhere.
    sums = cv2.boxFilter(real, cv2.CV_16U, (covered, covered), None, (0, 0), False, cv2.BORDER_REPLICATE)
    means = cv2.convertScaleAbs(sums, alpha=1 / covered**2)
    # Pixels of four bytes are copied as one number each.
    numbers = cv2.cvtColor(means, cv2.COLOR_RGB2RGBA).view(np.uint32)[..., 0]
    corners = patch_corners(centroids, side_px * covered) - (left, top)
    for context, (x, y) in zip(contexts.view(np.uint32)[..., 0], corners.tolist(), strict=True):
        (i0, i1), (j0, j1) = (_known(x, width, covered, side_px), _known(y, height, covered, side_px))
        if i0 < i1 and j0 < j1:
            columns = slice(x + i0 * covered, x + (i1 - 1) * covered + 1, covered)
            rows = slice(y + j0 * covered, y + (j1 - 1) * covered + 1, covered)
            context[j0:j1, i0:i1] = numbers[rows, columns]
    return contexts


def _known(start: int, length: int, covered: int, side_px: int) -> tuple[int, int]:
    """Return the first and one past the last pixel of a context that lie wholly inside an image's side."""
    return max(0, -(start // covered)), min(side_px, (length - start) // covered)
