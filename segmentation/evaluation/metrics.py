"""Metrics of detection, segmentation and classification, defined as HoVer-Net's authors compute them.

Sources: AJI, Kumar et al. 2017 (IEEE TMI 36); DQ, SQ, PQ, Kirillov et al. 2019; AJI+, F_d and F_c, Graham et al. 2019
(Medical Image Analysis 58) and the code published with it. docs/segmentation.md has the definitions in words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

IntMap = npt.NDArray[np.integer]
Ids = npt.NDArray[np.int64]


def dice(true: IntMap, predicted: IntMap) -> float:
    """Return the Dice coefficient of nuclear pixels; 1 if both maps are empty. Maps are (H, W), 0 = background."""
    a, b = true > 0, predicted > 0
    return _ratio(2 * int((a & b).sum()), int(a.sum()) + int(b.sum()))


@dataclass(frozen=True)
class Overlaps:
    """Overlaps between the nuclei of two instance maps.

    Attributes:
        true, predicted: (K,) ids of the pairs that overlap, in the order of ``true``, then of ``predicted``.
        shared: (K,) pixels that a pair shares.
        area_true, area_predicted: pixels of each nucleus, by id; 0 where there is no such id, and for the background.
    """

    true: Ids
    predicted: Ids
    shared: Ids
    area_true: Ids
    area_predicted: Ids

    @classmethod
    def of(cls, true: IntMap, predicted: IntMap) -> Overlaps:
        """Count for two maps (H, W) of one shape, 0 = background; ids need not be consecutive."""
        if true.shape != predicted.shape:
            raise ValueError(f"instance maps of different shapes: {true.shape} and {predicted.shape}")
        t, p = true.ravel().astype(np.int64), predicted.ravel().astype(np.int64)
        width = int(p.max(initial=0)) + 1
        both, shared = np.unique(t * width + p, return_counts=True)
        ids_t, ids_p = both // width, both % width
        area_t, area_p = np.bincount(t, minlength=1), np.bincount(p, minlength=1)
        area_t[0] = area_p[0] = 0
        keep = (ids_t > 0) & (ids_p > 0)
        return cls(ids_t[keep], ids_p[keep], shared[keep].astype(np.int64), area_t, area_p)

    @property
    def union(self) -> Ids:
        """(K,) pixels that either of a pair covers."""
        return self.area_true[self.true] + self.area_predicted[self.predicted] - self.shared

    @property
    def iou(self) -> npt.NDArray[np.float64]:
        """(K,) intersection over union."""
        return self.shared / self.union


def match_by_iou(
    true: IntMap, predicted: IntMap, threshold: float = 0.5
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return pairs of nuclei whose intersection over union is above ``threshold`` (at least 0.5: then pairs are
    unique).

    Returns:
        ids in ``true``, ids in ``predicted``, and the pairs' IoU; all (K,).
    """
    overlaps = Overlaps.of(true, predicted)
    iou = overlaps.iou
    good = iou > threshold
    return overlaps.true[good], overlaps.predicted[good], iou[good]


