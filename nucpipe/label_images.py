"""Label images: one whole number for each nucleus, 0 for the background, as Cellpose, StarDist and QuPath write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

SUFFIXES = (".png", ".tif", ".tiff", ".npy")

FEW = 16
"""So few numbers may be those of classes; more of them are nuclei's."""
PNG_PALETTE = b"\x03"
"""The colour type of a PNG whose pixels are numbers of a palette, at byte 25 of the file."""


def read_label_image(path: Path) -> npt.NDArray[Any]:
    """Return a label image (H, W), as it is stored.

    Args:
        path: a PNG, TIFF or npy file, by its ending; of a PNG with a palette its numbers are meant, not its colours.

    Raises:
        ValueError: it cannot be read, or has more than one channel; the message lacks the file's name.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".npy":
            with path.open("rb") as file:  # np.load would leave an archive of several open
                image = np.lib.format.read_array(file, allow_pickle=False)
        elif suffix in (".tif", ".tiff"):
            image = _read_tiff(path)
        else:
            image = _read_png(path)
    except Exception as error:  # broken files make the decoders raise nearly anything
        raise ValueError(f"expected a label image; it cannot be read ({error})") from error
    if image.ndim != 2 or image.dtype.kind not in "biuf":
        found = f"{' x '.join(map(str, image.shape))} of {image.dtype}"
        raise ValueError(f"expected a label image, whole numbers in one channel; found {found}")
    return np.asarray(image)


def _read_tiff(path: Path) -> npt.NDArray[Any]:
    import tifffile

    try:
        return np.squeeze(np.asarray(tifffile.imread(path)))
    except tifffile.TiffFileError as error:
        raise ValueError(str(error)) from error


def _read_png(path: Path) -> npt.NDArray[Any]:
    with path.open("rb") as file:
        has_palette = file.read(26)[25:] == PNG_PALETTE
    if has_palette:  # OpenCV returns its colours
        with Image.open(path) as picture:
            return np.asarray(picture)
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ValueError("no image, or cut off")
    return np.asarray(image)


def instances_of(labels: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Return an instance map (H, W) int32, 0 = background, of a label image (H, W) of any type of numbers.

    Its ids are 1 to N in the order of the numbers, which may be as large as a tool likes.

    Raises:
        ValueError: it has fractions, negative numbers, or a mask: one number, or one for each class, for many nuclei.
    """
    if labels.dtype.kind == "f":
        broken = labels[~((labels == np.floor(labels)) & np.isfinite(labels))]  # fractions, and what is no number
        if broken.size:
            raise ValueError(f"expected whole numbers, one for each nucleus; found {broken[0]:g}")
    ids, inverse = np.unique(labels, return_inverse=True)
    if ids.size and ids[0] < 0:
        raise ValueError(f"expected 0 for the background and numbers above it for nuclei; found {ids[0]:g}")
    without_zero = int(ids.size == 0 or ids[0] != 0)
    instances = (inverse.reshape(labels.shape) + without_zero).astype(np.int32)
    count = int(instances.max(initial=0))
    if 0 < count <= FEW:
        pieces = sum(_pieces(instances == k) for k in range(1, count + 1))
        if pieces >= 3 * count:  # one nucleus may be cut in two, as by the edge of a tile
            what = "a mask with a single number" if count == 1 else f"a mask with {count} numbers"
            raise ValueError(
                f"expected one number for each nucleus; found {what} for {pieces} areas. Label its parts first, as "
                "scipy.ndimage.label does"
            )
    return instances


def _pieces(mask: npt.NDArray[np.bool_]) -> int:
    """Return of how many areas a mask (H, W) is, without specks of less than a twentieth of the largest."""
    *_, figures, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    areas = figures[1:, cv2.CC_STAT_AREA]
    return int((areas >= areas.max(initial=0) / 20).sum())


def fill_rings(rings: Sequence[npt.NDArray[np.float64]], shape: tuple[int, int]) -> npt.NDArray[np.int32]:
    """Return an instance map (H, W) int32, 0 = background, of the outlines of nuclei; the later one owns common pixels.

    Args:
        rings: (K, 2) x and y each, in pixels of the map, where pixel i covers [i, i+1); the ids are 1 to N.
        shape: (H, W) of the map; what lies beyond is cut off.
    """
    instances = np.zeros(shape, np.int32)
    for number, ring in enumerate(rings, start=1):
        left, top = np.maximum(np.floor(ring.min(0)), 0).astype(int)
        right, bottom = np.minimum(np.ceil(ring.max(0)), (shape[1], shape[0])).astype(int)
        if left >= right or top >= bottom:
            continue
        # Drawn at eight times the size from corner to corner, then read at the pixels' centres.
        fine = np.zeros(((bottom - top) * 8 + 1, (right - left) * 8 + 1), np.uint8)
        cv2.fillPoly(fine, [np.round((ring - (left, top)) * 8).astype(np.int32)], 1)
        instances[top:bottom, left:right][fine[4::8, 4::8] > 0] = number
    return instances
