"""``nucpipe evaluate segmentor`` on drawn images: figures, the table of images, the picture of worst cases."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io
from click.testing import CliRunner

from nucpipe.errors import UsageError
from pipeline.cli.main import main
from pipeline.inference.models import find_model
from segmentation.evaluation.report import FOUND, WRONG, evaluate_segmentor, outlined
from tests.support.synthetic import DarkSpots, draw_slide

MODEL = find_model("segmentor", "hovernet-compact")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two drawn images in CoNSeP's layout; on one of them half of the nuclei are not annotated."""
    folder = tmp_path / "drawn"
    for name in ("Images", "Labels"):
        (folder / name).mkdir(parents=True)
    for seed, name in enumerate(("good", "poor")):
        drawn = draw_slide(288, 256, seed=seed)
        drawn.save(folder / "Images" / f"{name}.png")
        dark = (drawn.image[..., 1] < 110).astype(np.uint8)
        instances = cv2.connectedComponents(dark, connectivity=4)[1]
        instances[instances > (instances.max() // 2 if name == "poor" else instances.max())] = 0
        scipy.io.savemat(folder / "Labels" / f"{name}.mat", {"inst_map": instances})
    monkeypatch.setattr("segmentation.evaluation.report.load_detector", lambda *_: DarkSpots())
    return folder


def test_figures_table_and_picture(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = CliRunner().invoke(
        main, ["evaluate", "segmentor", "hovernet-compact", "--data", str(data), "--out", str(out)]
    )
    assert ran.exit_code == 0, ran.output
    assert "drawn: 2 images" in ran.output
    figures = json.loads((out / "figures.json").read_text())["drawn"]
    rows = list(csv.DictReader((out / "images.csv").read_text().splitlines()))
    assert [row["image"] for row in rows] == ["good", "poor"]
    assert float(rows[0]["pq"]) > 0.95
    assert int(rows[1]["found"]) == pytest.approx(2 * int(rows[1]["annotated"]), abs=1)
    assert int(rows[1]["matched"]) == int(rows[1]["annotated"])
    assert figures["pq"] == pytest.approx(np.mean([float(row["pq"]) for row in rows]), abs=1e-3)
    picture = cv2.imread(str(out / "drawn-worst.jpg"))
    assert picture is not None
    assert min(picture.shape[:2]) > 1000


def test_only_what_is_named(data: Path) -> None:
    figures = evaluate_segmentor(MODEL, [data], None, lambda _: None, hold_out=["go*"])
    assert figures["drawn"]["images"] == 1
    assert figures["drawn"]["detection_f1"] == 1
    with pytest.raises(UsageError, match="no image or group is called nobody"):
        evaluate_segmentor(MODEL, [data], None, lambda _: None, hold_out=["nobody"])


def test_edges_tell_what_is_matched() -> None:
    instances = np.zeros((12, 12), np.int32)
    instances[2:7, 2:7], instances[8:11, 8:11] = 3, 5
    drawn = outlined(np.full((12, 12, 3), 255, np.uint8), instances, np.array([3]))
    assert drawn[2, 2].tolist() == list(FOUND)
    assert drawn[8, 9].tolist() == list(WRONG)
    assert drawn[4, 4].tolist() == drawn[0, 0].tolist() == [255, 255, 255]
