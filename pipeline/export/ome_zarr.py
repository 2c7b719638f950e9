"""Nuclei as OME-NGFF label images: for every pixel the nucleus that it belongs to, and that nucleus's label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from classifier.decision_rule import best_labels
from classifier.libraries import Library, no_label_colour
from nucpipe._version import __version__
from nucpipe.files import EXPORTED, folder_written_whole
from pipeline.export.pyramid import (
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
from pipeline.slide.base import Slide
from pipeline.store.reader import Store

NUCLEI = "nuclei"


def write_labels(
    store: Store, path: Path, libraries: Sequence[str], slide: Slide | None = None, image_mpp: float = 2.0
) -> int:
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

    Returns:
        The number of nuclei.

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
    return len(store)


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
    for (row, column), part, drawn in drawn_blocks(store):
        blocks.add((row, column))
        rows = slice(row * BLOCK_PX, row * BLOCK_PX + drawn.shape[0])
        columns = slice(column * BLOCK_PX, column * BLOCK_PX + drawn.shape[1])
        which = np.concatenate([np.zeros(1, np.int64), np.asarray(part.rows, np.int64) + 1])
        images[NUCLEI][0][rows, columns] = which[drawn].astype(np.uint32)
        numbers = best_labels(part.probabilities, part.info.outputs, part.info.rule) if libraries else {}
        for library in libraries:
            number = numbers[library.name].astype(np.int64)
            values = np.where(number < 0, len(library.labels), number) + 1
            images[library.name][0][rows, columns] = np.concatenate([[0], values])[drawn].astype(np.uint8)
    for levels in images.values():
        shrink_labels(levels, blocks)


def _meanings(library: Library) -> dict[str, Any]:
    """Return the colours and the names of a library's values."""
    colours = [[*colour, 255] for colour in (*library.colours, no_label_colour())]
    return {
        "colors": [{"label-value": k, "rgba": rgba} for k, rgba in enumerate(colours, 1)],
        "properties": [{"label-value": k, "label": label} for k, label in enumerate([*library.labels, "no label"], 1)],
    }


def drawn_blocks(store: Store) -> Iterator[tuple[Block, Store, npt.NDArray[np.int64]]]:
    """Yield the blocks of level 0 that nuclei reach into.

    Yields:
        (row, column) of the block; nuclei, some of which reach into it; and (h, w) int64, for each pixel of the block
        the number of the nucleus among those, counted from 1, or 0.
    """
    reach, blocks = _survey(store)
    width, height = store.info.size_l0
    for row, column in sorted(blocks):
        x0, y0 = column * BLOCK_PX, row * BLOCK_PX
        shape = (min(BLOCK_PX, height - y0), min(BLOCK_PX, width - x0))
        if min(shape) <= 0:
            continue
        part = store.in_bbox(x0 - reach, y0 - reach, x0 + shape[1] + reach, y0 + shape[0] + reach)
        drawn = _draw(part, (x0, y0), shape)
        if drawn.any():
            yield (row, column), part, drawn


def _survey(store: Store) -> tuple[float, set[Block]]:
    """Return how far nuclei reach from their centroids, in pixels, and the blocks that they may reach into."""
    reach, blocks = 0.0, set[Block]()
    for part in store.batches():
        offsets, points = part.contours()
        centres = np.repeat(part.centroids_l0, np.diff(offsets), axis=0)
        if len(points):
            reach = max(reach, float(np.abs(points - centres).max()))
            touched = np.unique(np.floor(points[:, ::-1] / BLOCK_PX).astype(np.int64), axis=0)
            blocks |= {(max(row, 0), max(column, 0)) for row, column in touched.tolist()}
    return reach + 1, blocks


def _draw(part: Store, corner: tuple[int, int], shape: tuple[int, int]) -> npt.NDArray[np.int64]:
    from skimage.draw import polygon

    drawn = np.zeros(shape, np.int64)
    offsets, points = part.contours()
    rings = points.astype(np.float64) - corner - 0.5  # whole numbers are pixel centres there
    centres = np.floor(part.centroids_l0).astype(np.int64) - corner
    for k in range(len(part)):
        ring = rings[offsets[k] : offsets[k + 1]]
        rows, columns = polygon(ring[:, 1], ring[:, 0], shape)  # type: ignore[no-untyped-call]
        if len(rows):
            drawn[rows, columns] = k + 1
        elif (centres[k] >= 0).all() and (centres[k] < shape[::-1]).all():  # smaller than a pixel
            x, y = centres[k]
            drawn[y, x] = drawn[y, x] or k + 1
    return drawn
