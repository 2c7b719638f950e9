"""Conversion of arrays with named axes, as in TIFF and NGFF, to RGB."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from nucpipe.errors import SlideError
from pipeline.slide.resample import Image

COLOUR_AXES = "CS"  # tifffile: channels, or samples of one pixel; NGFF: c


def check_channels(path: Path, shape: tuple[int, ...], axes: str, dtype: np.dtype[Any]) -> None:
    """Refuse what cannot be shown as 8-bit RGB without a guess.

    Args:
        path: names the slide in the error.
        shape: of the array.
        axes: a capital letter for each of its axes.
        dtype: of the array.

    Raises:
        SlideError: not 8 bits, or channels other than grey, RGB, or RGB and opacity as samples of one pixel.
    """
    length = dict(zip(axes, shape, strict=True))
    channels = math.prod(n for axis, n in length.items() if axis in COLOUR_AXES)
    planes = math.prod(n for axis, n in length.items() if axis not in "YX" + COLOUR_AXES)
    known = channels in (1, 3) or length.get("S") == channels == 4
    if dtype != np.uint8 or "Y" not in length or "X" not in length or not known or planes != 1:
        raise SlideError(
            f"{path.name}: expected one 8-bit RGB image, found {dtype} with axes {axes} of {shape}; "
            "stacks and fluorescence are not read."
        )


def as_rgb(array: npt.NDArray[np.uint8], axes: str) -> Image:
    """Return an array that :func:`check_channels` has passed -> (h, w, 3) RGB."""
    colours = [i for i, axis in enumerate(axes) if axis in COLOUR_AXES]
    y, x = axes.index("Y"), axes.index("X")
    others = [i for i in range(array.ndim) if i not in (y, x, *colours)]
    pixels = array.transpose(*others, y, x, *colours).reshape(array.shape[y], array.shape[x], -1)
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    return on_white(np.ascontiguousarray(pixels)) if pixels.shape[2] == 4 else np.ascontiguousarray(pixels)


def on_white(rgba: Image) -> Image:
    """Return (h, w, 4) -> (h, w, 3): transparent pixels are bare glass, which is white."""
    rgb = np.asarray(cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB), np.uint8)
    opacity = rgba[..., 3:]
    if opacity.min(initial=255) == 255:
        return rgb
    covered = rgb.astype(np.uint16) * opacity + 255 * (255 - opacity.astype(np.uint16))
    return ((covered + 127) // 255).astype(np.uint8)
