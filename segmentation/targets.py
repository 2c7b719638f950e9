"""Targets of the network from an instance map: distances to centres, and weights of pixels."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt


def hv_maps(instances: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
    """Return horizontal and vertical distances to each nucleus' centre of mass (Graham et al. 2019, section 3.1).

    Left of the centre the distance is divided by the largest one there, right of it by the largest one there, and
    likewise up and down, so that every nucleus spans -1 to +1.

    Args:
        instances: (H, W), 0 = background, one id per nucleus.

    Returns:
        (2, H, W) float32: horizontal, vertical; 0 in the background.
    """
    maps = np.zeros((2, *instances.shape), np.float32)
    rows, columns = np.nonzero(instances)
    if len(rows) == 0:
        return maps
    order = np.argsort(instances[rows, columns], kind="stable")
    rows, columns = rows[order], columns[order]
    ids = instances[rows, columns]
    starts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
    sizes = np.diff(np.concatenate([starts, [len(ids)]]))
    for axis, coordinate in enumerate((columns, rows)):
        mean = np.add.reduceat(coordinate, starts) / sizes
        distance = coordinate - np.repeat(mean, sizes)
        low = np.repeat(np.minimum.reduceat(distance, starts), sizes)
        high = np.repeat(np.maximum.reduceat(distance, starts), sizes)
        span = np.where(distance < 0, -low, high)
        maps[axis, rows, columns] = distance / np.maximum(span, 1e-6)
    return maps


def between_nuclei(instances: npt.NDArray[np.integer], reach_px: int = 3) -> npt.NDArray[np.bool_]:
    """Mark where nuclei meet: pixels with at least two nuclei within ``reach_px``, sideways and up and down.

    Args:
        instances: (H, W), 0 = background, ids up to 65,534.
        reach_px: how near.

    Returns:
        (H, W) bool.
    """
    ids = instances.astype(np.uint16)
    kernel = np.ones((2 * reach_px + 1, 2 * reach_px + 1), np.uint8)
    largest = cv2.dilate(ids, kernel)
    smallest = cv2.erode(np.where(ids == 0, np.uint16(65535), ids), kernel)
    return np.asarray((largest > 0) & (smallest != largest))
