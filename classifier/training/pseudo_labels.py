"""Label completion: a trained model's confident predictions teach libraries that a sample has no label of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from classifier.dataset import PatchDataset
from classifier.evaluation.metrics import predict_logits
from classifier.labels.libraries import LabelSpace
from classifier.network import load_classifier
from classifier.predictions import probabilities
from nucpipe.errors import DataError


def pseudo_label(
    samples: PatchDataset,
    outputs: LabelSpace,
    model_path: Path,
    above: float,
    device: str,
    precision: str,
    say: Callable[[str], None],
) -> PatchDataset:
    """Return samples that also teach the libraries in which a model is sure of them.

    Args:
        samples: what is trained on.
        outputs: the columns of ``samples.targets``.
        model_path: a classifier of the same columns. It must not have seen what this training holds out.
        above: the least probability that counts as sure.
        device, precision: where and how the model runs.
        say: told how much was added.

    Raises:
        DataError: the model has other columns.
        ModelError: no such model.
    """
    model, _, known = load_classifier(model_path)
    if known.columns != outputs.columns:
        raise DataError(f"--complete {model_path}: its labels are not those of this training.")
    p = probabilities(predict_logits(model, samples, device, precision), known)
    targets = samples.targets.copy()
    for name, columns in outputs.slices.items():
        sure = (p[:, columns] >= above) & np.asarray(outputs.trained)[columns]
        sure[targets[:, columns].any(1)] = False
        targets[:, columns] |= sure
        say(f"{name}: {int(sure.any(1).sum())} nuclei of other libraries completed")
    return dataclasses.replace(samples, targets=targets)
