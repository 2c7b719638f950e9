"""How far a model says what the models say that it was made from, where no labels can tell how good it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from classifier.dataset import PatchDataset
from classifier.evaluation.metrics import predict_logits
from classifier.labels.libraries import LabelSpace
from classifier.network import load_classifier
from classifier.predictions import probabilities

LOOKED_AT = 2000
"""Held-out nuclei, at most, that the earlier models are shown."""


def agreement(
    logits: npt.NDArray[np.float32],
    held: PatchDataset,
    outputs: LabelSpace,
    models: Sequence[Path],
    device: str,
    precision: str,
    say: Callable[[str], None],
) -> dict[str, dict[str, float]]:
    """Compare the labels of held-out nuclei with those that earlier models give them.

    It is no accuracy: it tells what a training has kept of the labels of libraries whose data it had not.

    Args:
        logits: (N, columns) of the new model.
        held: the N nuclei.
        outputs: the columns.
        models: files of the earlier models.
        device, precision: where and how they run.
        say: told the results, a line each.

    Returns:
        By the name of an earlier model and by library without held-out nuclei of its own, the share of the nuclei to
        which both give the same label, 0-1.
    """
    measured = {int(place) for place in np.unique(held.library)}
    names = [library.name for place, library in enumerate(outputs.libraries) if place not in measured]
    rows = np.random.default_rng(0).permutation(len(held))[:LOOKED_AT]
    if not names or not len(rows):
        return {}
    ours = outputs.best(probabilities(logits[rows], outputs))
    shares: dict[str, dict[str, float]] = {}
    for path in dict.fromkeys(models):
        model, _, known = load_classifier(path)
        theirs = known.best(probabilities(predict_logits(model, held.select(rows), device, precision), known))
        shares[path.stem] = {
            name: round(float(np.mean(_said(outputs, name, ours) == _said(known, name, theirs))), 4)
            for name in names
            if name in theirs and (theirs[name] >= 0).all() and (ours[name] >= 0).all()
        }
        if shares[path.stem]:
            listed = ", ".join(f"{name} {share:.3f}" for name, share in shares[path.stem].items())
            say(f"of {len(rows)} held-out nuclei, share with the label that {path.stem} gives (no accuracy): {listed}")
    return shares


def _said(outputs: LabelSpace, name: str, best: dict[str, npt.NDArray[np.int8]]) -> npt.NDArray[np.str_]:
    return np.array(outputs.library(name).labels)[best[name]]
