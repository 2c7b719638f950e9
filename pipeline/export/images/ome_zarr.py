"""Nuclei as OME-NGFF label images: for every pixel the nucleus that it belongs to, and that nucleus's label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from classifier.decision_rule import best_labels
from classifier.labels.libraries import Library, no_label_colour
from nucpipe._version import __version__
from nucpipe.files import EXPORTED, folder_written_whole
from pipeline.export.images.pyramid import (
    BLOCK_PX,
    NGFF_VERSION,
    Block,
    channels_rgb,
    create_levels,
    image_size,
    level_sizes,
    multiscales,
    shrink_labels,
    write_image,
)
from pipeline.export.images.rasterize import draw_rings
from pipeline.slide.base import Slide
from pipeline.store.reader import Store

NUCLEI = "nuclei"
TILE_PX = 2 * BLOCK_PX
"""Side of what is drawn at a time: four blocks of the first level, one of the second."""


def write_labels(
    store: Store, path: Path, libraries: Sequence[str], slide: Slide | None = None, image_mpp: float = 2.0
) -> None:
    """Write an OME-Zarr folder (NGFF 0.5) with label images of level 0's size.

    ``labels/nuclei`` (uint32) holds each nucleus's row in the store's table plus 1; ``labels/<library>`` (uint8) the
    number of its label plus 1, with the library's names and colours. 0 is background. A pixel belongs to a nucleus if
    its centre lies in the outline; where outlines overlap, to the later one. Blocks without nuclei are not stored.
    Memory does not grow with the number of nuclei.

    Args:
        store: the nuclei.
        path: of the folder, ``.ome.zarr``.
        libraries: names of the libraries whose labels are written.
        slide: where it is given, the folder also holds its pixels, in micrometres at the same places.
        image_mpp: pixel size of the slide's largest image there.

    Raises:
        UsageError: the store has no such library.
        OutputError: the folder cannot be written.
    """
    known = [store.info.outputs.library(name) for name in libraries]
    with folder_written_whole(path) as partial:
        ome: dict[str, Any] = {"version": NGFF_VERSION}
        root = zarr.open_group(partial, mode="a", zarr_format=3)
        if slide is not None:
            shrink, width, height = image_size(slide, image_mpp)
            sizes = level_sizes(width, height)
            names = [str(k) for k in range(len(sizes))]
            write_image(slide, shrink, create_levels(root, names, sizes, np.uint8, 3))
            ome |= {"multiscales": multiscales(slide.name, names, slide.mpp * shrink, True), "omero": channels_rgb()}
        root.attrs.update({"ome": ome, EXPORTED: __version__})
        _write_label_images(store, root.create_group("labels"), known)


def _write_label_images(store: Store, labels: zarr.Group, libraries: Sequence[Library]) -> None:
    sizes = level_sizes(*store.info.size_l0)
    names = [str(k) for k in range(len(sizes))]
    labels.attrs["ome"] = {"version": NGFF_VERSION, "labels": [NUCLEI, *(library.name for library in libraries)]}
    images, meanings = {}, {library.name: _meanings(library) for library in libraries}
    for name in [NUCLEI, *(library.name for library in libraries)]:
        group = labels.create_group(name)
        images[name] = create_levels(group, names, sizes, np.uint32 if name == NUCLEI else np.uint8)
        group.attrs["ome"] = {
            "version": NGFF_VERSION,
            "multiscales": multiscales(name, names, store.info.mpp, False),
            "image-label": {"source": {"image": "../../"}, **meanings.get(name, {})},
        }
    blocks = set()
    for block, nuclei, drawn in drawn_blocks(store, libraries):
        blocks.add(block)
        for name, levels in images.items():
            pixels = nuclei.values[name][drawn]
            for k, level in enumerate(levels[:2]):
                y, x = (place * TILE_PX >> k for place in block)
                shrunk = pixels[:: 2**k, :: 2**k]
                level[y : y + shrunk.shape[0], x : x + shrunk.shape[1]] = shrunk
    for levels in images.values():
        shrink_labels(levels[1:], blocks)


def _meanings(library: Library) -> dict[str, Any]:
    """Return the colours and the names of a library's values."""
    colours = [[*colour, 255] for colour in (*library.colours, no_label_colour())]
    return {
        "colors": [{"label-value": k, "rgba": rgba} for k, rgba in enumerate(colours, 1)],
        "properties": [{"label-value": k, "label": label} for k, label in enumerate([*library.labels, "no label"], 1)],
    }


