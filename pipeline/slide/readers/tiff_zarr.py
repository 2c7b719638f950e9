"""Slides kept as chunked arrays: OME-TIFF and tiled TIFF that OpenSlide declines (through tifffile), NGFF (zarr)."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr

from nucpipe.errors import SlideError
from pipeline.slide.base import Level, Slide
from pipeline.slide.causes import cause
from pipeline.slide.limits import check_slide, check_tile
from pipeline.slide.pixel_size import Mpp, in_micrometres, pixel_size
from pipeline.slide.readers.channels import as_rgb, check_channels
from pipeline.slide.readers.tiff import broken_tiff, check_whole, main_series, stated_mpp
from pipeline.slide.resample import Box, Image


class ArraySlide(Slide):
    """A pyramid of zarr arrays with named axes. One thread reads at a time."""

    def __init__(
        self,
        path: Path,
        arrays: Sequence[zarr.Array[Any]],
        axes: str,
        mpp: float,
        vendor: str,
        close: Callable[[], None],
    ) -> None:
        """Take over arrays of the levels, finest first, whose axes are named in capitals; ``close`` releases them."""
        self._arrays, self._axes, self._close, self._lock = arrays, axes, close, threading.Lock()
        sizes = [(array.shape[axes.index("X")], array.shape[axes.index("Y")]) for array in arrays]
        check_slide(path, sizes)
        for array in arrays:
            check_tile(path, math.prod(array.chunks), 1)
        super().__init__(path, tuple(Level(size, sizes[0][0] / size[0]) for size in sizes), mpp, vendor)

    def read_level(self, level: int, box: Box) -> Image:
        """As :meth:`Slide.read_level`."""
        x0, y0, x1, y1 = box
        ranges = {"X": slice(x0, x1), "Y": slice(y0, y1)}
        try:
            with self._lock:
                pixels = self._arrays[level][tuple(ranges.get(axis, slice(None)) for axis in self._axes)]
        # A broken chunk raises whatever its codec does.
        except Exception as error:
            raise SlideError(
                f"{self.path.name}: cannot be read at x {x0}, y {y0} of level {level}; "
                f"the file is broken there ({cause(error)})."
            ) from error
        return as_rgb(np.asarray(pixels, np.uint8), self._axes)

    def close(self) -> None:
        """As :meth:`Slide.close`."""
        self._close()


def open_tiff(path: Path, mpp: float | None) -> ArraySlide:
    """Return an OME-TIFF, or another TIFF with tiles.

    Raises:
        SlideError: broken, not RGB, or without a pixel size.
    """
    with broken_tiff(path):
        file = tifffile.TiffFile(path)
    try:
        with broken_tiff(path):
            series = main_series(path, file)
            check_whole(path, series)
            arrays = [zarr.open_array(series.aszarr(level=i), mode="r") for i in range(len(series.levels))]
            size = pixel_size(path, mpp, lambda: stated_mpp(file, series))
        return ArraySlide(path, arrays, series.axes, size, "ome-tiff" if file.is_ome else "tiff", file.close)
    except SlideError:
        file.close()
        raise


def open_ngff(path: Path, mpp: float | None) -> ArraySlide:
    """Return a folder in the Next-Generation File Format (OME-Zarr) 0.4 or 0.5; of several images in it, the first.

    Raises:
        SlideError: no multiscale image, not RGB, or without a pixel size.
    """
    try:
        group = zarr.open_group(path, mode="r")
        if "multiscales" not in _ome(group) and isinstance(first := group.get("0"), zarr.Group):
            group = first  # bioformats2raw keeps each image in a numbered group
        image = _ome(group)["multiscales"][0]
        axes = "".join(axis["name"].upper() for axis in image["axes"])
        arrays = [zarr.open_array(group.store_path / dataset["path"], mode="r") for dataset in image["datasets"]]
        check_channels(path, arrays[0].shape, axes, arrays[0].dtype)
    except SlideError:
        raise
    # Metadata that anybody wrote: any key may be missing or of another type.
    except Exception as error:
        raise SlideError(
            f"{path.name}: expected an NGFF (OME-Zarr) image; it cannot be read ({cause(error)})."
        ) from error
    size = pixel_size(path, mpp, lambda: _ngff_mpp(image))
    return ArraySlide(path, arrays, axes, size, "ngff", lambda: None)


def _ome(group: zarr.Group) -> Any:
    """Return NGFF's metadata: under ``ome`` since 0.5, at the top before."""
    return group.attrs.get("ome", group.attrs)


def _ngff_mpp(image: dict[str, Any]) -> Mpp | None:
    """Return the size of level 0's pixels: every ``scale`` that applies to it, in its axes' unit."""
    units = {axis["name"]: (i, axis.get("unit")) for i, axis in enumerate(image["axes"])}
    transforms = image["datasets"][0].get("coordinateTransformations", [])
    scales = [one["scale"] for one in (*transforms, *image.get("coordinateTransformations", [])) if "scale" in one]
    if not scales:
        return None
    scale = np.prod(np.asarray(scales, float), axis=0)
    x, y = (in_micrometres(float(scale[units[axis][0]]), units[axis][1]) for axis in "xy")
    return (x, y) if x and y else None
