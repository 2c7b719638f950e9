"""Places out of focus: real tissue as it is and blurred, and what of it is told of nuclei and regions."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import tests.support.slides as make
from pipeline.cli.main import main
from pipeline.config import RunConfig
from pipeline.regions.focus import CELL_UM, MAX_BLUR, FocusMap, blur_of_cells, measure_focus
from pipeline.regions.tissue import tissue_mask
from pipeline.run_slide import run_slide
from pipeline.slide.open import open_slide
from pipeline.store.run_record import SilentReporter
from tests.pipeline.export.test_measure import write_boxes
from tests.support.paths import SHARED
from tests.support.synthetic import MPP, draw_slide, models

PUBLISHED = [SHARED / "data" / "consep" / "Train" / "Images", SHARED / "data" / "brecahad", SHARED / "data" / "ocelot"]


def focus_of(path: Path, mpp: float | None = None) -> FocusMap:
    with open_slide(path, mpp) as slide:
        found = measure_focus(slide, tissue_mask(slide))
    assert found is not None
    return found


def blurred(pixels: np.ndarray, sigma_um: float, mpp: float) -> np.ndarray:
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), sigma_um / mpp))


def test_a_blurred_half_of_the_demo_slide_is_found(demo_slide: Path, tmp_path: Path) -> None:
    """By a Gaussian of 2 µm; the half that was left alone is as sharp as before."""
    with open_slide(demo_slide) as slide:
        mpp, (width, height) = slide.mpp, slide.size_l0
        pixels = slide.read_level(0, (0, 0, width, height))
    assert focus_of(demo_slide).out_of_focus_share == 0
    half = height // 2
    pixels[:half] = blurred(pixels, 2, mpp)[:half]
    make.write_image(tmp_path / "half.png", pixels)
    found = focus_of(tmp_path / "half.png", mpp)
    rows = (np.arange(len(found.blur)) + 0.5) * found.cell_l0
    above, below = rows < half - found.cell_l0, rows > half + found.cell_l0
    judged = ~np.isnan(found.blur)
    assert judged[above].sum() > 30 < judged[below].sum()
    assert found.out_of_focus[above][judged[above]].all()
    assert not found.out_of_focus[below].any()


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_published_images_are_sharp_and_their_blurred_copies_are_not(folder: Path) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".png", ".jpg", ".tif"))[:40:8]
    if not paths:
        pytest.skip(f"{folder} is absent")
    sharp, soft = [], []
    for path in paths:
        image = cv2.imread(str(path))
        for values, pixels in ((sharp, image), (soft, blurred(image, 2, 0.25))):
            values.append(blur_of_cells(cv2.resize(pixels, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)))
    assert np.nanmax(np.concatenate([values.ravel() for values in sharp])) < MAX_BLUR
    told = np.concatenate([values.ravel() for values in soft])
    assert (told[~np.isnan(told)] > MAX_BLUR).mean() > 0.95


def test_glass_and_coarse_slides_are_not_judged(tmp_path: Path) -> None:
    make.write_image(tmp_path / "glass.png", np.full((3000, 3000, 3), 243, np.uint8))
    found = focus_of(tmp_path / "glass.png", 0.25)
    assert np.isnan(found.blur).all()
    assert found.out_of_focus_share == 0
    assert np.isnan(blur_of_cells(np.full((100, 130, 3), 180, np.uint8))).all()
    assert blur_of_cells(np.zeros((100, 130, 3), np.uint8)).shape == (2, 3)
    make.write_image(tmp_path / "coarse.png", make.tissue_texture(400, 300))
    with open_slide(tmp_path / "coarse.png", 1.1) as slide:
        assert measure_focus(slide, tissue_mask(slide)) is None


def test_a_point_has_the_blur_of_its_cell() -> None:
    blur = np.array([[0.1, 0.7], [np.nan, 0.5]], np.float32)
    found = FocusMap(blur, 256.0, (CELL_UM / 1000) ** 2)
    points = np.array([[0, 0], [256, 255.9], [255.9, 256], [300, 300], [-1, 0], [512, 0]], float)
    expected = np.array([0.1, 0.7, np.nan, 0.5, np.nan, np.nan], np.float32)
    np.testing.assert_array_equal(found.at(points), expected)
    assert found.out_of_focus.tolist() == [[False, True], [False, False]]
    assert found.out_of_focus_share == pytest.approx(1 / 3)


def test_the_command_tells_of_nuclei_and_regions(tmp_path: Path) -> None:
    """A drawn slide of which the right part was blurred: its nuclei are out of focus, and are left out on request."""
    drawn = draw_slide(1536, 1024)
    noise = np.random.default_rng(0).normal(0, 6, drawn.image.shape)
    image = np.clip(drawn.image + noise, 0, 255).astype(np.uint8)
    image[:, 768:] = blurred(image, 2, MPP)[:, 768:]
    make.write_image(tmp_path / "slide.png", image)
    run_slide(tmp_path / "slide.png", tmp_path / "out", models(), RunConfig(mpp=MPP, tissue="none"), SilentReporter())
    share = json.loads((tmp_path / "out" / "run.json").read_text("utf-8"))["out_of_focus"]
    assert share == 0.5
    report = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "<b>50.0 %</b> of the tissue is out of focus" in report
    roi = write_boxes(tmp_path / "roi.geojson", {"left": (0, 0, 512, 1024), "right": (1024, 0, 1536, 1024)})
    words = ["measure", str(tmp_path / "out"), "--regions", str(roi)]
    done = CliRunner().invoke(main, [*words, "--focus", "--out", str(tmp_path / "all")])
    assert done.exit_code == 0, done.output
    table = pd.read_csv(tmp_path / "all" / "focus.csv")
    right = table["x_l0"] >= 768
    assert table.loc[right, "out_of_focus"].mean() > 0.9
    assert not table.loc[~right, "out_of_focus"].any()
    assert (table["out_of_focus"] == (table["blur"] > MAX_BLUR)).all()
    number = f"{table['out_of_focus'].sum():,} of {len(table):,} nuclei out of focus"
    assert done.output.splitlines()[0].startswith(number)
    regions = pd.read_csv(tmp_path / "all" / "regions.csv").groupby("region").first()
    assert regions.loc["left", "out_of_focus"] == 0
    assert regions.loc["right", "out_of_focus"] > 0.9
    picture = cv2.imread(str(tmp_path / "all" / "focus.png"))
    changed = (picture != image[..., ::-1]).any(2)
    assert changed[:, 800:].any()
    assert not changed[:, :750].any()
    done = CliRunner().invoke(main, [*words, "--only-in-focus", "--out", str(tmp_path / "some")])
    assert done.exit_code == 0, done.output
    kept = pd.read_csv(tmp_path / "some" / "regions.csv").groupby("region").first()
    assert kept.loc["left", "nuclei"] == regions.loc["left", "nuclei"]
    assert kept.loc["right", "nuclei"] < 0.1 * regions.loc["right", "nuclei"]
