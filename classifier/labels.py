"""What the classifier says of N nuclei."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Labels:
    """Five labels for each of N nuclei, as probabilities.

    Attributes:
        probabilities: (N, 35) float32; within each library's group of columns a row sums to 1, and a label that no
            sample has taught has exactly 0.
    """

    probabilities: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.probabilities)

    @classmethod
    def concatenate(cls, parts: Sequence[Labels]) -> Labels:
        """All rows of ``parts`` (at least one), in order."""
        return cls(np.concatenate([p.probabilities for p in parts]))
