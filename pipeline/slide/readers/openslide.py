"""Slides that OpenSlide opens: SVS, NDPI, MRXS, SCN, BIF, DICOM, generic tiled TIFF and others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide

from nucpipe.errors import SlideError
from pipeline.slide.base import SQUARE_PX, Level, Slide
from pipeline.slide.causes import cause
from pipeline.slide.limits import check_slide, check_tile
from pipeline.slide.pixel_size import Mpp, from_resolution, in_micrometres, pixel_size
from pipeline.slide.readers.channels import on_white
from pipeline.slide.resample import Box, Image


class OpenSlideSlide(Slide):
    """A slide through OpenSlide, which itself is safe to read from several threads."""

    def __init__(self, path: Path, mpp: float | None, file: Path | None = None) -> None:
        """Open ``path``; ``file`` is what OpenSlide is given instead where a slide is a folder of files."""
        try:
            self._slide = openslide.OpenSlide(str(file or path))
        except openslide.OpenSlideError as error:
            raise SlideError(
                f"{path.name}: expected a slide; it is cut off or broken ({cause(error)}). Copy it again."
            ) from error
        properties = dict(self._slide.properties)
        levels = zip(self._slide.level_dimensions, self._slide.level_downsamples, strict=True)
        try:
            check_slide(path, list(self._slide.level_dimensions))
            for k in range(self._slide.level_count):
                width, height = (properties.get(f"openslide.level[{k}].tile-{side}", 1) for side in ("width", "height"))
                check_tile(path, int(width), int(height))
        except SlideError:
            self._slide.close()
            raise
        super().__init__(
            path,
            tuple(Level(size, downsample) for size, downsample in levels),
            pixel_size(path, mpp, lambda: _stated(properties)),
            properties[openslide.PROPERTY_NAME_VENDOR],
            _origin(properties),
        )

    def read_level(self, level: int, box: Box) -> Image:
        """As :meth:`Slide.read_level`."""
        if level == 0:
            return self._region(0, box)
        # OpenSlide takes a position in level-0 pixels. Where a level's downsample is no whole number, that place falls
        # between the level's pixels and OpenSlide interpolates; blocks at fixed places make it do so the same way
        # whatever the read box.
        x0, y0, x1, y1 = box
        image = np.empty((y1 - y0, x1 - x0, 3), np.uint8)
        width, height = self.levels[level].size
        for top in range(y0 // SQUARE_PX * SQUARE_PX, y1, SQUARE_PX):
            for left in range(x0 // SQUARE_PX * SQUARE_PX, x1, SQUARE_PX):
                block = self._region(level, (left, top, min(left + SQUARE_PX, width), min(top + SQUARE_PX, height)))
                part = block[max(y0 - top, 0) : y1 - top, max(x0 - left, 0) : x1 - left]
                y, x = max(top - y0, 0), max(left - x0, 0)
                image[y : y + part.shape[0], x : x + part.shape[1]] = part
        return image

    def _region(self, level: int, box: Box) -> Image:
        """Return what OpenSlide reads, laid on white."""
        x0, y0, x1, y1 = box
        downsample = self.levels[level].downsample
        place = round(x0 * downsample), round(y0 * downsample)
        try:
            rgba = np.asarray(self._slide.read_region(place, level, (x1 - x0, y1 - y0)))
        except openslide.OpenSlideError as error:
            raise SlideError(
                f"{self.path.name}: cannot be read at x {place[0]}, y {place[1]} of level 0; "
                f"the file is broken there ({cause(error)})."
            ) from error
        return on_white(rgba)

    def close(self) -> None:
        """As :meth:`Slide.close`."""
        self._slide.close()


def _stated(properties: dict[str, str]) -> Mpp | None:
    """Return OpenSlide's pixel size; from TIFF tags only where they can be true."""
    tags = [properties.get(f"tiff.{name}") for name in ("XResolution", "YResolution", "ResolutionUnit")]
    from_tags = from_resolution(float(tags[0]), float(tags[1]), tags[2]) if tags[0] and tags[1] and tags[2] else None
    if properties[openslide.PROPERTY_NAME_VENDOR] == "generic-tiff":
        return from_tags
    for names in ((openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y), ("aperio.MPP", "aperio.MPP")):
        x, y = (in_micrometres(properties.get(name), "micrometer") for name in names)
        if x and y:
            return x, y
    return from_tags


def _origin(properties: dict[str, str]) -> tuple[int, int]:
    """Return what QuPath subtracts: the bounds' corner, where all four bounds are stated."""
    names = [
        openslide.PROPERTY_NAME_BOUNDS_X,
        openslide.PROPERTY_NAME_BOUNDS_Y,
        openslide.PROPERTY_NAME_BOUNDS_WIDTH,
        openslide.PROPERTY_NAME_BOUNDS_HEIGHT,
    ]
    if not all(name in properties for name in names):
        return 0, 0
    return int(properties[names[0]]), int(properties[names[1]])
