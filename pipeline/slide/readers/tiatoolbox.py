"""Slides that only tiatoolbox opens: JPEG 2000, and DICOM that OpenSlide declines."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import numpy as np

from nucpipe.errors import SlideError
from nucpipe.optional.tiatoolbox import import_tiatoolbox, quiet
from pipeline.slide.base import Level, Slide
from pipeline.slide.causes import cause
from pipeline.slide.pixel_size import Mpp, pixel_size
from pipeline.slide.resample import Box, Image


class ToolboxSlide(Slide):
    """A slide through one of tiatoolbox's readers. One thread reads at a time."""

    def __init__(self, path: Path, mpp: float | None, kind: str) -> None:
        """Open ``path``; ``kind`` is ``jp2`` or ``dicom``."""
        self._lock = threading.Lock()
        try:
            with quiet():
                self._reader = _open(path, kind)
                info = self._reader.info
        # tiatoolbox hands on whatever wsidicom and glymur raise.
        except Exception as error:
            raise SlideError(
                f"{path.name}: expected a {kind.upper()} slide; it cannot be opened ({cause(error)})."
            ) from error
        levels = zip(info.level_dimensions, info.level_downsamples, strict=True)
        super().__init__(
            path,
            tuple(Level((int(size[0]), int(size[1])), float(downsample)) for size, downsample in levels),
            pixel_size(path, mpp, lambda: _jp2_mpp(self._reader) if kind == "jp2" else (info.mpp[0], info.mpp[1])),
            kind,
        )

    def read_level(self, level: int, box: Box) -> Image:
        """As :meth:`Slide.read_level`."""
        x0, y0, x1, y1 = box
        downsample = self.levels[level].downsample
        place = round(x0 * downsample), round(y0 * downsample)
        try:
            with self._lock, quiet():
                pixels = self._reader.read_rect(place, (x1 - x0, y1 - y0), resolution=level, units="level")
        except Exception as error:
            raise SlideError(
                f"{self.path.name}: cannot be read at x {place[0]}, y {place[1]} of level 0; "
                f"the file is broken there ({cause(error)})."
            ) from error
        return np.ascontiguousarray(pixels[..., :3], np.uint8)

    def close(self) -> None:
        """As :meth:`Slide.close`."""
        if wsi := getattr(self._reader, "wsi", None):  # DICOM keeps files open
            wsi.close()


def _open(path: Path, kind: str) -> Any:
    """Return tiatoolbox's reader."""
    wsireader = import_tiatoolbox("wsicore.wsireader")
    return wsireader.DICOMWSIReader(path) if kind == "dicom" else _open_jp2(path, wsireader)


def _open_jp2(path: Path, wsireader: Any) -> Any:
    import glymur

    if glymur.version.openjpeg_version == "0.0.0":
        raise OSError("it needs the OpenJPEG library; install libopenjp2")
    return wsireader.JP2WSIReader(path)


def _jp2_mpp(reader: Any) -> Mpp | None:
    """Return the capture resolution, or Aperio's "MPP = 0.25" in the XML.

    Not ``reader.info.mpp``, which is a guess from the objective where the file states no size.
    """
    boxes = [inner for box in reader.glymur_jp2.box for inner in _flat(box)]
    for box in boxes:
        if box.box_id == "xml " and (
            found := re.search(r"MPP\s*=\s*(\d*\.\d+)", "".join(box.xml.getroot().itertext()))
        ):
            return float(found[1]), float(found[1])
    for box in boxes:
        if box.box_id == "resc":
            return 1e6 / box.horizontal_resolution, 1e6 / box.vertical_resolution
    return None


def _flat(box: Any) -> list[Any]:
    """Return a JP2 box and all within it."""
    return [box, *(inner for one in getattr(box, "box", None) or [] for inner in _flat(one))]
