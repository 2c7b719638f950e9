"""Choose the reader of a slide by its content, not by its extension."""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import openslide
import tifffile

from nucpipe.errors import SlideError
from pipeline.slide.base import Slide
from pipeline.slide.identity import is_dicom
from pipeline.slide.limits import check_pages, check_there
from pipeline.slide.readers.image import ImageSlide
from pipeline.slide.readers.openslide import OpenSlideSlide
from pipeline.slide.readers.tiatoolbox import ToolboxSlide
from pipeline.slide.readers.tiff import broken_tiff
from pipeline.slide.readers.tiff_zarr import open_ngff, open_tiff
from pipeline.slide.time_limit import within_time

MAGIC = {
    b"\x89PNG\r\n\x1a\n": "png",
    b"\xff\xd8\xff": "jpeg",
    b"\0\0\0\x0cjP  \r\n\x87\n": "jp2",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"II+\0": "tiff",  # BigTIFF
    b"MM\0+": "tiff",
}
TIFF = tuple(magic for magic, kind in MAGIC.items() if kind == "tiff")
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
        SlideError: no such file, no slide, broken, without a pixel size that can be true, or not open after its time
            (see :mod:`pipeline.slide.time_limit`).
    """
    head = b"" if path.is_dir() else _head(path)
    return within_time(path, "opening it", lambda: _open(path, head, mpp))


def _open(path: Path, head: bytes, mpp: float | None) -> Slide:
    if is_tiff := head.startswith(TIFF):
        check_pages(path)
    for reader in READERS:
        if reader.recognises(path, head):
            slide = reader.open(path, mpp)
            if is_tiff or path.is_dir():
                try:
                    check_there(path, slide.size_l0)
                except SlideError:
                    slide.close()
                    raise
            return slide
    what = "the folder holds none of these" if path.is_dir() else "the file is something else, or cut off"
    raise SlideError(f"{path.name}: {EXPECTED}; {what}.")


@dataclass(frozen=True)
class Reader:
    """A way into some slides.

    Attributes:
        name: of what it reads.
        recognises: tells, of a path and the file's first bytes (none of a folder), whether this reader takes it.
        open: opens it, with ``--mpp`` or None.
    """

    name: str
    recognises: Callable[[Path, bytes], bool]
    open: Callable[[Path, float | None], Slide]


def _starts(*kinds: str) -> Callable[[Path, bytes], bool]:
    """Tell files by the magic bytes of these kinds."""
    marks = tuple(magic for magic, kind in MAGIC.items() if kind in kinds)
    return lambda _, head: head.startswith(marks)


def _is_zarr_folder(path: Path, _: bytes) -> bool:
    return path.is_dir() and any((path / name).is_file() for name in (".zgroup", "zarr.json"))


def _is_openslides(path: Path, head: bytes) -> bool:
    """Tell what OpenSlide reads, but for OME-TIFF: it would miss their pixel size and their smaller levels."""
    vendor = None if path.is_dir() else openslide.OpenSlide.detect_format(str(path))
    return vendor is not None and not (vendor == "generic-tiff" and _is_ome(path))


def _is_dicom(path: Path, _: bytes) -> bool:
    return _dicom_file(path) is not None


def _dicom_file(path: Path) -> Path | None:
    """Return a DICOM file: ``path`` itself, or the first one in that folder."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return next((file for file in files if is_dicom(file)), None)


def _open_dicom(path: Path, mpp: float | None) -> Slide:
    file = _dicom_file(path)
    assert file is not None
    if path.is_dir() and openslide.OpenSlide.detect_format(str(file)) is not None:
        return OpenSlideSlide(path, mpp, file)
    return ToolboxSlide(path, mpp, "dicom")


def _open_tiff(path: Path, mpp: float | None) -> Slide:
    return open_tiff(path, mpp) if _is_tiled(path) else ImageSlide(path, mpp, "tiff")


READERS = (
    Reader("NGFF (OME-Zarr)", _is_zarr_folder, open_ngff),
    Reader("OpenSlide's formats", _is_openslides, OpenSlideSlide),
    Reader("PNG", _starts("png"), lambda path, mpp: ImageSlide(path, mpp, "png")),
    Reader("JPEG", _starts("jpeg"), lambda path, mpp: ImageSlide(path, mpp, "jpeg")),
    Reader("TIFF", _starts("tiff"), _open_tiff),
    Reader("JPEG 2000", _starts("jp2"), lambda path, mpp: ToolboxSlide(path, mpp, "jp2")),
    Reader("DICOM", _is_dicom, _open_dicom),
)
"""The readers, asked in this order; a new one is a line here."""


def _head(path: Path) -> bytes:
    """Return the file's first bytes, at least one."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for, a device read, for ever
            raise SlideError(f"{path.name}: {EXPECTED}; it is a pipe or a device.")
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except FileNotFoundError as error:
        raise SlideError(f"{path}: no such file.") from error
    except OSError as error:
        raise SlideError(f"{path}: cannot be read ({error.strerror}).") from error
    if not head:
        raise SlideError(f"{path.name}: {EXPECTED}; the file is empty. Copy it again.")
    return head


def _is_ome(path: Path) -> bool:
    with broken_tiff(path), tifffile.TiffFile(path) as file:
        return bool(file.is_ome)


def _is_tiled(path: Path) -> bool:
    with broken_tiff(path), tifffile.TiffFile(path) as file:
        return bool(file.pages.first.is_tiled)
