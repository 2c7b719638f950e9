"""Labels of a slide's nuclei after some of them were corrected: a small regression on top of the classifier.

For each library on its own, the logit of label k of a nucleus is ``s log p_k + b_k + w_k f``: p_k the classifier's
probability, f the nucleus' standardised features: its measurements of shape and stain, the mean of these and of the
base log odds over the nuclei round it, and what the run stored. The nuclei round it tell a tumour from what resembles
one far better than its own pixels do.
Without corrections s = 1, b = 0 and w = 0, which are the base labels; a Gaussian prior holds them there (a ridge
penalty), so that a few corrections move little and many as much as they agree on. It is multinomial logistic regression
with the base log odds as a feature of its own. A correction that allows several labels counts by the sum of their
probabilities, and corrections count the more the fewer say the same, so that many of one kind do not outvote the
others. With few corrections w stays 0: then only the shares of the labels are corrected, as Saerens et al. (2002)
correct a classifier's priors.

The strengths below were chosen on OCELOT's images of organs that had taught the classifier nothing: of ``fast``, and
those of the surroundings also of two classifiers that see the context, but not kidney or endometrium.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from classifier.labels.libraries import LabelSpace
from pipeline.adaptation.surroundings import mean_around
from pipeline.store.reader import Store
from segmentation.nuclei import MEASURES

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

LEAST_P = 1e-4
"""Smaller probabilities count as this one: no correction could outweigh the logarithm of 0."""
SCALE_PENALTY, SHARE_PENALTY = 10.0, 2.0
"""Of (s - 1)^2 / 2 and of b^2 / 2: the prior's inverse variances."""
MEASURED_PENALTY, AROUND_PENALTY, WEIGHT_PENALTY = 5.0, 5.0, 40.0
"""Of w^2 / 2 likewise, of measurements, of what lies round a nucleus, and of stored features."""
BALANCE = 0.7
"""Of n corrections that allow the same labels each counts in proportion to n to the power of minus this."""
MEASURED = ("area_um2", *MEASURES)
"""The measurements, which are the first features; the same of the surroundings come next, then their log odds."""
FEW = 5
"""With fewer corrected nuclei of a library its weights of features stay 0."""
ITERATIONS = 200


@dataclass(frozen=True)
class LibraryModel:
    """One library's correction, over the labels that something taught.

    Attributes:
        columns: (T,) the places of its taught labels among all columns.
        scale: s.
        shares: (T,) b.
        weights: (F, T) w.
        nuclei: how many corrected nuclei taught it.
    """

    columns: npt.NDArray[np.int64]
    scale: float
    shares: Doubles
    weights: Doubles
    nuclei: int


@dataclass(frozen=True)
class Adaptation:
    """What corrections taught, of the libraries that they speak of.

    Attributes:
        libraries: by name; others keep their base labels.
        mean, deviation: (F,) of the features of the slide that was corrected.
    """

    libraries: dict[str, LibraryModel]
    mean: Floats
    deviation: Floats

    def apply(self, base: Floats, features: Floats) -> Floats:
        """Return the adapted probabilities (N, columns) of nuclei; those of other libraries are the base ones.

        Args:
            base: (N, columns) the classifier's probabilities.
            features: (N, F), see :func:`features_of`.
        """
        adapted = base.copy()
        for name, model in self.libraries.items():
            adapted[:, model.columns] = self.of_library(name, base, features)
        return adapted

    def of_library(self, name: str, base: Floats, features: Floats) -> Floats:
        """Return the adapted probabilities (N, T) of one library's taught labels; otherwise as :meth:`apply`."""
        model = self.libraries[name]
        logits = np.log(np.maximum(base[:, model.columns], np.float32(LEAST_P)))
        logits *= np.float32(model.scale)
        shares = model.shares.astype(np.float32)
        if model.weights.any():
            weights = (model.weights / self.deviation[:, None]).astype(np.float32)
            logits += _known(features, self.mean) @ weights
            shares = shares - self.mean @ weights
        logits += shares
        logits -= logits.max(1, keepdims=True)
        np.exp(logits, out=logits)
        logits /= logits.sum(1, keepdims=True)
        return logits


