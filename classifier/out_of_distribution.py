"""The out-of-distribution score: how unlike the training data a nucleus is, told by its stored features.

A mixture of Gaussians describes the features of the nuclei that taught the classifier (Lee et al. 2018 take one
Gaussian a class and the distance of Mahalanobis to the nearest). The score of a nucleus is the share of nuclei of
images held out that are less unlike.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from classifier.spec import has_ood
from nucpipe.backends.model_file import ModelHeader
from nucpipe.errors import ModelError

UNLIKE = 0.95
"""Score from which a nucleus is said to be unlike the training data; of images held out one in twenty reaches it."""
HIGH = 0.15
"""Share of such nuclei from which users are warned of a slide: three times as many as of images held out."""
QUANTILES = 1000
"""Steps of the score."""
PREFIX = "ood."
"""Begins the names of the tensors in a model file."""

LARGEST = 256
FEATURE_STEPS, WEIGHT_STEPS = 2**8, 2**12
"""Parts of 1 that features and weights are rounded to. Their products and sums are then whole numbers below 2^53, which
float64 holds exactly, so that no score depends on the order of additions, and with it on the size of a batch."""
ROWS = 512

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class OodModel:
    """Mixture of K Gaussians of F features, and how far the nuclei held out lie from it.

    Attributes:
        means: (K, F).
        whitening: (K, F, F); (x - mean) @ whitening has the covariance 1.
        penalties: (K,) half the logarithm of each covariance's determinant, less that of the Gaussian's share.
        quantiles: (1000,) of :meth:`distance` over the nuclei held out, ascending: the 0.05 %, 0.15 %, ... points.
    """

    means: Floats
    whitening: Floats
    penalties: Floats
    quantiles: Floats

    @classmethod
    def from_tensors(cls, tensors: dict[str, npt.NDArray[np.float16]]) -> OodModel:
        """Make it of the tensors in a model file.

        Raises:
            ValueError: their shapes do not fit, or a number is not finite.
        """
        means, whitening, penalties, quantiles = (
            np.asarray(tensors[PREFIX + name], np.float64) for name in ("means", "whitening", "penalties", "quantiles")
        )
        if means.ndim != 2 or not len(means):
            raise ValueError(f"means of shape {means.shape}")
        count, size = means.shape
        shapes = whitening.shape, penalties.shape, quantiles.shape
        if shapes != ((count, size, size), (count,), (QUANTILES,)):
            raise ValueError(f"shapes {shapes} beside means of {means.shape}")
        model = cls(means, whitening, penalties, quantiles)
        if not all(np.isfinite(values).all() for values in (means, whitening, penalties, quantiles)):
            raise ValueError("a number that is not finite")
        return model

    def to_tensors(self) -> dict[str, npt.NDArray[np.float16]]:
        """Return the form that a model file holds."""
        named = {
            "means": self.means,
            "whitening": self.whitening,
            "penalties": self.penalties,
            "quantiles": self.quantiles,
        }
        return {PREFIX + name: values.astype(np.float16) for name, values in named.items()}

    def distance(self, features: npt.NDArray[np.float16]) -> Floats:
        """Return (N,) how unlike the training data nuclei are: minus their log density, but for a constant.

        Args:
            features: (N, F).
        """
        count, size = self.means.shape
        weights, offsets = self._affine
        found = [np.zeros(0)]
        for start in range(0, len(features), ROWS):
            # Not by "@": BLAS has threads of its own, which wait actively and take the processors from the networks.
            # Sums of whole numbers are the same in any order.
            whitened = np.einsum("nf,fg->ng", _whole(features[start : start + ROWS], FEATURE_STEPS), weights) - offsets
            squares = (whitened / (FEATURE_STEPS * WEIGHT_STEPS)) ** 2
            # Column by column: how numpy adds up a row depends on the number of rows.
            columns = np.ascontiguousarray(squares.reshape(-1, count, size).transpose(2, 0, 1))
            total = sum(columns[1:], columns[0])
            found.append((0.5 * total + self.penalties).min(1))
        return np.concatenate(found)

    @cached_property
    def _affine(self) -> tuple[Floats, Floats]:
        """Weights (F, K * F) and offsets (K * F,) that whiten for all Gaussians at once, as whole numbers."""
        count, size = self.means.shape
        means, whitening = _whole(self.means, FEATURE_STEPS), _whole(self.whitening, WEIGHT_STEPS)
        weights = whitening.transpose(1, 0, 2).reshape(size, count * size)
        return weights, (means[:, None] @ whitening).reshape(count * size)

    def score(self, features: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
        """Return (N,) the share of nuclei of images held out that are less unlike, 0 to 1 in steps of 0.001.

        Args:
            features: (N, F) float16.
        """
        return (np.searchsorted(self.quantiles, self.distance(features)) / QUANTILES).astype(np.float32)


def in_words(share: float) -> str:
    """Return what is said of a slide of whose nuclei that share (0-1) is unlike the training data."""
    return f"{100 * share:.0f} % of these nuclei are unlike anything that the model was trained on"


def _whole(values: npt.NDArray[np.floating], steps: int) -> Floats:
    return np.round(np.clip(values.astype(np.float64), -LARGEST, LARGEST) * steps)


def read_ood(path: Path, header: ModelHeader) -> OodModel | None:
    """Return what a classifier's file tells the score by; None where it does not.

    Args:
        path: of the file.
        header: of that file.

    Raises:
        ModelError: it cannot be read.
    """
    if not has_ood(header):
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="np") as file:
            names = [name for name in file.keys() if name.startswith(PREFIX)]  # noqa: SIM118
            return OodModel.from_tensors({name: file.get_tensor(name) for name in names})
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: what tells its out-of-distribution score cannot be read ({error}).") from error
