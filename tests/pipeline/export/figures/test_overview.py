"""The overview: nuclei at their places in their colours, whatever the slide's shape and name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from classifier.labels.libraries import LabelSpace, published_libraries
from classifier.predictions import Predictions
from nucpipe.errors import UsageError
from pipeline.export.figures.overview import draw_overview
from pipeline.export.quality import MARKS
from pipeline.regions.quality import QualityMap
from pipeline.store.journal import Journal
from pipeline.store.reader import Store, open_store
from pipeline.store.schema import StoreInfo
from pipeline.store.writer import finish
from segmentation.nuclei import Nuclei

OUTPUTS = LabelSpace(published_libraries(), (True,) * 35)
PANNUKE = OUTPUTS.libraries[4]
FRAME = np.array([200, 200, 200])  # round the picture on the page


def make_store(
    folder: Path, size_l0: tuple[int, int], centroids: np.ndarray, numbers: np.ndarray, side: float, name: str = "slide"
) -> Store:
    """Square nuclei of the side ``side`` at level 0, with these PanNuke labels."""
    count = len(centroids)
    corners = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)]) * side
    nuclei = Nuclei(
        centroids,
        np.arange(0, 4 * count + 1, 4),
        (centroids[:, None] + corners).reshape(-1, 2),
        np.full(count, 0.9, np.float32),
        np.full(count, (side * 0.25) ** 2, np.float32),
    )
    probabilities = np.zeros((count, 35), np.float32)
    probabilities[np.arange(count), 30 + numbers] = 1
    journal = Journal.open(folder / "journal", {})
    journal.write(0, nuclei, Predictions(probabilities))
    finish(journal, [0], folder / "nuclei.zarr", StoreInfo(name, size_l0, 0.25, (0, 0), OUTPUTS, {}, {}, "0.1.0"))
    return open_store(folder / "nuclei.zarr")


def page_of(store: Store, thumbnail: np.ndarray, path: Path, primary: str = "PanNuke") -> np.ndarray:
    draw_overview(store, thumbnail, path, primary)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.mode == "RGB"
        return np.asarray(image)


def pictures_of(page: np.ndarray, shape: tuple[int, int]) -> list[np.ndarray]:
    """The slide's pictures, the stained one first, found by the upper left corners of their frames."""
    line = (page == FRAME).all(2)
    h, w = shape
    corners = [
        (y, x)
        for y, x in np.argwhere(line[:-1, :-1] & line[1:, :-1] & line[:-1, 1:]).tolist()
        if line[y : y + h + 2, x].all() and line[y, x : x + w + 2].all() and line[y + h + 1, x + w + 1]
    ]
    return [page[y + 1 : y + 1 + h, x + 1 : x + 1 + w] for y, x in sorted(corners)]


