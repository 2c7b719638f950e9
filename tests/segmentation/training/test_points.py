"""A segmentor learns from points: a trained network outlines what lies there, and what nobody knows teaches nothing."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from click.testing import CliRunner

from nucpipe.backends.model_file import read_header
from nucpipe.datasets import open_dataset
from pipeline.cli.main import main
from pipeline.inference.models import find_model
from segmentation.dataset import UNKNOWN, TileDataset
from segmentation.targets import hv_maps
from segmentation.training.losses import hovernet_loss
from segmentation.training.points import PointOutliner, outline_points
from tests.support.synthetic import draw_slide

pytestmark = pytest.mark.slow

CENTRES = np.array([[30.5, 40.5], [58.5, 40.5], [120.5, 40.5], [30.5, 120.5], [100.5, 120.5]])
"""Of discs of 16 px: the first two touch. The last is pale."""


def discs() -> npt.NDArray[np.float32]:
    """Maps (3, 160, 160) in which the touching discs are one nucleus."""
    instances = np.zeros((160, 160), np.int32)
    for number, (x, y) in enumerate(CENTRES, 1):
        cv2.circle(instances, (int(x), int(y)), 16, max(number, 2), -1)
    logit = np.where(instances > 0, 4.0, -4.0)
    logit[instances == 5] = 0.5
    return np.concatenate([logit[None], hv_maps(instances)]).astype(np.float32)


def test_points_part_what_the_network_takes_for_one() -> None:
    found = outline_points(discs(), CENTRES)
    assert found.dtype == np.uint16
    assert [int(found[int(y), int(x)]) for x, y in CENTRES] == [1, 2, 3, 4, 5]
    nuclear = discs()[0] > 0
    np.testing.assert_array_equal(found > 0, nuclear)  # every nuclear pixel, and no other, is in a nucleus
    first, second = (found == 1).sum(), (found == 2).sum()
    assert abs(int(first) - int(second)) < 0.2 * first
    assert np.nonzero(found == 1)[1].max() < 58  # they meet between the points
    assert np.nonzero(found == 2)[1].min() > 30


def test_what_neither_points_nor_network_say_is_unknown() -> None:
    missed = np.array([[120.5, 80.5]])
    found = outline_points(discs(), np.concatenate([CENTRES[:3], missed]))
    # The sure disc without a point is unknown to its rim, the pale one is background.
    assert (found[104:137, 30] == UNKNOWN).all()
    assert not found[105:136, 84:116].any()
    # A point in the background: a disc of 4 um.
    assert found[80, 120] == UNKNOWN
    assert found[80, 120 + 16] == UNKNOWN
    assert found[80, 120 + 20] == 0
    assert set(np.unique(found)) == {0, 1, 2, 3, UNKNOWN}


def test_a_point_outside_and_no_point_at_all() -> None:
    assert outline_points(discs(), np.array([[160.0, 200.0]])).max() == UNKNOWN
    assert set(np.unique(outline_points(discs(), np.zeros((0, 2))))) == {0, UNKNOWN}


def test_unknown_pixels_teach_nothing() -> None:
    torch.manual_seed(0)
    maps, hv = torch.randn(2, 3, 32, 32), torch.rand(2, 2, 32, 32)
    known = (torch.rand(2, 32, 32) < 0.7).float()
    nuclear = (torch.rand(2, 32, 32) < 0.4).float() * known
    between = (torch.rand(2, 32, 32) < 0.2).float()
    hv = hv * nuclear[:, None]
    maps.requires_grad_()
    terms = hovernet_loss(maps, nuclear, hv, between, known)
    for name in ("cross_entropy", "dice", "mse"):
        (gradient,) = torch.autograd.grad(terms[name], maps, retain_graph=True)
        assert gradient.abs().sum(1)[known == 1].max() > 0, name
        assert gradient.abs().sum(1)[known == 0].max() == 0, name
    # Where all is known nothing is left out.
    everything = hovernet_loss(maps, nuclear, hv, between, torch.ones(2, 32, 32))
    assert everything["mse"].item() == pytest.approx(torch.nn.functional.mse_loss(maps[:, 1:], hv).item(), rel=1e-5)


def test_a_tile_says_what_is_unknown(points: Path) -> None:
    images = open_dataset(points)
    outlines = PointOutliner(find_model("segmentor", "hovernet-compact"))
    outlined = outlines(images[0])
    assert outlined.mpp == 0.25
    assert outlined.pixels.shape[:2] == outlined.instances.shape == (264, 280)
    assert (outlined.instances == UNKNOWN).any()
    batch = TileDataset([images], 1, 4, outlines).batch(0)
    assert 0 < batch.known.mean() < 1
    assert not batch.nuclear[batch.known == 0].any()
    assert not np.abs(batch.hv).max(1)[batch.known == 0].any()


def draw_images(folder: Path, seeds: dict[str, int], fields: str = "") -> dict[str, npt.NDArray[np.uint8]]:
    """Make a data set without labels of drawn images, and return by name where each has nuclei, (H, W) 0 or 1."""
    for name in ("images", "labels"):
        (folder / name).mkdir()
    (folder / "library.toml").write_text(f'{fields}mpp = 0.25\nlicence = "CC0"\n')
    nuclei = {}
    for name, seed in seeds.items():
        drawn = draw_slide(280, 264, seed=seed)
        drawn.save(folder / "images" / f"{name}.png")
        nuclei[name] = (drawn.image[..., 1] < 110).astype(np.uint8)
    return nuclei


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two drawn images with a point a nucleus, and one where there is none."""
    folder = tmp_path_factory.mktemp("points")
    nuclei = draw_images(folder, {"drawn_0": 0, "drawn_1": 1}, 'name = "Points"\nlabels = ["nucleus"]\n')
    for name, dark in nuclei.items():
        _, _, areas, centres = cv2.connectedComponentsWithStats(dark, connectivity=4)
        rows = [
            f"{x:.1f},{y:.1f},nucleus"
            for (x, y), a in zip(centres[1:], areas[1:, cv2.CC_STAT_AREA], strict=True)
            if a > 40
        ]
        light = np.argwhere(cv2.erode(1 - dark, np.ones((41, 41), np.uint8)))[0]
        rows.append(f"{light[1]},{light[0]},nucleus")
        (folder / "labels" / f"{name}.csv").write_text("\n".join(["x,y,label", *rows]) + "\n")
    return folder


