"""How often adapted labels are right: cross-validation over places of the slide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from classifier.labels.libraries import LabelSpace
from pipeline.adaptation.model import Floats, fit

PLACES = 5
"""Into how many places the corrected nuclei are parted; each is left out once."""
LEAST_NUCLEI = 10
"""With fewer corrected nuclei of a library of which one label is known, nothing is measured."""


@dataclass(frozen=True)
class Accuracy:
    """Of one library, over corrected nuclei of which one label is known; before and after adaptation.

    Attributes:
        nuclei: how many.
        plain: share of right labels, before and after.
        balanced: mean over the labels of the share of right ones among the nuclei that have the label, likewise.
    """

    nuclei: int
    plain: tuple[float, float]
    balanced: tuple[float, float]

    @property
    def worse(self) -> bool:
        """Whether adaptation harms: the balanced accuracy falls, or the plain one without a gain of the other."""
        (plain, plain_after), (balanced, balanced_after) = self.plain, self.balanced
        return balanced_after < balanced or (balanced_after == balanced and plain_after < plain)


def places_of(points: npt.NDArray[np.float64], count: int = PLACES) -> npt.NDArray[np.int64]:
    """Return (M,) the place of each point: neighbours lie in one, and all places hold about as many points.

    The points are halved across the longer side of their box, and the halves again.
    """
    places = np.zeros(len(points), np.int64)

    def part(rows: npt.NDArray[np.int64], first: int, number: int) -> None:
        if number == 1 or len(rows) < 2:
            places[rows] = first
            return
        left = number // 2
        axis = int(np.argmax(np.ptp(points[rows], axis=0)))
        ordered = rows[np.lexsort((points[rows, 1 - axis], points[rows, axis]))]
        cut = len(rows) * left // number
        part(ordered[:cut], first, left)
        part(ordered[cut:], first + left, number - left)

    part(np.arange(len(points)), 0, count)
    return places


def cross_validate(
    base: Floats,
    features: Floats,
    allowed: npt.NDArray[np.bool_],
    points: npt.NDArray[np.float64],
    outputs: LabelSpace,
    standard: tuple[Floats, Floats],
) -> dict[str, Accuracy | None]:
    """Return how well base and adapted labels agree with corrections that the adaptation has not seen.

    Args:
        base, features, allowed, outputs, standard: see :func:`pipeline.adaptation.model.fit`.
        points: (M, 2) where the corrected nuclei lie.

    Returns:
        By the name of each library that corrections speak of; None where they are too few to tell.
    """
    places = places_of(points)
    adapted = base.copy()
    for place in range(PLACES):
        held, others = np.flatnonzero(places == place), np.flatnonzero(places != place)
        if len(held) and len(others):
            model = fit(base[others], features[others], allowed[others], outputs, standard)
            adapted[held] = model.apply(base[held], features[held])
    return {
        name: accuracy(base[:, part], adapted[:, part], allowed[:, part])
        for name, part in outputs.slices.items()
        if allowed[:, part].any()
    }


def accuracy(base: Floats, adapted: Floats, allowed: npt.NDArray[np.bool_]) -> Accuracy | None:
    """Return how often the likeliest of one library's labels is right, over the rows that allow one alone."""
    rows = np.flatnonzero(allowed.sum(1) == 1)
    if len(rows) < LEAST_NUCLEI:
        return None
    truth = allowed[rows].argmax(1)
    right = [values[rows].argmax(1) == truth for values in (base, adapted)]
    labels = np.unique(truth)
    before, after = (
        (float(ok.mean()), float(np.mean([ok[truth == label].mean() for label in labels]))) for ok in right
    )
    return Accuracy(len(rows), (before[0], after[0]), (before[1], after[1]))
