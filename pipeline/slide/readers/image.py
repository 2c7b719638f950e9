"""Plain images: PNG, JPEG and TIFF without tiles, held in memory whole."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import tifffile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from nucpipe.errors import SlideError
from pipeline.slide.base import Level, Slide
from pipeline.slide.causes import cause
from pipeline.slide.identity import printable
from pipeline.slide.limits import check_bomb, check_pages
from pipeline.slide.pixel_size import Mpp, pixel_size
from pipeline.slide.readers.channels import as_rgb, on_white
from pipeline.slide.readers.tiff import broken_tiff, main_series, stated_mpp
from pipeline.slide.resample import Box, Image

MAX_PIXELS = 2**29  # above 3 GB of memory, of which Pillow takes the most

PIL_CLASSES: dict[str, type[ImageFile]] = {"png": PngImageFile, "jpeg": JpegImageFile}
ORIENTATION = 274
TURNED = {
    2: "mirrored",
    3: "turned by 180 degrees",
    4: "upside down",
    5: "mirrored and turned",
    6: "turned by 90 degrees",
    7: "mirrored and turned",
    8: "turned by 270 degrees",
}
"""EXIF's orientations (the tag's number is TIFF's too) but the upright one."""
PNG_BITS_AT = 24
EIGHT_BIT_MODES = ("RGB", "RGBA", "L", "LA", "P", "CMYK", "1")


class ImageSlide(Slide):
    """An image of one level in memory. EXIF's orientation is not applied: coordinates are those of the file."""

    def __init__(self, path: Path, mpp: float | None, kind: str) -> None:
        """Read the image; ``kind`` is ``png``, ``jpeg`` or ``tiff``. Its size is checked before it is decoded."""
        if kind == "tiff":
            self._pixels, stated = _read_tiff(path)
        else:
            self._pixels, stated = _read_pil(path, kind), None
        height, width = self._pixels.shape[:2]
        super().__init__(path, (Level((width, height), 1.0),), pixel_size(path, mpp, lambda: stated), kind)

    def read_level(self, level: int, box: Box) -> Image:
        """As :meth:`Slide.read_level`."""
        x0, y0, x1, y1 = box
        return self._pixels[y0:y1, x0:x1].copy()

    def close(self) -> None:
        """As :meth:`Slide.close`."""
        self._pixels = np.empty((0, 0, 3), np.uint8)


def stated_size(path: Path, kind: str) -> tuple[int, int]:
    """Return the (width, height) that a plain image states, without decoding it.

    Args:
        path: the file.
        kind: ``png``, ``jpeg`` or ``tiff``.

    Raises:
        SlideError: broken, or a TIFF that is not 8-bit RGB.
    """
    if kind == "tiff":
        check_pages(path)
        with broken_tiff(path), tifffile.TiffFile(path) as file:
            page = main_series(path, file).keyframe
            return page.imagewidth, page.imagelength
    with _opened(path, kind) as image:
        return image.size


def _read_pil(path: Path, kind: str) -> Image:
    """Read a PNG or JPEG: (h, w, 3) uint8 RGB. Their densities (72 dpi) are print sizes, not pixel sizes."""
    with _opened(path, kind) as image:
        _check_size(path, *image.size)
        if kind == "png" and _png_bits(path) > 8:  # of which PIL would drop the lower ones
            raise SlideError(f"{path.name}: expected one 8-bit RGB image, found 16 bits a channel; convert it.")
        with suppress(Exception):  # EXIF that is broken says nothing
            _warn_of_orientation(path, image.getexif().get(ORIENTATION))
        if image.mode not in EIGHT_BIT_MODES:
            raise SlideError(f"{path.name}: expected an 8-bit colour image, found PIL's mode {image.mode}.")
        image.load()
        if image.has_transparency_data:
            return on_white(np.asarray(image.convert("RGBA")))
        return np.asarray(image.convert("RGB"))


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[ImageFile]:
    """Open a PNG or JPEG; what is broken in it is a SlideError."""
    try:
        # The format's own class instead of Image.open, whose guard against large images is far below ours.
        with PIL_CLASSES[kind](path) as image:
            yield image
    except (OSError, SyntaxError, ValueError) as error:
        raise SlideError(
            f"{path.name}: expected a {kind.upper()} image; it is cut off or broken ({cause(error)}). Copy it again."
        ) from error


def _read_tiff(path: Path) -> tuple[Image, Mpp | None]:
    """Return the main image of a TIFF -> (h, w, 3) uint8 RGB and the pixel size that it states."""
    with broken_tiff(path), tifffile.TiffFile(path) as file:
        series = main_series(path, file)
        _check_size(path, series.keyframe.imagewidth, series.keyframe.imagelength)
        _warn_of_orientation(path, series.keyframe.tags.valueof(ORIENTATION))
        return as_rgb(series.asarray(), series.axes), stated_mpp(file, series)


def _png_bits(path: Path) -> int:
    """Return the bits of a sample that a PNG's header states."""
    with path.open("rb") as file:
        return file.read(PNG_BITS_AT + 1)[PNG_BITS_AT]


def _warn_of_orientation(path: Path, orientation: object) -> None:
    """Warn that a viewer shows the image turned or mirrored, in whose pixels nothing is stored here."""
    if orientation in TURNED:
        logging.getLogger(__name__).warning(
            "%s: its EXIF orientation is %s (%s), which is not applied: coordinates are those of the pixels as stored.",
            printable(path.name),
            orientation,
            TURNED[orientation],
        )


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise SlideError(
            f"{path.name}: {width} x {height} pixels are too many for a plain image (at most {MAX_PIXELS:,}); "
            "convert it to a tiled TIFF, for example with: vips tiffsave IN OUT.tif --tile --pyramid"
        )
    check_bomb(path, width, height)
