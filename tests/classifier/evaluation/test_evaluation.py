"""Figures and calibration of the classifier, against values worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from click.testing import CliRunner

from classifier.dataset import PatchDataset
from classifier.evaluation.metrics import auroc, calibration_error, label_figures, library_figures, partial_figures
from classifier.labels.label_mapping import make_matching
from classifier.labels.libraries import LabelSpace, Library, published_libraries
from classifier.network import MEAN, STD, JointClassifier
from classifier.spec import MPP
from classifier.training.calibration import calibrate, fit_temperature
from nucpipe.backends.model_file import ModelHeader, save_model
from pipeline.cli.main import main

LIBRARIES = published_libraries()
OUTPUTS = LabelSpace(LIBRARIES, (True,) * 35)
MATCHING = make_matching(LIBRARIES)


def of_library(name: str, texts: list[str], images: list[int], groups: tuple[str, ...]) -> PatchDataset:
    place = [library.name for library in LIBRARIES].index(name)
    numbers = [LIBRARIES[place].resolve(text) for text in texts]
    n = len(texts)
    return PatchDataset(
        (),
        np.zeros((n, 2)),
        np.full(n, place),
        np.array([m[0] if len(m) == 1 else -1 for m in numbers]),
        np.stack([MATCHING.targets(name, text) for text in texts]),
        np.array(images),
        tuple((group, f"image {i}") for i, group in enumerate(groups)),
        np.zeros((n, 2)),
    )


def test_figures_are_those_of_the_confusion_matrix() -> None:
    truth, predicted = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 1, 2])
    figures = label_figures(truth, np.eye(3)[predicted], ("a", "b", "c"))
    assert figures["nuclei"] == 6
    assert figures["accuracy"] == pytest.approx(4 / 6, abs=1e-4)
    assert figures["balanced_accuracy"] == pytest.approx((3 / 4 + 1 / 2) / 2, abs=1e-4)
    assert figures["macro_f1"] == pytest.approx((6 / 7 + 2 / 4) / 2, abs=1e-4)
    assert figures["weighted_f1"] == pytest.approx((4 * 6 / 7 + 2 * 2 / 4) / 6, abs=1e-4)
    # one against the rest, ties half: a: 3 of 4 above both others and 1 tied twice; b: 4 pairs of 8 won, 4 tied less 1
    assert figures["auroc"] == pytest.approx((7 / 8 + (1 * (3 + 0.5) + 1 * (0.5 * 3)) / 8) / 2, abs=1e-4)
    assert figures["ece"] == pytest.approx(2 / 6, abs=1e-4)
    assert figures["matrix"] == [[3, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert figures["labels"]["a"] == {"count": 4, "precision": 1.0, "recall": 0.75, "f1": 0.8571}
    assert figures["labels"]["c"] == {"count": 0, "precision": 0.0, "recall": None, "f1": 0.0}
    assert "accuracy_95" not in figures


def test_labels_that_say_a_part_are_measured_where_they_say_something() -> None:
    """Of four cells two are tumour or not by PanNuke's label, as said; of CoNSeP's they may be anything."""
    pannuke, consep = OUTPUTS.slices["PanNuke"], OUTPUTS.slices["CoNSeP"]
    targets = np.zeros((4, 35), bool)
    targets[:, consep] = True
    targets[:2, pannuke.start], targets[2:, pannuke.start + 1 : pannuke.stop] = True, True
    p = np.zeros((4, 35))
    p[[0, 1, 2, 3], pannuke.start + np.array([0, 1, 1, 0])] = 1
    label, none = np.array([0, 0, 1, 1]), np.zeros(4, np.int64)
    samples = PatchDataset((), np.zeros((4, 2)), none + 5, label, targets, none, (("g", "i"),), np.zeros((4, 2)))
    cells = Library("Cells", ("tumor", "other"), ((0, 0, 0), (255, 255, 255)), 0.25, "ours", "")
    figures = partial_figures(p, samples, OUTPUTS, cells, 5)
    assert list(figures["partial"]) == ["PanNuke"]
    assert figures["partial"]["PanNuke"]["nuclei"] == 4
    assert figures["partial"]["PanNuke"]["accuracy"] == 0.5


def test_auroc_counts_pairs_and_halves_ties() -> None:
    positive = np.array([True, True, False, False, False])
    assert auroc(positive, np.array([0.9, 0.5, 0.5, 0.1, 0.7])) == pytest.approx((3 + 1.5) / 6)
    assert auroc(positive, -np.array([0.9, 0.5, 0.5, 0.1, 0.7])) == pytest.approx(1 - (3 + 1.5) / 6)
    assert auroc(np.ones(3, bool), np.zeros(3)) is None


def test_calibration_error_of_two_bins() -> None:
    confidence = np.array([0.6, 0.6, 0.6, 0.6, 0.95, 1.0])
    right = np.array([True, True, True, False, True, False])
    # bin of 0.6: said 0.6, right 0.75; last bin: said 0.975, right 0.5
    assert calibration_error(confidence, right) == pytest.approx((4 * 0.15 + 2 * 0.475) / 6)


def test_the_bootstrap_draws_whole_units() -> None:
    units = np.repeat(np.arange(20), 40)
    truth = np.zeros(800, int)
    clustered = np.where(units < 15, 0, 1)  # 15 units all right, 5 all wrong
    spread = np.tile(np.repeat([0, 1], [15, 5]), 40)  # each unit three quarters right
    widths = []
    for predicted in (clustered, spread):
        figures = label_figures(truth, np.eye(2)[predicted], ("a", "b"), units)
        low, high = figures["accuracy_95"]
        assert figures["accuracy"] == 0.75
        assert low <= 0.75 <= high
        assert label_figures(truth, np.eye(2)[predicted], ("a", "b"), units) == figures
        widths.append(high - low)
    # sqrt(0.75 * 0.25 / 20) = 0.097: about 0.38 between the bounds
    assert widths[0] == pytest.approx(0.38, abs=0.06)
    assert widths[1] < 1e-9


def test_one_unit_gives_no_interval() -> None:
    truth = np.array([0, 0, 1])
    figures = label_figures(truth, np.eye(2)[[0, 1, 1]], ("a", "b"), np.array([7, 7, 7]))
    assert figures["accuracy_95"] is None
    assert figures["macro_f1_95"] is None
    assert [row["f1_95"] for row in figures["labels"].values()] == [None, None]


def test_groupings_sum_probabilities_and_take_in_nuclei_known_by_a_group() -> None:
    samples = of_library(
        "NuCLS", ["lymphocyte", "sTIL", "other_nucleus", "mitotic_figure"], [0, 1, 2, 3], ("A", "B", "C", "D")
    )
    p = np.zeros((4, 35))
    p[0, [0, 2, 3]] = 0.4, 0.35, 0.25  # tumor is likeliest, but less so than lymphocyte and plasma cell together
    p[1, 3] = p[2, 9] = p[3, 0] = 1
    figures = library_figures(p, samples, OUTPUTS, "NuCLS")
    assert figures["nuclei"] == 2
    assert figures["accuracy"] == 0
    assert figures["units"] == "4 images"  # fewer than five groups
    coarse = figures["groups"]["super"]
    assert coarse["nuclei"] == 4
    assert coarse["accuracy"] == 1
    # "main" has no class for sTIL; a mitotic figure taken for tumour is wrong there
    assert figures["groups"]["main"]["nuclei"] == 3
    assert figures["groups"]["main"]["accuracy"] == pytest.approx(1 / 3, abs=1e-4)


def test_a_temperature_is_found_again() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20000, 4))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = (rng.random((20000, 1)) < p.cumsum(1)).argmax(1)
    assert fit_temperature(3 * logits, truth) == pytest.approx(3, rel=0.05)
    assert fit_temperature(logits / 2, truth) == pytest.approx(0.5, rel=0.05)


def test_a_temperature_is_drawn_to_another_one() -> None:
    logits = np.array([[0.0, 4.0]] * 10)
    truth = np.array([1] * 8 + [0] * 2)
    alone = fit_temperature(logits, truth)
    assert alone == pytest.approx(4 / math.log(4), rel=1e-3)
    between = fit_temperature(logits, truth, 1.0, 0.1)
    assert 1 < between < alone
    assert fit_temperature(logits, truth, 1.0, 1000.0) == pytest.approx(1, abs=0.01)
    assert fit_temperature(logits, truth, alone, 1000.0) == pytest.approx(alone, rel=1e-3)


def test_calibration_borrows_where_there_are_few_nuclei() -> None:
    rng = np.random.default_rng(0)
    n = 600
    columns = OUTPUTS.slices["PanNuke"]
    truth = rng.integers(0, 5, n)
    samples = of_library(
        "PanNuke",
        [LIBRARIES[4].labels[t] for t in truth],
        rng.integers(0, 10, n).tolist(),
        tuple(f"tissue {i}" for i in range(10)),
    )
    logits = np.zeros((n, 35), np.float32)
    wrong = rng.random(n) < 0.4
    logits[np.arange(n), columns.start + np.where(wrong, (truth + 1) % 5, truth)] = 10  # sure, and right for 60 %
    said: list[str] = []
    outputs, errors = calibrate(logits, samples, OUTPUTS, said.append)
    # two outcomes a nucleus: the best temperature says 0.6 = 1 / (1 + 4 exp(-10 / t)); the others borrow it
    assert outputs.temperatures == pytest.approx((10 / math.log(4 * 0.6 / 0.4),) * 5, rel=0.08)
    assert len(set(outputs.temperatures)) == 1
    # What teachers alone taught does not borrow it: a library of one's own says nothing of the five.
    taught = calibrate(logits, samples, OUTPUTS, print, {library.name for library in OUTPUTS.libraries[:4]})[0]
    assert taught.temperatures == (1.0,) * 4 + (outputs.temperatures[4],)
    assert errors.keys() == {"PanNuke"}
    assert errors["PanNuke"] < 0.06
    few = samples.select(np.arange(n) < 40)
    assert calibrate(logits[:40], few, OUTPUTS, said.append)[0].temperatures == (1.0,) * 5
    assert said == ["PanNuke: 40 held-out nuclei are too few to calibrate on; left as it is"]
    both = PatchDataset.concatenate([samples, of_library("CoNSeP", ["inflammatory"] * 9, [0] * 9, ("patient",))])
    more, errors = calibrate(np.concatenate([logits, np.zeros((9, 35), np.float32)]), both, OUTPUTS, said.append)
    assert more.temperatures == outputs.temperatures
    assert said[1:] == [
        "CoNSeP: 9 held-out nuclei are too few to calibrate on; "
        f"it has the others' temperature, {outputs.temperatures[4]:.2f}"
    ]
    assert errors["CoNSeP"] == pytest.approx(1 / 7)  # none is the first of seven alike


def test_each_group_is_calibrated_by_the_others() -> None:
    # One tissue is always right, the other right for half: what one tells of the other is wrong by a half.
    n = 200
    truth = np.arange(n) % 2
    groups = np.repeat([0, 1], n // 2)
    samples = of_library("PanNuke", [LIBRARIES[4].labels[t] for t in truth], groups.tolist(), ("right", "random"))
    logits = np.zeros((n, 35), np.float32)
    logits[:, OUTPUTS.slices["PanNuke"]] = -30
    said = np.where(groups == 0, truth, 0)
    logits[np.arange(n), OUTPUTS.slices["PanNuke"].start + said] = 30
    logits[np.arange(n), OUTPUTS.slices["PanNuke"].start + 1 - said] = 29
    outputs, errors = calibrate(logits, samples, OUTPUTS, print)
    # The surer tissue makes the other 0.5 too sure; that makes the surer one as unsure as 10 allows, 0.525.
    assert errors["PanNuke"] == pytest.approx((0.5 + 0.475) / 2, abs=0.01)
    assert 0.1 < outputs.temperatures[4] < 10


@pytest.fixture
def held_out(tmp_path: Path) -> tuple[Path, Path]:
    """A model that held image b of a set of two out, and the set."""
    rng = np.random.default_rng(0)
    for folder in ("Images", "Labels"):
        (tmp_path / "consep" / folder).mkdir(parents=True)
    instances = np.zeros((64, 64), np.int32)
    instances[10:20, 10:20], instances[40:50, 30:40] = 1, 2
    import cv2

    for name in ("a", "b"):
        cv2.imwrite(str(tmp_path / f"consep/Images/{name}.png"), rng.integers(0, 255, (64, 64, 3), np.uint8))
        types = np.array([[2], [5]])
        scipy.io.savemat(tmp_path / f"consep/Labels/{name}.mat", {"inst_map": instances, "inst_type": types})
    torch.manual_seed(0)
    network = JointClassifier(35, "test_efficientnet", 64)
    made = {"backbone": "test_efficientnet", "window_px": 64, "size_px": 64}
    data = [{"name": "CoNSeP", "held_out": ["b"], "images": 1}, {"name": "NuCLS", "held_out": [], "images": 0}]
    header = ModelHeader("classifier", "m", made, MPP, MEAN, STD, OUTPUTS.to_dict(), data)
    save_model(tmp_path / "m.safetensors", header, network.state_dict())
    return tmp_path / "m.safetensors", tmp_path / "consep"


def test_evaluate_measures_what_was_held_out(held_out: tuple[Path, Path], tmp_path: Path) -> None:
    model, data = held_out
    out = tmp_path / "figures"
    command = ["evaluate", "classifier", str(model), "--library", f"consep={data}", "--device", "cpu"]
    result = CliRunner().invoke(main, [*command, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "CoNSeP: 2 nuclei, accuracy" in result.output
    assert "CoNSeP merged: 2 nuclei" in result.output
    figures = json.loads((out / "figures.json").read_text())
    assert figures["CoNSeP"]["nuclei"] == 2
    rows = (out / "predictions.csv").read_text().splitlines()
    assert rows[1].startswith("CoNSeP,b,b,15.0,15.0,inflammatory,")
    assert {p.name for p in out.glob("*.png")} == {"CoNSeP.png", "CoNSeP-merged.png"}
    everything = CliRunner().invoke(main, [*command, "--all"])
    assert "CoNSeP: 4 nuclei" in everything.output
    nothing = CliRunner().invoke(main, [*command, "--hold-out", "z"])
    assert nothing.exit_code == 2
    assert "CoNSeP: no image or group is called z" in nothing.output
