"""Places out of focus or under pen marks: real tissue as it is, blurred and painted, and what nuclei are told of."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import tests.support.slides as make
from pipeline.cli.main import main
from pipeline.config import RunConfig
from pipeline.regions.focus import MAX_BLUR, blur_of_cells
from pipeline.regions.pen_marks import pen_shares
from pipeline.regions.quality import CELL_PX, MIN_SHARE, QualityMap, measure_quality
from pipeline.regions.tissue import glass_white, tissue_mask
from pipeline.run_slide import run_slide
from pipeline.slide.open import open_slide
from pipeline.store.run_record import SilentReporter
from tests.pipeline.export.test_measure import write_boxes
from tests.support.paths import SHARED
from tests.support.synthetic import MPP, draw_slide, models

PUBLISHED = [SHARED / "data" / "consep" / "Train" / "Images", SHARED / "data" / "brecahad", SHARED / "data" / "ocelot"]


INKS = {"blue": (37, 95, 160), "green": (45, 115, 100), "black": (40, 40, 42), "red": (150, 20, 40)}
"""Of pens on glass."""


def quality_of(path: Path, mpp: float | None = None) -> QualityMap:
    with open_slide(path, mpp) as slide:
        found = measure_quality(slide, tissue_mask(slide), slide.thumbnail(1800))
    assert found is not None
    return found


def inked(pixels: np.ndarray, ink: tuple[int, int, int]) -> np.ndarray:
    """Let only as much light through as ink does on glass."""
    return np.rint(pixels * (np.array(ink) / 245)).astype(np.uint8)


def blurred(pixels: np.ndarray, sigma_um: float, mpp: float) -> np.ndarray:
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), sigma_um / mpp))


def test_a_blurred_half_of_the_demo_slide_is_found(demo_slide: Path, tmp_path: Path) -> None:
    """By a Gaussian of 2 µm; the half that was left alone is as sharp as before."""
    with open_slide(demo_slide) as slide:
        mpp, (width, height) = slide.mpp, slide.size_l0
        pixels = slide.read_level(0, (0, 0, width, height))
    as_it_is = quality_of(demo_slide)
    assert as_it_is.share("out_of_focus") == as_it_is.share("pen_marked") == 0
    half = height // 2
    pixels[:half] = blurred(pixels, 2, mpp)[:half]
    make.write_image(tmp_path / "half.png", pixels)
    found = quality_of(tmp_path / "half.png", mpp)
    rows = (np.arange(len(found.blur)) + 0.5) * found.cell_l0
    above, below = rows < half - found.cell_l0, rows > half + found.cell_l0
    judged = ~np.isnan(found.blur)
    assert judged[above].sum() > 30 < judged[below].sum()
    assert found.causes["out_of_focus"][above][judged[above]].all()
    assert not found.causes["out_of_focus"][below].any()


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_published_images_are_good_and_their_blurred_and_painted_copies_are_not(folder: Path) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".png", ".jpg", ".tif"))[:40:8]
    if not paths:
        pytest.skip(f"{folder} is absent")
    sharp, soft = [], []
    pens: dict[str, list[np.ndarray]] = {name: [] for name in ("none", *INKS)}
    for path in paths:
        image = cv2.imread(str(path))[..., ::-1]
        small, softened = (
            cv2.resize(pixels, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA).astype(np.uint8)
            for pixels in (image, blurred(image, 2, 0.25))
        )
        sharp.append(blur_of_cells(small, CELL_PX))
        soft.append(blur_of_cells(softened, CELL_PX))
        whole = small[: len(small) // CELL_PX * CELL_PX, : small.shape[1] // CELL_PX * CELL_PX]
        white = glass_white(small)
        pens["none"].append(pen_shares(whole, CELL_PX, white))
        for name, ink in INKS.items():
            pens[name].append(pen_shares(inked(whole, ink), CELL_PX, white))
    assert np.nanmax(np.concatenate([values.ravel() for values in sharp])) < MAX_BLUR
    told = np.concatenate([values.ravel() for values in soft])
    assert (told[~np.isnan(told)] > MAX_BLUR).mean() > 0.95
    marked = {name: np.mean(np.concatenate([v.ravel() for v in shares]) >= MIN_SHARE) for name, shares in pens.items()}
    assert marked.pop("none") == 0
    assert min(marked.values()) > 0.9, marked


def test_pen_marks_are_told_of_though_no_tissue_is_found_beneath(tmp_path: Path) -> None:
    """Tissue on the left half, a stroke from it onto the glass, and another stroke apart from it."""
    image = np.full((1500, 2000, 3), 243, np.uint8)
    image[:, :1000] = make.tissue_texture(1000, 1500)
    for part in (np.s_[300:500, 600:1400], np.s_[1000:1300, 1700:1900]):
        image[part] = inked(image[part], INKS["blue"])
    make.write_image(tmp_path / "slide.png", image)
    found = quality_of(tmp_path / "slide.png", 0.5)
    points = np.array([[800, 400], [1300, 400], [1800, 1150], [300, 400], [800, 800]], float)
    assert found.causes_at(points)["pen_marked"].tolist() == [True, True, False, False, False]
    assert np.isnan(found.blur_at(points)).tolist() == [True, True, True, False, False]
    cells = np.count_nonzero(found.pen_marked)
    assert cells == pytest.approx(800 * 200 / 128**2, rel=0.4)
    assert found.share("pen_marked") == cells / np.count_nonzero(~np.isnan(found.blur) | found.pen_marked)


def test_glass_and_coarse_slides_are_not_judged(tmp_path: Path) -> None:
    make.write_image(tmp_path / "glass.png", np.full((3000, 3000, 3), 243, np.uint8))
    found = quality_of(tmp_path / "glass.png", 0.25)
    assert np.isnan(found.blur).all()
    assert found.share("out_of_focus") == found.share("pen_marked") == 0
    assert np.isnan(blur_of_cells(np.full((100, 130, 3), 180, np.uint8), CELL_PX)).all()
    for measure in (blur_of_cells, partial(pen_shares, white=np.full(3, 245.0))):
        assert measure(np.zeros((100, 130, 3), np.uint8), cell_px=CELL_PX).shape == (2, 3)
    make.write_image(tmp_path / "coarse.png", make.tissue_texture(400, 300))
    with open_slide(tmp_path / "coarse.png", 1.1) as slide:
        assert measure_quality(slide, tissue_mask(slide), slide.thumbnail(400)) is None


def test_a_point_has_the_quality_of_its_cell() -> None:
    blur = np.array([[0.1, 0.7], [np.nan, 0.5]], np.float32)
    found = QualityMap(blur, np.array([[False, True], [True, False]]), 256.0)
    points = np.array([[0, 0], [256, 255.9], [255.9, 256], [300, 300], [-1, 0], [512, 0]], float)
    expected = np.array([0.1, 0.7, np.nan, 0.5, np.nan, np.nan], np.float32)
    np.testing.assert_array_equal(found.blur_at(points), expected)
    assert found.causes["out_of_focus"].tolist() == [[False, True], [False, False]]
    causes = found.causes_at(points)
    assert causes["out_of_focus"].tolist() == [False, True, False, False, False, False]
    assert causes["pen_marked"].tolist() == [False, True, True, False, False, False]
    assert found.share("out_of_focus") == pytest.approx(1 / 3)
    assert found.share("pen_marked") == 2 / 4


def test_the_command_tells_of_nuclei_and_regions(tmp_path: Path) -> None:
    """A drawn slide of which the right part was blurred and a part painted: its nuclei are left out on request."""
    drawn = draw_slide(1536, 1024)
    noise = np.random.default_rng(0).normal(0, 6, drawn.image.shape)
    image = np.clip(drawn.image + noise, 0, 255).astype(np.uint8)
    image[:, 768:] = blurred(image, 2, MPP)[:, 768:]
    pen = np.s_[10:502, 266:502]  # on two of 24 cells
    image[pen] = inked(image[pen], (60, 225, 200))
    make.write_image(tmp_path / "slide.png", image)
    run_slide(tmp_path / "slide.png", tmp_path / "out", models(), RunConfig(mpp=MPP, tissue="none"), SilentReporter())
    record = json.loads((tmp_path / "out" / "run.json").read_text("utf-8"))
    assert (record["out_of_focus"], record["pen_marked"]) == (0.5, 0.0833)
    report = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "<b>50.0 %</b> of the tissue is out of focus" in report
    assert "<b>8.3 %</b> of the tissue is under pen marks" in report
    roi = write_boxes(tmp_path / "roi.geojson", {"left": (0, 0, 512, 1024), "right": (1024, 0, 1536, 1024)})
    words = ["measure", str(tmp_path / "out"), "--regions", str(roi)]
    done = CliRunner().invoke(main, [*words, "--focus", "--out", str(tmp_path / "all")])
    assert done.exit_code == 0, done.output
    table = pd.read_csv(tmp_path / "all" / "quality.csv")
    right = table["x_l0"] >= 768
    assert table.loc[right, "out_of_focus"].mean() > 0.9
    assert not table.loc[~right, "out_of_focus"].any()
    assert (table["out_of_focus"] == (table["blur"] > MAX_BLUR)).all()
    pen_marked = (table["x_l0"] >= 256) & (table["x_l0"] < 512) & (table["y_l0"] < 512)
    assert 50 < pen_marked.sum() == (table["pen_marked"] == pen_marked).sum() - (~pen_marked).sum()
    numbers = f"{table['out_of_focus'].sum():,} out of focus, {pen_marked.sum()} under pen marks"
    assert done.output.splitlines()[0].startswith(f"of {len(table):,} nuclei {numbers} -> ")
    regions = pd.read_csv(tmp_path / "all" / "regions.csv").groupby("region").first()
    assert regions.loc["left", "out_of_focus"] == 0
    assert regions.loc["right", "out_of_focus"] > 0.9
    assert regions.loc["left", "pen_marked"] == pytest.approx(0.25, abs=0.05)
    assert regions.loc["right", "pen_marked"] == 0
    picture = cv2.imread(str(tmp_path / "all" / "quality.png"))
    changed = (picture != image[..., ::-1]).any(2)
    assert changed[:, 800:].any()
    assert changed[:500, 260:500].any()
    changed[:512, 256:512] = False
    assert not changed[:, :750].any()
    done = CliRunner().invoke(main, [*words, "--only-in-focus", "--out", str(tmp_path / "some")])
    assert done.exit_code == 0, done.output
    kept = pd.read_csv(tmp_path / "some" / "regions.csv").groupby("region").first()
    assert kept.loc["left", "nuclei"] == regions.loc["left", "nuclei"]
    assert kept.loc["right", "nuclei"] < 0.1 * regions.loc["right", "nuclei"]
    done = CliRunner().invoke(main, [*words, "--only-good", "--out", str(tmp_path / "good")])
    assert done.exit_code == 0, done.output
    good = pd.read_csv(tmp_path / "good" / "regions.csv").groupby("region").first()
    assert good.loc["left", "nuclei"] == regions.loc["left", "nuclei"] - pen_marked.sum()
    assert good.loc["right", "nuclei"] == kept.loc["right", "nuclei"]
