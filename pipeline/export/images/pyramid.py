"""Images as OME-NGFF 0.5 pyramids (https://ngff.openmicroscopy.org/0.5/), written block by block."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec

from pipeline.slide.base import Slide

BLOCK_PX = 1024  # side of a chunk
SMALLEST_PX = 512  # of the longer side of the smallest level
NGFF_VERSION = "0.5"

Block = tuple[int, int]


def level_sizes(width: int, height: int) -> list[tuple[int, int]]:
    """Return (width, height) of the levels of a pyramid: each the half of the one before, rounded up."""
    sizes = [(width, height)]
    while max(sizes[-1]) > SMALLEST_PX:
        w, h = sizes[-1]
        sizes.append(((w + 1) // 2, (h + 1) // 2))
    return sizes


def create_levels(
    group: zarr.Group, names: Sequence[str], sizes: Sequence[tuple[int, int]], dtype: npt.DTypeLike, channels: int = 0
) -> list[zarr.Array[Any]]:
    """Create empty levels; (height, width), or (channels, height, width) where there are channels."""
    return [
        group.create_array(
            name,
            shape=(*((channels,) if channels else ()), height, width),
            dtype=np.dtype(dtype),
            chunks=(*((channels,) if channels else ()), min(BLOCK_PX, height), min(BLOCK_PX, width)),
            compressors=BloscCodec(cname="zstd", clevel=3, shuffle="noshuffle"),
            fill_value=0,
            dimension_names=(*(("c",) if channels else ()), "y", "x"),
        )
        for name, (width, height) in zip(names, sizes, strict=True)
    ]


def image_size(slide: Slide, mpp: float) -> tuple[float, int, int]:
    """Return level-0 pixels per pixel (at least 1), and (width, height), of the slide at a pixel size of ``mpp`` or
    above.
    """
    shrink = max(1.0, mpp / slide.mpp)
    width, height = slide.size_l0
    return shrink, math.ceil(width / shrink), math.ceil(height / shrink)


def write_image(slide: Slide, shrink: float, levels: Sequence[zarr.Array[Any]]) -> None:
    """Write the slide's pixels, level by level; each pixel of a smaller level is the mean of four.

    Args:
        slide: open.
        shrink: level-0 pixels per pixel of the first level.
        levels: (3, height, width) uint8, to be filled.
    """
    for y, x, rows, columns in _blocks(levels[0]):
        pixels = slide.shrunk(shrink, (x, y, columns.stop, rows.stop))
        levels[0][:, rows, columns] = pixels.transpose(2, 0, 1)
    for finer, level in itertools.pairwise(levels):
        for y, x, rows, columns in _blocks(level):
            four = np.asarray(finer[:, 2 * y : 2 * rows.stop, 2 * x : 2 * columns.stop])
            odd = [(0, 0), (0, four.shape[1] % 2), (0, four.shape[2] % 2)]
            four = np.pad(four, odd, mode="edge").astype(np.uint16)
            mean = four[:, ::2, ::2] + four[:, 1::2, ::2] + four[:, ::2, 1::2] + four[:, 1::2, 1::2]
            level[:, rows, columns] = ((mean + 2) // 4).astype(np.uint8)


def _blocks(level: zarr.Array[Any]) -> Iterator[tuple[int, int, slice, slice]]:
    height, width = level.shape[-2:]
    for y in range(0, height, BLOCK_PX):
        for x in range(0, width, BLOCK_PX):
            yield y, x, slice(y, min(y + BLOCK_PX, height)), slice(x, min(x + BLOCK_PX, width))


def shrink_labels(levels: Sequence[zarr.Array[Any]], blocks: set[Block]) -> None:
    """Write the smaller levels of a label image: every other pixel, for means of labels mean nothing.

    Args:
        levels: (height, width), the first one filled.
        blocks: (row, column) of the blocks of the first level that hold anything.
    """
    for finer, level in itertools.pairwise(levels):
        blocks = {(row // 2, column // 2) for row, column in blocks}
        height, width = level.shape
        for row, column in sorted(blocks):
            y, x = row * BLOCK_PX, column * BLOCK_PX
            rows, columns = slice(y, min(y + BLOCK_PX, height)), slice(x, min(x + BLOCK_PX, width))
            level[rows, columns] = np.asarray(finer[2 * y : 2 * rows.stop, 2 * x : 2 * columns.stop])[::2, ::2]


def multiscales(name: str, names: Sequence[str], mpp: float, channels: bool) -> list[dict[str, Any]]:
    """Return the metadata of a pyramid whose first level has pixels of ``mpp`` micrometres."""
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"]
    if channels:
        axes.insert(0, {"name": "c", "type": "channel"})
    datasets = []
    for k, path in enumerate(names):
        scale = [mpp * 2**k] * 2
        scale = [1.0, *scale] if channels else scale
        datasets.append({"path": path, "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    return [{"name": name, "axes": axes, "datasets": datasets}]


def channels_rgb() -> dict[str, Any]:
    """Return OMERO's rendering metadata for red, green and blue of 8 bits."""
    window = {"min": 0, "max": 255, "start": 0, "end": 255}
    colours = {"red": "FF0000", "green": "00FF00", "blue": "0000FF"}
    return {
        "channels": [{"label": name, "color": hex6, "window": window, "active": True} for name, hex6 in colours.items()]
    }
