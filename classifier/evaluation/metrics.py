"""Accuracy and calibration of the classifier, library by library."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from classifier.dataset import PatchDataset
from classifier.labels.libraries import LabelSpace, Library
from classifier.network import Classifier, Gives, TwoViewClassifier, of_patches
from classifier.predictions import probabilities
from classifier.predictor import ROWS
from classifier.spec import CONTEXT_PX, PATCH_PX
from nucpipe.backends.base import Input
from nucpipe.backends.processors import available_processors
from nucpipe.backends.select import select_backend

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]

BATCH = 128
BINS = 15
REPLICATES = 1000
MIN_UNITS = 5
"""Least number of groups; with fewer, the bootstrap draws images."""


def predict_logits(
    model: Classifier, samples: PatchDataset, device: str, precision: str, context: bool = True
) -> npt.NDArray[np.float32]:
    """Return the logits of every sample, computed as a run computes them: (N, columns) float32.

    Args:
        model: a classifier.
        samples: what it looks at.
        device, precision: where and how it runs.
        context: whether one that looks at the context, too, is shown it.
    """
    return _predict(model, "logits", model.columns, samples, device, precision, context)


def predict_pooled(model: Classifier, samples: PatchDataset, device: str, precision: str) -> npt.NDArray[np.float32]:
    """Return the features that the last layer sees of every sample: (N, F) float32; otherwise as above."""
    return _predict(model, "pooled", model.last_layer().in_features, samples, device, precision, True)


def predict_logits_and_features(
    model: Classifier, samples: PatchDataset, device: str, precision: str
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float16]]:
    """Return the logits (N, columns) of every sample and the features (N, F) that a run would store of it.

    Args:
        model: a classifier with a projection.
        samples, device, precision: as above.
    """
    assert model.projection is not None
    width = model.columns + model.projection.out_features
    both = _predict(model, "logits and features", width, samples, device, precision, True)
    return both[:, : model.columns], both[:, model.columns :].astype(np.float16)


def _predict(
    model: Classifier, gives: Gives, columns: int, samples: PatchDataset, device: str, precision: str, context: bool
) -> npt.NDArray[np.float32]:
    two_views = isinstance(model, TwoViewClassifier)
    inputs = (Input(PATCH_PX), Input(CONTEXT_PX, 4)) if two_views else (Input(PATCH_PX),)
    runtime = select_backend(lambda: of_patches(model, gives), device, precision, available_processors(), ROWS, inputs)

    def predict(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        views = [samples.patches(rows, PATCH_PX)]
        if two_views:
            contexts = samples.contexts(rows)
            views.append(contexts if context else np.zeros_like(contexts))
        return runtime(*views)

    rows = np.arange(len(samples))
    with ThreadPoolExecutor(runtime.max_concurrency) as pool:
        parts = list(pool.map(predict, (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))))
    return np.concatenate([np.zeros((0, columns), np.float32), *parts])


def auroc(positive: npt.NDArray[np.bool_], score: Floats) -> float | None:
    """Return area under the ROC curve, ties counted half (Mann-Whitney); None where one of the two kinds is missing."""
    n, m = int(positive.sum()), int((~positive).sum())
    if not n or not m:
        return None
    ranks = rankdata(score)
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))


def calibration_error(confidence: Floats, right: npt.NDArray[np.bool_], bins: int = BINS) -> float:
    """Return the expected calibration error over equal bins of confidence (Guo et al. 2017).

    Args:
        confidence: (N,) probability of the predicted label, N at least 1.
        right: (N,) whether it was right.
        bins: their number.
    """
    of_bin = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(of_bin, right.astype(float) - confidence, bins)
    return float(np.abs(gaps).sum() / len(confidence))


def _rates(matrix: Floats, there: npt.NDArray[np.bool_]) -> tuple[Floats, ...]:
    """From confusion matrices (..., K, K): accuracy and macro F1 over ``there`` (...,); recall, precision, F1 (..., K).

    A quotient without a denominator is NaN; such an F1 counts as 0 in the mean.
    """
    right = np.diagonal(matrix, axis1=-2, axis2=-1)
    counts, said = matrix.sum(-1), matrix.sum(-2)
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = 2 * right / (counts + said)
        accuracy = right.sum(-1) / matrix.sum((-2, -1))
        return accuracy, np.nan_to_num(f1[..., there]).mean(-1), right / counts, right / said, f1


def label_figures(truth: Ints, p: Floats, labels: tuple[str, ...], units: Ints | None = None) -> dict[str, Any]:
    """Return figures of one library.

    Args:
        truth: (N,) label numbers, N at least 1.
        p: (N, K) probabilities; the largest is what is predicted.
        labels: the K labels.
        units: (N,) what the bootstrap draws: samples of one group (patient, tissue) have one number. None: no
            intervals.

    Returns:
        ``nuclei``, ``accuracy``, ``balanced_accuracy`` (mean recall), ``macro_f1``, ``weighted_f1``, ``auroc`` (mean of
        one against the rest), all but the first two over labels that occur in ``truth``; ``ece``; ``matrix`` (truth
        down, predicted across); ``labels``: for each ``count``, ``precision``, ``recall``, ``f1`` (None where the
        quotient has no denominator); with ``units`` also ``accuracy_95``, ``macro_f1_95`` and for each label
        ``f1_95``: 2.5 and 97.5 % points of 1,000 seeded draws of whole units; None where there is one unit only.
    """
    predicted = p.argmax(1)
    size = len(labels)
    matrix = np.zeros((size, size), np.int64)
    np.add.at(matrix, (truth, predicted), 1)
    counts = matrix.sum(1)
    there = counts > 0
    accuracy, macro, recall, precision, f1 = _rates(matrix.astype(float), there)
    areas = [area for k in np.flatnonzero(there) if (area := auroc(truth == k, p[:, k])) is not None]

    def number(value: float) -> float | None:
        return None if np.isnan(value) else round(float(value), 4)

    rows = {
        label: {
            "count": int(counts[k]),
            "precision": number(precision[k]),
            "recall": number(recall[k]),
            "f1": number(f1[k]),
        }
        for k, label in enumerate(labels)
    }
    figures: dict[str, Any] = {
        "nuclei": len(truth),
        "accuracy": number(float(accuracy)),
        "balanced_accuracy": number(recall[there].mean()),
        "macro_f1": number(float(macro)),
        "weighted_f1": number(float(np.nan_to_num(f1) @ counts / counts.sum())),
        "auroc": number(float(np.mean(areas))) if areas else None,
        "ece": number(calibration_error(p.max(1), predicted == truth)),
        "matrix": matrix.tolist(),
        "labels": rows,
    }
    if units is not None:
        _add_intervals(figures, truth, predicted, labels, units, there)
    return figures


def _add_intervals(
    figures: dict[str, Any], truth: Ints, predicted: Ints, labels: tuple[str, ...], units: Ints, there: Any
) -> None:
    numbers = np.unique(units, return_inverse=True)[1]
    if numbers.max() == 0:  # every draw would be the same, and the interval a point
        figures |= {"accuracy_95": None, "macro_f1_95": None}
        for row in figures["labels"].values():
            row["f1_95"] = None
        return
    parts = np.zeros((numbers.max() + 1, len(labels), len(labels)))
    np.add.at(parts, (numbers, truth, predicted), 1)
    draws = np.random.default_rng(0).multinomial(len(parts), np.full(len(parts), 1 / len(parts)), REPLICATES)
    accuracy, macro, _, _, f1 = _rates(np.tensordot(draws.astype(float), parts, 1), there)

    def interval(values: Floats) -> list[float] | None:
        values = values[~np.isnan(values)]
        return [round(float(v), 4) for v in np.quantile(values, (0.025, 0.975))] if len(values) else None

    figures |= {"accuracy_95": interval(accuracy), "macro_f1_95": interval(macro)}
    for k, label in enumerate(labels):
        figures["labels"][label]["f1_95"] = interval(f1[:, k])


def library_figures(p: Floats, samples: PatchDataset, outputs: LabelSpace, name: str) -> dict[str, Any]:
    """Return figures of one library on its own nuclei, and in its coarser groupings.

    Args:
        p: (N, columns) probabilities.
        samples: the N samples; only the library's own count.
        outputs: the columns.
        name: of the library.

    Returns:
        What :func:`label_figures` gives, with ``units`` (what the bootstrap drew), ``untrained`` (labels that are
        never predicted) and ``groups``: {grouping: the same for the grouping's classes}. Empty without samples. A
        nucleus that is known only by a group counts where that group is a class.
    """
    library = outputs.library(name)
    columns = outputs.slices[library.name]
    mine = np.flatnonzero(samples.library == outputs.libraries.index(library))
    units, drawn = (samples.groups[mine], "groups")
    if len(np.unique(units)) < MIN_UNITS:
        units, drawn = samples.image[mine], "images"
    p, targets, truth = p[mine, columns], samples.targets[mine, columns], samples.label[mine]
    exact = truth >= 0
    figures: dict[str, Any] = {}
    if exact.any():
        figures = label_figures(truth[exact], p[exact], library.labels, units[exact])
        figures["units"] = f"{len(np.unique(units))} {drawn}"
        figures["untrained"] = [x for x, t in zip(library.labels, outputs.trained[columns], strict=True) if not t]
    groups = {}
    for grouping, members in library.groups.items():
        masks = np.array([[label in some for label in library.labels] for some in members.values()])
        outside = np.stack([targets & ~mask for mask in masks], 1)
        inside = np.asarray(~outside.any(2) & targets.any(1, keepdims=True))
        known = inside.sum(1) == 1
        if known.any():
            summed = p[known] @ masks.T.astype(p.dtype)
            groups[grouping] = label_figures(inside[known].argmax(1), summed, tuple(members), units[known])
    if groups:
        figures["groups"] = groups
    return figures


def intervals_in_words(figures: dict[str, Any]) -> str:
    """Say what the intervals of :func:`library_figures` come of, for people."""
    if figures["accuracy_95"] is None:
        return "none; they need nuclei of at least two images"
    return f"bootstrap over {figures['units']}"


def partial_figures(
    p: Floats, samples: PatchDataset, outputs: LabelSpace, library: Library, index: int
) -> dict[str, Any]:
    """Return figures of nuclei whose labels are no outputs, but say which of other libraries' labels may be right.

    Args:
        p: (N, columns) probabilities.
        samples: the N samples.
        outputs: the columns.
        library: the partial one.
        index: its number in ``samples.library``.

    Returns:
        ``nuclei``, and ``partial``: for each library that the nuclei say something of ``nuclei``, ``accuracy`` (share
        whose likeliest label may be right), ``balanced_accuracy`` (mean of that over the nuclei's own labels) and
        ``labels``: {own label: ``count``, ``recall``}.
    """
    mine = np.flatnonzero(samples.library == index)
    best = outputs.best(p[mine].astype(np.float32))
    figures: dict[str, Any] = {"nuclei": len(mine), "partial": {}}
    for name, columns in outputs.slices.items():
        allowed, own = samples.targets[mine, columns], samples.label[mine]
        everything = allowed[:, np.array(outputs.trained)[columns]].all(1)  # says nothing, so it measures nothing
        rows = np.flatnonzero(allowed.any(1) & ~everything & (own >= 0))
        if not len(rows):
            continue
        right = allowed[rows, best[name][rows]]
        counts = np.bincount(own[rows])
        recall = np.bincount(own[rows], right)[counts > 0] / counts[counts > 0]
        figures["partial"][name] = {
            "nuclei": len(rows),
            "accuracy": round(float(right.mean()), 4),
            "balanced_accuracy": round(float(recall.mean()), 4),
            "labels": {
                library.labels[label]: {"count": int(counts[label]), "recall": round(float(share), 4)}
                for label, share in zip(np.flatnonzero(counts), recall, strict=True)
            },
        }
    return figures


def evaluate_logits(
    logits: npt.NDArray[np.float32], samples: PatchDataset, outputs: LabelSpace, partial: Sequence[Library] = ()
) -> dict[str, Any]:
    """Return figures of every library that has samples.

    Args:
        logits: (N, columns).
        samples: the N samples.
        outputs: the columns.
        partial: the libraries without outputs that follow the others in ``samples.library``.

    Returns:
        By library what :func:`library_figures` or :func:`partial_figures` gives.
    """
    p = probabilities(logits, outputs)
    figures = {}
    for index, library in enumerate((*outputs.libraries, *partial)):
        if (samples.library == index).any():
            figures[library.name] = (
                partial_figures(p, samples, outputs, library, index)
                if library.partial
                else library_figures(p, samples, outputs, library.name)
            )
    return figures
