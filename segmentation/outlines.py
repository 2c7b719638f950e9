"""Outlines of pixel masks that run along pixel edges, as QuPath and vector formats want them."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt


def trace_outline(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """The outer outline of a mask through pixel corners.

    Of several parts that touch nowhere the one with the largest outline counts; holes are ignored. The outline is a
    simple polygon: where the mask touches itself at a mere corner, the pixels round that corner are filled.

    Args:
        mask: (H, W) bool with at least one True.

    Returns:
        (K, 2) int64 x and y of the corners, clockwise on screen, not closed, no three in a line. A square of
        10x10 pixels gives four corners and area 100.
    """
    ring = largest_ring(mask)
    while True:
        passed: set[tuple[int, int]] = set()
        twice = []
        for corner in map(tuple, ring.tolist()):
            if corner in passed:
                twice.append(corner)
            passed.add(corner)
        if not twice:
            return ring
        # The outline comes by one corner twice: fill the four pixels round it.
        mask = np.pad(mask, 1)
        for x, y in twice:
            mask[y : y + 2, x : x + 2] = True
        ring = largest_ring(mask) - 1
        mask = mask[1:-1, 1:-1]


def largest_ring(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Corners of the largest outer ring; it may touch itself at a corner."""
    doubled = mask.astype(np.uint8).repeat(2, 0).repeat(2, 1)
    rings, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    ring = max(rings, key=lambda r: (cv2.contourArea(r), len(r)))[:, 0, :].astype(np.int64)
    # cv2 gives centres of boundary pixels. In the doubled mask a left or upper boundary lies on an even number, a
    # right or lower one on an odd number, so halving upwards takes every one of them to its pixel corner.
    corners = (ring + 1) >> 1
    step = np.diff(corners, axis=0, append=corners[:1])
    moves = step.any(1)
    corners, after = corners[moves], step[moves]
    before = np.concatenate([after[-1:], after[:-1]])
    # cv2 goes counter-clockwise on screen.
    clockwise: npt.NDArray[np.int64] = corners[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]][::-1]
    return clockwise
