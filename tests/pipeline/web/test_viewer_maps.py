"""Maps and measuring in the viewer: counts of a part, heat maps, places of poor quality, regions of interest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

import tests.support.slides as make
from nucpipe.errors import UsageError
from pipeline.export.quality import MARKS
from pipeline.regions.quality import QualityMap
from pipeline.store.reader import Store
from pipeline.web.viewer.app import viewer_app
from pipeline.web.viewer.drawing.heat import CELL_UM, CERTAINTY_SCALE, OPACITY, SIGMA_CELLS, draw_heat, measure_heat
from pipeline.web.viewer.drawing.quality import draw_quality
from pipeline.web.viewer.nuclei import Choice, NucleiMap
from pipeline.web.viewer.open import open_viewed
from pipeline.web.viewer.tiles import Tile
from tests.pipeline.export.test_measure import write_boxes
from tests.pipeline.web.conftest import SIZE
from tests.support.browser import Client
from tests.support.stores import random_store

CELL = CELL_UM / 0.25
BOXES = {"left": (0, 0, 1200, 1800), "small one": (300, 300, 900, 900)}


@pytest.mark.parametrize("box", [(0, 0, *SIZE), (100.5, 900, 1100, 1030), (-90, -90, 700, 5000), (50, 50, 50, 50)])
def test_counts_in_sight_are_of_the_centroids_in_the_box(
    nuclei: NucleiMap, store: Store, box: tuple[float, float, float, float]
) -> None:
    choice = Choice("CoNSeP", frozenset({1}), least_p=0.3)
    x, y = store.centroids_l0.T
    inside = (x >= box[0]) & (x < box[2]) & (y >= box[1]) & (y < box[3]) & (store.label_probabilities("CoNSeP") >= 0.3)
    expected = np.bincount(store.label_numbers("CoNSeP")[inside], minlength=8)
    np.testing.assert_array_equal(nuclei.counts(choice, box), expected)


# ---- heat


def binned(store: Store, which: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    x, y = store.centroids_l0[which].T
    edges = [np.arange(int(side // CELL) + 2) * CELL for side in SIZE[::-1]]
    values = None if weights is None else weights[which]
    return np.histogram2d(y, x, edges, weights=values)[0]  # type: ignore[arg-type]


def smooth(counts: np.ndarray) -> np.ndarray:
    return np.asarray(gaussian_filter(counts.astype(float), SIGMA_CELLS, mode="constant", truncate=4))


def test_heat_is_of_the_nuclei_that_are_shown(nuclei: NucleiMap, store: Store) -> None:
    choice = Choice("PanNuke", frozenset({0, 2}), least_p=0.35)
    numbers, p = store.label_numbers("PanNuke"), store.label_probabilities("PanNuke")
    shown = ~np.isin(numbers, [0, 2]) & (p >= 0.35)
    assert 50 < shown.sum() < 350
    density = measure_heat(nuclei, choice, "density")
    np.testing.assert_allclose(density.weight, smooth(binned(store, shown)), atol=1e-4)
    assert density.certainty is None
    assert density.scale[0] == 0
    assert density.scale[1] >= 0.9 * density.weight.max() / (CELL_UM / 1000) ** 2
    certainty = measure_heat(nuclei, choice, "certainty")
    assert certainty.certainty is not None
    np.testing.assert_allclose(certainty.certainty, smooth(binned(store, shown, p)), atol=1e-4)
    assert certainty.scale == CERTAINTY_SCALE
    nothing = measure_heat(nuclei, Choice("PanNuke", frozenset(range(5))), "density")
    assert not draw_heat(nothing, Tile((0, 0, 300, 200), 8.0))[..., 3].any()


def test_colours_of_heat_are_those_of_the_middle_of_a_cell(nuclei: NucleiMap) -> None:
    heat = measure_heat(nuclei, Choice("PanNuke"), "density")
    heat = replace(heat, scale=(0.0, float(heat.weight.max()) / heat.cell_mm2))
    rows, columns = heat.weight.shape
    drawn = draw_heat(heat, Tile((0, 0, columns, rows), heat.cell_l0))  # a pixel a cell
    level = np.rint(255 * heat.weight / heat.weight.max()).astype(np.uint8)
    np.testing.assert_array_equal(drawn[..., :3], cv2.applyColorMap(level, cv2.COLORMAP_VIRIDIS))
    assert (drawn[..., 3] == OPACITY).mean() > 0.9  # nuclei are nearly everywhere


@pytest.mark.parametrize("l0_per_px", [0.5, 4.0, 16.0])
@pytest.mark.parametrize("layer", ["density", "certainty", "quality"])
def test_tiles_put_together_are_the_whole(nuclei: NucleiMap, layer: str, l0_per_px: float) -> None:
    blur = np.random.default_rng(0).uniform(0, 1, (8, 10)).astype(np.float32)
    quality, heat = QualityMap(blur, blur[::-1] > 0.7, 256.0), None
    if layer != "quality":
        heat = measure_heat(nuclei, Choice("NuCLS"), "density" if layer == "density" else "certainty")

    def draw(tile: Tile) -> np.ndarray:
        return draw_quality(quality, tile) if heat is None else draw_heat(heat, tile)

    left, top, side = int(900 / l0_per_px), int(700 / l0_per_px), 64
    whole = draw(Tile((left, top, left + 2 * side, top + 2 * side), l0_per_px))
    assert whole[..., 3].any()
    for x in (0, side):
        for y in (0, side):
            box = (left + x, top + y, left + x + side, top + y + side)
            np.testing.assert_array_equal(draw(Tile(box, l0_per_px)), whole[y : y + side, x : x + side])


# ---- quality


@pytest.mark.parametrize("cause", MARKS)
def test_a_cell_of_poor_quality_is_hatched_and_outlined(cause: str) -> None:
    blur, pen_marked = np.full((4, 5), 0.3, np.float32), np.zeros((4, 5), bool)
    blur[3, 4] = np.nan
    if cause == "pen_marked":
        pen_marked[1, 2] = True
    else:
        blur[1, 2] = 0.9
    drawn = draw_quality(QualityMap(blur, pen_marked, 256.0), Tile((0, 0, 320, 256), 4.0))  # 64 pixels a cell
    inside = np.zeros((256, 320), bool)
    inside[64:128, 128:192] = True
    assert not drawn[~inside, 3].any()
    marked = drawn[..., 3] == 255
    assert 0.15 < marked[inside].mean() < 0.45
    assert marked[64, 128:192].all()
    assert marked[64:128, 191].all()
    assert (drawn[marked][:, :3] == MARKS[cause][0][::-1]).all()


@pytest.fixture(scope="module")
def half_blurred(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A result, and its slide whose right half is out of focus."""
    folder = tmp_path_factory.mktemp("half")
    random_store(folder / "result", 400, SIZE)
    pixels = make.tissue_texture(*SIZE)
    pixels[:, 1280:] = cv2.GaussianBlur(pixels, (0, 0), 12)[:, 1280:]
    make.write_image(folder / "slide.png", pixels)
    return folder / "result", folder / "slide.png"


