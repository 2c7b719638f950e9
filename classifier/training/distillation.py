"""Distillation: models' probabilities teach every library's outputs of every sample (Hinton et al. 2015).

Pupil and teachers look at the same views, moved alike, but the teachers see stain and focus as they are, so that the
pupil learns to say the same of whatever stain and scanner (as in Xie et al. 2020, "Self-training with noisy student").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from classifier.labels.libraries import LabelSpace
from classifier.network import TwoViewClassifier, load_classifier, of_patches
from classifier.spec import CONTEXT_PX
from nucpipe.backends.device import autocast_type
from nucpipe.backends.model_file import read_header
from nucpipe.backends.pytorch import with_weights_in
from nucpipe.errors import DataError


def add_teacher_labels(paths: Sequence[Path], outputs: LabelSpace) -> LabelSpace:
    """Return ``outputs`` with the labels that every teacher was taught as taught too.

    Raises:
        ModelError: no such model.
    """
    known = set(outputs.columns)
    for path in paths:
        theirs = LabelSpace.from_dict(read_header(path).outputs)
        known &= {column for column, trained in zip(theirs.columns, theirs.trained, strict=True) if trained}
    trained = tuple(t or c in known for c, t in zip(outputs.columns, outputs.trained, strict=True))
    return dataclasses.replace(outputs, trained=trained)


NEVER = -1e4
"""A logit without probability at any temperature in use; of an infinite one the divergence would be no number."""


class Teachers(nn.Module):
    """The mean of several models' logits, each library's divided by its temperature, in a pupil's columns.

    Args:
        paths: the models. They must not have seen what the pupil's training holds out.
        outputs: the pupil's columns.
        device, precision: where and how the models run.
        turns: how many quarter turns of the views their logits are the mean of, 1 to 4.

    Attributes:
        known: (columns,) bool, the labels that all of them and the pupil were taught.

    Raises:
        DataError: a model has no label in common with the pupil, or all of them together have none.
        ModelError: no such model.
    """

    known: Tensor

    def __init__(self, paths: Sequence[Path], outputs: LabelSpace, device: str, precision: str, turns: int = 1) -> None:
        super().__init__()
        self._turns = turns
        self._cast = autocast_type(precision)
        networks = []
        known = torch.tensor(outputs.trained)
        for path in paths:
            model, _, theirs = load_classifier(path)
            place = {column: i for i, column in enumerate(theirs.columns) if theirs.trained[i]}
            mine = torch.tensor([column in place for column in outputs.columns])
            if not (mine & torch.tensor(outputs.trained)).any():
                raise DataError(f"--distil {path}: none of its labels is taught in this training.")
            known &= mine
            scale = torch.ones(len(theirs))
            for columns, temperature in zip(theirs.slices.values(), theirs.temperatures, strict=False):
                scale[columns] = temperature
            places = torch.tensor([place.get(column, 0) for column in outputs.columns])
            two_views = isinstance(model, TwoViewClassifier)
            networks.append(_Calibrated(with_weights_in(self._cast, of_patches(model)), two_views, scale, places))
        if not known.any():
            names = ", ".join(str(path) for path in paths)
            raise DataError(f"--distil {names}: no label of this training is taught in all of these models.")
        self.networks = nn.ModuleList(networks)
        self.register_buffer("known", known)
        self.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, patches: Tensor, contexts: Tensor | None = None) -> Tensor:
        """Logits (N, columns) of the pupil's labels; what they are where ``known`` is False has no meaning.

        Args:
            patches, contexts: see ``classifier.training.augmentation.Views``.
        """
        if contexts is None:
            contexts = patches.new_zeros(len(patches), 4, CONTEXT_PX, CONTEXT_PX)
        told = []
        for turns in range(self._turns):
            views = [
                view.rot90(turns, (2, 3)).contiguous(memory_format=torch.channels_last) for view in (patches, contexts)
            ]
            with torch.autocast(patches.device.type, self._cast or torch.bfloat16, enabled=self._cast is not None):
                told += [network(*views) for network in self.networks]
        return torch.stack(told).mean(0)


class _Calibrated(nn.Module):
    """A teacher's logits over its temperatures, in the pupil's order."""

    scale: Tensor
    place: Tensor

    def __init__(self, network: nn.Module, two_views: bool, scale: Tensor, place: Tensor) -> None:
        super().__init__()
        self.network, self.two_views = network, two_views
        self.register_buffer("scale", scale)
        self.register_buffer("place", place)

    def forward(self, patches: Tensor, contexts: Tensor) -> Tensor:
        """Return (N, columns of the pupil)."""
        logits: Tensor = self.network(patches, contexts) if self.two_views else self.network(patches)
        return (logits.float() / self.scale)[:, self.place]


def within_groups(told: Tensor, targets: Tensor, known: Tensor, outputs: LabelSpace) -> Tensor:
    """Leave out of what teachers tell the labels that a nucleus cannot have, where its own label is a group of labels.

    Teachers who call healthy liver neoplastic still tell which of the other labels it is likeliest to have.

    Args:
        told: (n, columns), see :class:`Teachers`.
        targets: (n, columns) bool, the labels that each nucleus may have; none of a library says nothing of it.
        known: (columns,) bool, the labels that all teachers know.
        outputs: the columns.

    Returns:
        Logits (n, columns).
    """
    told = told.clone()
    for columns in outputs.slices.values():
        allowed = targets[:, columns] & known[columns]
        count = allowed.sum(1, keepdim=True)
        group = (count > 1) & (count < known[columns].sum())
        told[:, columns] = torch.where(group & ~allowed, NEVER, told[:, columns])
    return told


def distillation_loss(logits: Tensor, told: Tensor, known: Tensor, outputs: LabelSpace, temperature: float) -> Tensor:
    """Return the divergence of a batch's probabilities from the teachers', summed over the libraries.

    Within each library both are softmax over the labels that all were taught, at the given temperature; its square
    keeps the gradients as large as those of labels.

    Args:
        logits: (n, columns) of the pupil.
        told: (n, columns) of the teachers.
        known: (columns,) bool, the labels that all were taught.
        outputs: the columns.
        temperature: above 0.

    Returns:
        A scalar, the mean over the batch.
    """
    total = logits.new_zeros(())
    for columns in outputs.slices.values():
        flags = known[columns]
        if flags.sum() > 1:
            ours = (logits[:, columns][:, flags] / temperature).log_softmax(1)
            theirs = (told[:, columns][:, flags] / temperature).log_softmax(1)
            total = total + torch.nn.functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    return total * temperature**2
