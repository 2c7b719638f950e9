"""Input of the compact HoVer-Net, and the content of its model file."""

from __future__ import annotations

from pathlib import Path

from nucpipe.backends.model_file import ModelHeader, read_header
from nucpipe.errors import ModelError

INPUT_MPP = 0.5
"""Pixel size of the network's input, micrometres. The maps have half of it."""

ALIGN_PX = 16
"""Input sides are multiples of this; so are the corners of read boxes, in the slide-wide grid of input pixels."""

MARGIN_PX = 208
"""The maps of a pixel depend on nothing farther away than 193 pixels (found by changing pixels); a multiple of 16. So
they are the same in every read box, to the bit where a convolution's rounding does not depend on the shape."""


def check_header(path: Path) -> ModelHeader:
    """Return the header of a model file that holds the compact HoVer-Net.

    Raises:
        ModelError: no such file, or no segmentor of a kind that this version knows.
    """
    header = read_header(path)
    if header.kind != "segmentor" or header.architecture.get("type") != "hovernet":
        raise ModelError(
            f"{path}: expected a HoVer-Net segmentor, found {header.kind} {header.architecture.get('type')}."
        )
    if header.mpp != INPUT_MPP:
        raise ModelError(f"{path}: made for pixels of {header.mpp} um; this version runs segmentors of {INPUT_MPP} um.")
    return header