def features_of(store: Store) -> Floats:
    """Return (N, F) what the regression looks at, of all nuclei of a slide.

    First come the ``MEASURED``, lengths and areas as logarithms and NaN where there is none; then their mean, and that
    of the base log odds, over the nuclei round each one (see :func:`pipeline.adaptation.surroundings.mean_around`);
    then the stored features or, where there are none, the base log odds.

    Args:
        store: the whole one, since a nucleus is seen among the others.
    """
    measured = np.stack([store.area_um2, *(store.measure(name) for name in MEASURES)], axis=1)
    for k, name in enumerate(MEASURED):
        if name.endswith(("_um", "_um2")):
            measured[:, k] = np.log(np.maximum(measured[:, k], np.float32(0.01)))
    odds = _log_odds(store.base().probabilities, store.info.outputs)
    known = _known(measured, standardisation(measured)[0])
    around = mean_around(np.concatenate([known, odds], axis=1), store.centroids_l0 * store.info.mpp)
    stored = odds if store.features is None else store.features
    return np.concatenate([measured, around, stored], axis=1, dtype=np.float32)


def standard_of(features: Floats, base: Floats, outputs: LabelSpace) -> tuple[Floats, Floats]:
    """Return by which mean and deviation (F,) the features of a slide are standardised.

    What lies round a nucleus is in units of what single nuclei differ by, and so hardly counts where it is the same
    everywhere.

    Args:
        features: (N, F) from :func:`features_of`.
        base: (N, columns) the classifier's probabilities.
        outputs: the columns.
    """
    mean, deviation = standardisation(features)
    single = np.concatenate([features[:, : len(MEASURED)], _log_odds(base, outputs)], axis=1)
    deviation[len(MEASURED) : len(MEASURED) + single.shape[1]] = standardisation(single)[1]
    return mean, deviation


def _log_odds(base: Floats, outputs: LabelSpace) -> Floats:
    return np.log(np.maximum(base[:, np.asarray(outputs.trained)], np.float32(LEAST_P)))


def standardisation(features: Floats) -> tuple[Floats, Floats]:
    """Return mean and standard deviation (F,) over nuclei (N, F): 1 of a constant; without nuclei 0 and 1."""
    mean, deviation = np.zeros(features.shape[1]), np.ones(features.shape[1])
    for k in range(features.shape[1]):
        values = features[:, k].astype(np.float64)
        values = values[~np.isnan(values)]
        if len(values):
            mean[k], deviation[k] = values.mean(), values.std() or 1
    return mean.astype(np.float32), deviation.astype(np.float32)


def _known(features: Floats, mean: Floats) -> Floats:
    """Return features without NaN: a nucleus of which something was not measured has the mean there."""
    missing = np.isnan(features[:, : len(MEASURED)])
    if not missing.any():
        return features
    filled = features.copy()
    filled[:, : missing.shape[1]][missing] = np.broadcast_to(mean[: missing.shape[1]], missing.shape)[missing]
    return filled


def fit(
    base: Floats,
    features: Floats,
    allowed: npt.NDArray[np.bool_],
    outputs: LabelSpace,
    standard: tuple[Floats, Floats],
    few: int = FEW,
) -> Adaptation:
    """Return what corrected nuclei teach.

    Args:
        base: (M, columns) the classifier's probabilities of the corrected nuclei.
        features: (M, F) theirs, see :func:`features_of`.
        allowed: (M, columns) what they may be, see :class:`pipeline.adaptation.clicks.Clicks`.
        outputs: the columns.
        standard: from :func:`standard_of`, over all nuclei of the slide.
        few: with fewer corrected nuclei only the shares of the labels are learnt.
    """
    mean, deviation = standard
    scaled = ((_known(features, mean) - mean) / deviation).astype(np.float64)
    trained = np.flatnonzero(outputs.trained)
    libraries = {}
    for name, part in outputs.slices.items():
        columns = trained[(trained >= part.start) & (trained < part.stop)]
        rows = np.flatnonzero(allowed[:, columns].any(1))
        if len(rows):
            logs = np.log(np.maximum(base[np.ix_(rows, columns)], LEAST_P)).astype(np.float64)
            inputs = scaled[rows] if len(rows) >= few else np.zeros((len(rows), 0))
            penalties = _penalties(inputs.shape[1], len(trained))
            here = allowed[np.ix_(rows, columns)]
            libraries[name] = _fit_library(columns, logs, inputs, here, penalties, scaled.shape[1])
    return Adaptation(libraries, mean, deviation)