def test_nuclei_out_of_focus_are_counted_and_hidden(half_blurred: tuple[Path, Path]) -> None:
    result, slide = half_blurred
    view = open_viewed(result, slide, "PanNuke")
    client, right = Client(viewer_app(view)), view.nuclei.centroids_l0[:, 0] >= 1280
    query = {"library": "PanNuke", "quality": "good"}
    assert sum(client.get("/api/counts", params=query).json()) == 400  # nobody has asked for it yet
    assert client.get("/api/nuclei/7").json()["quality"] is None
    facts = client.get("/api/quality").json()
    assert facts["nuclei"] == right.sum()
    assert [(one["words"], one["share"], one["nuclei"]) for one in facts["causes"]] == [
        ("out of focus", 0.5, right.sum()),
        ("under pen marks", 0, 0),
    ]
    assert sum(client.get("/api/counts", params=query).json()) == 400 - right.sum()
    assert client.get("/api/nuclei/7").json()["quality"] == ["out of focus"] * int(right[7])
    tile = client.get("/tiles/quality/12/0_0.png").content
    picture = cv2.imdecode(np.frombuffer(tile, np.uint8), cv2.IMREAD_UNCHANGED)
    assert not picture[..., 3].any()
    tile = client.get("/tiles/quality/9/0_0.png").content
    picture = cv2.imdecode(np.frombuffer(tile, np.uint8), cv2.IMREAD_UNCHANGED)
    assert not picture[:, : 1280 // 8, 3].any()
    assert picture[:, 1280 // 8 :, 3].any()


# ---- regions


@pytest.fixture
def client(store: Store, tmp_path: Path) -> Client:
    rois = write_boxes(tmp_path / "rois.geojson", BOXES)
    return Client(viewer_app(open_viewed(store.path.parent, None, "PanNuke", regions=rois)))


def test_a_region_chooses_the_nuclei_in_it(client: Client, store: Store) -> None:
    x, y = store.centroids_l0.T
    assert client.get("/api/result").json()["regions"] is True
    regions = client.get("/api/regions").json()
    assert [one["name"] for one in regions] == list(BOXES)
    for one, (x0, y0, x1, y1) in zip(regions, BOXES.values(), strict=True):
        inside = (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
        assert one["nuclei"] == inside.sum() > 20
        assert (one["class"], one["box"]) == ("Tumor", [x0, y0, x1, y1])
        assert one["mm2"] == pytest.approx((x1 - x0) * (y1 - y0) * 0.25**2 / 1e6)
        corners = {(x0, y0), (x1, y0), (x1, y1), (x0, y1)}
        assert {tuple(place) for ring in one["rings"] for place in ring} == corners
        query = {"library": "PanNuke", "region": one["name"]}
        expected = np.bincount(store.label_numbers("PanNuke")[inside], minlength=6).tolist()
        assert client.get("/api/counts", params=query).json() == expected
        page = client.get("/api/nuclei/uncertain", params={**query, "start": 0, "count": 200}).json()
        assert {row["number"] for row in page} <= set(np.flatnonzero(inside).tolist())


def test_what_makes_no_sense_is_refused_in_a_line(client: Client, nuclei: NucleiMap) -> None:
    for path, words in [
        ("/api/counts?region=Mars", "expected one of left, small one"),
        ("/api/counts?box=1,2,3", "expected x0,y0,x1,y1"),
        ("/api/counts?box=1,2,3,nan", "expected x0,y0,x1,y1"),
        ("/api/heat?kind=love", "expected density or certainty"),
        ("/tiles/heat/9/0_0.png", "expected density or certainty"),
        ("/api/quality", "--slide"),
        ("/tiles/quality/9/0_0.png", "--slide"),
    ]:
        answer = client.get(path)
        assert answer.status_code == 400, path
        assert words in answer.json()["error"]
    assert client.get("/tiles/heat/99/0_0.png?kind=density").status_code == 404
    with pytest.raises(UsageError, match="--regions"):
        nuclei.counts(Choice("PanNuke", region="left"))
