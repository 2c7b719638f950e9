"""Training of the segmentor: it learns, it resumes exactly, and its file says what it is."""

import dataclasses
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io
import torch
from click.testing import CliRunner

from nucpipe.backends.model_file import fingerprint, read_header
from nucpipe.datasets import open_dataset
from nucpipe.errors import DataError, ModelError, UsageError
from nucpipe.training import trainer
from pipeline.cli.main import main
from pipeline.inference.models import find_model, with_training_data
from segmentation.dataset import TileDataset, balanced_shares
from segmentation.evaluation.evaluate import score_images
from segmentation.hovernet.detector import load_hovernet
from segmentation.hovernet.network import HoVerNet, read_hovernet, widen
from segmentation.targets import between_nuclei
from segmentation.training.losses import hovernet_loss
from segmentation.training.train import SegmentorTraining, train_segmentor
from tests.support.synthetic import draw_slide

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three drawn images in CoNSeP's layout, without classes (as Kumar's)."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "Images").mkdir()
    (folder / "Labels").mkdir()
    for seed in range(3):
        drawn = draw_slide(280, 264, seed=seed)
        drawn.save(folder / "Images" / f"image_{seed}.png")
        dark = (drawn.image[..., 1] < 110).astype(np.uint8)
        instances = cv2.connectedComponents(dark, connectivity=4)[1]
        scipy.io.savemat(folder / "Labels" / f"image_{seed}.mat", {"inst_map": instances})
    return folder


def config(data: Path, out: Path, steps: int) -> SegmentorTraining:
    return SegmentorTraining((data,), out, ("image_2",), steps=steps, batch_size=1, learning_rate=3e-3, licence="CC0")