def _penalties(inputs: int, trained: int) -> Doubles:
    """Return (F, 1) of w, for features in the order of :func:`features_of` where so many labels were trained."""
    penalties = np.full((inputs, 1), WEIGHT_PENALTY)
    penalties[: 2 * len(MEASURED) + trained] = AROUND_PENALTY
    penalties[: len(MEASURED)] = MEASURED_PENALTY
    return penalties


def _fit_library(
    columns: npt.NDArray[np.int64],
    logs: Doubles,
    inputs: Doubles,
    allowed: npt.NDArray[np.bool_],
    penalties: Doubles,
    features: int,
) -> LibraryModel:
    labels = len(columns)
    counts = _counts(allowed)

    def parts(values: Doubles) -> tuple[float, Doubles, Doubles]:
        return float(values[0]), values[1 : labels + 1], values[labels + 1 :].reshape(inputs.shape[1], labels)

    def loss(values: Doubles) -> tuple[float, Doubles]:
        scale, shares, weights = parts(values)
        logits = scale * logs + shares + inputs @ weights
        logits -= logits.max(1, keepdims=True)
        powers = np.exp(logits)
        # A label that is allowed but hopeless must not lead to the logarithm of 0.
        right = np.maximum(np.where(allowed, powers, 0), np.where(allowed, 1e-300, 0))
        total, of_right = powers.sum(1, keepdims=True), right.sum(1, keepdims=True)
        pull = (powers / total - right / of_right) * counts
        value = float((np.log(total / of_right) * counts).sum()) + 0.5 * (
            SCALE_PENALTY * (scale - 1) ** 2
            + SHARE_PENALTY * float(shares @ shares)
            + float((penalties * weights**2).sum())
        )
        slopes = [
            [float((pull * logs).sum()) + SCALE_PENALTY * (scale - 1)],
            pull.sum(0) + SHARE_PENALTY * shares,
            (inputs.T @ pull + penalties * weights).reshape(-1),
        ]
        return value, np.concatenate(slopes)

    start = np.zeros(1 + labels + inputs.shape[1] * labels)
    start[0] = 1
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS})
    scale, shares, weights = parts(found.x)
    whole = weights if inputs.shape[1] else np.zeros((features, labels))
    return LibraryModel(columns, scale, shares, whole, len(logs))


def _counts(allowed: npt.NDArray[np.bool_]) -> Doubles:
    """Return (M, 1) how much each correction counts, 1 on average."""
    _, kind, number = np.unique(allowed, axis=0, return_inverse=True, return_counts=True)
    counts = number[kind.reshape(-1), None] ** -BALANCE
    return np.asarray(counts * (len(counts) / counts.sum()), np.float64)


def confirmed(probabilities: Floats, allowed: npt.NDArray[np.bool_], outputs: LabelSpace) -> Floats:
    """Return probabilities (M, columns) of corrected nuclei: in each library 0 for what they are not, and of sum 1."""
    result = probabilities.copy()
    for part in outputs.slices.values():
        rows = np.flatnonzero(allowed[:, part].any(1))
        kept = np.where(allowed[rows, part], np.maximum(probabilities[rows, part], np.float32(1e-12)), 0)
        result[rows, part] = kept / kept.sum(1, keepdims=True)
    return result
