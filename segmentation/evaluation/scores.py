"""Found nuclei against annotated ones: what is counted on an image, and the figures of a set of images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from nucpipe.datasets import Annotation
from segmentation.evaluation.metrics import DetectionCounts, SegmentationCounts, TypePairs, match_by_distance
from segmentation.nuclei import Nuclei

RADIUS_UM = 3.0
"""Centroids this close count as one nucleus; 12 px at 0.25 um, as HoVer-Net's authors count."""
COLUMNS = ("dice", "aji", "dq", "sq", "pq")
"""The figures that are printed and tabulated."""


@dataclass(frozen=True)
class ImageScore:
    """What is counted on one image.

    Attributes:
        name: of the image.
        segmentation: from the instance maps.
        detection: from the centroids.
        types: of the nuclei, in the words of the annotation; empty where there are none.
    """

    name: str
    segmentation: SegmentationCounts
    detection: DetectionCounts
    types: TypePairs

    @classmethod
    def of(
        cls, name: str, annotation: Annotation, nuclei: Nuclei, mpp: float, types: Sequence[str] | None = None
    ) -> ImageScore:
        """Count for one image.

        Args:
            name: of the image.
            annotation: with outlines.
            nuclei: found, in pixels of the image.
            mpp: the image's pixel size.
            types: of each found nucleus, in the words of the annotation; None where they are not judged.
        """
        if annotation.instances is None:
            raise ValueError(f"{name}: has no outlines")
        drawn = draw_instances(nuclei, annotation.instances.shape)
        pairs = match_by_distance(annotation.centroids, nuclei.centroids, RADIUS_UM / mpp)
        return cls(
            name,
            SegmentationCounts.of(annotation.instances, drawn),
            DetectionCounts(len(pairs[0]), len(annotation.centroids), len(nuclei)),
            TypePairs() if types is None else TypePairs.of(annotation.labels, types, pairs),
        )


def figures_of(scores: Sequence[ImageScore]) -> dict[str, Any]:
    """Return the figures of a set of images, rounded to four digits.

    Returns:
        ``images``; means over images of ``dice``, ``aji``, ``aji_plus``, ``dq``, ``sq``, ``pq``; the same of all images
        taken as one under ``set``; ``detection_precision``, ``detection_recall``, ``detection_f1`` over all nuclei.
    """
    names = ("dice", "aji", "aji_plus", "dq", "sq", "pq")
    whole = SegmentationCounts.total(score.segmentation for score in scores)
    found = DetectionCounts.total(score.detection for score in scores)
    return {
        "images": len(scores),
        **{k: round(float(np.mean([getattr(score.segmentation, k) for score in scores])), 4) for k in names},
        "set": {k: round(float(getattr(whole, k)), 4) for k in names},
        "detection_precision": round(found.precision, 4),
        "detection_recall": round(found.recall, 4),
        "detection_f1": round(found.f1, 4),
    }


def type_figures(
    scores: Sequence[ImageScore], types: Iterable[str], groups: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return accuracy of the types of paired nuclei, and F_c of each type (Graham et al. 2019).

    Args:
        scores: of the images of a set.
        types: to list; those that neither were annotated nor found are left out.
        groups: the type that takes a type's place before it is judged, if types are merged.
    """
    pairs = TypePairs.total([score.types for score in scores])
    if groups is not None:
        pairs = pairs.renamed(groups)
    seen = {*pairs.missed, *pairs.invented, *(name for pair in pairs.matched for name in pair)}
    return {
        "accuracy": round(pairs.accuracy, 4),
        "f1": {name: round(pairs.f1(name), 4) for name in types if name in seen},
    }


def figure_lines(name: str, figures: dict[str, Any]) -> list[str]:
    """Return the figures of a set for people.

    Args:
        name: of the set.
        figures: see :func:`figures_of`; with :func:`type_figures` as ``types`` where types were judged.
    """
    lines = [
        f"{name}: {figures['images']} images",
        "  mean over images   " + "  ".join(f"{key.upper()} {figures[key]:.3f}" for key in COLUMNS),
        "  all images as one  " + "  ".join(f"{key.upper()} {figures['set'][key]:.3f}" for key in COLUMNS),
        f"  detection within {RADIUS_UM:g} µm: F1 {figures['detection_f1']:.3f}, "
        f"precision {figures['detection_precision']:.3f}, recall {figures['detection_recall']:.3f}",
    ]
    if "types" in figures:
        of_types = "  ".join(f"{label} {value:.3f}" for label, value in figures["types"]["f1"].items())
        lines.append(f"  types: accuracy of matched nuclei {figures['types']['accuracy']:.3f}; F_c {of_types}")
    return lines


def draw_instances(nuclei: Nuclei, shape: tuple[int, int]) -> npt.NDArray[np.int32]:
    """Return an instance map (H, W) int32 of outlines in pixels of that map, ids 1..N; exact for outlines on pixel
    corners.
    """
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
