"""Images from clients' requests."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from classifier.patches import patch_box_w
from nucpipe.errors import SlideError
from nucpipe.pixel_size import MAX_MPP, MIN_MPP
from pipeline.slide.base import Slide
from pipeline.slide.grid import WorkingGrid
from pipeline.slide.image import ImageSlide
from pipeline.slide.open import HEAD_BYTES, MAGIC
from pipeline.web.service.errors import ApiError

KINDS = ("png", "jpeg", "tiff")
MIN_PX = 8


def read_image(content: bytes, mpp: float, max_pixels: int) -> Slide:
    """Return an image that was sent, decoded.

    Args:
        content: of a PNG, JPEG or TIFF file.
        mpp: its pixel size, micrometres.
        max_pixels: it may have, as it is and on the grid that it is read on.

    Raises:
        Refusal: 415 for no such image, 413 for too many pixels, 422 for too few or for a pixel size that cannot be.
    """
    if not MIN_MPP <= mpp <= MAX_MPP:
        raise ApiError(422, f"mpp {mpp:g}: expected micrometres per pixel, {MIN_MPP} to {MAX_MPP}.")
    head = content[:HEAD_BYTES]
    kind = next((kind for magic, kind in MAGIC.items() if head.startswith(magic) and kind in KINDS), None)
    if kind is None:
        raise ApiError(415, "the image: expected a PNG, JPEG or TIFF file; it is something else.")
    # The readers take files, as they do for everybody else.
    with tempfile.TemporaryDirectory(prefix="nucpipe-") as folder:
        path = Path(folder) / f"image.{kind}"
        path.write_bytes(content)
        try:
            image = ImageSlide(path, mpp, kind, max_pixels)
        except SlideError as error:
            raise ApiError(413 if "too many" in str(error) else 415, str(error).split("; convert it")[0]) from error
    width, height = WorkingGrid.for_slide(image.size_l0, mpp).size_read
    if width * height > max_pixels:
        raise ApiError(413, f"{width} x {height} pixels when it is read; at most {max_pixels:,} are allowed.")
    if min(image.size_l0) < MIN_PX:
        raise ApiError(422, f"the image: expected at least {MIN_PX} x {MIN_PX} pixels.")
    return image


def nucleus_patch(image: Slide) -> npt.NDArray[np.uint8]:
    """Return the classifier's view of the middle of an image, 16 micrometres wide; a smaller image goes on reflected.

    Returns:
        (64, 64, 3) uint8, or half as many pixels of an image that is read at 0.5 µm.
    """
    grid = WorkingGrid.for_slide(image.size_l0, image.mpp)
    return image.read(grid, patch_box_w(np.array(grid.size_read) * grid.stride / 2, grid.stride))
