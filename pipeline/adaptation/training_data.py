"""Corrections of a folder of results as annotated images, from which a classifier can be trained."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np

from nucpipe.errors import DataError, UsageError
from nucpipe.files import written_whole
from pipeline.adaptation.corrections import CORRECTIONS, Correction, agreed, check_labels, read_corrections
from pipeline.result import Result, open_results
from pipeline.slide.grid import WorkingGrid

SIDE_W = 448
"""Side of the square round a corrected nucleus, working pixels: its context, and what comes into sight when that is
turned."""


def has_corrections(folder: Path) -> bool:
    """Tell whether a folder is one of results of which some have corrections."""
    return folder.is_dir() and any(folder.rglob(CORRECTIONS))


def write_training_data(folder: Path, library: str, out: Path) -> list[Path]:
    """Cut a square of its slide round each nucleus that is corrected in one library.

    Args:
        folder: of results; those without such corrections are passed over.
        library: the name of the label system.
        out: a folder for the images; one data set in the points layout is written in it for each slide, for pixel
            sizes differ.

    Returns:
        The data sets, of one group each.

    Raises:
        DataError: nothing is corrected in that library, or corrections cannot be read.
        UsageError: a slide is not where the run found it.
        SlideError: a slide cannot be read.
        OutputError: an image cannot be written.
    """
    written, others = [], set[str]()
    for result in open_results(folder):
        path = result.folder / CORRECTIONS
        said = [c for c in agreed(read_corrections(path)) if c.is_nucleus]
        try:
            check_labels(said, result.store.info.outputs, path)
        except UsageError as error:
            raise DataError(f"{path}: {error}") from error
        mine = [c for c in said if c.library.lower() == library.lower()]
        others |= {c.library for c in said} - {c.library for c in mine}
        if mine:
            written.append(_write_slide(result, mine, out / result.folder.name))
    if not written:
        known = f"; there are some of {', '.join(sorted(others))}" if others else ""
        raise DataError(f"{folder}: none of its results has corrections of {library}{known}.")
    return written


def _write_slide(result: Result, corrections: list[Correction], out: Path) -> Path:
    for part in ("images", "labels"):
        (out / part).mkdir(parents=True, exist_ok=True)
    with result.open_slide() as slide:
        grid = WorkingGrid.for_slide(slide.size_l0, slide.mpp)
        mpp = grid.mpp_w * grid.stride
        centres_w = grid.to_w(np.array([(c.x, c.y) for c in corrections]))
        for c, centre in zip(corrections, centres_w, strict=True):
            left, top = (int(at // grid.stride) * grid.stride - SIDE_W // 2 for at in centre)
            pixels = slide.read(grid, (left, top, left + SIDE_W, top + SIDE_W))
            x, y = (centre - (left, top)) / grid.stride
            name = f"{result.name}_{c.x:.0f}_{c.y:.0f}"
            with written_whole(out / "images" / f"{name}.png") as partial:
                partial.write_bytes(cv2.imencode(".png", pixels[..., ::-1])[1].tobytes())
            with (
                written_whole(out / "labels" / f"{name}.csv") as partial,
                partial.open("w", newline="", encoding="utf-8") as file,
            ):
                csv.writer(file).writerows(
                    [("x", "y", "label", "group"), (f"{x:.2f}", f"{y:.2f}", c.label, result.name)]
                )
    with written_whole(out / "library.toml") as partial:
        text = f'name = "corrections"\nlabels = []\nmpp = {mpp:.6g}\nlicence = "not stated"\n'
        partial.write_text(text, "utf-8")
    return out
