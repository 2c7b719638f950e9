"""Where the tissue is of poor quality, for people: a picture of the slide, and a line a nucleus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from nucpipe.errors import SlideError
from nucpipe.files import written_whole
from pipeline.regions.quality import CAUSES, QualityMap, measure_quality
from pipeline.regions.tissue import Mask, tissue_mask
from pipeline.result import Result
from pipeline.slide.base import Slide
from pipeline.store.reader import Store

LINES = 65536  # of the table, written at a time
PICTURE_PX = 1800
Picture = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

MARKS: Mapping[str, tuple[Colour, int]] = {"out_of_focus": ((0, 110, 60), 1), "pen_marked": ((235, 120, 0), -1)}
"""For each of ``CAUSES`` its colour, which neither stain has, and the direction of its hatching."""
HATCH_PX, LINE_PX = 10, 2


@dataclass(frozen=True)
class SlideQuality:
    """The quality of a slide's tissue, and the slide in small, (h, w, 3) uint8 RGB."""

    map: QualityMap
    thumbnail: Picture


def quality_of(result: Result, slide: Path | None = None) -> SlideQuality:
    """Measure where the slide of a result is of poor quality; all tissue is looked at.

    Args:
        result: finished.
        slide: where the slide lies; None: where the run found it.

    Raises:
        UsageError: the slide is not there.
        SlideError: it cannot be read, is not the one of this result, or is too coarse to tell.
    """
    with result.open_slide(slide) as opened:
        return fine_enough(opened)


def fine_enough(slide: Slide) -> SlideQuality:
    """Measure the quality of all tissue of an open slide.

    Raises:
        SlideError: its pixels are too coarse to tell, or it cannot be read.
    """
    quality = measured(slide)
    if quality is None:
        raise SlideError(
            f"{slide.path.name}: its pixels of {slide.mpp:.3g} µm are too coarse to tell what is out of focus; "
            "expected 1 µm or less."
        )
    return quality


def measured(slide: Slide) -> SlideQuality | None:
    """Measure the quality of all tissue of an open slide; None where its pixels are too coarse to tell."""
    thumbnail = slide.thumbnail(PICTURE_PX)
    found = measure_quality(slide, tissue_mask(slide), thumbnail)
    return None if found is None else SlideQuality(found, thumbnail)


def write_quality(store: Store, quality: SlideQuality, folder: Path) -> dict[str, int]:
    """Write ``quality.png`` and ``quality.csv``.

    The table has a line a nucleus: ``id``, ``x_l0``, ``y_l0``, ``blur`` of the cell that it lies in, missing where the
    cell could not be judged, and 0 or 1 for each of ``pipeline.regions.quality.CAUSES``.

    Returns:
        The number of nuclei for each cause.

    Raises:
        OutputError: a file cannot be written.
    """
    import pandas as pd

    with written_whole(folder / "quality.png") as partial:
        picture = hatched(quality.thumbnail, quality.map, store.info.size_l0)
        Image.fromarray(picture).save(partial, "PNG")
    counts = dict.fromkeys(CAUSES, 0)
    with written_whole(folder / "quality.csv") as partial, partial.open("w", encoding="utf-8", newline="") as file:
        for part in store.batches(LINES, at_least_one=True):
            points = part.centroids_l0
            causes = quality.map.causes_at(points)
            x, y = points.T
            table = {"id": part.ids, "x_l0": x, "y_l0": y, "blur": quality.map.blur_at(points)}
            pd.DataFrame(table | {cause: found.astype(int) for cause, found in causes.items()}).to_csv(
                file, index=False, header=file.tell() == 0, float_format="%.6g", lineterminator="\n"
            )
            for cause, found in causes.items():
                counts[cause] += int(np.count_nonzero(found))
    return counts


def without(store: Store, quality: QualityMap, causes: tuple[str, ...]) -> Store:
    """Return the nuclei that lie where none of some causes is true."""
    return store.where(lambda part: ~np.logical_or.reduce([quality.causes_at(part.centroids_l0)[c] for c in causes]))


def hatched(picture: Picture, quality: QualityMap, size_l0: tuple[int, int]) -> Picture:
    """Return a picture of the whole slide, (h, w, 3) uint8 RGB, with the places of poor quality hatched and outlined.

    Args:
        picture: (h, w, 3) uint8 RGB.
        quality: of the slide.
        size_l0: (width, height) of the slide, level-0 pixels.
    """
    drawn = picture.copy()
    height, width = drawn.shape[:2]
    for colour, lines in marks(quality, range(width), range(height), (size_l0[0] / width, size_l0[1] / height)):
        drawn[lines] = colour
    return drawn


def marks(
    quality: QualityMap, across: range, down: range, l0_per_px: tuple[float, float]
) -> Iterator[tuple[Colour, Mask]]:
    """Yield how places of poor quality are marked on a picture, for each cause that occurs on it.

    Args:
        quality: of the slide.
        across, down: the columns and rows of the picture, among those of a picture of the whole slide.
        l0_per_px: (x, y) level-0 pixels per pixel.

    Yields:
        The colour, RGB, and (h, w) bool, the pixels that have it.
    """
    columns, rows = (
        np.clip(np.floor((np.array(px) + 0.5) * (l0 / quality.cell_l0)).astype(np.int64), -1, count) + 1
        for px, l0, count in zip((across, down), l0_per_px, quality.blur.shape[::-1], strict=True)
    )
    for cause, cells in quality.causes.items():
        places = np.pad(cells, 1)[np.ix_(rows, columns)]  # nothing is beyond the slide
        if not places.any():
            continue
        colour, direction = MARKS[cause]
        stripes = np.add.outer(direction * np.array(down), np.array(across)) % HATCH_PX < LINE_PX
        inner = cv2.erode(places.astype(np.uint8), np.ones((2 * LINE_PX + 1,) * 2, np.uint8), borderValue=1) > 0
        yield colour, places & (stripes | ~inner)
