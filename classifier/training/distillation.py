"""Distillation: a model's probabilities teach every library's outputs of every sample (Hinton et al. 2015)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from classifier.dataset import PatchDataset
from classifier.evaluation.metrics import predict_logits
from classifier.labels.libraries import LabelSpace
from classifier.network import load_classifier
from nucpipe.backends.model_file import fingerprint, read_header
from nucpipe.errors import DataError
from nucpipe.files import written_whole


@dataclass(frozen=True)
class Teacher:
    """Predictions of a model for N samples.

    Attributes:
        logits: (N, columns) float32 in the columns of the pupil, each library's divided by its temperature; 0 where
            ``known`` is False.
        known: (columns,) bool, the labels that both models were taught.
    """

    logits: npt.NDArray[np.float32]
    known: npt.NDArray[np.bool_]


def add_teacher_labels(path: Path, outputs: LabelSpace) -> LabelSpace:
    """Return ``outputs`` with the labels that a teacher was taught as taught too.

    Raises:
        ModelError: no such model.
    """
    theirs = LabelSpace.from_dict(read_header(path).outputs)
    known = {column for column, trained in zip(theirs.columns, theirs.trained, strict=True) if trained}
    trained = tuple(t or c in known for c, t in zip(outputs.columns, outputs.trained, strict=True))
    return dataclasses.replace(outputs, trained=trained)


def teacher_logits(
    path: Path,
    samples: PatchDataset,
    outputs: LabelSpace,
    device: str,
    precision: str,
    cache: Path,
    say: Callable[[str], None],
) -> Teacher:
    """Let a model look at every sample once, unturned and unchanged in colour.

    Args:
        path: the model. It must not have seen what this training holds out.
        samples: what is trained on.
        outputs: the pupil's columns.
        device, precision: where and how the model runs.
        cache: a file for the answers, read instead if it is of the same model and samples.
        say: receives progress messages.

    Raises:
        DataError: the model has no label in common with the pupil.
        ModelError: no such model.
    """
    model, _, theirs = load_classifier(path)
    place = {column: i for i, column in enumerate(theirs.columns) if theirs.trained[i]}
    pairs = [(i, place[c]) for i, c in enumerate(outputs.columns) if outputs.trained[i] and c in place]
    if not pairs:
        raise DataError(f"--distil {path}: none of its labels is taught in this training.")
    looked = np.arange(0, len(samples), max(1, len(samples) // 500))
    key = f"{fingerprint(path)} {len(samples)} {int(samples.patches(looked).sum(dtype=np.int64))}"
    said = _read(cache, key)
    if said is None:
        say(f"{path.stem} looks at {len(samples)} nuclei")
        said = predict_logits(model, samples, device, precision)
        with written_whole(cache) as partial, partial.open("wb") as file:
            np.savez(file, logits=said, key=np.array(key))
    scale = np.ones(len(theirs.columns), np.float32)
    for columns, temperature in zip(theirs.slices.values(), theirs.temperatures, strict=False):
        scale[columns] = temperature
    logits = np.zeros((len(samples), len(outputs)), np.float32)
    known = np.zeros(len(outputs), bool)
    mine, their = map(list, zip(*pairs, strict=True))
    logits[:, mine] = (said / scale)[:, their]
    known[mine] = True
    return Teacher(logits, known)


def _read(cache: Path, key: str) -> npt.NDArray[np.float32] | None:
    if not cache.is_file():
        return None
    with np.load(cache) as stored:
        return stored["logits"] if str(stored["key"]) == key else None


def distillation_loss(
    logits: Tensor, teacher: Teacher, rows: npt.NDArray[np.int64], outputs: LabelSpace, temperature: float
) -> Tensor:
    """Return the divergence of a batch's probabilities from the teacher's, summed over the libraries.

    Within each library both are softmax over the labels that both models were taught, at the given temperature; its
    square keeps the gradients as large as those of labels.

    Args:
        logits: (n, columns) of the pupil.
        teacher: of all samples.
        rows: (n,) the batch's places among them.
        outputs: the columns.
        temperature: above 0.

    Returns:
        A scalar, the mean over the batch.
    """
    told = torch.from_numpy(teacher.logits[rows]).to(logits.device)
    known = torch.from_numpy(teacher.known).to(logits.device)
    total = logits.new_zeros(())
    for columns in outputs.slices.values():
        flags = known[columns]
        if flags.sum() > 1:
            ours = (logits[:, columns][:, flags] / temperature).log_softmax(1)
            theirs = (told[:, columns][:, flags] / temperature).log_softmax(1)
            total = total + torch.nn.functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    return total * temperature**2
