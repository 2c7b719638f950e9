"""Training of the segmentor: it learns, it resumes exactly, and its file says what it is."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io
import torch

from nucpipe.common import training
from nucpipe.common.datasets import open_dataset
from nucpipe.common.errors import DataError, ModelError
from nucpipe.common.modelfile import read_header
from segmentation.detector import load_hovernet, read_hovernet
from segmentation.samples import TileSource
from segmentation.train import SegmentorTraining, train_segmentor
from synthetic import draw_slide


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


class Interrupted(Exception):
    pass


def test_resumed_training_gives_the_model_of_an_uninterrupted_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = train_segmentor(config(data, tmp_path / "whole.safetensors", 4), lambda _: None)
    assert header.data == [
        {"name": data.name, "images": 2, "held_out": ["image_2"], "held_out_images": 1},
    ]
    assert header.figures[data.name]["images"] == 1
    assert {"dice", "aji", "dq", "sq", "pq", "detection_f1"} <= set(header.figures[data.name])
    save = training.save_checkpoint

    def save_and_stop(path: Path, state: dict[str, object]) -> None:
        save(path, state)
        if state["step"] == 2:
            raise Interrupted

    monkeypatch.setattr("segmentation.train.CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(training, "save_checkpoint", save_and_stop)
    with pytest.raises(Interrupted):
        train_segmentor(config(data, tmp_path / "parts.safetensors", 4), lambda _: None)
    said: list[str] = []
    train_segmentor(config(data, tmp_path / "parts.safetensors", 4), said.append)
    assert "going on from step 2" in said
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
    training.save_checkpoint(out.with_suffix(".checkpoint"), {"settings": config(data, out, 9).settings(), "step": 1})
    with pytest.raises(DataError, match="another steps"):
        train_segmentor(config(data, out, 8), lambda _: None)


def test_a_batch_depends_on_seed_and_step_alone(data: Path) -> None:
    images = open_dataset(data)
    a, b = TileSource(images, 7, 1), TileSource(images, 7, 1)
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


def test_a_file_that_is_no_segmentor(data: Path, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="expected a nucpipe model"):
        load_hovernet(tmp_path / "m.safetensors")
    with pytest.raises(ModelError, match="no such model file"):
        load_hovernet(tmp_path / "none.safetensors")
