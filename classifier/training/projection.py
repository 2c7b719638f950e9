"""What a model file carries beside the network: the projection of what the last layer sees of a nucleus to the few
numbers stored, and the statistics of these by which a nucleus is told to be unlike the training data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from classifier.dataset import PatchDataset, sampling_weights
from classifier.evaluation.metrics import predict_logits_and_features, predict_pooled
from classifier.network import load_classifier
from classifier.spec import FEATURES
from classifier.training.out_of_distribution import MIN_HELD_OUT, fit_ood
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
        held_out: nuclei that tell the out-of-distribution score; 0 where they were too few and there is none.
        logits: (M, columns) of the nuclei held out, computed on the way.
    """

    features: int
    share: float
    nuclei: int
    held_out: int
    logits: npt.NDArray[np.float32]

    @property
    def in_words(self) -> str:
        """What the file carries now."""
        score = f"out-of-distribution score by {self.held_out} nuclei held out"
        if not self.held_out:
            score = f"no out-of-distribution score, which takes {MIN_HELD_OUT} nuclei held out of the training"
        return f"{self.features} features, {self.share:.0%} of the variance over {self.nuclei} nuclei; {score}"


def add_projection(
    path: Path, out: Path, samples: PatchDataset, held: PatchDataset, seed: int, device: str, precision: str
) -> Projection:
    """Write a classifier's file with a projection to the principal components of its pooled features.

    With it comes what tells the out-of-distribution score, see :mod:`classifier.out_of_distribution`, where enough
    nuclei were held out.

    Weights, labels, temperatures and figures stay as they are, to the bit.

    Args:
        path: of the classifier; a projection that it has is replaced.
        out: the file to write; may be ``path``.
        samples: nuclei that taught; at most ``SAMPLES`` are drawn as a training draws them.
        held: nuclei of images that taught nothing; those of different libraries, labels and groups count as a training
            would draw them.
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
    weight, bias = (values.astype(np.float16).astype(np.float32) for values in (weight, bias))  # as the file has them
    model.projection = nn.Linear(weight.shape[1], len(weight))
    model.projection.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
    logits, features = predict_logits_and_features(model, held, device, precision)
    architecture = {key: value for key, value in header.architecture.items() if key != "ood"}
    architecture["features"] = len(weight)
    tensors = model.state_dict()
    known = len(held) if len(held) >= MIN_HELD_OUT else 0
    if known:
        ood = fit_ood((pooled @ weight.T + bias).astype(np.float16), features, sampling_weights(held), seed)
        tensors |= {name: torch.from_numpy(values) for name, values in ood.to_tensors().items()}
        architecture["ood"] = {"components": len(ood.means), "held_out_nuclei": known}
    save_model(out, replace(header, architecture=architecture), tensors)
    return Projection(len(weight), share, len(pooled), known, logits)


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
