"""Draws the pictures of the documentation from the demo's result.

python docs/picture.py results/CMU-1-Small-Region docs/overview.jpg  overview, and a detail with outlines
python docs/picture.py results/CMU-1-Small-Region docs/qupath.jpg PanNuke CoNSeP  the detail in two libraries' colours
"""

import sys
from pathlib import Path

import cv2
import numpy as np

from pipeline.cli.demo_slide import fetch_demo_slide
from pipeline.slide.open import open_slide
from pipeline.store.reader import open_store

X, Y, SIDE, ZOOM, HEIGHT = 940, 1330, 240, 5, 900


def detail(result: Path, library_name: str) -> np.ndarray:
    """Return a square of the slide, enlarged, with each nucleus' outline in the colour of its label; BGR."""
    store = open_store(result / "nuclei.zarr")
    with open_slide(fetch_demo_slide()) as slide:
        pixels = slide.read_level(0, (X, Y, X + SIDE, Y + SIDE))
    picture = cv2.resize(pixels, None, fx=ZOOM, fy=ZOOM, interpolation=cv2.INTER_CUBIC)
    offsets, points = store.contours()
    colours, numbers = store.info.outputs.library(library_name).colours, store.label_numbers(library_name)
    near = np.all(np.abs(store.centroids_l0 - (X + SIDE / 2, Y + SIDE / 2)) < SIDE, axis=1)
    for i in np.flatnonzero(near):
        ring = (points[offsets[i] : offsets[i + 1]] - (X, Y)) * ZOOM - 0.5
        outline = [np.round(ring * 16).astype(np.int32)]
        cv2.polylines(picture, outline, True, (255, 255, 255), 5, cv2.LINE_AA, 4)
        cv2.polylines(picture, outline, True, colours[numbers[i]], 3, cv2.LINE_AA, 4)
    return picture[..., ::-1]


def main(result: str, out: str, *libraries: str) -> None:
    """Two pictures side by side."""
    if libraries:
        pictures, height = [detail(Path(result), name) for name in libraries], 700
    else:
        pictures, height = [cv2.imread(str(Path(result) / "overview.png")), detail(Path(result), "PanNuke")], HEIGHT
    left, right = (
        cv2.resize(part, (round(part.shape[1] * height / part.shape[0]), height), interpolation=cv2.INTER_AREA)
        for part in pictures
    )
    gap = np.full((height, 16, 3), 255, np.uint8)
    cv2.imwrite(out, np.hstack([left, gap, right]), [cv2.IMWRITE_JPEG_QUALITY, 88])


if __name__ == "__main__":
    main(*sys.argv[1:])
