"""What is out of focus, for people: a picture of the slide, and a line a nucleus."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from nucpipe.errors import SlideError
from nucpipe.files import written_whole
from pipeline.regions.focus import MAX_BLUR, FocusMap, measure_focus
from pipeline.regions.tissue import tissue_mask
from pipeline.result import Result
from pipeline.slide.base import Slide
from pipeline.store.reader import Store

LINES = 65536  # of the table, written at a time
PICTURE_PX = 1800
MARK = (0, 110, 60)  # green is neither stain
HATCH_PX, LINE_PX = 10, 2


@dataclass(frozen=True)
class SlideFocus:
    """The focus of a slide, and the slide in small, (h, w, 3) uint8 RGB."""

    map: FocusMap
    thumbnail: npt.NDArray[np.uint8]


def focus_of(result: Result, slide: Path | None = None) -> SlideFocus:
    """Measure where the slide of a result is out of focus; all tissue is looked at.

    Args:
        result: finished.
        slide: where the slide lies; None: where the run found it.

    Raises:
        UsageError: the slide is not there.
        SlideError: it cannot be read, is not the one of this result, or is too coarse to tell.
    """
    with result.open_slide(slide) as opened:
        focus = measured(opened)
        if focus is None:
            raise SlideError(
                f"{opened.path.name}: its pixels of {opened.mpp:.3g} µm are too coarse to tell what is out of focus; "
                "expected 1 µm or less."
            )
        return focus


def measured(slide: Slide) -> SlideFocus | None:
    """Measure the focus of all tissue of an open slide; None where its pixels are too coarse to tell."""
    found = measure_focus(slide, tissue_mask(slide))
    return None if found is None else SlideFocus(found, slide.thumbnail(PICTURE_PX))


def write_focus(store: Store, focus: SlideFocus, folder: Path) -> int:
    """Write ``focus.png`` and ``focus.csv``.

    The table has a line a nucleus: ``id``, ``x_l0``, ``y_l0``, ``blur`` of the cell that it lies in, missing where the
    cell could not be judged, and ``out_of_focus``, 0 or 1.

    Returns:
        The number of nuclei that are out of focus.

    Raises:
        OutputError: a file cannot be written.
    """
    with written_whole(folder / "focus.png") as partial:
        Image.fromarray(hatched(focus, store.info.size_l0)).save(partial, "PNG")
    count = 0
    with written_whole(folder / "focus.csv") as partial, partial.open("w", encoding="utf-8", newline="") as file:
        for part in store.batches(LINES, at_least_one=True):
            blur = focus.map.at(part.centroids_l0)
            blurred = blur > MAX_BLUR  # NaN is not
            x, y = part.centroids_l0.T
            table = {"id": part.ids, "x_l0": x, "y_l0": y, "blur": blur, "out_of_focus": blurred.astype(int)}
            pd.DataFrame(table).to_csv(
                file, index=False, header=file.tell() == 0, float_format="%.6g", lineterminator="\n"
            )
            count += int(np.count_nonzero(blurred))
    return count


def nuclei_in_focus(store: Store, focus: SlideFocus) -> Store:
    """Return the nuclei that lie in no cell that is out of focus."""
    return store.where(lambda part: ~(focus.map.at(part.centroids_l0) > MAX_BLUR))


def hatched(focus: SlideFocus, size_l0: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Return the slide in small, (h, w, 3) uint8 RGB, with the places out of focus hatched and outlined.

    Args:
        focus: of the slide.
        size_l0: (width, height) of the slide, level-0 pixels.
    """
    picture = focus.thumbnail.copy()
    height, width = picture.shape[:2]
    down, across = focus.map.blur.shape
    columns, rows = (
        np.minimum((np.arange(px) + 0.5) * l0 / px / focus.map.cell_l0, cells - 1).astype(np.int64)
        for px, l0, cells in ((width, size_l0[0], across), (height, size_l0[1], down))
    )
    blurred = focus.map.out_of_focus[np.ix_(rows, columns)]
    stripes = np.add.outer(np.arange(height), np.arange(width)) % HATCH_PX < LINE_PX
    picture[blurred & stripes] = MARK
    outlines, _ = cv2.findContours(blurred.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(picture, outlines, -1, MARK, LINE_PX)
    return picture