@dataclass(frozen=True)
class SegmentationCounts:
    """Counts behind the metrics of an image; those of several images add up to those of the set.

    A ratio is 1 where there was nothing to find and nothing was found.

    Attributes:
        nuclear_shared, nuclear_both: nuclear pixels common to both maps; those of one plus those of the other.
        aji_shared, aji_union: numerator and denominator of the aggregated Jaccard index.
        aji_plus_shared, aji_plus_union: likewise, nuclei paired one to one.
        matched, iou: pairs with IoU above 0.5, and the sum of their IoU.
        true, found: nuclei annotated and found.
    """

    nuclear_shared: int = 0
    nuclear_both: int = 0
    aji_shared: int = 0
    aji_union: int = 0
    aji_plus_shared: int = 0
    aji_plus_union: int = 0
    matched: int = 0
    iou: float = 0.0
    true: int = 0
    found: int = 0

    @classmethod
    def of(cls, true: IntMap, predicted: IntMap) -> SegmentationCounts:
        """Count for the instance maps (H, W) of one image, 0 = background."""
        overlaps = Overlaps.of(true, predicted)
        iou = overlaps.iou
        matched = iou > 0.5
        nuclear = int(((true > 0) & (predicted > 0)).sum())
        aji = _jaccard(overlaps, _best_of_each(overlaps.true, iou))
        aji_plus = _jaccard(overlaps, _one_to_one(overlaps))
        return cls(
            nuclear,
            int(overlaps.area_true.sum() + overlaps.area_predicted.sum()),
            *aji,
            *aji_plus,
            int(matched.sum()),
            float(iou[matched].sum()),
            int((overlaps.area_true > 0).sum()),
            int((overlaps.area_predicted > 0).sum()),
        )

    @classmethod
    def total(cls, parts: Iterable[SegmentationCounts]) -> SegmentationCounts:
        """Return the sum: its metrics are those of all images taken as one."""
        rows = [astuple(part) for part in parts]
        return cls(*(sum(column) for column in zip(*rows, strict=True))) if rows else cls()

    @property
    def dice(self) -> float:
        """Dice coefficient of nuclear pixels."""
        return _ratio(2 * self.nuclear_shared, self.nuclear_both)

    @property
    def aji(self) -> float:
        """Aggregated Jaccard index: each annotated nucleus against the found one of the largest IoU."""
        return _ratio(self.aji_shared, self.aji_union)

    @property
    def aji_plus(self) -> float:
        """AJI+: each found nucleus is paired with at most one annotated one, for the largest sum of IoU."""
        return _ratio(self.aji_plus_shared, self.aji_plus_union)

    @property
    def dq(self) -> float:
        """Detection quality: F1 of pairs with IoU above 0.5."""
        return f1_score(self.matched, self.true, self.found)

    @property
    def sq(self) -> float:
        """Segmentation quality: mean IoU of those pairs; 0 where nuclei are but none is paired."""
        return self.iou / self.matched if self.matched else float(self.true + self.found == 0)

    @property
    def pq(self) -> float:
        """Panoptic quality, DQ times SQ."""
        return self.dq * self.sq


def _best_of_each(ids: Ids, iou: npt.NDArray[np.float64]) -> Ids:
    """Return the index of the pair with the largest IoU of each id in ``ids`` (sorted); the first of equals."""
    order = np.lexsort((np.arange(len(ids)), -iou, ids))
    first = np.ones(len(ids), bool)
    first[1:] = ids[order][1:] != ids[order][:-1]
    return order[first]


def _one_to_one(overlaps: Overlaps) -> Ids:
    """Return indices of pairs in which no nucleus comes twice, with the largest sum of IoU."""
    if not len(overlaps.true):
        return np.zeros(0, np.int64)
    _, rows = np.unique(overlaps.true, return_inverse=True)
    _, columns = np.unique(overlaps.predicted, return_inverse=True)
    index = np.full((rows.max() + 1, columns.max() + 1), -1)
    index[rows, columns] = np.arange(len(rows))
    iou = np.where(index < 0, 0.0, overlaps.iou[index])
    chosen = index[linear_sum_assignment(iou, maximize=True)]
    return np.asarray(chosen[chosen >= 0], np.int64)


def _jaccard(overlaps: Overlaps, pairs: Ids) -> tuple[int, int]:
    """Return pixels shared by the pairs; and pixels of the pairs' unions and of every nucleus that is in no pair."""
    alone_true, alone_predicted = overlaps.area_true.copy(), overlaps.area_predicted.copy()
    alone_true[overlaps.true[pairs]] = 0
    alone_predicted[overlaps.predicted[pairs]] = 0
    union = overlaps.union[pairs].sum() + alone_true.sum() + alone_predicted.sum()
    return int(overlaps.shared[pairs].sum()), int(union)


def panoptic_quality(true: IntMap, predicted: IntMap) -> tuple[float, float, float]:
    """Return (DQ, SQ, PQ) of one image; (1, 1, 1) if both maps are empty."""
    counts = SegmentationCounts.of(true, predicted)
    return counts.dq, counts.sq, counts.pq