def picture_of(page: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The picture of the nuclei."""
    _, labelled = pictures_of(page, shape)
    return labelled


@pytest.mark.parametrize("size", [(800, 800), (360, 840), (840, 360), (90, 900), (900, 90)])
@pytest.mark.parametrize("primary", ["PanNuke", "NuCLS"])
def test_the_stained_slide_is_seen_too_and_no_half_of_the_page_is_empty(
    tmp_path: Path, size: tuple[int, int], primary: str
) -> None:
    width, height = size
    store = make_store(tmp_path, (4 * width, 4 * height), np.array(size)[None] * 2.0, np.array([0]), 40)
    thumbnail = np.random.default_rng(0).integers(100, 199, (height, width, 3), np.uint8)
    page = page_of(store, thumbnail, tmp_path / "a.png", primary)
    stained, labelled = pictures_of(page, (height, width))
    np.testing.assert_array_equal(stained, thumbnail)
    colour = store.info.outputs.library(primary).colours[0]
    assert tuple(labelled[height // 2, width // 2]) == colour
    share = 2 * width * height / (page.shape[0] * page.shape[1])
    assert share > (0.4 if max(size) < 3 * min(size) else 0.1)  # of a band there is little to see
    assert page.shape[1] > 0.5 * page.shape[0]
    legend = page.copy()
    for picture in pictures_of(legend, (height, width)):
        picture[...] = 255
    for each in store.info.outputs.library(primary).colours:
        assert (legend == each).all(2).sum() > 50


@pytest.mark.parametrize("side", [200, 20], ids=["outlines", "dots"])
def test_nuclei_stand_in_their_places_in_their_colours(tmp_path: Path, side: float) -> None:
    centroids = np.array([(1000.0, 1000.0), (9000.0, 2000.0), (5000.0, 15000.0), (11000.0, 19000.0)])
    numbers = np.array([0, 1, 2, 4])
    store = make_store(tmp_path, (12000, 20000), centroids, numbers, side)
    thumbnail = np.full((2000, 1200, 3), 255, np.uint8)  # a tenth
    picture = picture_of(page_of(store, thumbnail, tmp_path / "a.png"), (2000, 1200))
    drawn = np.zeros((2000, 1200), bool)
    half = int(side / 20)
    for (x, y), number in zip((centroids / 10).astype(int), numbers, strict=True):
        inside = picture[y - half + 2 : y + half - 2, x - half + 2 : x + half - 2]
        assert (inside == PANNUKE.colours[number]).all()
        assert tuple(picture[y, x]) == PANNUKE.colours[number]
        drawn[y - half - 2 : y + half + 2, x - half - 2 : x + half + 2] = True
    assert (picture[~drawn] == 255).all()
    if side == 20:
        assert (picture != 255).any(2).sum() == 4 * 3 * 3


def test_places_of_poor_quality_are_hatched_on_the_stained_slide(tmp_path: Path) -> None:
    """On a narrow page, too, beside whose title little room is left."""
    store = make_store(tmp_path, (400, 4000), np.array([[200.0, 500.0]]), np.array([0]), 40)
    thumbnail = np.full((1000, 100, 3), 150, np.uint8)
    blur, pen_marked = np.full((10, 1), 0.3, np.float32), np.zeros((10, 1), bool)
    blur[4], pen_marked[7] = 0.9, True
    draw_overview(store, thumbnail, tmp_path / "a.png", "PanNuke", QualityMap(blur, pen_marked, 400.0))
    page = np.asarray(Image.open(tmp_path / "a.png"))
    stained, labelled = pictures_of(page, (1000, 100))
    for cause, row in (("out_of_focus", 4), ("pen_marked", 7)):
        marked = (stained == MARKS[cause][0]).all(2)
        place = np.s_[100 * row : 100 * (row + 1)]
        assert 0.15 < marked[place].mean() < 0.4
        assert marked.sum() == marked[place].sum()
        assert not (labelled == MARKS[cause][0]).all(2).any()
    assert (page[:, -2:] == 255).all()


def test_a_small_slide_is_enlarged(tmp_path: Path) -> None:
    store = make_store(tmp_path, (100, 50), np.array([(25.0, 25.0)]), np.array([3]), 10)
    page = page_of(store, np.full((50, 100, 3), 255, np.uint8), tmp_path / "a.png")
    picture = picture_of(page, (400, 800))
    dead = (picture == PANNUKE.colours[3]).all(2)
    y, x = np.nonzero(dead)
    assert (x.mean() + 0.5, y.mean() + 0.5) == pytest.approx((200, 200), abs=1)
    assert dead.sum() == pytest.approx(80 * 80, rel=0.05)


def test_under_the_nuclei_the_slide_is_pale_and_nearly_grey(tmp_path: Path) -> None:
    store = make_store(tmp_path, (1300, 1300), np.zeros((0, 2)), np.zeros(0, int), 10)
    thumbnail = np.full((1300, 1300, 3), (160, 60, 140), np.uint8)
    picture = picture_of(page_of(store, thumbnail, tmp_path / "a.png"), (1300, 1300)).astype(int)
    assert picture.min() > 140
    assert np.ptp(picture, axis=2).max() < 20


def test_the_legend_shows_each_colour(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    store = make_store(tmp_path, (4000, 4000), rng.uniform(50, 3950, (500, 2)), rng.integers(0, 5, 500), 30)
    page = page_of(store, np.full((1500, 1500, 3), 240, np.uint8), tmp_path / "a.png")
    for picture in pictures_of(page := page.copy(), (1500, 1500)):
        picture[...] = 255
    legend = page
    for colour in PANNUKE.colours:
        assert (legend == colour).all(2).sum() > 100


@pytest.mark.parametrize(
    ("name", "size"), [("Präparat Жук 切片 λ", (3000, 40)), ("x" * 300, (40, 3000)), ("a", (7, 5)), ("", (1, 1))]
)
def test_any_name_and_shape(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    store = make_store(tmp_path, size, np.array([size]) / 2, np.array([0]), 4, name)
    width, height = size
    shrink = max(1, max(size) / 800)
    thumbnail = np.zeros((max(1, round(height / shrink)), max(1, round(width / shrink)), 3), np.uint8)
    assert page_of(store, thumbnail, tmp_path / f"{name[:20]}.png").shape[2] == 3


def test_a_library_without_labels_is_drawn_grey(tmp_path: Path) -> None:
    make_store(tmp_path, (2000, 2000), np.array([(500.0, 500.0)]), np.array([0]), 100)
    blind = LabelSpace(OUTPUTS.libraries, tuple(library != "PanNuke" for library, _ in OUTPUTS.columns))
    again = tmp_path / "again"
    journal = Journal.open(tmp_path / "journal", {})
    finish(journal, [0], again, StoreInfo("s", (2000, 2000), 0.25, (0, 0), blind, {}, {}, "0"))
    page = page_of(open_store(again), np.full((2000, 2000, 3), 255, np.uint8), tmp_path / "a.png")
    assert tuple(picture_of(page, (2000, 2000))[500, 500]) == (150, 150, 150)


def test_an_unknown_library_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path, (100, 100), np.zeros((0, 2)), np.zeros(0, int), 10)
    with pytest.raises(UsageError, match="unknown library 'x'"):
        draw_overview(store, np.zeros((10, 10, 3), np.uint8), tmp_path / "a.png", "x")
    assert not (tmp_path / "a.png").exists()
