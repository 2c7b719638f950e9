"""Main image, colours and pixel size of a TIFF, by tifffile."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tifffile

from nucpipe.errors import SlideError
from nucpipe.optional.xml import parse_xml
from pipeline.slide.causes import cause
from pipeline.slide.pixel_size import Mpp, from_resolution, in_micrometres
from pipeline.slide.readers.channels import check_channels

SHOWN = (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR, tifffile.PHOTOMETRIC.MINISBLACK)
OPACITY = (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA)
DEFAULT_UNIT = "\N{MICRO SIGN}m"  # of OME-XML


@contextmanager
def broken_tiff(path: Path) -> Iterator[None]:
    """Yield whatever a broken byte leads tifffile and its codecs to raise -> a SlideError; what they log is dropped."""
    log = logging.getLogger("tifffile")
    disabled, log.disabled = log.disabled, True
    try:
        yield
    except SlideError:
        raise
    except Exception as error:
        raise SlideError(
            f"{path.name}: expected a TIFF image; it is cut off or broken ({cause(error)}). Copy it again."
        ) from error
    finally:
        log.disabled = disabled


def main_series(path: Path, file: tifffile.TiffFile) -> tifffile.TiffPageSeries:
    """Return the image with the most pixels; labels and macros are smaller.

    Raises:
        SlideError: it is not 8-bit RGB.
    """
    series = max(file.series, key=lambda one: one.keyframe.imagewidth * one.keyframe.imagelength)
    page = series.keyframe
    check_channels(path, series.shape, series.axes, series.dtype)
    colours = tifffile.PHOTOMETRIC(page.photometric)
    if colours not in SHOWN or any(sample not in OPACITY for sample in page.extrasamples):
        raise SlideError(f"{path.name}: expected an RGB image, found {colours.name}; convert it first.")
    return series


def check_whole(path: Path, series: tifffile.TiffPageSeries) -> None:
    """Refuse a file that ends before its pixels do, which would show only when they are read.

    Raises:
        SlideError: the file is truncated.
    """
    size = path.stat().st_size
    for page in (page for level in series.levels for page in level.pages if page is not None):
        if any(start + n > size for start, n in zip(page.dataoffsets, page.databytecounts, strict=True)):
            raise SlideError(f"{path.name}: expected a TIFF image; it is cut off after {size:,} bytes. Copy it again.")


def stated_mpp(file: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> Mpp | None:
    """Return the pixel size in the OME-XML, else in the resolution tags."""
    page = series.keyframe
    return _ome_mpp(file, series) or from_resolution(*page.get_resolution(), tifffile.RESUNIT(page.resolutionunit).name)


def _ome_mpp(file: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> Mpp | None:
    if file.ome_metadata is None:
        return None
    pixels = parse_xml(file.ome_metadata).findall("{*}Image/{*}Pixels")
    stated = next((image.attrib for image, one in zip(pixels, file.series, strict=False) if one is series), {})
    x = in_micrometres(stated.get("PhysicalSizeX"), stated.get("PhysicalSizeXUnit", DEFAULT_UNIT))
    y = in_micrometres(stated.get("PhysicalSizeY"), stated.get("PhysicalSizeYUnit", DEFAULT_UNIT))
    return (x, y) if x and y else None
