"""Mask R-CNN and Faster R-CNN: tiles on one grid, training, and their model files as segmentors."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io
import torch

from nucpipe.backends.model_file import load_model, save_model
from nucpipe.errors import ModelError, UsageError
from pipeline.config import RunConfig
from pipeline.run_slide import run_slide
from pipeline.store.reader import open_store
from pipeline.store.run_record import SilentReporter
from segmentation.evaluation.evaluate import detect_image
from segmentation.evaluation.metrics import match_by_distance
from segmentation.rcnn.detector import TILE_PX, RCNNDetector
from segmentation.rcnn.training import targets_of
from segmentation.registry import load_detector
from segmentation.training.train import SegmentorTraining, train_segmentor
from tests.support.synthetic import MPP, draw_slide, models

pytestmark = pytest.mark.slow


class DarkBoxes(torch.nn.Module):
    """Shaped as torchvision's: finds what is dark in a tile, surer of larger boxes; ``masks`` only if wanted."""

    def __init__(self, masks: bool) -> None:
        super().__init__()
        self.masks = masks
        self.nothing = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        (image,) = images
        assert image.shape == (3, TILE_PX, TILE_PX)
        dark = (image[1].numpy() < 110 / 255).astype(np.uint8)
        _, labels, stats, _ = cv2.connectedComponentsWithStats(dark, connectivity=4)
        boxes = np.array([[x, y, x + w, y + h] for x, y, w, h, _ in stats[1:]], np.float32).reshape(-1, 4)
        said = {"boxes": torch.from_numpy(boxes), "scores": torch.from_numpy(0.5 + stats[1:, 4] / 1e4)}
        if self.masks:
            masks = labels[None] == np.arange(1, len(stats))[:, None, None]
            said["masks"] = torch.from_numpy(masks.astype(np.float32))[:, None]
        return [said]


def test_every_nucleus_once_and_whole_whatever_the_region_size(tmp_path: Path) -> None:
    drawn = draw_slide(600, 520)
    slide = drawn.save(tmp_path / "slide.png")
    chosen = dataclasses.replace(models(), detector=RCNNDetector(DarkBoxes(masks=True)))
    stores = []
    for size in (2048, 224):
        config = RunConfig(mpp=MPP, tissue="none", region_size=size)
        run_slide(slide, tmp_path / str(size), chosen, config, SilentReporter())
        stores.append(open_store(tmp_path / str(size) / "nuclei.zarr"))
    whole, parts = stores
    assert len(whole) == len(parts) == len(drawn.centres)
    np.testing.assert_array_equal(whole.centroids_l0, parts.centroids_l0)
    np.testing.assert_array_equal(whole.contours()[1], parts.contours()[1])
    np.testing.assert_array_equal(whole.detection_p, parts.detection_p)
    pairs = match_by_distance(drawn.centres, whole.centroids_l0, 0.01)
    assert len(pairs[0]) == len(drawn.centres)
    np.testing.assert_allclose(whole.area_um2[pairs[1]], drawn.areas_px[pairs[0]] * MPP**2)


def test_without_masks_an_outline_is_a_box() -> None:
    drawn = draw_slide(300, 300)
    found = detect_image(RCNNDetector(DarkBoxes(masks=False)), drawn.image, MPP)
    assert len(found) == len(drawn.centres)
    assert (np.diff(found.contour_offsets) == 4).all()


def test_of_two_that_overlap_the_surer_one_has_the_pixels() -> None:
    class Two(DarkBoxes):
        def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
            boxes = torch.tensor([[100.0, 100, 120, 120], [110, 100, 130, 120], [101, 101, 121, 121]])
            return [{"boxes": boxes, "scores": torch.tensor([0.7, 0.9, 0.6])}]

    found = RCNNDetector(Two(masks=False))
    nuclei = found.nuclei(found.predict(np.zeros((TILE_PX, TILE_PX, 3), np.uint8)), 1.0)
    # The second has its 20 x 20 pixels; of the first just half is left, and of the third less: both are dropped.
    assert nuclei.area_um2.tolist() == [400]
    assert nuclei.detection_p.tolist() == pytest.approx([0.9])


def test_targets_are_boxes_and_masks_of_what_is_large_enough() -> None:
    instances = np.zeros((40, 40), np.int32)
    instances[3:13, 5:25], instances[20:22, 20:40], instances[30:38, 2:8] = 2, 3, 7
    target = targets_of(instances, masks=True)
    assert target["boxes"].tolist() == [[5, 3, 25, 13], [2, 30, 8, 38]]
    assert target["masks"].sum((1, 2)).tolist() == [200, 48]
    assert targets_of(np.zeros((8, 8), np.int32), masks=True)["boxes"].shape == (0, 4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    for name in ("Images", "Labels"):
        (folder / name).mkdir()
    for seed in range(2):
        drawn = draw_slide(200, 200, seed=seed)
        drawn.save(folder / "Images" / f"image_{seed}.png")
        dark = (drawn.image[..., 1] < 110).astype(np.uint8)
        scipy.io.savemat(folder / "Labels" / f"image_{seed}.mat", {"inst_map": cv2.connectedComponents(dark)[1]})
    return folder


@pytest.mark.parametrize("kind", ["maskrcnn", "fasterrcnn"])
def test_training_makes_a_segmentor(data: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / f"{kind}.safetensors"
    config = SegmentorTraining(
        (data,), out, ("image_1",), steps=2, batch_size=1, architecture=kind, encoder="resnet18", licence="CC0"
    )
    header = train_segmentor(config, lambda _: None)
    assert header.architecture == {"type": kind, "encoder": "resnet18"}
    assert header.figures[data.name]["images"] == 1
    rows = out.with_suffix(".losses.csv").read_text().splitlines()
    assert rows[0].startswith("step,total,loss_classifier,loss_box_reg")
    assert ("loss_mask" in rows[0]) == (kind == "maskrcnn")
    assert len(rows) == 3
    assert all(np.isfinite(float(cell)) for cell in rows[2].split(","))
    words = {"maskrcnn": "A Mask R-CNN", "fasterrcnn": "A Faster R-CNN"}
    assert words[kind] in out.with_suffix(".md").read_text("utf-8")
    detector = load_detector(out)
    assert isinstance(detector, RCNNDetector)
    header, tensors = load_model(out)
    for name, tensor in detector.network.state_dict().items():
        torch.testing.assert_close(tensor, tensors[name], rtol=0, atol=0)
    save_model(out, dataclasses.replace(header, architecture={"type": kind, "encoder": "resnet34"}), tensors)
    with pytest.raises(ModelError, match="its weights do not fit its header"):
        load_detector(out)


def test_wrong_settings_say_so(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    with pytest.raises(UsageError, match="expected hovernet, maskrcnn, fasterrcnn"):
        SegmentorTraining((data,), out, architecture="yolo")
    with pytest.raises(UsageError, match="only a hovernet starts from a model"):
        SegmentorTraining((data,), out, architecture="maskrcnn", start_from=(out,))
    for architecture in ("maskrcnn", "hovernet"):
        config = SegmentorTraining((data,), out, ("image_1",), architecture=architecture, encoder="vit")
        with pytest.raises(UsageError, match=r"--encoder vit: cannot be used here \(timm has no network 'vit'\)"):
            train_segmentor(config, lambda _: None)
        config = dataclasses.replace(config, encoder="vit_tiny_patch16_224")
        with pytest.raises(UsageError, match="--encoder vit_tiny_patch16_224: cannot be used here"):
            train_segmentor(config, lambda _: None)
