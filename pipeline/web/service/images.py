"""Images from clients' requests."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from classifier.patches import patch_box_w
from nucpipe.errors import SlideError
from nucpipe.pixel_size import MAX_MPP, MIN_MPP
from pipeline.slide.base import Slide
from pipeline.slide.grid import WorkingGrid
from pipeline.slide.open import HEAD_BYTES, MAGIC
from pipeline.slide.readers.image import ImageSlide, stated_size
from pipeline.web.service.errors import ApiError

KINDS = ("png", "jpeg", "tiff")
MIN_PX = 8


def stated_pixels(sent: BinaryIO, mpp: float, max_pixels: int) -> int:
    """Return how many pixels an image states that it has, as it is or as it is read, whichever is more.

    Nothing is decoded.

    Args:
        sent: a PNG, JPEG or TIFF file.
        mpp: its pixel size, micrometres.
        max_pixels: it may have.

    Raises:
        ApiError: 415 for no such image, 413 for too many pixels, 422 for too few or for a pixel size that cannot be.
    """
    if not MIN_MPP <= mpp <= MAX_MPP:
        raise ApiError(422, f"mpp {mpp:g}: expected micrometres per pixel, {MIN_MPP} to {MAX_MPP}.")
    with _image_file(sent) as (path, kind):
        size = stated_size(path, kind)
    if min(size) < MIN_PX:
        raise ApiError(422, f"the image: expected at least {MIN_PX} x {MIN_PX} pixels.")
    width, height = max(size, WorkingGrid.for_slide(size, mpp).size_read, key=math.prod)
    if width * height > max_pixels:
        how = "" if (width, height) == size else " when it is read"
        raise ApiError(413, f"the image has {width} x {height} pixels{how}; at most {max_pixels:,} are allowed.")
    return width * height


def read_image(sent: BinaryIO, mpp: float) -> Slide:
    """Return an image that was sent, decoded; :func:`stated_pixels` has passed it.

    Raises:
        ApiError: 415, broken.
    """
    with _image_file(sent) as (path, kind):
        return ImageSlide(path, mpp, kind)


def read_nucleus(sent: BinaryIO, mpp: float) -> npt.NDArray[np.uint8]:
    """Return the classifier's view of the middle of an image that was sent, as :func:`nucleus_patch`.

    Raises:
        ApiError: 415, broken.
    """
    with read_image(sent, mpp) as image:
        return nucleus_patch(image)


@contextmanager
def _image_file(sent: BinaryIO) -> Iterator[tuple[Path, str]]:
    """Yield an image that was sent as a file, for the readers take files, and what kind it is of."""
    sent.seek(0)
    head = sent.read(HEAD_BYTES)
    kind = next((kind for magic, kind in MAGIC.items() if head.startswith(magic) and kind in KINDS), None)
    if kind is None:
        raise ApiError(415, "the image: expected a PNG, JPEG or TIFF file; it is something else.")
    with tempfile.TemporaryDirectory(prefix="nucpipe-") as folder:
        path = Path(folder) / f"image.{kind}"
        sent.seek(0)
        with path.open("wb") as file:
            shutil.copyfileobj(sent, file)
        try:
            yield path, kind
        except SlideError as error:
            raise ApiError(415, str(error).split("; convert it")[0]) from error


def nucleus_patch(image: Slide) -> npt.NDArray[np.uint8]:
    """Return the classifier's view of the middle of an image, 16 micrometres wide; a smaller image goes on reflected.

    Returns:
        (64, 64, 3) uint8, or half as many pixels of an image that is read at 0.5 µm.
    """
    grid = WorkingGrid.for_slide(image.size_l0, image.mpp)
    return image.read(grid, patch_box_w(np.array(grid.size_read) * grid.stride / 2, grid.stride))
