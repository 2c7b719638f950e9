"""The blocks of a slide that were read last: read boxes overlap, and what they have in common is read once.

Not OpenSlide's cache, which holds decoded tiles of OpenSlide alone; this one serves every reader, and holds resampled
pixels, the same to the bit in every read box.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np

from pipeline.slide.resample import Box, Image

SIDE_PX = 512
MAX_BYTES = 2**27
"""Most bytes of remembered pixels: a band of regions (see ``pipeline.regions.region``) and a margin on either side."""


class Blocks:
    """Pixels of an image by the box, from square blocks of which the last ones are remembered.

    May be read from several threads at once; a block that one of them is reading is waited for by the others.

    Args:
        size: (width, height) of the image.
        side_px: side of a block.
        most_bytes: how much is remembered.
    """

    def __init__(self, size: tuple[int, int], side_px: int = SIDE_PX, most_bytes: int = MAX_BYTES) -> None:
        self._size = size
        self._side = side_px
        self._most = max(1, most_bytes // (3 * side_px * side_px))
        self._blocks: OrderedDict[tuple[int, int], Future[Image]] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, box: Box, read: Callable[[Box], Image]) -> Image:
        """Return the pixels of a box.

        Args:
            box: x0, y0, x1, y1 within the image.
            read: gives the pixels of a block, (h, w, 3) uint8.

        Returns:
            (h, w, 3) uint8, an array of the caller's own.

        Raises:
            Exception: what reading a block raised; it is tried anew the next time.
        """
        x0, y0, x1, y1 = box
        image, side = np.empty((y1 - y0, x1 - x0, 3), np.uint8), self._side
        for row in range(y0 // side, -(-y1 // side)):
            for column in range(x0 // side, -(-x1 // side)):
                block, left, top = self._block(column, row, read), column * side, row * side
                a, b, c, d = max(left, x0), max(top, y0), min(left + side, x1), min(top + side, y1)
                image[b - y0 : d - y0, a - x0 : c - x0] = block[b - top : d - top, a - left : c - left]
        return image

    def _block(self, column: int, row: int, read: Callable[[Box], Image]) -> Image:
        key = column, row
        with self._lock:
            future = self._blocks.get(key)
            if ours := future is None:
                future = self._blocks[key] = Future()
                while len(self._blocks) > self._most:
                    self._blocks.popitem(last=False)
            self._blocks.move_to_end(key)
        assert future is not None
        if ours:
            left, top = column * self._side, row * self._side
            try:
                width, height = self._size
                future.set_result(read((left, top, min(left + self._side, width), min(top + self._side, height))))
            except BaseException as error:
                with self._lock:
                    self._blocks.pop(key, None)
                future.set_exception(error)
        return future.result()
