"""Predictions of the classifier for N nuclei."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from classifier.labels.libraries import LabelSpace


@dataclass(frozen=True)
class Predictions:
    """Five labels for each of N nuclei, as probabilities.

    Attributes:
        probabilities: (N, 35) float32; within each library's group of columns a row sums to 1, and a label that no
            sample has taught has exactly 0.
        features: (N, F) float16, a projection of what the classifier's last layer saw; None where the model carries
            no projection.
        ood_scores: (N,) float32, see :mod:`classifier.out_of_distribution`; None where the model cannot tell them.
    """

    probabilities: npt.NDArray[np.float32]
    features: npt.NDArray[np.float16] | None = None
    ood_scores: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.probabilities)

    @classmethod
    def concatenate(cls, parts: Sequence[Predictions]) -> Predictions:
        """Return all rows of ``parts`` (at least one), in order.

        Raises:
            ValueError: some have features, or scores, and some have none.
        """

        def joined(arrays: Sequence[npt.NDArray[Any] | None]) -> npt.NDArray[Any] | None:
            there = [array for array in arrays if array is not None]
            if there and len(there) < len(parts):
                raise ValueError("some nuclei have features and some have none")
            return np.concatenate(there) if there else None

        probabilities = np.concatenate([p.probabilities for p in parts])
        return cls(probabilities, joined([p.features for p in parts]), joined([p.ood_scores for p in parts]))

    @classmethod
    def empty(cls, outputs: LabelSpace, features: int = 0, ood: bool = False) -> Predictions:
        """Return those of no nucleus, of a classifier that gives so many features, and scores or not."""
        none = np.zeros((0, features), np.float16) if features else None
        return cls(np.zeros((0, len(outputs)), np.float32), none, np.zeros(0, np.float32) if ood else None)

    def select(self, rows: npt.NDArray[Any] | slice) -> Predictions:
        """Return some rows: a mask, places or a slice."""
        features = None if self.features is None else self.features[rows]
        scores = None if self.ood_scores is None else self.ood_scores[rows]
        return Predictions(self.probabilities[rows], features, scores)

    def without_features(self) -> Predictions:
        """Return the same without features."""
        return replace(self, features=None)


def probabilities(logits: npt.NDArray[np.float32], outputs: LabelSpace) -> npt.NDArray[np.float32]:
    """Return a softmax inside each library over its trained columns.

    Args:
        logits: (N, columns).
        outputs: the columns.

    Returns:
        (N, columns) float32; untrained columns are exactly 0, and each library that has a trained column sums to 1.
        A library's logits are divided by its temperature first.
    """
    result = np.zeros(logits.shape, np.float32)
    temperatures = outputs.temperatures or (1.0,) * len(outputs.libraries)
    for columns, temperature in zip(outputs.slices.values(), temperatures, strict=True):
        trained = [c for c in range(columns.start, columns.stop) if outputs.trained[c]]
        if trained:
            scaled = logits[:, trained] / np.float32(temperature)
            powers = np.ascontiguousarray(np.exp(scaled - scaled.max(1, keepdims=True)))
            # Column by column: how numpy adds up a row depends on the number of rows.
            total = sum(powers.T[1:], powers[:, 0])
            result[:, trained] = powers / total[:, None]
    return result
