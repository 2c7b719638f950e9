"""How well outlines fit: Dice, panoptic quality, detection precision and recall."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree

IntMap = npt.NDArray[np.integer]


def dice(true: IntMap, predicted: IntMap) -> float:
    """Dice coefficient of nuclear pixels; 1 if both maps are empty. Maps are (H, W), 0 = background."""
    a, b = true > 0, predicted > 0
    total = a.sum() + b.sum()
    return 2 * float((a & b).sum()) / float(total) if total else 1.0


def match_by_iou(
    true: IntMap, predicted: IntMap, threshold: float = 0.5
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Pairs of nuclei whose intersection over union is above ``threshold`` (at least 0.5: then pairs are unique).

    Returns:
        ids in ``true``, ids in ``predicted``, and the pairs' IoU; all (K,).
    """
    t, p = true.ravel().astype(np.int64), predicted.ravel().astype(np.int64)
    width = int(p.max(initial=0)) + 1
    both, counts = np.unique(t * width + p, return_counts=True)
    ids_t, ids_p = both // width, both % width
    area_t, area_p = np.bincount(t), np.bincount(p)
    keep = (ids_t > 0) & (ids_p > 0)
    ids_t, ids_p, counts = ids_t[keep], ids_p[keep], counts[keep]
    iou = counts / (area_t[ids_t] + area_p[ids_p] - counts)
    good = iou > threshold
    return ids_t[good], ids_p[good], iou[good]


def panoptic_quality(true: IntMap, predicted: IntMap) -> tuple[float, float, float]:
    """(DQ, SQ, PQ) of one image (Kirillov et al. 2019); (1, 1, 1) if both maps are empty."""
    iou = match_by_iou(true, predicted)[2]
    n_true = len(np.unique(true[true > 0]))
    n_predicted = len(np.unique(predicted[predicted > 0]))
    if n_true + n_predicted == 0:
        return 1.0, 1.0, 1.0
    dq = len(iou) / ((n_true + n_predicted) / 2)
    sq = float(iou.mean()) if len(iou) else 0.0
    return dq, sq, dq * sq


def match_by_distance(
    true: npt.NDArray[np.float64], predicted: npt.NDArray[np.float64], radius: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """One-to-one pairs of points at most ``radius`` apart, with the smallest sum of distances (Hungarian method).

    Args:
        true, predicted: (N, 2) and (M, 2) centroids.
        radius: in the same unit.

    Returns:
        Indices into ``true`` and ``predicted``, (K,) each.
    """
    none = np.zeros(0, np.int64)
    if len(true) == 0 or len(predicted) == 0:
        return none, none
    near = cKDTree(true).sparse_distance_matrix(cKDTree(predicted), radius, output_type="coo_matrix")
    # Far pairs cost so much that a pair within reach is always preferred to none.
    cost = np.full((len(true), len(predicted)), 1e6)
    cost[near.row, near.col] = near.data
    rows, columns = linear_sum_assignment(cost)
    keep = cost[rows, columns] < 1e6
    return rows[keep].astype(np.int64), columns[keep].astype(np.int64)


def f1_score(matched: int, n_true: int, n_predicted: int) -> float:
    """Harmonic mean of precision and recall; 1 if there is nothing to find and nothing was found."""
    return 2 * matched / (n_true + n_predicted) if n_true + n_predicted else 1.0
