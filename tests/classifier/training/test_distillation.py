"""Teachers of a training."""

from pathlib import Path

import numpy as np
import pytest
import torch

from classifier.labels.libraries import LabelSpace, Library
from classifier.network import JointClassifier, TwoViewClassifier, load_classifier, of_patches
from classifier.spec import TWO_VIEWS
from classifier.training.distillation import Teachers, add_teacher_labels, within_groups
from nucpipe.backends.model_file import ModelHeader, save_model
from nucpipe.errors import DataError

BACKBONE = "test_efficientnet"
MEAN = STD = (0.5, 0.5, 0.5)


def library(name: str, *labels: str) -> Library:
    return Library(name, labels, ((0, 0, 0),) * len(labels), 0.25, "", "")


A, B, C = library("A", "a1", "a2"), library("B", "b1", "b2", "b3"), library("C", "c1", "c2")


def saved(path: Path, outputs: LabelSpace, context: bool) -> Path:
    torch.manual_seed(len(path.stem))
    network = (
        TwoViewClassifier(len(outputs), BACKBONE, BACKBONE) if context else JointClassifier(len(outputs), BACKBONE, 32)
    )
    fields = {"type": TWO_VIEWS, "context": {"backbone": BACKBONE}, "size_px": 224} if context else {"size_px": 32}
    header = ModelHeader(
        "classifier", path.stem, {"backbone": BACKBONE, "window_px": 64} | fields, 0.25, MEAN, STD, outputs.to_dict()
    )
    save_model(path, header, network.state_dict())
    return path


def test_teachers_tell_the_mean_of_their_calibrated_logits_in_the_columns_of_the_pupil(tmp_path: Path) -> None:
    patch = saved(tmp_path / "patch.safetensors", LabelSpace((A, B), (True,) * 5, (2.0, 1.0)), False)
    both = saved(tmp_path / "both.safetensors", LabelSpace((B, A), (True, False, True, True, True), (1.0, 4.0)), True)
    pupil = add_teacher_labels((patch, both), LabelSpace((A, B, C), (True, False, False, False, False, True, True)))
    assert pupil.trained == (True, True, True, False, True, True, True)  # b2 is known to one of them alone
    teachers = Teachers((patch, both), pupil, "cpu", "fp32")
    assert teachers.known.tolist() == [True, True, True, False, True, False, False]
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 64, 64), np.uint8))
    around = torch.cat([pixels.flip(0), torch.full((3, 1, 64, 64), 255, dtype=torch.uint8)], 1)
    with torch.inference_mode():
        one = of_patches(load_classifier(patch)[0])(pixels) / torch.tensor([2.0, 2, 1, 1, 1])
        two = of_patches(load_classifier(both)[0])(pixels, around) / torch.tensor([1.0, 1, 1, 4, 4])
        alone = of_patches(load_classifier(both)[0])(pixels, torch.zeros_like(around)) / torch.tensor([1.0, 1, 1, 4, 4])
    for told, other in ((teachers(pixels, around), two), (teachers(pixels), alone)):
        expected = (one + other[:, [3, 4, 0, 1, 2]]) / 2
        torch.testing.assert_close(told[:, [0, 1, 2, 4]], expected[:, [0, 1, 2, 4]])


def test_teachers_without_a_label_in_common_are_refused(tmp_path: Path) -> None:
    first = saved(tmp_path / "a.safetensors", LabelSpace((A,), (True, True)), False)
    second = saved(tmp_path / "bb.safetensors", LabelSpace((B,), (True,) * 3), False)
    pupil = LabelSpace((A, B), (True,) * 5)
    assert Teachers((first,), pupil, "cpu", "fp32").known.sum() == 2
    with pytest.raises(DataError, match=r"a\.safetensors, .*bb\.safetensors: no label of this training is taught"):
        Teachers((first, second), pupil, "cpu", "fp32")
    with pytest.raises(DataError, match="none of its labels is taught"):
        Teachers((first, second), LabelSpace((A,), (True, True)), "cpu", "fp32")


def test_teachers_tell_the_mean_over_quarter_turns(tmp_path: Path) -> None:
    outputs = LabelSpace((A,), (True, True))
    path = saved(tmp_path / "turned.safetensors", outputs, True)
    one, four = (Teachers((path,), outputs, "cpu", "fp32", turns) for turns in (1, 4))
    rng = np.random.default_rng(3)
    patches = torch.from_numpy(rng.integers(0, 256, (2, 3, 64, 64))).float()
    contexts = torch.cat(
        [torch.from_numpy(rng.integers(0, 256, (2, 3, 64, 64))).float(), torch.full((2, 1, 64, 64), 255.0)], 1
    )
    told = [one(patches.rot90(k, (2, 3)), contexts.rot90(k, (2, 3))) for k in range(4)]
    torch.testing.assert_close(four(patches, contexts), torch.stack(told).mean(0))
    assert not torch.allclose(told[0], told[1])


def test_teachers_are_kept_to_the_group_of_labels_that_a_nucleus_may_have() -> None:
    outputs, known = LabelSpace((A, B), (True,) * 5), torch.tensor([True, True, True, True, True])
    told = torch.tensor([[0.0, 1.0, 5.0, 1.0, 0.0]] * 4)
    targets = torch.tensor(
        [
            [False, True, False, True, True],  # b1 cannot be: told b2 rather than b3
            [False, False, False, False, True],  # one label: the teachers keep their doubts
            [False, False, True, True, True],  # all labels: nothing is left out
            [False, False, False, False, False],
        ]
    )
    kept = within_groups(told, targets, known, outputs)
    assert kept[0, 2:].softmax(0)[0] < 1e-9
    assert kept[0, 2:].argmax() == 1
    assert torch.equal(kept[0, [0, 1, 3, 4]], told[0, [0, 1, 3, 4]])
    assert torch.equal(kept[1:], told[1:])
