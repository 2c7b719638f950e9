"""Joint training on small generated sets in the published layouts."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io
from safetensors.torch import load_file

from classifier.model import load_classifier
from classifier.train import ClassifierTraining, open_libraries, train_classifier
from nucpipe.common import training
from nucpipe.common.errors import DataError, UsageError


class Interrupted(Exception):
    pass


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ClassifierTraining:
    """A minute network on a few nuclei of CoNSeP's and BreCaHAD's layouts."""
    root = tmp_path_factory.mktemp("sets")
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        instances = np.zeros((128, 128), np.int32)
        for k in range(16):
            y, x = 8 + 32 * (k // 4), 8 + 32 * (k % 4)
            instances[y : y + 12, x : x + 12] = k + 1
        types = rng.integers(2, 5, (16, 1))  # inflammatory, healthy and malignant epithelial
        shade = np.concatenate([[255], 40 * types[:, 0]])[instances].astype(np.uint8)
        for folder in ("Images", "Labels"):
            (root / "consep" / folder).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / f"consep/Images/{name}.png"), np.stack([shade] * 3, -1))
        scipy.io.savemat(root / f"consep/Labels/{name}.mat", {"inst_map": instances, "inst_type": types})
    for name in ("Case_1-01", "Case_1-02", "Case_2-01"):
        for folder in ("images", "groundTruth"):
            (root / "brecahad" / folder).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / f"brecahad/images/{name}.png"), rng.integers(0, 255, (80, 100, 3), np.uint8))
        points = {label: [{"x": 0.5, "y": 0.1 * k} for k in range(1, 6)] for label in ("tumor", "apoptosis")}
        (root / f"brecahad/groundTruth/{name}.json").write_text(json.dumps(points))
    return ClassifierTraining(
        libraries=(("consep", root / "consep"), ("BreCaHAD", root / "brecahad")),
        out=root / "none.safetensors",
        hold_out=("c", "Case_2"),
        steps=6,
        batch_size=8,
        precision="fp32",
        backbone="test_efficientnet",
        sizes=((0.5, 32), (0.5, 48)),
    )


@pytest.mark.parametrize("interrupted_after", [1, 4])
def test_resumed_equals_uninterrupted(
    config: ClassifierTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted_after: int
) -> None:
    whole = dataclasses.replace(config, out=tmp_path / "whole.safetensors")
    train_classifier(whole, quiet)
    parts = dataclasses.replace(config, out=tmp_path / "parts.safetensors")
    save = training.save_checkpoint

    def save_and_stop(path: Path, state: dict[str, object]) -> None:
        save(path, state)
        if state["step"] == interrupted_after:
            raise Interrupted

    monkeypatch.setattr("classifier.train.CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(training, "save_checkpoint", save_and_stop)
    with pytest.raises(Interrupted):
        train_classifier(parts, quiet)
    train_classifier(parts, quiet)
    assert parts.out.with_suffix(".md").is_file()
    expected, got = load_file(whole.out), load_file(parts.out)
    assert expected.keys() == got.keys()
    for name in expected:
        assert np.array_equal(expected[name].numpy(), got[name].numpy()), name
    logs = [list(csv.reader(c.out.with_suffix(".losses.csv").read_text().splitlines())) for c in (whole, parts)]
    assert logs[0] == logs[1]
    assert [row[0] for row in logs[0]] == ["step", "0", "1", "2", "3", "4", "5"]


def test_a_model_knows_what_taught_it(config: ClassifierTraining, tmp_path: Path) -> None:
    config = dataclasses.replace(config, out=tmp_path / "new" / "m.safetensors", steps=2)
    header = train_classifier(config, quiet)
    model, loaded, outputs = load_classifier(config.out)
    assert loaded == header
    assert model.size_px == 48
    taught = {f"{lib} {label}" for (lib, label), known in zip(outputs.columns, outputs.trained, strict=True) if known}
    assert taught == {
        "NuCLS tumor",
        "NuCLS apoptotic_body",
        "BreCaHAD tumor",
        "BreCaHAD apoptosis",
        "CoNSeP inflammatory",
        "CoNSeP healthy_epithelial",
        "CoNSeP malignant_epithelial",
        "PanNuke neoplastic",
        "PanNuke inflammatory",
        "PanNuke dead",
        "PanNuke epithelial",
    }
    entries = {entry["name"]: entry for entry in header.data}
    assert entries["BreCaHAD"]["nuclei"] == {"apoptosis": 10, "tumor": 10}
    assert entries["BreCaHAD"]["held_out"] == ["Case_2"]
    assert entries["NuCLS"]["taught"]["tumor"] == 10
    assert header.figures["CoNSeP"]["nuclei"] == 16
    assert header.figures["BreCaHAD"]["nuclei"] == 10
    card = config.out.with_suffix(".md").read_text()
    for words in ("must not be used for diagnosis", "CC-BY-4.0", "could not be measured on NuCLS", "held out Case_2"):
        assert words in card


def test_no_group_is_on_both_sides(config: ClassifierTraining) -> None:
    for hold_out in (config.hold_out, (), ("Case_1",)):
        for data in open_libraries(dataclasses.replace(config, hold_out=hold_out)):
            assert data.held
            assert not {i.group for i in data.train} & {i.group for i in data.held}, hold_out


def test_wrong_settings_are_told(config: ClassifierTraining, tmp_path: Path) -> None:
    config = dataclasses.replace(config, out=tmp_path / "m.safetensors", steps=2)
    with pytest.raises(UsageError, match="--library x: not one of NuCLS, "):
        train_classifier(dataclasses.replace(config, libraries=(("x", config.libraries[0][1]),)), quiet)
    with pytest.raises(DataError, match="label 'tumor' is not one of PanNuke's"):
        train_classifier(dataclasses.replace(config, libraries=(("pannuke", config.libraries[1][1]),)), quiet)
    train_classifier(config, quiet)
    with pytest.raises(DataError, match="made with another seed"):
        train_classifier(dataclasses.replace(config, seed=1), quiet)
