"""How well a detector finds the nuclei of annotated images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from nucpipe.common.datasets import AnnotatedImage
from segmentation.detector import Detector
from segmentation.metrics import dice, f1_score, match_by_distance, panoptic_quality
from segmentation.nuclei import Nuclei

RADIUS_UM = 3.0


def detect_image(detector: Detector, pixels: npt.NDArray[np.uint8], mpp: float) -> Nuclei:
    """The nuclei of a whole image, in its own pixels.

    Args:
        detector: any.
        pixels: (H, W, 3) uint8 RGB.
        mpp: its pixel size.
    """
    scale = detector.input_mpp / mpp
    height, width = (round(side / scale) for side in pixels.shape[:2])
    how = cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC
    resized = cv2.resize(pixels, (width, height), interpolation=how)
    align, margin = detector.align_px, detector.margin_px
    rims = [(margin, -side % align + margin) for side in (height, width)]
    padded = np.pad(resized, (*rims, (0, 0)), mode="reflect")
    found = detector.nuclei(detector.predict(np.ascontiguousarray(padded)), detector.input_mpp)
    found = found.moved(scale, (-margin * scale, -margin * scale))
    height_px, width_px = pixels.shape[:2]
    x, y = found.centroids.T
    return found.select((x >= 0) & (y >= 0) & (x < width_px) & (y < height_px))


def draw_instances(nuclei: Nuclei, shape: tuple[int, int]) -> npt.NDArray[np.int32]:
    """An instance map (H, W) int32 of outlines in pixels of that map, ids 1..N; exact for outlines on pixel corners."""
    instances = np.zeros(shape, np.int32)
    for i in range(len(nuclei)):
        ring = nuclei.contour(i)
        x0, y0 = np.floor(ring.min(0)).astype(int)
        x1, y1 = np.ceil(ring.max(0)).astype(int)
        # Drawn at eight times the size from corner to corner, then read at the pixels' centres.
        fine = np.zeros(((y1 - y0) * 8 + 1, (x1 - x0) * 8 + 1), np.uint8)
        cv2.fillPoly(fine, [np.round((ring - (x0, y0)) * 8).astype(np.int32)], 1)
        mask = fine[4::8, 4::8] > 0
        top, left = max(0, y0), max(0, x0)
        bottom, right = min(shape[0], y1), min(shape[1], x1)
        if top < bottom and left < right:
            instances[top:bottom, left:right][mask[top - y0 : bottom - y0, left - x0 : right - x0]] = i + 1
    return instances


def evaluate_segmentor(detector: Detector, sets: Mapping[str, Sequence[AnnotatedImage]]) -> dict[str, Any]:
    """Means over the images of each set: Dice, DQ, SQ, PQ, and F1 of detection over the whole set.

    Centroids count as found within 3 um, one to one.
    """
    figures: dict[str, Any] = {}
    for name, images in sets.items():
        scores: list[tuple[float, float, float, float]] = []
        matched = n_true = n_found = 0
        for image in images:
            annotation = image.annotation()
            if annotation.instances is None:
                continue
            found = detect_image(detector, image.pixels(), image.mpp)
            drawn = draw_instances(found, annotation.instances.shape)
            scores.append((dice(annotation.instances, drawn), *panoptic_quality(annotation.instances, drawn)))
            pairs = match_by_distance(annotation.centroids, found.centroids, RADIUS_UM / image.mpp)
            matched, n_true, n_found = matched + len(pairs[0]), n_true + len(annotation.labels), n_found + len(found)
        if scores:
            means = np.mean(scores, axis=0)
            figures[name] = {
                "images": len(scores),
                **{k: round(float(v), 4) for k, v in zip(("dice", "dq", "sq", "pq"), means, strict=True)},
                "detection_f1": round(f1_score(matched, n_true, n_found), 4),
            }
    return figures
