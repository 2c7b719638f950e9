"""Draws the picture of the README from the demo's result: the overview, and a detail with outlines at full resolution.

python docs/picture.py results/CMU-1-Small-Region docs/overview.jpg
"""

import sys
from pathlib import Path

import cv2
import numpy as np

from pipeline.demo import fetch_demo_slide
from pipeline.slide import open_slide
from pipeline.store import open_store

X, Y, SIDE, ZOOM, HEIGHT = 940, 1330, 240, 5, 1100


def detail(result: Path, library_name: str) -> np.ndarray:
    """A square of the slide, enlarged, with each nucleus' outline in the colour of its label; BGR."""
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


def main(result: str, out: str) -> None:
    """Both side by side."""
    overview = cv2.imread(str(Path(result) / "overview.png"))
    right = detail(Path(result), "PanNuke")
    parts = [
        cv2.resize(part, (round(part.shape[1] * HEIGHT / part.shape[0]), HEIGHT), interpolation=cv2.INTER_AREA)
        for part in (overview, right)
    ]
    cv2.imwrite(
        out, np.hstack([parts[0], np.full((HEIGHT, 16, 3), 255, np.uint8), parts[1]]), [cv2.IMWRITE_JPEG_QUALITY, 88]
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