@dataclass(frozen=True)
class Band:
    """Nuclei that may reach into a band of the slide, as wide as the slide.

    Attributes:
        rings: (M, 2) float64, x and y in level-0 pixels; whole numbers are centres of pixels.
        offsets: (N+1,) int64, ring i is ``rings[offsets[i]:offsets[i + 1]]``.
        centres: (N, 2) int64, the pixels that the centroids lie in.
        boxes: (N, 4) float64, x0, y0, x1, y1 of ring and centre.
        values: by image (N+1,), what a pixel of each nucleus is given there; the first is the background's.
    """

    rings: npt.NDArray[np.float64]
    offsets: npt.NDArray[np.int64]
    centres: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    values: dict[str, npt.NDArray[Any]]

    @classmethod
    def of(cls, part: Store, libraries: Sequence[Library]) -> Band:
        """Read the nuclei of ``part``, at least one."""
        offsets, points = part.contours()
        rings, centres = points.astype(np.float64) - 0.5, np.floor(part.centroids_l0).astype(np.int64)
        low, high = (extreme.reduceat(rings, offsets[:-1]) for extreme in (np.minimum, np.maximum))
        boxes = np.hstack([np.minimum(low, centres), np.maximum(high, centres)])
        values: dict[str, npt.NDArray[Any]] = {}
        values[NUCLEI] = np.concatenate([[0], np.asarray(part.rows, np.int64) + 1]).astype(np.uint32)
        numbers = best_labels(part.probabilities, part.info.outputs, part.info.rule) if libraries else {}
        for library in libraries:
            number = numbers[library.name].astype(np.int64)
            given = np.where(number < 0, len(library.labels), number) + 1
            values[library.name] = np.concatenate([[0], given]).astype(np.uint8)
        return cls(rings, offsets, centres, boxes, values)

    def draw(self, x0: int, y0: int, shape: tuple[int, int]) -> npt.NDArray[np.int32]:
        """Return (h, w) int32: for each pixel of a box the number of its nucleus, counted from 1, or 0."""
        drawn = np.zeros(shape, np.int32)
        left, top, right, bottom = self.boxes.T
        met = (left < x0 + shape[1]) & (right >= x0) & (top < y0 + shape[0]) & (bottom >= y0)
        draw_rings(drawn, x0, y0, self.rings, self.offsets, self.centres, np.flatnonzero(met))
        return drawn


def drawn_blocks(store: Store, libraries: Sequence[Library]) -> Iterator[tuple[Block, Band, npt.NDArray[np.int32]]]:
    """Yield the blocks of level 0, ``TILE_PX`` pixels wide, that nuclei reach into.

    Yields:
        (row, column) of the block; nuclei, some of which reach into it; and (h, w) int32, for each pixel of the block
        the number of the nucleus among those, counted from 1, or 0.
    """
    reach = _reach(store)
    width, height = store.info.size_l0
    for row, y0 in enumerate(range(0, height, TILE_PX)):
        part = store.in_bbox(-reach, y0 - reach, width + reach, y0 + TILE_PX + reach)
        if not len(part):
            continue
        band = Band.of(part, libraries)
        for column, x0 in enumerate(range(0, width, TILE_PX)):
            drawn = band.draw(x0, y0, (min(TILE_PX, height - y0), min(TILE_PX, width - x0)))
            if drawn.any():
                yield (row, column), band, drawn


def _reach(store: Store) -> float:
    """Return how far outlines reach from their centroids, up or down, in pixels, and one pixel more."""
    reach = 0.0
    for part in store.batches():
        offsets, points = part.contours()
        if len(points):
            reach = max(reach, float(np.abs(points[:, 1] - np.repeat(part.centroids_l0[:, 1], np.diff(offsets))).max()))
    return reach + 1
