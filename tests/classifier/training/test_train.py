"""Joint training on small generated sets in the published layouts."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from classifier.labels.libraries import LabelSpace, Library
from classifier.network import JointClassifier, TwoViewClassifier, load_classifier
from classifier.predictor import load_predictor
from classifier.training.config import ClassifierTraining
from classifier.training.dry_run import check_training
from classifier.training.model_card import model_card
from classifier.training.train import open_libraries, train_classifier
from nucpipe.backends.model_file import read_header, rewrite_header, save_model
from nucpipe.errors import DataError, UsageError
from nucpipe.training import trainer
from pipeline.cli.main import main

pytestmark = pytest.mark.slow


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


@pytest.mark.parametrize("context", [False, True])
def test_resumed_equals_uninterrupted(
    config: ClassifierTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, context: bool
) -> None:
    whole = dataclasses.replace(config, out=tmp_path / "whole.safetensors", context=context)
    train_classifier(whole, quiet)
    parts = dataclasses.replace(config, out=tmp_path / "parts.safetensors", context=context)
    save = trainer.save_checkpoint

    def save_and_stop(path: Path, state: dict[str, object]) -> None:
        save(path, state)
        if state["step"] in (1, 4):  # in each size of the patches
            raise Interrupted

    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(trainer, "save_checkpoint", save_and_stop)
    for _ in range(2):
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
        "BreCaHAD non_tumor",
        "BreCaHAD apoptosis",
        "CoNSeP other",
        "CoNSeP inflammatory",
        "CoNSeP healthy_epithelial",
        "CoNSeP malignant_epithelial",
        "MoNuSAC epithelial",
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
    other = (("pannuke", config.libraries[1][1]),)
    with pytest.raises(DataError, match="label 'tumor' is not one of PanNuke's"):
        train_classifier(dataclasses.replace(config, libraries=other, hold_out=("Case_2",)), quiet)
    train_classifier(config, quiet)
    with pytest.raises(DataError, match="made with another seed"):
        train_classifier(dataclasses.replace(config, seed=1), quiet)


@pytest.mark.parametrize("changes", [{"stop": "converged", "keep": "best", "check_every": 1, "patience": 2}])
def test_training_stops_when_the_held_out_loss_falls_no_more(
    config: ClassifierTraining, tmp_path: Path, changes: dict[str, object]
) -> None:
    # Nothing is learnt at this rate, so that the loss on what is held out stays the same.
    config = dataclasses.replace(config, out=tmp_path / "m.safetensors", steps=50, learning_rate=1e-12, **changes)
    said: list[str] = []
    header = train_classifier(config, said.append)
    assert "converged after 3 of at most 50 steps" in said
    assert header.architecture["steps"] <= 3
    rows = list(csv.DictReader(config.out.with_suffix(".losses.csv").read_text().splitlines()))
    assert len(rows) == 3
    assert float(rows[0]["held_out"]) > 0
    assert config.out.with_suffix(".losses.png").is_file()
    # A second call finds the training finished and gives the same model.
    again: list[str] = []
    assert train_classifier(config, again.append).figures == header.figures
    assert "going on from step 3" in again


def test_the_plain_mean_of_the_last_steps_is_what_is_kept(config: ClassifierTraining) -> None:
    model = torch.nn.Linear(1, 1)
    average, seen = trainer.WeightAverage(model, start=2), []
    for step, weight in enumerate([5.0, 7.0, 1.0, 2.0, 6.0]):
        torch.nn.init.constant_(model.weight, weight)
        average.update(model, step)
        seen.append(average.module.weight.item())
    assert seen == pytest.approx([5, 7, 1, 1.5, 3])
    one_size = dataclasses.replace(config, steps=40, sizes=((1.0, 64),))
    assert one_size.averaged_from == 20
    assert dataclasses.replace(one_size, sizes=((0.75, 96), (0.25, 224))).averaged_from == 30


def test_the_rate_rises_stays_and_is_halved_while_weights_are_averaged() -> None:
    rates = [trainer.lr_factor(step, 100) for step in range(100)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1, 1]
    assert set(rates[4:50]) == {1.0}
    assert set(rates[50:]) == {0.5}


def test_a_training_starts_from_another_model(config: ClassifierTraining, tmp_path: Path) -> None:
    first = dataclasses.replace(config, out=tmp_path / "first.safetensors", steps=2)
    train_classifier(first, quiet)
    lab = tmp_path / "lab"
    (lab / "images").mkdir(parents=True)
    (lab / "labels").mkdir()
    (lab / "library.toml").write_text('name = "Lab"\nlabels = ["round", "long"]\nmpp = 0.25\nlicence = "ours"\n')
    for name in ("a", "b", "c"):
        cv2.imwrite(str(lab / f"images/{name}.png"), np.full((80, 80, 3), 200, np.uint8))
        (lab / f"labels/{name}.csv").write_text("x,y,label\n20,20,round\n60.5,60,Long\n")
    second = dataclasses.replace(
        config,
        libraries=(*config.libraries, ("lab", lab)),
        out=tmp_path / "second.safetensors",
        steps=1,
        learning_rate=1e-12,
        start_from=(first.out,),
        loss="distance",
    )
    said: list[str] = []
    x = tmp_path / "x.safetensors"
    header = train_classifier(second, said.append)
    assert "starting from first.safetensors: 35 of 37 outputs are known there" in said
    old, new = load_file(first.out), load_file(second.out)
    assert np.allclose(old["backbone.conv_stem.weight"], new["backbone.conv_stem.weight"])
    assert np.allclose(old["backbone.classifier.weight"], new["backbone.classifier.weight"][:35])
    assert [entry["name"] for entry in header.data][-1] == "Lab"
    assert header.data[-1]["nuclei"] == {"round": 2, "long": 2}
    assert header.figures["Lab"]["nuclei"] == 2
    assert header == read_header(second.out)
    assert [model["name"] for model in header.made_from] == ["first"]
    assert [one["name"] for one in header.made_from[0]["data"]] == ["BreCaHAD", "CoNSeP"]
    shares = header.made_from[0]["agreement"]  # nothing was learnt; of those three no nucleus is held out
    assert {name: share > 0.8 for name, share in shares.items()} == dict.fromkeys(("NuCLS", "MoNuSAC", "PanNuke"), True)
    card = second.out.with_suffix(".md").read_text("utf-8")
    assert "- Share of the nuclei held out with the label that first gives them: NuCLS " in card
    assert "- Made from first: learnt from BreCaHAD (2 images, CC-BY-4.0)" in card
    with pytest.raises(DataError, match=r"its labels are not those of .*first\.safetensors; they cannot be averaged"):
        train_classifier(dataclasses.replace(second, start_from=(first.out, second.out), seed=9, out=x), quiet)
    with pytest.raises(DataError, match="its backbone is test_efficientnet, not resnet18"):
        train_classifier(dataclasses.replace(second, out=x, backbone="resnet18"), quiet)


def test_no_steps_from_several_models_give_their_mean_measured_anew(config: ClassifierTraining, tmp_path: Path) -> None:
    parts = [dataclasses.replace(config, out=tmp_path / f"{k}.safetensors", steps=2, seed=k) for k in range(3)]
    for part in parts:
        train_classifier(part, quiet)
    paths = tuple(part.out for part in parts)
    mean = dataclasses.replace(config, out=tmp_path / "mean.safetensors", steps=0, start_from=paths)
    header = train_classifier(mean, quiet)
    tensors = [load_file(path) for path in paths]
    for name, value in load_file(mean.out).items():
        if value.is_floating_point() and not name.startswith("projection"):  # that is made anew
            expected = torch.stack([t[name].float() for t in tensors]).mean(0)
            torch.testing.assert_close(value.float(), expected, atol=1e-3, rtol=1e-3)
    assert header.architecture["started_from"] == "0, 1, 2"
    assert header.figures.keys() == read_header(paths[0]).figures.keys()


def test_confident_predictions_complete_what_a_label_does_not_say(
    config: ClassifierTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = dataclasses.replace(config, out=tmp_path / "first.safetensors", steps=2, match="own")
    train_classifier(first, quiet)
    said: list[str] = []
    second = dataclasses.replace(config, out=tmp_path / "b.safetensors", steps=1, complete=first.out, match="own")
    train_classifier(dataclasses.replace(second, complete_above=1e-6), said.append)
    # every one of 32 CoNSeP and 20 BreCaHAD nuclei lacks a label of the other, and MoNuSAC is taught by nothing
    assert "CoNSeP: 20 nuclei of other libraries completed" in said
    assert "BreCaHAD: 32 nuclei of other libraries completed" in said
    assert "MoNuSAC: 0 nuclei of other libraries completed" in said
    with pytest.raises(UsageError, match="complete_above = 2"):
        dataclasses.replace(second, complete_above=2)


def test_a_pupil_comes_to_say_what_its_teacher_says(config: ClassifierTraining, tmp_path: Path) -> None:
    first = dataclasses.replace(config, out=tmp_path / "first.safetensors", steps=2)
    train_classifier(first, quiet)
    teacher, told, _ = load_classifier(first.out)
    with torch.no_grad():
        teacher.backbone.classifier.bias[33] += 20  # whatever it sees, PanNuke calls it dead
    save_model(first.out, told, teacher.state_dict())
    pupil = dataclasses.replace(config, out=tmp_path / "pupil.safetensors", steps=30, distil=(first.out,))
    header = train_classifier(dataclasses.replace(pupil, distil_weight=10.0), quiet)
    assert header.architecture["distilled_from"] == "first"
    predictor = load_predictor(pupil.out)
    pixels = np.random.default_rng(0).integers(0, 255, (8, 64, 64, 3), np.uint8)
    assert (predictor.outputs.best(predictor(pixels).probabilities)["PanNuke"] == 3).all()
    other = LabelSpace((Library("Other", ("x", "y"), ((0, 0, 0),) * 2, 0.25, "", ""),), (True, True))
    fields = {"backbone": "test_efficientnet", "window_px": 64, "size_px": 32}
    stranger = tmp_path / "stranger.safetensors"
    save_model(
        stranger,
        dataclasses.replace(told, architecture=fields, outputs=other.to_dict()),
        JointClassifier(2, "test_efficientnet", 32).state_dict(),
    )
    with pytest.raises(DataError, match="none of its labels is taught"):
        train_classifier(
            dataclasses.replace(pupil, out=tmp_path / "x.safetensors", distil=(first.out, stranger)), quiet
        )


@pytest.mark.parametrize("field", ["sampling", "balance", "loss", "stop", "keep"])
def test_an_unknown_way_of_training_is_refused(config: ClassifierTraining, field: str) -> None:
    with pytest.raises(UsageError, match=f"{field} = 'odd': expected one of "):
        dataclasses.replace(config, **{field: "odd"})


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("backbone", ["nosuch", "hf-hub:timm/resnet18.a1_in1k", "vit_tiny_patch16_224"])
def test_a_backbone_that_cannot_be_used_is_refused(config: ClassifierTraining, backbone: str, context: bool) -> None:
    wrong = dataclasses.replace(config, backbone=backbone, context=context)
    with pytest.raises(UsageError, match=f"backbone {backbone}: cannot be used here .* such as tf_efficientnet_lite0"):
        train_classifier(wrong, quiet)
    said: list[str] = []
    assert check_training(wrong, said.append) == 1
    assert f"problem: backbone {backbone}: cannot be used here" in "\n".join(said)
    assert not config.out.exists()


def test_check_reports_counts_and_every_problem_without_training(config: ClassifierTraining, tmp_path: Path) -> None:
    root = tmp_path / "sets"
    for name, folder in config.libraries:
        shutil.copytree(folder, root / name)
    command = ["train", "classifier", "--check", "--out", str(tmp_path / "m.safetensors"), "--hold-out", "c"]
    command += ["--library", f"consep={root / 'consep'}", "--library", f"brecahad={root / 'BreCaHAD'}"]
    good = CliRunner().invoke(main, command)
    assert good.exit_code == 0, good.output
    assert "training: 2 images in 2 groups, 32 nuclei, pixels of 0.25 µm" in good.output
    assert (
        "10 apoptosis                teaches NuCLS apoptotic_body, BreCaHAD apoptosis, CoNSeP other, PanNuke dead"
        in good.output
    )
    assert "no problems" in good.output
    assert not (tmp_path / "m.safetensors").exists()
    (root / "consep/Labels/a.mat").write_bytes(b"MATLAB")
    (root / "consep/Images/b.png").write_bytes(b"PNG")
    (root / "BreCaHAD/groundTruth/Case_1-02.json").write_text('{"stroma": [{"x": 0, "y": 0}]}')
    bad = CliRunner().invoke(main, command)
    assert bad.exit_code == 1
    for words in ("a.mat: expected a MATLAB file", "b.png: expected an image", "'stroma' is not one of", "3 problems"):
        assert words in bad.output, bad.output


def test_a_held_out_part_without_nuclei_and_a_misspelt_name_are_refused(
    config: ClassifierTraining, tmp_path: Path
) -> None:
    (_, consep), _ = config.libraries
    folder = tmp_path / "consep"
    shutil.copytree(consep, folder)
    scipy.io.savemat(folder / "Labels/c.mat", {"inst_map": np.zeros((128, 128)), "inst_type": np.zeros((0, 1))})
    empty = dataclasses.replace(config, libraries=(("consep", folder),), hold_out=("c",))
    misspelt = dataclasses.replace(config, hold_out=("c", "Case_22"))
    for wrong, error, words in (
        (empty, DataError, f"{folder}: none of its held out images has a nucleus; hold out others (--hold-out)."),
        (misspelt, UsageError, "hold out Case_22: no image or group of the data is called that; expected names such"),
    ):
        with pytest.raises(error, match=re.escape(words)):
            train_classifier(wrong, quiet)
        said: list[str] = []
        assert check_training(wrong, said.append) == 1
        assert f"problem: {words}" in "\n".join(said)


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """Points that say of each cell only whether it may be a tumour cell."""
    folder = tmp_path / "cells"
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    (folder / "library.toml").write_text(
        'name = "Cells"\nlabels = ["tumor", "other"]\nmpp = 0.25\nlicence = "ours"\npartial = true\n'
        '[teaches.tumor]\nCoNSeP = "malignant_epithelial"\nPanNuke = "neoplastic"\n'
        '[teaches.other]\nCoNSeP = ["inflammatory", "fibroblast"]\n'
    )
    for name in ("p", "q"):
        cv2.imwrite(str(folder / f"images/{name}.png"), np.full((300, 300, 3), 200, np.uint8))
        (folder / f"labels/{name}.csv").write_text("x,y,label\n20,20,tumor\n60.5,60,other\n90,150,other\n")
    return folder


def test_two_views_and_a_library_that_only_teaches(config: ClassifierTraining, tmp_path: Path, cells: Path) -> None:
    config = dataclasses.replace(
        config,
        libraries=(*config.libraries, ("cells", cells)),
        hold_out=(*config.hold_out, "q"),
        library_weights=(("Cells", 0.5),),
        always_exchanged=("cells",),
        out=tmp_path / "m.safetensors",
        steps=3,
        context=True,
    )
    said: list[str] = []
    header = train_classifier(config, said.append)
    model, loaded, outputs = load_classifier(config.out)
    assert loaded == header
    assert isinstance(model, TwoViewClassifier)
    assert [library.name for library in outputs.libraries] == ["NuCLS", "BreCaHAD", "CoNSeP", "MoNuSAC", "PanNuke"]
    entry = header.data[-1]
    assert (entry["name"], entry["images"], entry["held_out"], entry["taught"]) == ("Cells", 1, ["q"], {})
    assert entry["nuclei"] == {"tumor": 1, "other": 2}
    assert "ours" in header.licence
    figures = header.figures["Cells"]
    assert figures["nuclei"] == 3
    assert {name: part["nuclei"] for name, part in figures["partial"].items()} == {"CoNSeP": 3, "PanNuke": 1}
    assert [row["count"] for row in figures["partial"]["CoNSeP"]["labels"].values()] == [1, 2]
    assert any(line.startswith("Cells: CoNSeP's label may be right for ") for line in said)
    card = config.out.with_suffix(".md").read_text()
    assert "A second network (test_efficientnet) sees the tissue round the nucleus, 64 px of 1 µm; 20%" in card
    assert "- CoNSeP's label may be right for " in card
    told = CliRunner().invoke(main, ["evaluate", "classifier", str(config.out), "--library", f"cells={cells}"])
    assert told.exit_code == 0, told.output
    share = figures["partial"]["CoNSeP"]["accuracy"]
    assert f"Cells: CoNSeP's label may be right for {share:.3f} of 3 nuclei" in told.output
    # Its own view of the patch may come from a network of the patch alone, and the whole from another of two views.
    alone = dataclasses.replace(
        config, out=tmp_path / "alone.safetensors", steps=1, context=False, always_exchanged=(), sizes=((1, 64),)
    )
    train_classifier(alone, quiet)
    for start in (alone.out, config.out):
        second = dataclasses.replace(config, out=tmp_path / f"from-{start.stem}.safetensors", start_from=(start,))
        train_classifier(dataclasses.replace(second, steps=1, learning_rate=1e-12), quiet)
        old, new = load_file(start), load_file(second.out)
        part = "backbone" if start == alone.out else "patch"
        for name in (name for name in new if name.startswith("patch.blocks.") and name.endswith("weight")):
            np.testing.assert_allclose(new[name], old[name.replace("patch", part)], atol=1e-3, err_msg=name)
    assert not new["head.weight"].isnan().any()
    with pytest.raises(DataError, match="it looks at the context, too; give --context"):
        train_classifier(dataclasses.replace(alone, out=tmp_path / "x.safetensors", start_from=(config.out,)), quiet)


def test_a_weight_of_an_unknown_library_is_refused(config: ClassifierTraining, tmp_path: Path) -> None:
    config = dataclasses.replace(config, out=tmp_path / "m.safetensors", library_weights=(("x", 2.0),))
    with pytest.raises(UsageError, match="library_weights: x is none of"):
        train_classifier(config, quiet)
    config = dataclasses.replace(config, library_weights=(), context=True, always_exchanged=("consep", "y"))
    with pytest.raises(UsageError, match="always_exchanged: y is none of"):
        train_classifier(config, quiet)
    with pytest.raises(UsageError, match="factors above 0"):
        dataclasses.replace(config, library_weights=(("consep", 0.0),))
    with pytest.raises(UsageError, match=r"sharpness_exchange = 1\.5: expected 0 to 1"):
        dataclasses.replace(config, sharpness_exchange=1.5)
    for setting in ({"colour_exchange": 0.5}, {"sharpness_exchange": 0.5}, {"always_exchanged": ("consep",)}):
        with pytest.raises(UsageError, match=f"{next(iter(setting))} is for two views; expected context = true"):
            dataclasses.replace(config, context=False, **setting)
    with pytest.raises(UsageError, match="distil_turns = 5: expected 1 to 4"):
        dataclasses.replace(config, distil_turns=5)
    with pytest.raises(UsageError, match="context_dropout = 1"):
        dataclasses.replace(config, context_dropout=1.0)


def test_a_classifier_gets_a_projection_from_the_command_line(config: ClassifierTraining, tmp_path: Path) -> None:
    # In the precision that the command takes, which is bfloat16 on some processors.
    config = dataclasses.replace(config, out=tmp_path / "m.safetensors", steps=2, precision="auto")
    assert train_classifier(config, quiet).architecture["features"] > 0
    words = ["train", "projection", "--model", str(config.out), "--out", str(tmp_path / "again.safetensors")]
    for name, path in config.libraries:
        words += ["--library", f"{name}={path}"]
    for name in config.hold_out:
        words += ["--hold-out", name]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert "features, " in done.output
    # The training ended with the same step.
    old, new = load_file(config.out), load_file(tmp_path / "again.safetensors")
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)
    assert read_header(config.out) == read_header(tmp_path / "again.safetensors")
    # With --calibrate temperatures and figures are those that the training measured, whatever stands there.
    trained = read_header(config.out)
    outputs = {**trained.outputs, "temperatures": [7.0] * 5}
    rewrite_header(config.out, dataclasses.replace(trained, figures={}, outputs=outputs))
    done = CliRunner().invoke(main, [*words, "--calibrate"])
    assert done.exit_code == 0, done.output
    assert read_header(tmp_path / "again.safetensors") == trained
    assert (tmp_path / "again.md").read_text("utf-8") == model_card(trained)
    # What taught the model is not called held out, whatever the command says.
    data = [{**entry, "held_out": ["another"]} for entry in trained.data]
    rewrite_header(config.out, dataclasses.replace(trained, data=data))
    done = CliRunner().invoke(main, [*words, "--calibrate"])
    assert done.exit_code != 0
    assert "none of these images was held out of its training" in done.output
