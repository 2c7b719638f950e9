"""The joint losses, masked by library, so that no library says "wrong" to what it does not know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from classifier.labels.libraries import LabelSpace


@dataclass(frozen=True)
class JointLoss:
    """The loss of one batch.

    Attributes:
        total: scalar, the mean over samples of the sum over the libraries that a sample teaches.
        per_library: (L,) mean over the samples that teach a library; NaN where the batch has none. Detached.
    """

    total: Tensor
    per_library: Tensor


Term = Callable[[Tensor, Tensor], Tensor]
"""Losses (n,) of the log probabilities (n, labels) of one library and the labels (n, labels) bool that hold."""


def _joint(logits: Tensor, targets: Tensor, outputs: LabelSpace, term: Term) -> JointLoss:
    """``1/N sum_i sum_j d_ij term_j(i)``, with d_ij = 1 where sample i has labels of library j's set, else 0."""
    trained = torch.as_tensor(outputs.trained, device=logits.device)
    total = logits.new_zeros(())
    per_library = []
    for columns in outputs.slices.values():
        # A label that nothing teaches is no part of the softmax; a group may name one.
        allowed = targets[:, columns] & trained[columns]
        rows = allowed.any(1)
        flags = trained[columns]
        log_p = logits[rows][:, columns][:, flags].log_softmax(1)
        losses = term(log_p, allowed[rows][:, flags])
        total = total + losses.sum() / len(logits)
        per_library.append(losses.detach().mean())
    return JointLoss(total, torch.stack(per_library))


def _log_sum(log_p: Tensor, allowed: Tensor) -> Tensor:
    """Return the logarithm of the summed probability of the labels that hold."""
    return log_p.masked_fill(~allowed, -torch.inf).logsumexp(1)


def masked_cross_entropy(logits: Tensor, targets: Tensor, outputs: LabelSpace, smoothing: float = 0.0) -> JointLoss:
    """Return the cross-entropy of each library after a softmax over its trained columns alone.

    A sample that is known by a group of labels has ``-log`` of the group's summed probability; where the group holds
    all trained labels of a library the sample says nothing of it and has 0, so that teachers alone can teach it.

    Args:
        logits: (N, columns) float.
        targets: (N, columns) bool, see ``classifier.labels.label_mapping``.
        outputs: the columns.
        smoothing: share of a target's probability that is spread evenly over the library's trained labels, 0-1.
    """

    def term(log_p: Tensor, allowed: Tensor) -> Tensor:
        spread = log_p.mean(1).masked_fill(allowed.all(1), 0)
        return -(1 - smoothing) * _log_sum(log_p, allowed) - smoothing * spread

    return _joint(logits, targets, outputs, term)


def masked_distance(logits: Tensor, targets: Tensor, outputs: LabelSpace, smoothing: float = 0.0) -> JointLoss:
    """Return the squared Euclidean distance between each library's probabilities and the vector of the label that
    holds.

    The labels of a group count as one, with their summed probability. Arguments as of :func:`masked_cross_entropy`;
    ``smoothing`` moves the vector towards the even one.
    """

    def term(log_p: Tensor, allowed: Tensor) -> Tensor:
        even = smoothing / log_p.shape[1] if log_p.shape[1] else 0.0
        p = log_p.exp()
        inside = _log_sum(log_p, allowed).exp() - (1 - smoothing) - even * allowed.sum(1)
        outside = ((p - even) ** 2).masked_fill(allowed, 0).sum(1)
        return inside**2 + outside

    return _joint(logits, targets, outputs, term)


LOSSES = {"cross-entropy": masked_cross_entropy, "distance": masked_distance}
"""Losses by name."""
