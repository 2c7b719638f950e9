"""Decision rules: from probabilities to labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from classifier.labels.libraries import LabelSpace
from nucpipe.errors import UsageError

KINDS = ("argmax", "best", "threshold")


@dataclass(frozen=True)
class DecisionRule:
    """Decision rule of the labels.

    Attributes:
        kind: ``argmax``: the likeliest label of each library; ``best``: that label if it reaches the threshold, else
            none; ``threshold``: every label that reaches it, so that a library gives none, one or several.
        threshold: a probability, for the last two.
    """

    kind: str = "argmax"
    threshold: float | None = None

    def __post_init__(self) -> None:
        """Check that both fit each other.

        Raises:
            UsageError: they do not.
        """
        if self.kind not in KINDS:
            raise UsageError(f"--decide {self.kind}: expected one of {', '.join(KINDS)}.")
        if self.kind == "argmax" and self.threshold is not None:
            raise UsageError("--threshold: --decide argmax has none; use --decide best, or leave --decide out.")
        if self.kind != "argmax" and self.threshold is None:
            raise UsageError(f"--decide {self.kind} needs --threshold, a probability such as 0.6.")
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise UsageError(f"--threshold {self.threshold:g}: expected a probability above 0 and at most 1.")

    @property
    def in_words(self) -> str:
        """The rule as a sentence for a methods section."""
        match self.kind:
            case "argmax":
                return "Each nucleus has, in each library, the label of the largest probability."
            case "best":
                return (
                    "Each nucleus has, in each library, the label of the largest probability if that is at least "
                    f"{self.threshold:g}, else no label."
                )
            case _:
                return (
                    f"Each nucleus has every label whose probability is at least {self.threshold:g}: none, one or "
                    "several of a library. Where one label is asked for, it is the most probable of them."
                )

    @classmethod
    def chosen(cls, kind: str | None, threshold: float | None) -> DecisionRule:
        """Return the rule that ``--decide`` and ``--threshold`` ask for; a threshold alone asks for ``best``.

        Raises:
            UsageError: the two do not fit each other.
        """
        return cls(kind or ("argmax" if threshold is None else "best"), threshold)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> DecisionRule:
        """Make a rule of the form that :meth:`to_dict` gives; empty for argmax."""
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """Return the form that a store's settings hold."""
        return {"kind": self.kind} | ({} if self.threshold is None else {"threshold": self.threshold})


def decide(probabilities: npt.NDArray[np.float32], outputs: LabelSpace, rule: DecisionRule) -> npt.NDArray[np.bool_]:
    """Return the labels that nuclei get.

    Args:
        probabilities: (N, columns).
        outputs: the columns.
        rule: how.

    Returns:
        (N, columns) bool; never an untrained label.
    """
    trained = np.asarray(outputs.trained)
    if rule.kind == "threshold":
        return np.where(trained, probabilities >= np.float32(rule.threshold or 0), False)
    chosen = np.zeros(probabilities.shape, bool)
    for name, numbers in best_labels(probabilities, outputs, rule).items():
        rows = np.flatnonzero(numbers >= 0)
        chosen[rows, outputs.slices[name].start + numbers[rows]] = True
    return chosen


def best_labels(
    probabilities: npt.NDArray[np.float32], outputs: LabelSpace, rule: DecisionRule
) -> dict[str, npt.NDArray[np.int8]]:
    """Return by library name (N,) int8: the number of the likeliest label that the rule gives, -1 for none."""
    best = outputs.best(probabilities)
    if rule.threshold is not None:
        for name, columns in outputs.slices.items():
            reached = probabilities[:, columns].max(1) >= np.float32(rule.threshold)
            best[name] = np.where(reached, best[name], np.int8(-1)).astype(np.int8)
    return best


def label_probabilities(
    probabilities: npt.NDArray[np.float32], outputs: LabelSpace, numbers: dict[str, npt.NDArray[np.int8]]
) -> dict[str, npt.NDArray[np.float32]]:
    """Return by library name (N,) float32: the probability of each nucleus's label, NaN where it has none.

    Args:
        probabilities: (N, columns).
        outputs: the columns.
        numbers: of the labels, as :func:`best_labels` gives them.
    """
    chosen = {}
    for name, columns in outputs.slices.items():
        number = numbers[name]
        p = probabilities[np.arange(len(number)), columns.start + np.maximum(number, 0)]
        chosen[name] = np.where(number < 0, np.float32(np.nan), p)
    return chosen


def short_form(library: str, number: int) -> str:
    """Return the short form of a label, such as ``NuCLS_0``."""
    return f"{library}_{number}"
