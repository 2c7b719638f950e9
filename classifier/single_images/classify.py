"""Images of single nuclei: from files to named labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from classifier.decision_rule import DecisionRule, decide, short_form
from classifier.labels.libraries import LabelSpace
from classifier.patches import at_working_mpp, cut_padded_patches
from classifier.predictor import load_predictor
from classifier.single_images.preprocess import Pixels, Step, denoise, sharpen, stain_normaliser
from classifier.spec import PATCH_PX, unmeasured
from nucpipe.backends.device import pick_device, pick_precision
from nucpipe.backends.model_file import read_header
from nucpipe.backends.processors import available_processors
from nucpipe.datasets.base import read_rgb
from nucpipe.errors import NucpipeError, UsageError
from nucpipe.pixel_size import MAX_MPP, MIN_MPP, is_plausible_mpp

BATCH = 64


@dataclass(frozen=True)
class NamedImages:
    """Predictions of the classifier for N images.

    Attributes:
        paths: the images, N.
        probabilities: (N, columns) float32.
        outputs: the columns.
        unmeasured: libraries whose labels other libraries' data alone taught.
        failed: images that could not be read or prepared, with the cause.
    """

    paths: tuple[Path, ...]
    probabilities: npt.NDArray[np.float32]
    outputs: LabelSpace
    unmeasured: tuple[str, ...]
    failed: tuple[tuple[Path, str], ...]


def preparation(steps: Sequence[str], stain_target: Path | None, stain_method: str) -> tuple[Step, ...]:
    """Return the named steps, in their order.

    Raises:
        UsageError: an unknown step, or ``normalise`` without a target or the other way round.
        DataError: the target cannot be read, or shows no stain.
    """
    if ("normalise" in steps) != (stain_target is not None):
        raise UsageError("--preprocess normalise and --stain-target IMAGE are given together or not at all.")
    made: dict[str, Step] = {"denoise": denoise, "sharpen": sharpen}
    if stain_target is not None:
        made["normalise"] = stain_normaliser(read_rgb(stain_target), stain_method)
    for name in steps:
        if name not in made:
            raise UsageError(f"--preprocess {name}: expected denoise, sharpen or normalise.")
    return tuple(made[name] for name in steps)


def patch_of(image: Pixels, mpp: float | None, at: tuple[float, float] | None) -> Pixels:
    """Return the classifier's view of one image: (64, 64, 3) uint8, 16 micrometres wide.

    Args:
        image: (H, W, 3) RGB of any size.
        mpp: its pixel size; None: the whole image is the view, made square by reflection at its longer sides.
        at: x and y of the nucleus in pixels, corner-based; None: the middle. Needs ``mpp``.

    Raises:
        UsageError: a point outside the image, or without a pixel size.
    """
    height, width = image.shape[:2]
    if mpp is not None:
        x, y = at or (width / 2, height / 2)
        if not (0 <= x <= width and 0 <= y <= height):
            raise UsageError(f"--at {x:g},{y:g} lies outside an image of {width} x {height} pixels.")
        scaled, points = at_working_mpp(image, np.array([[x, y]]), mpp)
        return _cut(scaled, points)
    if at is not None:
        raise UsageError("--at needs --mpp: without a pixel size the whole image is taken.")
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = cv2.copyMakeBorder(image, top, side - height - top, left, side - width - left, cv2.BORDER_REFLECT)
    how = cv2.INTER_AREA if side > PATCH_PX else cv2.INTER_LINEAR
    return cv2.resize(square, (PATCH_PX, PATCH_PX), interpolation=how).astype(np.uint8, copy=False)


def _cut(image: Pixels, points: npt.NDArray[np.float64]) -> Pixels:
    # A reflection cannot be wider than the image; a minute one is reflected again and again.
    while min(image.shape[:2]) <= PATCH_PX // 2:
        height, width = image.shape[:2]
        image = cv2.copyMakeBorder(image, height, height, width, width, cv2.BORDER_REFLECT).astype(np.uint8, copy=False)
        points = points + np.array([width, height])
    patch: Pixels = cut_padded_patches(image, points, PATCH_PX)[0]
    return patch


def classify_images(
    paths: Sequence[Path],
    model: Path,
    mpp: float | None = None,
    at: tuple[float, float] | None = None,
    prepare: Sequence[Step] = (),
    device: str = "auto",
    precision: str = "auto",
) -> NamedImages:
    """Name the nucleus of each image; an image that cannot be read is passed over and told.

    Args:
        paths: image files.
        model: the model file.
        mpp, at: see :func:`patch_of`.
        prepare: done to each whole image before its patch is cut.
        device, precision: where and how the network runs.

    Raises:
        UsageError: an unknown device, a pixel size out of range, a point without one or outside an image.
        ModelError: the model file is broken.
    """
    if mpp is not None and not is_plausible_mpp(mpp):
        raise UsageError(f"--mpp {mpp:g}: expected micrometres per pixel, {MIN_MPP} to {MAX_MPP}.")
    where = pick_device(device)
    predictor = load_predictor(model, where, pick_precision(precision, where), available_processors())
    outputs = predictor.outputs
    read: list[Path] = []
    failed: list[tuple[Path, str]] = []
    patches: list[Pixels] = []
    rows = [np.zeros((0, len(outputs)), np.float32)]
    for path in paths:
        try:
            image = read_rgb(path)
            for step in prepare:
                image = step(image)
            patches.append(patch_of(image, mpp, at))
            read.append(path)
        except UsageError:
            raise
        except NucpipeError as error:
            failed.append((path, str(error).removeprefix(f"{path}: ")))
        if len(patches) == BATCH:
            rows.append(predictor(np.stack(patches)).probabilities)
            patches.clear()
    if patches:
        rows.append(predictor(np.stack(patches)).probabilities)
    return NamedImages(tuple(read), np.concatenate(rows), outputs, tuple(unmeasured(read_header(model))), tuple(failed))


def _chosen(named: NamedImages, rule: DecisionRule) -> list[dict[str, list[dict[str, Any]]]]:
    """Return for each image, by library, the labels that the rule gives, likeliest first."""
    result = []
    for p, given in zip(named.probabilities, decide(named.probabilities, named.outputs, rule), strict=True):
        labels = {}
        for library in named.outputs.libraries:
            start = named.outputs.slices[library.name].start
            numbers = sorted(np.flatnonzero(given[named.outputs.slices[library.name]]), key=lambda k: -p[start + k])
            labels[library.name] = [
                {
                    "label": library.labels[k],
                    "short": short_form(library.name, int(k)),
                    "probability": round(float(p[start + k]), 4),
                }
                for k in numbers
            ]
        result.append(labels)
    return result


def _note(named: NamedImages) -> str | None:
    if not named.unmeasured:
        return None
    names = " and ".join(named.unmeasured)
    return f"{names}: taught by other libraries' labels only; how well its labels hold on its own images is not known."


def as_table(named: NamedImages, rule: DecisionRule) -> str:
    """Return a table for people: a line an image, a column a library."""
    names = [library.name for library in named.outputs.libraries]
    lines = [["image", *names]]
    for path, labels in zip(named.paths, _chosen(named, rule), strict=True):
        cells = ("; ".join(f"{x['label']} {x['probability']:.2f}" for x in labels[name]) or "-" for name in names)
        lines.append([str(path), *cells])
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*text, *([note] if (note := _note(named)) else [])])


def as_json(named: NamedImages, rule: DecisionRule) -> str:
    """Return JSON: the rule, and for each image its labels and every probability, by library."""
    images = []
    for path, p, labels in zip(named.paths, named.probabilities, _chosen(named, rule), strict=True):
        every = {
            library.name: {
                label: round(float(value), 6)
                for label, value in zip(library.labels, p[named.outputs.slices[library.name]], strict=True)
            }
            for library in named.outputs.libraries
        }
        images.append({"image": str(path), "labels": labels, "probabilities": every})
    note = _note(named)
    return json.dumps({"decide": rule.to_dict(), "images": images} | ({"note": note} if note else {}), indent=1)
