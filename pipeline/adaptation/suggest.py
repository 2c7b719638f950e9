"""Which nuclei are worth a correction next."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SAMPLE = 8192
"""Nuclei, at most, that are weighed: the least certain of a whole slide are debris and blur rather than questions."""
CELLS = 8
"""The slide is parted into so many cells along each side, over which suggestions are spread."""
DISAGREEMENT, CROWDING, CHANCE = 0.5, 0.15, 0.5
"""What counts beside uncertainty (0 to 1): other labels before and after adaptation; each nucleus in the same cell that
is corrected or suggested already; and, at most, chance."""
SURE_AFTER = 50
"""Corrections from which uncertainty and disagreement count in full; before, in proportion. The labels that are to be
corrected say little of where they are wrong, so the first suggestions are nearly drawn at random."""


def suggest(
    base: npt.NDArray[np.float32],
    adapted: npt.NDArray[np.float32],
    centroids: npt.NDArray[np.float32],
    size_l0: tuple[int, int],
    candidates: npt.NDArray[np.int64],
    corrected: npt.NDArray[np.int64],
    count: int,
    seed: int = 0,
) -> npt.NDArray[np.int64]:
    """Return nuclei that a correction would teach most of, the first one first.

    The labels take turns, those with the fewest corrections first. Of a label a nucleus is taken in a part of the slide
    that few corrections speak of, at first by chance, and the more corrections there are, the rather one of which base
    and adapted labels disagree, or whose two likeliest labels are about as likely.

    Args:
        base, adapted: (N, T) probabilities of one library's labels.
        centroids: (N, 2) level-0 pixels.
        size_l0: (width, height) of the slide.
        candidates: nuclei that may be suggested.
        corrected: nuclei that are corrected already; never suggested.
        count: how many are wanted.
        seed: of the random numbers.
    """
    candidates = np.setdiff1d(candidates, corrected)
    rng = np.random.default_rng((seed, len(corrected)))
    if len(candidates) > SAMPLE:
        candidates = np.sort(rng.choice(candidates, SAMPLE, replace=False))
    if not len(candidates):
        return candidates
    labels = adapted[candidates].argmax(1)
    two = np.sort(adapted[candidates], axis=1)[:, -2:] if adapted.shape[1] > 1 else np.ones((len(candidates), 2))
    unsure = 1 - (two[:, 1] - two[:, 0]) + DISAGREEMENT * (base[candidates].argmax(1) != labels)
    score = min(1.0, len(corrected) / SURE_AFTER) * unsure + CHANCE * rng.random(len(candidates))
    cell_of = _cells(centroids, size_l0)
    crowd = np.bincount(cell_of[corrected], minlength=CELLS**2).astype(float)
    taken = np.bincount(adapted[corrected].argmax(1), minlength=adapted.shape[1])
    left = {int(label): np.flatnonzero(labels == label) for label in np.unique(labels)}
    cells = cell_of[candidates]
    chosen: list[int] = []
    while left and len(chosen) < count:
        label = min(left, key=lambda one: (taken[one], one))
        rows = left[label]
        best = int(rows[np.argmax(score[rows] - CROWDING * crowd[cells[rows]])])
        chosen.append(int(candidates[best]))
        crowd[cells[best]] += 1
        taken[label] += 1
        left[label] = rows[rows != best]
        if not len(left[label]):
            del left[label]
    return np.array(chosen, np.int64)


def _cells(centroids: npt.NDArray[np.float32], size_l0: tuple[int, int]) -> npt.NDArray[np.int64]:
    at = np.clip((centroids * CELLS / np.array(size_l0, np.float32)).astype(np.int64), 0, CELLS - 1)
    cells: npt.NDArray[np.int64] = at[:, 1] * CELLS + at[:, 0]
    return cells
