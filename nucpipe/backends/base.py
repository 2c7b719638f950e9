"""A network that is ready to run, whatever runs it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from nucpipe.errors import ModelError

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


class Backend(Protocol):
    """A network that takes pixels and gives numbers; may be called from several threads.

    Attributes:
        name: ``openvino`` or ``torch``.
        max_concurrency: how many calls at once use the device fully; further ones wait.
    """

    name: str
    max_concurrency: int

    def __call__(self, pixels: Pixels) -> Floats:
        """The network's output for (N, H, W, 3) uint8 RGB, N at least 1: (N, ...) float32."""


def assert_finite(result: Floats) -> Floats:
    """Return what a network gave.

    Raises:
        ModelError: some of it is NaN or infinite: no nucleus and no label may come of it.
    """
    if not np.isfinite(result).all():
        raise ModelError("a network gave values that are NaN or infinite; try --precision fp32, or another model.")
    return result
