"""Evaluation of a detector on annotated images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from nucpipe.datasets import AnnotatedImage
from nucpipe.datasets.base import read_outlined
from segmentation.detector import Detector, predict_image
from segmentation.evaluation.scores import ImageScore, figures_of
from segmentation.hovernet.zoo import CONSEP_GROUPS
from segmentation.nuclei import Nuclei


def detect_image(detector: Detector, pixels: npt.NDArray[np.uint8], mpp: float) -> Nuclei:
    """Return the nuclei of a whole image, in its own pixels.

    Args:
        detector: any.
        pixels: (H, W, 3) uint8 RGB.
        mpp: its pixel size.
    """
    scale = detector.input_mpp / mpp
    height, width = (round(side / scale) for side in pixels.shape[:2])
    how = cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC
    resized = cv2.resize(pixels, (width, height), interpolation=how)
    found = detector.nuclei(predict_image(detector, np.asarray(resized, np.uint8)), detector.input_mpp)
    margin = detector.margin_px * scale
    found = found.transformed(scale, (-margin, -margin))
    height_px, width_px = pixels.shape[:2]
    x, y = found.centroids.T
    return found.select((x >= 0) & (y >= 0) & (x < width_px) & (y < height_px))


def score_images(detector: Detector, images: Iterable[AnnotatedImage]) -> Iterator[tuple[ImageScore, Nuclei]]:
    """Score and found nuclei of each image, one after the other; the detector's filter applies.

    Where the detector gives types in the words of the annotation (CoNSeP's merged as the paper merges them), they are
    judged too.

    Raises:
        DataError: an image has no outlines, or outlines of another size.
    """
    for image in images:
        pixels, annotation, _ = read_outlined(image)
        found = detector.default_filter.apply(detect_image(detector, pixels, image.mpp))
        merged = dataclasses.replace(annotation, labels=tuple(CONSEP_GROUPS.get(x, x) for x in annotation.labels))
        judged = next((a for a in (annotation, merged) if set(a.labels) <= {*detector.types}), None)
        if found.types is None or judged is None:
            yield ImageScore.of(image.name, image.group, annotation, found, image.mpp), found
        else:
            names = (*detector.types, "")  # the last one is number -1
            types = [names[number] for number in found.types.tolist()]
            yield ImageScore.of(image.name, image.group, judged, found, image.mpp, types), found


def evaluate_segmentor(detector: Detector, sets: Mapping[str, Sequence[AnnotatedImage]]) -> dict[str, Any]:
    """Return the figures (see :func:`segmentation.evaluation.scores.figures_of`) of each set that has
    images.
    """
    scores = {name: [score for score, _ in score_images(detector, images)] for name, images in sets.items()}
    return {name: figures_of(some) for name, some in scores.items() if some}
