"""How often the classifier is right, library by library."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from classifier.libraries import Outputs
from classifier.model import WINDOW_PX, JointClassifier, classify
from classifier.samples import Samples

BATCH = 64


def label_figures(
    truth: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], labels: tuple[str, ...]
) -> dict[str, Any]:
    """Figures of one library.

    Args:
        truth, predicted: (N,) label numbers, N at least 1.
        labels: the library's labels.

    Returns:
        ``nuclei``, ``accuracy``, ``balanced_accuracy`` (mean recall) and ``macro_f1``, the last two over the labels
        that occur in ``truth``; ``labels``: for each label ``count``, ``precision``, ``recall`` and ``f1``, None
        where the quotient has no denominator.
    """
    matrix = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(matrix, (truth, predicted), 1)
    rows: dict[str, dict[str, float | int | None]] = {}
    for k, label in enumerate(labels):
        right, count, said = int(matrix[k, k]), int(matrix[k].sum()), int(matrix[:, k].sum())
        rows[label] = {
            "count": count,
            "precision": round(right / said, 4) if said else None,
            "recall": round(right / count, 4) if count else None,
            "f1": round(2 * right / (said + count), 4) if said + count else None,
        }
    there = matrix.sum(1) > 0
    right = np.diag(matrix)[there]
    counts, said = matrix.sum(1)[there], matrix.sum(0)[there]
    return {
        "nuclei": int(matrix.sum()),
        "accuracy": round(float(right.sum() / matrix.sum()), 4),
        "balanced_accuracy": round(float((right / counts).mean()), 4),
        "macro_f1": round(float((2 * right / (counts + said)).mean()), 4),
        "labels": rows,
    }


def evaluate_classifier(
    model: JointClassifier,
    outputs: Outputs,
    samples: Samples,
    device: torch.device,
    precision: torch.dtype | None = None,
) -> dict[str, Any]:
    """Figures of every library that has samples, each on its own nuclei and its own labels.

    Returns:
        {library: what :func:`label_figures` gives}.
    """
    edge = (samples.windows.shape[1] - WINDOW_PX) // 2
    figures: dict[str, Any] = {}
    for place, library in enumerate(outputs.libraries):
        mine = np.flatnonzero(samples.library == place)
        if not len(mine):
            continue
        predicted = []
        for start in range(0, len(mine), BATCH):
            some = samples.windows[mine[start : start + BATCH], edge : edge + WINDOW_PX, edge : edge + WINDOW_PX]
            labels = classify(model, outputs, some, device, precision)
            predicted.append(outputs.best(labels.probabilities)[library.name])
        numbers = np.concatenate(predicted).astype(np.int64)
        figures[library.name] = label_figures(samples.label[mine], numbers, library.labels)
    return figures
