"""Report of ``nucpipe evaluate segmentor``: figures, tables, pictures of the worst cases."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nucpipe.backends.device import pick_device, pick_precision
from nucpipe.backends.model_file import NOTHING_UNSEEN, read_header
from nucpipe.datasets import AnnotatedImage, choose_images, open_dataset
from nucpipe.datasets.base import read_outlined
from segmentation.detector import Detector
from segmentation.evaluation.evaluate import score_images
from segmentation.evaluation.metrics import match_by_iou
from segmentation.evaluation.scores import (
    COLUMNS,
    ImageScore,
    draw_instances,
    figure_lines,
    figures_of,
    type_figures,
)
from segmentation.nuclei import Nuclei
from segmentation.registry import load_detector

WORST = 4
"""Images in a picture of worst cases."""
FOUND, WRONG = (40, 200, 60), (230, 30, 30)


@dataclass(frozen=True)
class Case:
    """An image with what was found on it."""

    image: AnnotatedImage
    score: ImageScore
    nuclei: Nuclei


def evaluate_segmentor(
    path: Path,
    data: Sequence[Path],
    out: Path | None,
    say: Callable[[str], None],
    hold_out: Sequence[str] = (),
    everything: bool = False,
    device: str = "auto",
    precision: str = "auto",
) -> dict[str, Any]:
    """Return figures of a segmentor on annotated data, by the name of the data's folder.

    Args:
        path: the model file.
        data: folders of outlined nuclei, in any layout that ``nucpipe.datasets`` reads.
        out: folder for ``figures.json``, ``images.csv`` and a picture of the worst cases of each set, if wanted.
        say: told the results, a line each.
        hold_out: images or groups to measure on; without any, what the model's training held out.
        everything: measure on all images.
        device, precision: where and how the network runs.

    Raises:
        UsageError: an unknown device, or nothing to measure on.
        DataError: a data set is broken or has no outlines.
    """
    where = pick_device(device)
    detector = load_detector(path, where, pick_precision(precision, where))
    header = read_header(path) if path.suffix == ".safetensors" else None
    for line in header.made_from_in_words if header is not None else ():
        say(line)
    chosen = {}
    for folder in data:
        unseen = header.held_out_of(folder.name) if header is not None else []
        patterns = [] if everything else list(hold_out) or unseen
        chosen[folder.name] = choose_images(open_dataset(folder), folder.name, patterns)
        if not patterns and not everything:
            say(f"{folder.name}: {NOTHING_UNSEEN}")
    for image in (image for images in chosen.values() for image in images):
        read_outlined(image)  # what is broken is told before anything is computed
    figures: dict[str, Any] = {}
    cases: dict[str, list[Case]] = {}
    for name, images in chosen.items():
        cases[name] = measure(detector, images)
        scores = [case.score for case in cases[name]]
        figures[name] = figures_of(scores)
        if any(score.types.matched or score.types.missed for score in scores):
            figures[name]["types"] = type_figures(scores, detector.types)
        for line in ("", *figure_lines(name, figures[name])):
            say(line)
    if out is not None:
        write(out, figures, cases)
        say(f"wrote {out / 'figures.json'}, images.csv and a picture of the worst cases of each set")
    return figures


def measure(detector: Detector, images: Sequence[AnnotatedImage]) -> list[Case]:
    """Return every image, measured."""
    return [Case(image, score, nuclei) for image in images for score, nuclei in score_images(detector, [image])]


def write(out: Path, figures: dict[str, Any], cases: dict[str, list[Case]]) -> None:
    """``figures.json``, ``images.csv`` with a line an image, and ``<set>-worst.jpg``."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "figures.json").write_text(json.dumps(figures, indent=1), "utf-8")
    with (out / "images.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("set", "image", "group", "annotated", "found", "matched", *COLUMNS))
        for name, some in cases.items():
            for case in some:
                counts, figure = case.score.detection, case.score.segmentation
                values = (f"{getattr(figure, key):.4f}" for key in COLUMNS)
                rows.writerow(
                    (name, case.image.name, case.image.group, counts.true, counts.found, counts.matched, *values)
                )
    for name, some in cases.items():
        draw_worst(sorted(some, key=lambda case: case.score.segmentation.pq)[:WORST], out / f"{name}-worst.jpg")


def draw_worst(cases: Sequence[Case], path: Path) -> None:
    """Draw the images with the least PQ: what is annotated on the left, what was found on the right; red is what has no
    partner with an IoU above 0.5."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(13, 6.6 * len(cases)), layout="constrained")
    grid = figure.subplots(len(cases), 2, squeeze=False)
    for (left, right), case in zip(grid, cases, strict=True):
        truth, pixels = case.image.annotation().instances, case.image.pixels()
        assert truth is not None
        found = draw_instances(case.nuclei, truth.shape)
        of_truth, of_found, _ = match_by_iou(truth, found)
        counts = case.score.segmentation
        left.imshow(outlined(pixels, truth, of_truth))
        left.set_title(f"{case.image.name}: {counts.true} annotated, {counts.true - len(of_truth)} missed")
        right.imshow(outlined(pixels, found, of_found))
        right.set_title(f"{counts.found} found, {counts.found - len(of_found)} wrong; PQ {counts.pq:.3f}")
        for axes in (left, right):
            axes.set_axis_off()
    figure.savefig(path, dpi=110)


def outlined(
    pixels: npt.NDArray[np.uint8], instances: npt.NDArray[np.integer], matched: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint8]:
    """Return a copy of the pixels with the edges of instances, green if they are matched, else red."""
    edge = np.zeros(instances.shape, bool)
    for axis in (0, 1):
        for step in (1, -1):
            edge |= np.roll(instances, step, axis) != instances
    edge &= instances > 0
    drawn = pixels.copy()
    drawn[edge] = np.where(np.isin(instances[edge], matched)[:, None], FOUND, WRONG)
    return drawn
