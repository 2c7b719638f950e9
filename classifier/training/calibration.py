"""Temperatures: probabilities that say how often they are right (Guo et al. 2017)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from classifier.dataset import PatchDataset
from classifier.evaluation.metrics import calibration_error
from classifier.libraries import LabelSpace

MIN = 200
"""Nuclei below which a library keeps temperature 1."""

Floats = npt.NDArray[np.float64]


def fit_temperature(logits: Floats, truth: npt.NDArray[np.int64]) -> float:
    """Return the temperature, 0.1 to 10, of the smallest negative log-likelihood.

    Args:
        logits: (N, K) of one library's trained labels.
        truth: (N,) places among these.
    """

    def loss(log_t: float) -> float:
        return -float(log_softmax(logits / np.exp(log_t), axis=1)[np.arange(len(truth)), truth].mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-np.log(10), np.log(10)), method="bounded").x))


def calibrate(
    logits: npt.NDArray[np.float32], samples: PatchDataset, outputs: LabelSpace, say: Callable[[str], None]
) -> tuple[LabelSpace, dict[str, float]]:
    """Fit a temperature for each library that has enough held-out nuclei; 1 for the others.

    Returns:
        The outputs; and by library the calibration error of temperatures fitted on the other half of the groups, for
        on the nuclei that a temperature was fitted on it would flatter.
    """
    temperatures, errors = [], {}
    for place, library in enumerate(outputs.libraries):
        columns = outputs.slices[library.name]
        trained = np.flatnonzero(outputs.trained[columns])
        rows = np.flatnonzero((samples.library == place) & np.isin(samples.label, trained))
        if len(rows) < MIN:
            temperatures.append(1.0)
            if len(rows):
                say(f"{library.name}: {len(rows)} held-out nuclei are too few to calibrate on; left as it is")
            continue
        mine = logits[rows][:, columns][:, trained].astype(np.float64)
        truth = np.searchsorted(trained, samples.label[rows])
        temperatures.append(fit_temperature(mine, truth))
        units = samples.groups[rows]
        if len(np.unique(units)) < 2:
            units = samples.image[rows]
        half = np.unique(units, return_inverse=True)[1] % 2
        p = np.zeros_like(mine)
        for part in (0, 1):
            if (half == part).any() and (half != part).any():
                t = fit_temperature(mine[half != part], truth[half != part])
                p[half == part] = softmax(mine[half == part] / t, axis=1)
        if half.any():
            errors[library.name] = calibration_error(p.max(1), p.argmax(1) == truth)
    return dataclasses.replace(outputs, temperatures=tuple(round(t, 4) for t in temperatures)), errors