def test_outlines_of_another_size_than_the_image_are_refused(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    label = folder / "Labels" / "image_2.mat"
    scipy.io.savemat(label, {"inst_map": scipy.io.loadmat(label)["inst_map"][:200]})
    images = open_dataset(folder)
    said = (
        "image_2.mat: the outlines of image_2 are on 280 x 200 pixels, its image has 280 x 264; expected the same size"
    )
    with pytest.raises(DataError, match=said):
        TileDataset([images], 0, 1)
    detector = load_hovernet(find_model("segmentor", "hovernet-compact"))
    with pytest.raises(DataError, match=said):
        list(score_images(detector, images[2:]))


def test_check_reads_everything_and_trains_nothing(data: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "data", tmp_path / "m.safetensors"
    shutil.copytree(data, folder)
    command = ["train", "segmentor", "--data", str(folder), "--out", str(out), "--hold-out", "image_2"]
    good = CliRunner().invoke(main, [*command, "--check"])
    assert good.exit_code == 0, good.output
    count = len(open_dataset(folder)[2].annotation().centroids)
    assert f"held out: 1 images in 1 groups, {count} nuclei, pixels of 0.25 µm" in good.output
    assert good.output.endswith("no problems\n")
    one = tmp_path / "one"
    for part in ("Images", "Labels"):
        (one / part).mkdir(parents=True)
        for file in (folder / part).glob("image_0.*"):
            shutil.copy(file, one / part)
    said = CliRunner().invoke(main, [*command[:2], "--data", str(one), "--out", str(out), "--check"])
    assert "nothing is held out, for all images are of one group" in said.output
    (folder / "Images" / "image_1.png").rename(folder / "other.png")
    said = CliRunner().invoke(main, [*command, "--check"])
    assert "image_1.mat: its image is missing; expected" in said.output
    assert said.output.endswith("\n1 problems\n"), said.output
    (folder / "other.png").rename(folder / "Images" / "image_1.png")
    empty = np.zeros((264, 280), np.int32)
    scipy.io.savemat(folder / "Labels" / "image_0.mat", {"inst_map": empty})
    said = CliRunner().invoke(main, [*command, "--check"])
    assert said.exit_code == 0
    assert "1 images without a nucleus: image_0" in said.output
    scipy.io.savemat(folder / "Labels" / "image_2.mat", {"inst_map": empty})
    shutil.copy(folder / "Labels" / "image_0.mat", folder / "Labels" / "image_1.mat")
    said = CliRunner().invoke(main, [*command, "--check", "--encoder", "nosuch", "--hold-out", "imagee_2"])
    assert said.exit_code == 1
    for words in (
        "problem: hold out imagee_2: no image or group of the data is called that; expected names such as image_2.",
        f"problem: {folder}: none of its training images has a nucleus; outline some.",
        f"problem: {folder}: none of its held out images has a nucleus; hold out others (--hold-out).",
        "problem: --encoder nosuch: cannot be used here",
        "4 problems",
    ):
        assert words in said.output
    assert not list(tmp_path.glob("m.*"))


def test_a_broken_label_of_a_held_out_image_is_found_before_the_first_step(data: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "data", tmp_path / "m.safetensors"
    shutil.copytree(data, folder)
    (folder / "Labels" / "image_2.mat").write_bytes(b"MATLAB")
    with pytest.raises(DataError, match=r"image_2\.mat: expected a MATLAB file"):
        train_segmentor(config(folder, out, 1), lambda _: None)
    scipy.io.savemat(folder / "Labels" / "image_0.mat", {"x": 0})
    with pytest.raises(DataError, match=r"image_0\.mat: expected the array inst_map.* --check names all 2"):
        train_segmentor(config(folder, out, 1), lambda _: None)
    assert not list(tmp_path.glob("m.*"))
    with pytest.raises(UsageError, match="hold out nosuch: no image or group of the data is called that"):
        train_segmentor(dataclasses.replace(config(data, out, 1), hold_out=("image_2", "nosuch")), lambda _: None)


class Interrupted(Exception):
    pass


def test_resumed_training_gives_the_model_of_an_uninterrupted_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = train_segmentor(config(data, tmp_path / "whole.safetensors", 4), lambda _: None)
    assert header.data == [
        {"name": data.name, "images": 2, "held_out": ["image_2"], "held_out_images": 1, "licence": "CC0"},
    ]
    assert header.figures[data.name]["images"] == 1
    assert {"dice", "aji", "dq", "sq", "pq", "detection_f1"} <= set(header.figures[data.name])
    save = trainer.save_checkpoint

    def save_and_stop(path: Path, state: dict[str, object]) -> None:
        save(path, state)
        if state["step"] == 2:
            raise Interrupted

    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(trainer, "save_checkpoint", save_and_stop)
    with pytest.raises(Interrupted):
        train_segmentor(config(data, tmp_path / "parts.safetensors", 4), lambda _: None)
    said: list[str] = []
    train_segmentor(config(data, tmp_path / "parts.safetensors", 4), said.append)
    assert "going on from step 2" in said
    assert f"{data.name}: 1 images" in said
    assert any(line.startswith("  all images as one  DICE 0.") for line in said)
    assert not any("{" in line for line in said)
    whole, parts = (read_hovernet(tmp_path / f"{n}.safetensors")[0].state_dict() for n in ("whole", "parts"))
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, parts[name], rtol=0, atol=0, msg=name)
    rows = [(tmp_path / f"{n}.losses.csv").read_text() for n in ("whole", "parts")]
    assert rows[0] == rows[1]
    assert rows[0].count("\n") == 5
    assert read_header(tmp_path / "parts.safetensors").licence == "CC0"
    assert "| image_2 |" in (tmp_path / "parts.md").read_text("utf-8")


def test_another_setting_does_not_resume(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    trainer.save_checkpoint(out.with_suffix(".checkpoint"), {"settings": config(data, out, 9).settings(), "step": 1})
    with pytest.raises(DataError, match=r"another steps \(9 there, 8 here\); give the same settings"):
        train_segmentor(config(data, out, 8), lambda _: None)


def test_a_batch_depends_on_seed_and_step_alone(data: Path) -> None:
    images = open_dataset(data)
    a, b = TileDataset([images], 7, 4), TileDataset([images], 7, 4)
    a.batch(0)
    np.testing.assert_array_equal(a.batch(3).pixels, b.batch(3).pixels)
    np.testing.assert_array_equal(a.batch(3).hv, b.batch(3).hv)
    assert not np.array_equal(a.batch(3).pixels, a.batch(4).pixels)
    batch = a.batch(5)
    assert batch.pixels.shape == (4, 128, 128, 3)
    assert batch.nuclear.shape == (4, 256, 256)
    # The pixels under the mask are the dark ones: image and map were turned alike.
    enlarged = batch.pixels.repeat(2, 1).repeat(2, 2)[..., 1]
    dark = enlarged < 110
    assert (dark == (batch.nuclear > 0)).mean() > 0.97


def test_sets_and_groups_are_drawn_by_the_root_of_their_area() -> None:
    areas = np.array([1.0, 3.0, 1.0, 9.0, 2.0])
    shares = balanced_shares([0, 0, 0, 1, 1], ["liver", "liver", "lung", "liver", "7"], areas)
    assert shares.sum() == pytest.approx(1)
    assert shares[:3].sum() / shares[3:].sum() == pytest.approx((5 / 11) ** 0.5)
    assert shares[:2].sum() / shares[2] == pytest.approx((4 / 1) ** 0.5)
    assert shares[3] / shares[4] == pytest.approx((9 / 2) ** 0.5)
    assert shares[1] / shares[0] == pytest.approx(3)


def test_pixels_between_nuclei_are_those_with_two_in_reach() -> None:
    instances = np.zeros((20, 30), np.int32)
    instances[5:15, 2:10], instances[5:15, 12:20], instances[5:15, 26:30] = 4, 9, 2
    expected = np.zeros((20, 30), bool)
    expected[2:18, 9:13] = True  # 4 and 9 are two pixels apart, 9 and 2 are six
    expected[2:18, 22:24] = False
    np.testing.assert_array_equal(between_nuclei(instances), expected)
    touching = np.repeat([[1, 2]], 4, 0).repeat(8, 1)
    assert np.flatnonzero(between_nuclei(touching)[0]).tolist() == [5, 6, 7, 8, 9, 10]
    assert not between_nuclei(np.zeros((9, 9), np.int32)).any()


def test_wrong_pixels_between_nuclei_cost_more() -> None:
    nuclear, hv, between = torch.ones(1, 8, 8), torch.zeros(1, 2, 8, 8), torch.zeros(1, 8, 8)
    between[:, :, :2] = 1
    plain, near, far = (torch.full((1, 3, 8, 8), 2.0) for _ in range(3))
    near[:, 0, :, :2], far[:, 0, :, 6:] = -2.0, -2.0
    losses = [
        hovernet_loss(maps, nuclear, hv, between, torch.ones(1, 8, 8))["cross_entropy"] for maps in (plain, near, far)
    ]
    assert losses[0] < losses[2] < losses[1]
    # Four rows of eight weigh 3 + 3 + six times 1.
    wrong, right = np.log1p(np.exp(2.0)), np.log1p(np.exp(-2.0))
    assert float(losses[1]) == pytest.approx((6 * wrong + 6 * right) / 12, rel=1e-5)
    assert float(losses[2]) == pytest.approx((2 * wrong + 10 * right) / 12, rel=1e-5)


def test_a_grown_network_computes_the_same_maps_and_learns_with_its_new_channels() -> None:
    torch.manual_seed(0)
    small, large = HoVerNet(widths=(8, 8, 8)), HoVerNet(widths=(12, 9, 16))
    for module in small.modules():  # a trained network's statistics are not those of a new one
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
    widen(small, large)
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.allclose(small.eval()(pixels), large.eval()(pixels), atol=1e-5)
    large.eval()(pixels).square().mean().backward()
    new = large.up4.convs[0][0].weight.grad[:8, 8:12]  # what the old channels hear of the new ones
    assert (new.abs().amax((0, 2, 3)) > 0).all()
    with pytest.raises(ValueError, match="does not fit"):
        widen(large, small)


def test_a_training_that_starts_from_a_model_keeps_its_widths(data: Path, tmp_path: Path) -> None:
    first = dataclasses.replace(config(data, tmp_path / "first.safetensors", 1), widths=(12, 9, 8))
    train_segmentor(first, lambda _: None)
    for widths, expected in ((None, [12, 9, 8]), ((16, 9, 8), [16, 9, 8])):
        out = tmp_path / "second.safetensors"
        again = dataclasses.replace(first, out=out, start_from=(first.out,), widths=widths, seed=expected[0])
        out.with_suffix(".checkpoint").unlink(missing_ok=True)
        train_segmentor(again, lambda _: None)
        assert read_header(out).architecture["widths"] == expected
        read_hovernet(out)


def test_no_steps_from_several_models_give_their_mean(data: Path, tmp_path: Path) -> None:
    parts = [config(data, tmp_path / f"{k}.safetensors", 1) for k in range(2)]
    for k, part in enumerate(parts):
        train_segmentor(dataclasses.replace(part, seed=k), lambda _: None)
    paths = tuple(part.out for part in parts)
    mean = dataclasses.replace(parts[0], out=tmp_path / "mean.safetensors", steps=0, start_from=paths)
    train_segmentor(mean, lambda _: None)
    whole, *states = (read_hovernet(path)[0].state_dict() for path in (mean.out, *paths))
    for name, value in whole.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (states[0][name] + states[1][name]) / 2, atol=1e-3, rtol=1e-3)
    wide = dataclasses.replace(parts[0], out=tmp_path / "wide.safetensors", steps=0, widths=(81, 48, 32))
    train_segmentor(wide, lambda _: None)
    with pytest.raises(DataError, match="their layers differ"):
        train_segmentor(dataclasses.replace(mean, out=tmp_path / "y.safetensors", start_from=(*paths, wide.out)))


def test_a_model_made_from_another_owes_it_licence_data_and_filter(data: Path, tmp_path: Path) -> None:
    base = find_model("segmentor", "hovernet-compact")
    folder, out = tmp_path / "lab", tmp_path / "mine.safetensors"
    shutil.copytree(data, folder)
    (folder / "library.toml").write_text('mpp = 0.25\nlicence = "ours"\n')
    mine = dataclasses.replace(config(folder, out, 0), start_from=(base,), licence="")
    header = train_segmentor(mine, lambda _: None)
    assert read_header(out) == header
    old = read_header(base)
    assert (header.min_area_um2, header.min_detection_p) == (old.min_area_um2, old.min_detection_p) == (4, 0.8)
    assert header.licence == f"{old.licence}; ours"
    assert [model["name"] for model in header.made_from] == ["hovernet-compact"]
    assert {one["name"] for one in header.all_data} == {"lab", *(one["name"] for one in old.data)}
    assert header.held_out_of("consep") == ["train_12", "train_18", "train_24", "train_6"]
    assert header.held_out_of("lab") == ["image_2"]
    card = out.with_suffix(".md").read_text("utf-8")
    assert "- Training started from the weights of hovernet-compact." in card
    assert "at least 4 µm², detection at least 0.8, as of the model that it started from." in card
    assert "- Made from hovernet-compact: learnt from consep (23 images), " in card
    said = CliRunner().invoke(main, ["models", str(out)]).output
    for words in (
        "keeps nuclei of at least 4 µm²",
        "made from hovernet-compact",
        "trained on consep (23 images)",
        f"licences: {header.licence}",
    ):
        assert words in said
    assert "trained on consep (23 images)" in CliRunner().invoke(main, ["models", "hovernet-compact"]).output
    told = with_training_data({"segmentor": {"name": "mine", "fingerprint": fingerprint(out)}}, str(out))["segmentor"]
    assert told["made_from"] == ["hovernet-compact"]
    assert {"consep", "lab"} <= {one["name"] for one in told["data"]}
    # A second generation owes all of them; what it learns from is held out of neither.
    again = dataclasses.replace(mine, out=tmp_path / "again.safetensors", start_from=(out,), hold_out=("image_1",))
    header = train_segmentor(again, lambda _: None)
    assert [model["name"] for model in header.made_from] == ["mine", "hovernet-compact"]
    assert header.licence == f"{old.licence}; ours"
    assert header.held_out_of("lab") == []
    said = CliRunner().invoke(main, ["evaluate", "segmentor", str(again.out), "--data", str(folder)]).output
    assert "again was made from mine, hovernet-compact; held out is what none of them learnt from." in said
    assert (
        "lab: no image is known to be held out of all trainings that made this model; measured on all images." in said
    )


def test_starting_from_a_wider_model_is_an_error(data: Path, tmp_path: Path) -> None:
    narrow = SegmentorTraining((data,), tmp_path / "x.safetensors", ("image_2",), steps=1, widths=(16, 16, 16))
    with pytest.raises(DataError, match=r"its decoder is wider than --widths 16,16,16"):
        train_segmentor(dataclasses.replace(narrow, start_from=(find_model("segmentor", "hovernet-compact"),)))
    with pytest.raises(UsageError, match="--widths 0,1,2: expected three numbers"):
        dataclasses.replace(narrow, widths=(0, 1, 2))


def test_maps_are_those_of_a_whole_window_with_its_margin_cut_off() -> None:
    torch.manual_seed(0)
    model = HoVerNet(widths=(8, 8, 8)).eval()
    pixels = torch.randint(0, 256, (1, 3, 192, 160), dtype=torch.uint8)
    with torch.no_grad():
        whole = model(pixels)
        for margin in (48, 64):
            part = model(pixels, margin)
            assert part.shape == (1, 3, 2 * (192 - 2 * margin), 2 * (160 - 2 * margin))
            assert torch.allclose(part, whole[..., 2 * margin : -2 * margin, 2 * margin : -2 * margin], atol=1e-6)


def test_a_file_that_is_no_segmentor(data: Path, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="expected a nucpipe model"):
        load_hovernet(tmp_path / "m.safetensors")
    with pytest.raises(ModelError, match="no such model file"):
        load_hovernet(tmp_path / "none.safetensors")
