"""Corrections of a folder of results as annotated images, from which a classifier can be trained."""

from __future__ import annotations

import csv
import hashlib
import os
import re
from pathlib import Path

import cv2
import numpy as np

from nucpipe.errors import DataError
from nucpipe.files import written_whole
from pipeline.adaptation.corrections import (
    CORRECTIONS,
    Correction,
    agreed,
    at_one_place,
    locate,
    merged,
    read_corrections,
    spelled,
)
from pipeline.result import Result, open_results, results_in
from pipeline.slide.grid import WorkingGrid

SIDE_W = 448
"""Side of the square round a corrected nucleus, working pixels: its context, and what comes into sight when that is
turned."""


def holds_results(folder: Path) -> bool:
    """Tell whether a folder is one of results, of which nothing but their corrections can teach."""
    return next(results_in(folder), None) is not None


def write_training_data(folder: Path, library: str, out: Path) -> list[tuple[str, Path]]:
    """Cut a square of its slide round each nucleus that is corrected.

    Args:
        folder: of results; those without such corrections are passed over.
        library: the name of a label system of the results, whose corrections are wanted; any other name stands for
            all label systems.
        out: a folder for the images; in it one data set in the points layout is written for each label system and
            slide, for pixel sizes differ, named after the folder of its results and where that lies.

    Returns:
        The data sets, of one group each, and before each the name of its label system.

    Raises:
        DataError: there are no such corrections, or they cannot be read.
        UsageError: a slide is not where the run found it.
        SlideError: a slide cannot be read.
        OutputError: an image cannot be written.
    """
    written, others, is_name = [], set[str](), False
    for result in open_results(folder):
        path, outputs = result.folder / CORRECTIONS, result.store.info.outputs
        said = spelled(read_corrections(path), outputs, path)
        said = at_one_place(said, locate(said, result.store))
        said = [c for c in merged(agreed(said), []) if c.is_nucleus]
        named = library.lower() in (known.name.lower() for known in outputs.libraries)
        is_name |= named
        by_library: dict[str, list[Correction]] = {}
        for c in said:
            by_library.setdefault(c.library, []).append(c)
        for name, mine in sorted(by_library.items()):
            if named and name.lower() != library.lower():
                others.add(name)
                continue
            written.append((name, _write_slide(result, mine, out / name / _own_name(result))))
    if not written:
        of = f" of {library}" if is_name else ""
        known = f"there are some of {', '.join(sorted(others))}" if others else "make some in nucpipe view"
        raise DataError(f"{folder}: none of its results has corrections{of}; {known}.")
    return written


def _own_name(result: Result) -> str:
    """Name a result's images: folders of one name, in several places, have images of their own."""
    return f"{result.folder.name}-{hashlib.sha256(os.fsencode(result.folder.resolve())).hexdigest()[:8]}"


def _write_slide(result: Result, corrections: list[Correction], out: Path) -> Path:
    for part in ("images", "labels"):
        (out / part).mkdir(parents=True, exist_ok=True)
    with result.open_slide() as slide:
        grid = WorkingGrid.for_slide(slide.size_l0, slide.mpp)
        mpp = grid.mpp_w * grid.stride
        width, height = slide.size_l0
        if outside := [c for c in corrections if not (0 <= c.x < width and 0 <= c.y < height)]:
            raise DataError(
                f"{result.folder / CORRECTIONS}: {len(outside)} of its corrections, as that at ({outside[0].x:g}, "
                f"{outside[0].y:g}), lie outside {result.name} of {width} x {height} pixels; remove them."
            )
        names = [f"{result.name}_{c.x:.2f}_{c.y:.2f}" for c in corrections]
        own = re.compile(re.escape(f"{result.name}_") + r"[\d.]+_[\d.]+")
        for old in (*out.glob("images/*.png"), *out.glob("labels/*.csv")):
            if old.stem not in names and own.fullmatch(old.stem):  # of a correction that was taken back since
                old.unlink()
        centres_w = grid.to_w(np.array([(c.x, c.y) for c in corrections]))
        for c, name, centre in zip(corrections, names, centres_w, strict=True):
            left, top = (int(at // grid.stride) * grid.stride - SIDE_W // 2 for at in centre)
            pixels = slide.read(grid, (left, top, left + SIDE_W, top + SIDE_W))
            x, y = (centre - (left, top)) / grid.stride
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
