"""Temperatures: probabilities that say how often they are right (Guo et al. 2017)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from classifier.dataset import PatchDataset
from classifier.evaluation.metrics import calibration_error
from classifier.labels.libraries import LabelSpace

MIN = 50
"""Nuclei below which a library has the other libraries' temperature instead of one of its own."""
PULL = 0.1
"""How strongly a temperature that few groups tell is drawn to the other libraries', see :func:`calibrate`."""
FOLDS = 10
"""Parts, at most, in which groups are left out."""

Floats = npt.NDArray[np.float64]


def fit_temperature(logits: Floats, truth: npt.NDArray[np.int64], shared: float = 1.0, pull: float = 0.0) -> float:
    """Return the temperature, 0.1 to 10, of the smallest mean negative log-likelihood and distance from another one.

    Args:
        logits: (N, K) of one library's trained labels.
        truth: (N,) places among these.
        shared: the other temperature.
        pull: factor of the squared difference of both temperatures' logarithms.
    """

    def loss(log_t: float) -> float:
        likelihood = float(log_softmax(logits / np.exp(log_t), axis=1)[np.arange(len(truth)), truth].mean())
        return pull * (log_t - float(np.log(shared))) ** 2 - likelihood

    return float(np.exp(minimize_scalar(loss, bounds=(-np.log(10), np.log(10)), method="bounded").x))


@dataclass(frozen=True)
class _HeldOut:
    """Nuclei of one library that were held out: logits (N, K) and places (N,) of trained labels, groups (N,)."""

    logits: Floats
    truth: npt.NDArray[np.int64]
    groups: npt.NDArray[np.int64]

    def fit(self, rows: npt.NDArray[np.bool_], shared: float | None) -> float:
        """Return the temperature of some of them; ``shared`` is of the other libraries, None where there is none."""
        pull = 0.0 if shared is None else PULL / len(np.unique(self.groups[rows]))
        return fit_temperature(self.logits[rows], self.truth[rows], shared or 1.0, pull)

    def cross_fitted_error(self, shared: float | None) -> float | None:
        """Return the calibration error with each group's temperature told by the others; None where there are none."""
        folds = np.unique(self.groups, return_inverse=True)[1] % FOLDS
        p = np.zeros_like(self.logits)
        for fold in np.unique(folds):
            left_out = folds == fold
            if len(self.truth) < MIN:
                temperature = shared or 1.0
            elif left_out.all():
                return None
            else:
                temperature = self.fit(~left_out, shared)
            p[left_out] = softmax(self.logits[left_out] / temperature, axis=1)
        return calibration_error(p.max(1), p.argmax(1) == self.truth)


def calibrate(
    logits: npt.NDArray[np.float32],
    samples: PatchDataset,
    outputs: LabelSpace,
    say: Callable[[str], None],
    by_teachers: Collection[str] = (),
) -> tuple[LabelSpace, dict[str, float]]:
    """Fit a temperature for each library.

    Best temperatures of single patients or tissues differ by a factor of two and more, so few of them tell little of
    the next one. A library's is therefore drawn to the (geometric) mean of the other libraries', by ``PULL`` divided
    by the number of its groups. With fewer than ``MIN`` nuclei of its own it has that mean; but a library that teachers
    alone taught has 1, for they told their calibrated probabilities, and other libraries' labels say nothing of it.

    Args:
        logits: (N, columns).
        samples: the N nuclei that were held out.
        outputs: the columns.
        say: receives messages, a line each.
        by_teachers: names of the libraries that teachers alone taught.

    Returns:
        The outputs; and by library the calibration error on groups (images, where there is one group) that the
        temperature does not know, for the nuclei that it was fitted on would flatter it.
    """
    held = [_held_out(logits, samples, outputs, place) for place in range(len(outputs.libraries))]
    alone = [part.fit(np.ones(len(part.truth), bool), None) if len(part.truth) >= MIN else None for part in held]
    temperatures, errors = [], {}
    for place, (library, part) in enumerate(zip(outputs.libraries, held, strict=True)):
        others = [np.log(t) for k, t in enumerate(alone) if t is not None and k != place]
        shared = float(np.exp(np.mean(others))) if others else None
        if len(part.truth) >= MIN:
            temperatures.append(part.fit(np.ones(len(part.truth), bool), shared))
        elif library.name in by_teachers:
            temperatures.append(1.0)
        else:
            temperatures.append(shared or 1.0)
            if len(part.truth):
                instead = "left as it is" if shared is None else f"it has the others' temperature, {shared:.2f}"
                say(f"{library.name}: {len(part.truth)} held-out nuclei are too few to calibrate on; {instead}")
        if len(part.truth) and (error := part.cross_fitted_error(shared)) is not None:
            errors[library.name] = error
    return dataclasses.replace(outputs, temperatures=tuple(round(t, 4) for t in temperatures)), errors


def _held_out(logits: npt.NDArray[np.float32], samples: PatchDataset, outputs: LabelSpace, place: int) -> _HeldOut:
    columns = outputs.slices[outputs.libraries[place].name]
    trained = np.flatnonzero(outputs.trained[columns])
    rows = np.flatnonzero((samples.library == place) & np.isin(samples.label, trained))
    groups = samples.groups[rows]
    if len(np.unique(groups)) < 2:
        groups = samples.image[rows]
    truth = np.searchsorted(trained, samples.label[rows])
    return _HeldOut(logits[rows][:, columns][:, trained].astype(np.float64), truth, groups)
