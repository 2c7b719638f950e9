"""A network that is ready to run, whatever runs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from nucpipe.errors import ModelError

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Input:
    """One of the images that a network takes.

    Attributes:
        side_px: its height and width; None where they vary.
        channels: RGB, and what else.
    """

    side_px: int | None = None
    channels: int = 3

    def shape(self, batch_rows: int, varying_px: int) -> tuple[int, int, int, int]:
        """Return the shape of a batch, with ``varying_px`` for a side that varies."""
        side_px = self.side_px or varying_px
        return batch_rows, side_px, side_px, self.channels


class Backend(Protocol):
    """A network that takes pixels and gives numbers; may be called from several threads.

    Attributes:
        name: ``openvino`` or ``torch``.
        max_concurrency: how many calls at once use the device fully; further ones wait.
        side_step_px: images whose sides vary are best given as squares of multiples of this; 1: any size will do.
    """

    name: str
    max_concurrency: int
    side_step_px: int

    def __call__(self, *pixels: Pixels) -> Floats:
        """Return the output, (N, ...) float32, for the inputs, each (N, H, W, channels) uint8, N at least 1."""


def squared(image: Pixels, step_px: int) -> Pixels:
    """Return an image with black to its right and below it: a square whose side is the next multiple of ``step_px``.

    Where that is 1, the image is returned as it is.
    """
    if step_px == 1:
        return image
    side = -(-max(image.shape[:2]) // step_px) * step_px
    return np.pad(image, ((0, side - image.shape[0]), (0, side - image.shape[1]), (0, 0)))


def filled_up(view: Pixels, rows: int) -> Pixels:
    """Return (N, ...) images with black ones behind them, ``rows`` in all."""
    if len(view) == rows:
        return view
    return np.concatenate([view, np.zeros((rows - len(view), *view.shape[1:]), view.dtype)])


def assert_finite(result: Floats) -> Floats:
    """Return what a network gave.

    Raises:
        ModelError: some of it is NaN or infinite: no nucleus and no label may come of it.
    """
    if not np.isfinite(result).all():
        raise ModelError("a network gave values that are NaN or infinite; try --precision fp32, or another model.")
    return result
