"""Found nuclei against annotated ones: what is counted on an image, and the figures of a set of images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nucpipe.datasets import Annotation
from nucpipe.label_images import fill_rings
from segmentation.evaluation.metrics import DetectionCounts, SegmentationCounts, TypePairs, match_by_distance
from segmentation.nuclei import Nuclei

RADIUS_UM = 3.0
"""Centroids this close count as one nucleus; 12 px at 0.25 um, as HoVer-Net's authors count."""
COLUMNS = ("dice", "aji", "dq", "sq", "pq")
"""The figures that are printed and tabulated."""
GROUPED = {"bpq": "binary_pq", "mpq": "multiclass_pq"}
"""PanNuke's figures, means over groups, and what of an image they are made of."""


@dataclass(frozen=True)
class ImageScore:
    """Counts of one image.

    Attributes:
        name: of the image.
        group: what it belongs to (tissue, organ, patient).
        segmentation: from the instance maps.
        detection: from the centroids.
        types: of the nuclei, in the words of the annotation; empty where there are none.
        by_type: like ``segmentation``, from the annotated and the found nuclei of each annotated type.
    """

    name: str
    group: str
    segmentation: SegmentationCounts
    detection: DetectionCounts
    types: TypePairs
    by_type: Mapping[str, SegmentationCounts]

    @classmethod
    def of(
        cls,
        name: str,
        group: str,
        annotation: Annotation,
        nuclei: Nuclei,
        mpp: float,
        types: Sequence[str] | None = None,
    ) -> ImageScore:
        """Count for one image.

        Args:
            name: of the image.
            group: what it belongs to.
            annotation: with outlines.
            nuclei: found, in pixels of the image.
            mpp: the image's pixel size.
            types: of each found nucleus, in the words of the annotation; None where they are not judged.
        """
        if annotation.instances is None:
            raise ValueError(f"{name}: has no outlines")
        drawn = draw_instances(nuclei, annotation.instances.shape)
        pairs = match_by_distance(annotation.centroids, nuclei.centroids, RADIUS_UM / mpp)
        by_type = {}
        if types is not None:
            of_true, of_found = np.array(["", *annotation.labels]), np.array(["", *types])
            for label in sorted({*annotation.labels} - {""}):
                kept = ((of_true == label)[annotation.instances], (of_found == label)[drawn])
                by_type[label] = SegmentationCounts.of(annotation.instances * kept[0], drawn * kept[1])
        return cls(
            name,
            group,
            SegmentationCounts.of(annotation.instances, drawn),
            DetectionCounts(len(pairs[0]), len(annotation.centroids), len(nuclei)),
            TypePairs() if types is None else TypePairs.of(annotation.labels, types, pairs),
            by_type,
        )

    @property
    def binary_pq(self) -> float | None:
        """Return PQ of all nuclei; None where none is annotated, as PanNuke's owners leave such images out."""
        return self.segmentation.pq if self.segmentation.true else None

    @property
    def multiclass_pq(self) -> float | None:
        """Return the mean PQ of the types that are annotated in the image; None where none is."""
        values = [counts.pq for counts in self.by_type.values() if counts.true]
        return float(np.mean(values)) if values else None


def figures_of(scores: Sequence[ImageScore]) -> dict[str, Any]:
    """Return the figures of a set of images, rounded to four digits.

    Returns:
        ``images``; means over images of ``dice``, ``aji``, ``aji_plus``, ``dq``, ``sq``, ``pq``; the same of all images
        taken as one under ``set``; ``detection_precision``, ``detection_recall``, ``detection_f1`` over all nuclei;
        ``bpq`` and, where types are judged, ``mpq`` by the definition of PanNuke's owners (Gamper et al. 2020), means
        over groups, which in PanNuke are tissues.
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
        **{
            name: mean
            for name, of_image in GROUPED.items()
            if (mean := _mean_over_groups(scores, of_image)) is not None
        },
    }


def _mean_over_groups(scores: Iterable[ImageScore], of_image: str) -> float | None:
    """Return the mean of the groups' means of an attribute, rounded to four digits; None where no image has it."""
    groups: dict[str, list[float]] = {}
    for score in scores:
        if (value := getattr(score, of_image)) is not None:
            groups.setdefault(score.group, []).append(value)
    return round(float(np.mean([np.mean(values) for values in groups.values()])), 4) if groups else None


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
        "  means over groups (tissues, patients, else images), as defined for PanNuke: "
        + "  ".join(f"{key.upper()} {figures[key]:.3f}" for key in GROUPED if key in figures),
    ]
    if "types" in figures:
        of_types = "  ".join(f"{label} {value:.3f}" for label, value in figures["types"]["f1"].items())
        lines.append(f"  types: accuracy of matched nuclei {figures['types']['accuracy']:.3f}; F_c {of_types}")
    return lines


def draw_instances(nuclei: Nuclei, shape: tuple[int, int]) -> npt.NDArray[np.int32]:
    """Return an instance map (H, W) int32 of outlines in pixels of that map, ids 1..N; exact for outlines on pixel
    corners.
    """
    return fill_rings([nuclei.contour(i) for i in range(len(nuclei))], shape)
