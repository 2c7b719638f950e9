"""The joint loss: a cross-entropy masked by library, so that no library says "wrong" to what it does not know."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from classifier.libraries import Outputs


@dataclass(frozen=True)
class JointLoss:
    """The loss of one batch.

    Attributes:
        total: scalar, the mean over samples of the sum over the libraries that a sample teaches.
        per_library: (L,) mean over the samples that teach a library; NaN where the batch has none. Detached.
    """

    total: Tensor
    per_library: Tensor


def masked_cross_entropy(logits: Tensor, targets: Tensor, outputs: Outputs, smoothing: float = 0.0) -> JointLoss:
    """``1/N sum_i sum_j d_ij CE_j(i)``, with d_ij = 1 where sample i has a label of library j's set, else 0.

    CE_j is the cross-entropy after a softmax over library j's trained columns alone.

    Args:
        logits: (N, columns) float.
        targets: (N, L) int64, a label's number in each library or -1.
        outputs: the columns.
        smoothing: share of a target's probability that is spread evenly over the library's trained labels, 0-1.
    """
    trained = torch.as_tensor(outputs.trained, device=logits.device)
    total = logits.new_zeros(())
    per_library = []
    for j, columns in enumerate(outputs.slices.values()):
        rows = targets[:, j] >= 0
        flags = trained[columns]
        place = torch.cumsum(flags, 0) - 1  # a label's number among the trained ones
        losses = F.cross_entropy(
            logits[rows][:, columns][:, flags],
            place[targets[rows, j]],
            reduction="none",
            label_smoothing=smoothing,
        )
        total = total + losses.sum() / len(logits)
        per_library.append(losses.detach().mean())
    return JointLoss(total, torch.stack(per_library))
