"""Parts of the pictures that gallery.py and hits_and_misses.py draw."""

from __future__ import annotations

import cv2
import numpy as np


def text_bar(text: str, width: int, height: int, grey: int = 255, size: float = 0.45) -> np.ndarray:
    """Return a bar (height, width, 3) of one grey with black text in it."""
    bar = np.full((height, width, 3), grey, np.uint8)
    cv2.putText(bar, text, (4, height - height // 3), cv2.FONT_HERSHEY_SIMPLEX, size, (0, 0, 0), 1, cv2.LINE_AA)
    return bar


def in_a_row(tiles: list[np.ndarray], width: int) -> np.ndarray:
    """Return tiles side by side, with white up to a width."""
    row = np.concatenate(tiles, 1)
    return np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255)