@pytest.fixture(scope="module")
def outlined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two drawn images with label images."""
    folder = tmp_path_factory.mktemp("outlined")
    for name, dark in draw_images(folder, {"image_2": 2, "image_3": 3}).items():
        instances = cv2.connectedComponents(dark, connectivity=4)[1]
        cv2.imwrite(str(folder / "labels" / f"{name}.png"), instances.astype(np.uint16))
    return folder


def test_points_need_a_model_to_start_from(points: Path, tmp_path: Path) -> None:
    command = ["train", "segmentor", "--data", str(points), "--out", str(tmp_path / "m.safetensors"), "--steps", "1"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code != 0
    assert "has no outlines; a segmentor needs outlined nuclei, or points and a model to start from" in done.output
    assert "Traceback" not in done.output


def test_training_from_outlines_and_points(points: Path, outlined: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    command = ["train", "segmentor", "--data", str(outlined), "--data", str(points), "--out", str(out)]
    command += ["--hold-out", "image_3", "--start-from", "hovernet-compact", "--steps", "2", "--batch-size", "2"]
    check = CliRunner().invoke(main, [*command, "--check"])
    assert check.exit_code == 0, check.output
    assert "training: 2 images in 2 groups" in check.output
    assert "2 images have points: their outlines are made by the model that the training starts from" in check.output
    assert check.output.endswith("no problems\n")
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    header = read_header(out)
    assert {d["name"]: (d["images"], d["held_out_images"]) for d in header.data} == {
        outlined.name: (1, 1),
        points.name: (2, 0),
    }
    assert set(header.figures) == {outlined.name}
    assert f"| {points.name} (points) | 2 | 0 | - |" in out.with_suffix(".md").read_text(encoding="utf-8")


def test_training_from_points_alone_says_that_nothing_measures_it(points: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    command = ["train", "segmentor", "--data", str(points), "--out", str(out), "--start-from", "hovernet-compact"]
    done = CliRunner().invoke(main, [*command, "--steps", "1", "--batch-size", "1"])
    assert done.exit_code == 0, done.output
    assert "no image with outlines is held out: the model will not be measured" in done.output
    assert read_header(out).figures == {}


def test_a_broken_image_of_points_is_named_before_the_first_step(points: Path, tmp_path: Path) -> None:
    folder = tmp_path / "points"
    shutil.copytree(points, folder)
    (folder / "images" / "drawn_1.png").write_bytes(b"no image")
    command = ["train", "segmentor", "--data", str(folder), "--out", str(tmp_path / "m.safetensors")]
    done = CliRunner().invoke(main, [*command, "--start-from", "hovernet-compact", "--steps", "1"])
    assert done.exit_code != 0
    assert "drawn_1.png" in done.output
    assert "Traceback" not in done.output
