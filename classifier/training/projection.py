"""The projection that a model file carries: from what the last layer sees of a nucleus to the few numbers stored."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from classifier.dataset import PatchDataset, sampling_weights
from classifier.evaluation.metrics import predict_pooled
from classifier.network import load_classifier
from classifier.spec import FEATURES
from nucpipe.backends.model_file import save_model
from nucpipe.errors import DataError

SAMPLES = 20_000
"""Nuclei, at most, whose principal components are taken."""


LARGEST = 30_000.0
"""Of its numbers; half precision ends at 65,504."""


@dataclass(frozen=True)
class Projection:
    """What :func:`add_projection` made.

    Attributes:
        features: their number.
        share: of the variance that they keep, 0-1.
        nuclei: that it was taken over.
    """

    features: int
    share: float
    nuclei: int


def add_projection(path: Path, out: Path, samples: PatchDataset, seed: int, device: str, precision: str) -> Projection:
    """Write a classifier's file with a projection to the principal components of its pooled features.

    Weights, labels, temperatures and figures stay as they are, to the bit.

    Args:
        path: of the classifier; a projection that it has is replaced.
        out: the file to write; may be ``path``.
        samples: nuclei to look at; at most ``SAMPLES`` are drawn as a training draws them.
        seed: of the draw.
        device, precision: where and how the network runs.

    Raises:
        DataError: fewer than two nuclei.
        ModelError: no classifier's file.
    """
    if len(samples) < 2:
        raise DataError(f"{len(samples)} annotated nuclei: the principal components of features want at least two.")
    model, header, _ = load_classifier(path)
    model.projection = None
    chances = sampling_weights(samples)
    drawn = np.random.default_rng(seed).choice(len(samples), min(SAMPLES, len(samples)), replace=False, p=chances)
    pooled = predict_pooled(model, samples.select(np.sort(drawn)), device, precision)
    weight, bias, share = principal_components(pooled, FEATURES)
    tensors = model.state_dict() | {
        "projection.weight": torch.from_numpy(weight),
        "projection.bias": torch.from_numpy(bias),
    }
    header = replace(header, architecture={**header.architecture, "features": len(weight)})
    save_model(out, header, tensors)
    return Projection(len(weight), share, len(pooled))


def principal_components(
    values: npt.NDArray[np.float32], most: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], float]:
    """Return the principal components of values (N, F), all divided by one number, so that their mean variance is 1.

    Distances between nuclei thus stay as they were, but for what the components leave out.

    Returns:
        Weight (K, F) and bias (K,) of the affine map to the first K components, K at most ``most``, F and N - 1; and
        the share of the variance that they keep. Of each component the largest weight is positive.
    """
    mean = values.mean(0, dtype=np.float64)
    centred = values - mean
    variances, vectors = np.linalg.eigh(centred.T @ centred / len(values))
    count = min(most, values.shape[1], len(values) - 1)
    first = np.argsort(variances)[::-1][:count]
    weight = vectors[:, first].T
    weight *= np.sign(np.take_along_axis(weight, np.abs(weight).argmax(1)[:, None], 1))
    kept = float(np.clip(variances[first], 0, None).sum())
    bias = -weight @ mean
    # A network whose features hardly vary would give numbers that a file in half precision does not hold.
    scale = max(np.sqrt(kept / count), np.abs(weight).max() / LARGEST, np.abs(bias).max() / LARGEST)
    share = kept / float(np.clip(variances, 0, None).sum()) if kept else 0.0
    return (weight / scale).astype(np.float32), (bias / scale).astype(np.float32), share
