"""The pictures of a report, as data URIs."""

from __future__ import annotations

import base64
import io
from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.export.figures.overview import paint
from pipeline.slide.base import Slide, shrunk_size
from pipeline.store.reader import Store

OVERVIEW_PX = 1400
CROP_UM, CROP_PX = 32.0, 128

Picture = npt.NDArray[np.uint8]


def data_uri(picture: Picture, kind: str) -> str:
    """Return a picture (h, w, 3 or 4) as JPEG or PNG in a URI."""
    file = io.BytesIO()
    image = Image.fromarray(picture)
    if kind == "png":
        image = image.quantize(64, method=Image.Quantize.FASTOCTREE)  # few colours: a third of the size
        image.save(file, "PNG", optimize=True)
    else:
        image.save(file, "JPEG", quality=80)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def overviews(store: Store, slide: Slide | None, thumbnail: Picture | None) -> dict[str, str]:
    """Draw by library the slide with its nuclei in the library's colours; on white where the slide is gone.

    Args:
        store: the nuclei.
        slide: open, or None where it is gone.
        thumbnail: the whole slide in small, if that has been read.
    """
    if thumbnail is not None:
        size = shrunk_size((thumbnail.shape[1], thumbnail.shape[0]), OVERVIEW_PX)
        base = np.asarray(cv2.resize(thumbnail, size, interpolation=cv2.INTER_AREA), np.uint8)
    elif slide is not None:
        base = slide.thumbnail(OVERVIEW_PX)
    else:
        width, height = shrunk_size(store.info.size_l0, OVERVIEW_PX)
        base = np.full((height, width, 3), 255, np.uint8)
    return {lib.name: data_uri(paint(base, store, lib), "jpeg") for lib in store.info.outputs.libraries}


def density_map(cells: npt.NDArray[np.int64], most: float, colour: tuple[int, int, int]) -> str:
    """Return nuclei per cell, from white to a colour at ``most``."""
    strength = np.clip(cells / max(most, 1e-9), 0, 1)[..., None] ** 0.7  # so that few are still seen
    picture = 255 - strength * (255 - np.array(colour, float))
    return data_uri(np.round(picture).astype(np.uint8), "png")


def crop(slide: Slide, store: Store, row: int, centroid_l0: tuple[float, float]) -> str:
    """Return a nucleus in its surroundings, with its outline."""
    half = CROP_UM / 2 / slide.mpp
    x, y = centroid_l0
    left, top, side = int(x - half), int(y - half), max(2, round(2 * half))
    pixels = _square(slide, left, top, side)
    picture = cv2.resize(pixels, (CROP_PX, CROP_PX), interpolation=cv2.INTER_CUBIC).astype(np.uint8)
    _, points = replace(store, rows=np.array([np.asarray(store.rows)[row]])).contours()
    ring = (points - (left, top)) * (CROP_PX / side) - 0.5
    cv2.polylines(picture, [np.rint(ring * 16).astype(np.int32)], True, (255, 230, 0), 1, cv2.LINE_AA, 4)
    return data_uri(picture, "jpeg")


def _square(slide: Slide, left: int, top: int, side: int) -> Picture:
    """Return level-0 pixels; white beyond the slide."""
    width, height = slide.size_l0
    square = np.full((side, side, 3), 255, np.uint8)
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)
    if x0 < x1 and y0 < y1:
        square[y0 - top : y1 - top, x0 - left : x1 - left] = slide.read_level(0, (x0, y0, x1, y1))
    return square
