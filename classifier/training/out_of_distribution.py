"""Fit of what a model file tells the out-of-distribution score by, see :mod:`classifier.out_of_distribution`."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
from scipy.cluster.vq import kmeans2

from classifier.out_of_distribution import QUANTILES, OodModel

COMPONENTS = 16
"""Gaussians, at most; of 4, 8, 16 and 32 these told wrong input best (docs/models.md)."""
MIN_NUCLEI = 100
"""Nuclei, at least, that a Gaussian is fitted to."""
MIN_HELD_OUT = 200
"""Nuclei held out below which there is no score."""
MIN_VARIANCE = 1e-4
"""Of a Gaussian along any direction; the features' mean variance is 1."""

Floats = npt.NDArray[np.float64]
Halves = npt.NDArray[np.float16]


def fit_ood(features: Halves, held_out: Halves, chances: Floats, seed: int) -> OodModel:
    """Return a mixture of Gaussians over features, and the quantiles of the distance of those held out.

    Args:
        features: (N, F) of the nuclei that taught, N at least 2.
        held_out: (M, F) of nuclei of images that did not, M at least 1.
        chances: (M,) how much each of these counts; sum 1.
        seed: of the clustering.
    """
    values = features.astype(np.float64)
    clusters = _clusters(values, seed)
    means, whitening, penalties = [], [], []
    for number in range(clusters.max() + 1):
        mine = values[clusters == number]
        covariance = shrunk_covariance(mine)
        whitening.append(np.linalg.cholesky(np.linalg.inv(covariance)))
        means.append(mine.mean(0))
        penalties.append(0.5 * np.linalg.slogdet(covariance)[1] - np.log(len(mine) / len(values)))
    mixture = OodModel(np.stack(means), np.stack(whitening), np.array(penalties), np.zeros(QUANTILES))
    mixture = OodModel.from_tensors(mixture.to_tensors())  # in half precision, as the score will be told
    distances = mixture.distance(held_out)
    order = np.argsort(distances)
    reached = np.cumsum(chances[order]) - chances[order] / 2
    quantiles = np.interp((np.arange(QUANTILES) + 0.5) / QUANTILES, reached, distances[order])
    return OodModel(mixture.means, mixture.whitening, mixture.penalties, quantiles)


def shrunk_covariance(values: Floats) -> Floats:
    """Return the covariance (F, F) of values (N, F), drawn to a multiple of 1 (Chen et al. 2010, "OAS")."""
    count, size = values.shape
    covariance = np.cov(values, rowvar=False, bias=True).reshape(size, size)
    mean = np.trace(covariance) / size
    spread = (covariance**2).mean()
    excess = (count + 1) * (spread - mean**2 / size)
    share = 1.0 if excess <= 0 else min(1.0, (spread + mean**2) / excess)
    return np.asarray((1 - share) * covariance + (share * mean + MIN_VARIANCE) * np.eye(size))


def _clusters(values: Floats, seed: int) -> npt.NDArray[np.int64]:
    """Return the cluster of each value, from 0; clusters of few nuclei join the nearest others."""
    wanted = max(1, min(COMPONENTS, len(values) // MIN_NUCLEI, len(np.unique(values, axis=0))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a cluster is empty
        centres, of = kmeans2(values, wanted, iter=30, minit="++", seed=np.random.default_rng(seed))
    counts = np.bincount(of, minlength=wanted)
    kept = np.flatnonzero(counts >= min(MIN_NUCLEI, counts.max()))
    squares = ((values[:, None] - centres[kept]) ** 2).sum(2)
    return np.unique(squares.argmin(1), return_inverse=True)[1]
