"""Nuclei drawn with matplotlib, for notebooks and papers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from classifier.labels.libraries import no_label_colour
from nucpipe.errors import UsageError
from pipeline.export.figures.scale_bar import scale_bar
from pipeline.result import BBox, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pipeline.slide.base import Slide

BACKGROUND_PX = 1600  # of the slide's picture behind the nuclei
MAX_OUTLINES = 20_000  # of more nuclei the outlines could not be seen: they are drawn as dots


def plot(
    result: Result,
    bbox: BBox | None = None,
    library: str | None = None,
    ax: Axes | None = None,
    slide: str | Path | None = None,
    labels: Sequence[str] | None = None,
) -> Axes:
    """Draw nuclei in the colours of one library, over the slide's pixels where the slide is at hand.

    Args:
        result: open.
        bbox: only that part; the whole slide for None.
        library: whose labels give the colours; the result's primary one for None.
        ax: where to draw; a new figure for None.
        slide: where the slide lies, if it has moved since the run.
        labels: only nuclei with one of these labels.

    Returns:
        The axes, in level-0 pixels, y down.

    Raises:
        UsageError: no such library or label; ``slide`` is given and not there.
    """
    known = result.store.info.outputs.library(library or result.primary)
    for label in labels or ():
        if label not in known.labels:
            raise UsageError(f"unknown label '{label}'; {known.name} has {', '.join(known.labels)}.")
    if ax is None:
        from matplotlib import pyplot as plt  # late: it takes a third of a second to import

        _, ax = plt.subplots(figsize=(9, 7), layout="constrained")
    width, height = result.size_l0
    x0, y0, x1, y1 = bbox or (0, 0, width, height)
    _draw_slide(result, (x0, y0, x1, y1), ax, slide)
    part = result.within(bbox)
    contours = result.contours(bbox) if len(part) < MAX_OUTLINES else None
    numbers = part.label_numbers(known.name)
    wanted = np.isin(numbers, [known.labels.index(label) for label in labels]) if labels else np.ones(len(part), bool)
    for number in [*range(len(known.labels)), -1]:
        which = np.flatnonzero(wanted & (numbers == number))
        if len(which):
            colour = no_label_colour() if number < 0 else known.colours[number]
            name = "no label" if number < 0 else known.labels[number].replace("_", " ")
            rgb = tuple(value / 255 for value in colour)
            centres = part.centroids_l0[which]
            _draw_nuclei(ax, f"{name} ({len(which):,})", rgb, centres, contours and [contours[i] for i in which])
    ax.set(xlim=(x0, x1), ylim=(y1, y0), aspect="equal", xticks=[], yticks=[], title=f"{result.name}: {known.name}")
    _draw_scale_bar(ax, x0, x1, y0, y1, result.mpp)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return ax


def _draw_slide(result: Result, bbox: BBox, ax: Axes, slide: str | Path | None) -> None:
    """Draw the slide's pixels, where the slide is at hand."""
    try:
        opened = result.open_slide(slide)
    except UsageError:
        if slide is not None:
            raise
        return
    with opened:
        picture, (x0, y0, x1, y1) = view(opened, bbox, BACKGROUND_PX)
    if picture.size:
        ax.imshow(picture, extent=(x0, x1, y1, y0), interpolation="antialiased")


def view(slide: Slide, bbox_l0: BBox, max_px: int) -> tuple[npt.NDArray[np.uint8], BBox]:
    """Return a part of the slide to look at, made smaller where its longer side is above ``max_px``, never enlarged.

    Args:
        slide: open.
        bbox_l0: x0, y0, x1, y1 in level-0 pixels; what lies outside the slide is left out.
        max_px: of the longer side.

    Returns:
        (h, w, 3) uint8 RGB, and the bounding box that it shows, in level-0 pixels: the one asked for, widened to whole
        pixels of the picture. Empty where it misses the slide.
    """
    width, height = slide.size_l0
    x0, y0, x1, y1 = (min(max(v, 0), most) for v, most in zip(bbox_l0, (width, height) * 2, strict=True))
    shrink = max(1.0, max(x1 - x0, y1 - y0) / max_px)
    box = (int(x0 / shrink), int(y0 / shrink), math.ceil(x1 / shrink), math.ceil(y1 / shrink))
    shown = (box[0] * shrink, box[1] * shrink, box[2] * shrink, box[3] * shrink)
    if x1 <= x0 or y1 <= y0:
        return np.zeros((0, 0, 3), np.uint8), shown
    return slide.shrunk(shrink, box), shown


def _draw_nuclei(
    ax: Axes,
    name: str,
    colour: tuple[float, ...],
    centres: npt.NDArray[np.float64],
    contours: list[npt.NDArray[np.float32]] | None,
) -> None:
    """Draw nuclei in one colour, as outlines or as dots, with one entry in the legend."""
    if contours:
        from matplotlib.collections import PolyCollection

        rings = PolyCollection(contours, facecolors=[(*colour, 0.25)], edgecolors=[colour], linewidths=1, label=name)
        ax.add_collection(rings)
    else:
        x, y = centres.T
        ax.scatter(x, y, s=1, color=[colour], linewidths=0, label=name, rasterized=True)


def _draw_scale_bar(ax: Axes, x0: float, x1: float, y0: float, y1: float, mpp: float) -> None:
    length_um, text = scale_bar((x1 - x0) * mpp)
    left, y = x0 + 0.03 * (x1 - x0), y1 - 0.04 * (y1 - y0)
    ax.plot([left, left + length_um / mpp], [y, y], color="black", linewidth=4, solid_capstyle="butt")
    ax.text(left, y - 0.015 * (y1 - y0), text, va="bottom", bbox={"color": "white", "alpha": 0.6, "pad": 1})
