"""Choose a segmentor's default filter on annotated images: which found nuclei are too small or too unsure to keep.

A found nucleus that matches no annotated one (IoU above 0.5) lowers the panoptic quality, one that does raises it. So
filters are judged from one table of found nuclei, without running the network again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nucpipe.datasets import AnnotatedImage
from segmentation.detector import Detector
from segmentation.evaluation.evaluate import detect_image
from segmentation.evaluation.metrics import match_by_iou
from segmentation.evaluation.scores import draw_instances
from segmentation.nuclei import KEEP_ALL, Nuclei, NucleusFilter

MIN_DETECTION_P = tuple(k / 20 for k in range(10, 20))
MIN_AREA_UM2 = tuple(map(float, range(21)))
"""Candidate thresholds, no finer than the differences between images of the same set."""


@dataclass(frozen=True)
class JudgedImage:
    """The found nuclei of one annotated image, those at its edges aside.

    A slide has no such edges: what an image's edge cuts into slivers would make small nuclei look truer than they are.

    Attributes:
        annotated: how many nuclei are annotated.
        area_um2, detection_p: (N,) of the found nuclei.
        iou: (N,) with the annotated nucleus that a found one matches; 0 where it matches none.
    """

    annotated: int
    area_um2: npt.NDArray[np.float32]
    detection_p: npt.NDArray[np.float32]
    iou: npt.NDArray[np.float64]

    @classmethod
    def of(cls, instances: npt.NDArray[np.int32], found: Nuclei) -> JudgedImage:
        """Match nuclei with an annotated instance map (H, W), 0 = background, in its pixels.

        Annotated nuclei that touch an edge do not count, nor do the found ones that match them or that touch an edge
        and match none.
        """
        drawn = draw_instances(found, instances.shape)
        of_true, of_found, iou = match_by_iou(instances, drawn)
        cut = np.isin(of_true, _at_edges(instances))
        ious = np.zeros(len(found))
        ious[of_found - 1] = np.where(cut, 0.0, iou)
        counted = np.ones(len(found), bool)
        edge = _at_edges(drawn)
        counted[edge[~np.isin(edge, of_found)] - 1] = False
        counted[of_found[cut] - 1] = False
        annotated = len(np.setdiff1d(instances[instances > 0], _at_edges(instances)))
        return cls(annotated, found.area_um2[counted], found.detection_p[counted], ious[counted])

    def panoptic_quality(self, kept: NucleusFilter) -> float:
        """PQ (Kirillov et al. 2019) with the nuclei that a filter keeps; 1 where there are none, annotated or found."""
        chosen = kept.keeps(self.area_um2, self.detection_p)
        both = self.annotated + int(chosen.sum())
        return 2 * float(self.iou[chosen].sum()) / both if both else 1.0


def _at_edges(instances: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    ids = np.unique(np.concatenate([instances[0], instances[-1], instances[:, 0], instances[:, -1]]))
    return ids[ids > 0]


def judge(detector: Detector, image: AnnotatedImage) -> JudgedImage | None:
    """Return all nuclei that the detector finds on an image, whatever its own filter; None for an image without
    outlines.
    """
    instances = image.annotation().instances
    if instances is None:
        return None
    return JudgedImage.of(instances, detect_image(detector, image.pixels(), image.mpp))


def mean_quality(images: Sequence[JudgedImage], kept: NucleusFilter) -> float:
    """Return mean PQ over images."""
    return float(np.mean([image.panoptic_quality(kept) for image in images]))


def choose_filter(sets: Mapping[str, Sequence[JudgedImage]]) -> NucleusFilter:
    """Return the filter that raises PQ the most and, beyond that, removes the smallest nuclei at no set's cost.

    The least detection probability is the one with the highest mean PQ, every set weighing the same. The least area is
    then the largest with which no set has a lower PQ than without any filter.

    Args:
        sets: by name, images of one data set; a set without images is no set.
    """
    before = {name: mean_quality(images, KEEP_ALL) for name, images in sets.items()}

    def gain(kept: NucleusFilter, name: str) -> float:
        return mean_quality(sets[name], kept) - before[name]

    def mean_gain(p: float) -> float:
        return float(np.mean([gain(NucleusFilter(0, p), name) for name in sets]))

    p = max((0.0, *MIN_DETECTION_P), key=mean_gain)
    harmless = (a for a in MIN_AREA_UM2 if all(gain(NucleusFilter(a, p), name) >= 0 for name in sets))
    return NucleusFilter(max(harmless, default=0.0), p)
