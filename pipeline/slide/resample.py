"""Resampling whose every pixel depends on its slide-wide position alone, never on the read box it was asked for in.

Not ``cv2.resize``, whose phase is tied to the corner of what it is given: two read boxes would disagree where they
overlap.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from scipy import sparse

Image = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in whole pixels, half-open."""

BAND_ROWS = 32  # output rows at a time: a band's floating-point pixels then stay in the processor's cache


@dataclass(frozen=True)
class _Taps:
    """For n target pixels along one axis: the K source pixels that have a say, and their weights."""

    source: npt.NDArray[np.int64]  # (n, K), ascending along both axes
    weights: npt.NDArray[np.float32]  # (n, K); each row sums to 1

    @property
    def span(self) -> tuple[int, int]:
        """All source pixels that have a say, half-open."""
        return int(self.source[0, 0]), int(self.source[-1, -1]) + 1

    def rows(self, start: int, stop: int) -> _Taps:
        return _Taps(self.source[start:stop], self.weights[start:stop])

    def matrix(self) -> sparse.csr_array[np.float32]:
        """Return (n, length of the span), to be multiplied with the source pixels of the span."""
        start, stop = self.span
        row, tap = np.nonzero(self.weights)
        entries = (self.weights[row, tap], (row, self.source[row, tap] - start))
        return sparse.csr_array(entries, shape=(len(self.source), stop - start))


def _taps(start: int, stop: int, scale: float, size: int) -> _Taps:
    """Return weights of the target pixels ``start`` to ``stop``, each ``scale`` source pixels wide, in ``size`` source
    pixels.

    Catmull-Rom's cubic, stretched by ``scale`` where that is above 1 so that what the target grid cannot show is
    filtered out instead of aliased (as PIL's BICUBIC does). Beyond the source its edge pixel is repeated.
    """
    centre = (np.arange(start, stop) + 0.5) * scale
    stretch = max(scale, 1.0)
    source = np.floor(centre - 2 * stretch).astype(np.int64)[:, None] + np.arange(int(np.ceil(4 * stretch)) + 1)
    x = np.abs(source + 0.5 - centre[:, None]) / stretch
    weights = np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0.0))
    weights /= weights.sum(axis=1, keepdims=True)
    return _Taps(np.clip(source, 0, size - 1), weights.astype(np.float32))


def resample(read: Callable[[Box], Image], source_size: tuple[int, int], scale: tuple[float, float], box: Box) -> Image:
    """Return the pixels of ``read box`` on a grid that is ``scale`` times as coarse as the source's.

    Args:
        read: gives the source's pixels, (h, w, 3) uint8, for a box that lies within the source.
        source_size: (width, height) of the source in its pixels.
        scale: (x, y) source pixels per target pixel; the corner (0, 0) is common to both grids.
        box: x0, y0, x1, y1 in target pixels, within the source's extent rounded up.

    Returns:
        (y1 - y0, x1 - x0, 3) uint8. Two read boxes agree to the bit wherever they overlap.
    """
    x0, y0, x1, y1 = box
    horizontal, vertical = _taps(x0, x1, scale[0], source_size[0]), _taps(y0, y1, scale[1], source_size[1])
    columns, rows = horizontal.span, vertical.span
    source = read((columns[0], rows[0], columns[1], rows[1]))
    across = horizontal.matrix()
    target = np.empty((y1 - y0, x1 - x0, 3), np.uint8)
    for top in range(0, len(target), BAND_ROWS):
        taps = vertical.rows(top, top + BAND_ROWS)
        strip = source[taps.span[0] - rows[0] : taps.span[1] - rows[0]].astype(np.float32)
        down = (taps.matrix() @ strip.reshape(len(strip), -1)).reshape(-1, strip.shape[1], 3)
        band = across @ cv2.transpose(down).reshape(strip.shape[1], -1)
        np.maximum(band, 0, out=band)  # the cubic undershoots beside sharp edges; above 255 the conversion saturates
        target[top : top + BAND_ROWS] = cv2.transpose(cv2.convertScaleAbs(band).reshape(x1 - x0, -1, 3))
    return target


def fold(positions: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    """Return positions on an axis without end -> the pixel, 0 to ``size`` - 1, that reflection shows there.

    The edge pixel is not repeated (... 2 1 0 1 2 ..., OpenCV's BORDER_REFLECT_101), however often it has to fold.
    """
    if size == 1:
        return np.zeros_like(positions)
    period = 2 * (size - 1)
    folded = positions % period
    return np.minimum(folded, period - folded)
