"""Which reader takes a file: told by its content, not by its extension."""

from __future__ import annotations

import stat
from pathlib import Path

import openslide
import tifffile

from nucpipe.errors import SlideError
from pipeline.slide.base import Slide
from pipeline.slide.identity import is_dicom
from pipeline.slide.image import ImageSlide
from pipeline.slide.openslide import OpenSlideSlide
from pipeline.slide.tiatoolbox import ToolboxSlide
from pipeline.slide.tiff import broken_tiff
from pipeline.slide.tiff_zarr import open_ngff, open_tiff

MAGIC = {
    b"\x89PNG\r\n\x1a\n": "png",
    b"\xff\xd8\xff": "jpeg",
    b"\0\0\0\x0cjP  \r\n\x87\n": "jp2",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"II+\0": "tiff",  # BigTIFF
    b"MM\0+": "tiff",
}
HEAD_BYTES = 16

EXPECTED = (
    "expected a slide (SVS, NDPI, MRXS, SCN, tiled TIFF, OME-TIFF, JP2, a DICOM or NGFF folder) "
    "or an image (PNG, JPEG, TIFF)"
)


def open_slide(path: Path, mpp: float | None = None) -> Slide:
    """Open a slide or a plain image, judged by its content, not by its extension.

    Args:
        path: a file that OpenSlide or tiatoolbox reads, a DICOM or NGFF (OME-Zarr) folder, or a PNG, JPEG or TIFF.
        mpp: micrometres per level-0 pixel; None takes what the file states.

    Raises:
        SlideError: no such file, no slide, broken, or without a pixel size that can be true.
    """
    if path.is_dir():
        return _open_folder(path, mpp)
    head = _head(path)
    if not head:
        raise SlideError(f"{path.name}: {EXPECTED}; the file is empty.")
    vendor = openslide.OpenSlide.detect_format(str(path))
    # OpenSlide takes an OME-TIFF for a plain tiled one, and misses its pixel size and its smaller levels.
    if vendor is not None and not (vendor == "generic-tiff" and _is_ome(path)):
        return OpenSlideSlide(path, mpp)
    match next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), None):
        case "png" | "jpeg" as kind:
            return ImageSlide(path, mpp, kind)
        case "tiff":
            return open_tiff(path, mpp) if _is_tiled(path) else ImageSlide(path, mpp, "tiff")
        case "jp2":
            return ToolboxSlide(path, mpp, "jp2")
    if is_dicom(path):
        return ToolboxSlide(path, mpp, "dicom")
    raise SlideError(f"{path.name}: {EXPECTED}; it is none of them, or the file is cut off.")


def _open_folder(path: Path, mpp: float | None) -> Slide:
    if any((path / name).is_file() for name in (".zgroup", "zarr.json")):
        return open_ngff(path, mpp)
    dicom = next((file for file in sorted(path.iterdir()) if is_dicom(file)), None)
    if dicom is None:
        raise SlideError(f"{path.name}: {EXPECTED}; the folder is none.")
    if openslide.OpenSlide.detect_format(str(dicom)) is not None:
        return OpenSlideSlide(path, mpp, dicom)
    return ToolboxSlide(path, mpp, "dicom")


def _head(path: Path) -> bytes:
    """The file's first bytes."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for, a device read, for ever
            raise SlideError(f"{path.name}: {EXPECTED}; it is a pipe or a device.")
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except FileNotFoundError as error:
        raise SlideError(f"{path}: no such file.") from error
    except OSError as error:
        raise SlideError(f"{path}: cannot be read ({error.strerror}).") from error


def _is_ome(path: Path) -> bool:
    with broken_tiff(path), tifffile.TiffFile(path) as file:
        return bool(file.is_ome)


def _is_tiled(path: Path) -> bool:
    with broken_tiff(path), tifffile.TiffFile(path) as file:
        return bool(file.pages.first.is_tiled)