def match_by_distance(
    true: npt.NDArray[np.float64], predicted: npt.NDArray[np.float64], radius: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Pair points one to one, at most ``radius`` apart, as HoVer-Net's authors do.

    All points are paired so that the sum of distances is the smallest (Hungarian method); pairs farther apart than
    ``radius`` are then dropped.

    Args:
        true, predicted: (N, 2) and (M, 2) centroids.
        radius: in the same unit.

    Returns:
        Indices into ``true`` and ``predicted``, (K,) each.
    """
    distance = cdist(true.reshape(-1, 2), predicted.reshape(-1, 2))
    rows, columns = linear_sum_assignment(distance)
    keep = distance[rows, columns] <= radius
    return rows[keep].astype(np.int64), columns[keep].astype(np.int64)


@dataclass(frozen=True)
class DetectionCounts:
    """Nuclei found by their centroids, and the types of those; of one image or, added up, of a set.

    Attributes:
        matched: pairs of an annotated and a found nucleus.
        true, found: nuclei annotated and found.
    """

    matched: int = 0
    true: int = 0
    found: int = 0

    @classmethod
    def total(cls, parts: Iterable[DetectionCounts]) -> DetectionCounts:
        """Return the sum over images."""
        rows = [astuple(part) for part in parts]
        return cls(*(sum(column) for column in zip(*rows, strict=True))) if rows else cls()

    @property
    def precision(self) -> float:
        """Share of the found nuclei that are annotated; where none was found, 1 if none is annotated, else 0."""
        return self.matched / self.found if self.found else float(self.true == 0)

    @property
    def recall(self) -> float:
        """Share of the annotated nuclei that were found; where none is annotated, 1 if none was found, else 0."""
        return self.matched / self.true if self.true else float(self.found == 0)

    @property
    def f1(self) -> float:
        """F_d of the HoVer-Net paper."""
        return f1_score(self.matched, self.true, self.found)


@dataclass(frozen=True)
class TypePairs:
    """Types of the nuclei of an image or of a set, by how they were found.

    Attributes:
        matched: (annotated, found) type of each pair.
        missed: types of annotated nuclei that were not found.
        invented: types of found nuclei that are not annotated.
    """

    matched: tuple[tuple[str, str], ...] = ()
    missed: tuple[str, ...] = ()
    invented: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, true: Sequence[str], predicted: Sequence[str], pairs: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
    ) -> TypePairs:
        """Count from the types of one image's nuclei and the pairs that :func:`match_by_distance` gives."""
        rows, columns = (part.tolist() for part in pairs)
        of_pairs, of_true, of_predicted = zip(rows, columns, strict=True), set(rows), set(columns)
        return cls(
            tuple((true[i], predicted[j]) for i, j in of_pairs),
            tuple(name for i, name in enumerate(true) if i not in of_true),
            tuple(name for j, name in enumerate(predicted) if j not in of_predicted),
        )

    @classmethod
    def total(cls, parts: Sequence[TypePairs]) -> TypePairs:
        """Return those of several images."""
        return cls(
            tuple(pair for part in parts for pair in part.matched),
            tuple(name for part in parts for name in part.missed),
            tuple(name for part in parts for name in part.invented),
        )

    def renamed(self, names: Mapping[str, str]) -> TypePairs:
        """Return the same with other names of the types; what ``names`` has not keeps its own."""
        return TypePairs(
            tuple((names.get(a, a), names.get(b, b)) for a, b in self.matched),
            tuple(names.get(name, name) for name in self.missed),
            tuple(names.get(name, name) for name in self.invented),
        )

    @property
    def accuracy(self) -> float:
        """Share of the pairs whose types are equal; 1 if there is no pair."""
        return _ratio(sum(a == b for a, b in self.matched), len(self.matched))

    def f1(self, name: str) -> float:
        """Return F_c of one type: detection and typing in one figure (Graham et al. 2019, equation 14).

        2 TP / (2 TP + 2 FP_c + 2 FN_c + FP_d + FN_d), where TP are pairs of this type on both sides, FP_c and FN_c
        pairs found as this type wrongly or annotated as it and found as another, FP_d and FN_d nuclei of this type
        that are found only or annotated only. As in the authors' code, pairs of other types do not count.
        """
        right = sum(a == b == name for a, b in self.matched)
        wrong = sum((a == name) != (b == name) for a, b in self.matched)
        alone = self.missed.count(name) + self.invented.count(name)
        return _ratio(2 * right, 2 * right + 2 * wrong + alone)


def f1_score(matched: int, n_true: int, n_predicted: int) -> float:
    """Return the harmonic mean of precision and recall; 1 if there is nothing to find and nothing was found."""
    return _ratio(2 * matched, n_true + n_predicted)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 1.0
