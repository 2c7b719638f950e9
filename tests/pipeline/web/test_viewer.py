"""The viewer: what its tiles show, what its server answers, and to whom."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest
from click.testing import CliRunner

from classifier.patches import cut_crops
from nucpipe.errors import SlideError, UsageError
from pipeline.cli.main import main
from pipeline.slide.grid import WorkingGrid
from pipeline.slide.open import open_slide
from pipeline.store.reader import Store
from pipeline.web.viewer import app as view_app
from pipeline.web.viewer.drawing.nuclei import draw_nuclei
from pipeline.web.viewer.nuclei import Choice, NucleiMap
from pipeline.web.viewer.open import open_viewed
from pipeline.web.viewer.tiles import ENLARGED_LEVELS, TILE_PX, Pyramid, Tile
from segmentation.nuclei import NucleusFilter
from tests.pipeline.web.conftest import SIZE
from tests.support.browser import run_drawn, viewed
from tests.support.stores import random_store
from tests.support.synthetic import MPP, Drawn, draw_slide

# ---- the index


@pytest.mark.parametrize(
    "box", [(0, 0, 4000, 3000), (900, 1000, 1100, 1030), (2048, 0, 2049, 9), (-90, -90, -80, 5000)]
)
def test_the_index_gives_all_that_lie_in_a_box(
    nuclei: NucleiMap, store: Store, box: tuple[float, float, float, float]
) -> None:
    x, y = store.centroids_l0.T
    inside = np.flatnonzero((x >= box[0]) & (x <= box[2]) & (y >= box[1]) & (y <= box[3]))
    rows = nuclei.rows_in(box)
    assert len(set(rows.tolist())) == len(rows)
    assert set(inside.tolist()) <= set(rows.tolist())


def test_outlines_are_the_stores(nuclei: NucleiMap, store: Store) -> None:
    offsets, points = store.contours()
    for _ in range(2):  # from the disk, then from memory
        parts = nuclei.outlines((0, 0, *SIZE))
        assert sorted(row for part in parts for row in part.rows.tolist()) == list(range(len(store)))
        for part in parts:
            for i, row in enumerate(part.rows.tolist()):
                ring = points[offsets[row] : offsets[row + 1]]
                np.testing.assert_array_equal(part.points[part.offsets[i] : part.offsets[i + 1]], ring)
                assert part.boxes[i].tolist() == [*ring.min(0), *ring.max(0)]


def test_memory_of_outlines_is_bounded(nuclei: NucleiMap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.web.viewer.nuclei.CELLS_KEPT", 2)
    assert sum(len(part.rows) for part in nuclei.outlines((0, 0, *SIZE))) == 400
    assert len(nuclei._kept) == 2
    assert sum(len(part.rows) for part in nuclei.outlines((0, 0, *SIZE))) == 400


def test_a_click_finds_the_nucleus_round_it_or_beside_it(nuclei: NucleiMap, store: Store) -> None:
    choice = Choice("PanNuke")
    offsets, points = store.contours()
    numbers, p = nuclei.labels("PanNuke")
    for row in range(0, 400, 25):
        x, y = store.centroids_l0[row].tolist()
        assert nuclei.at(x, y, 0, choice) == row
        right = points[offsets[row] : offsets[row + 1], 0].max()
        assert nuclei.at(float(right) + 1.5, y, 0, choice) != row
        assert nuclei.at(float(right) + 1.5, y, 4, choice) is not None
        assert nuclei.at(x, y, 0, Choice("PanNuke", frozenset({int(numbers[row])}))) is None
        assert nuclei.at(x, y, 0, Choice("PanNuke", least_p=float(p[row]) + 0.01)) is None
    assert nuclei.at(-500, -500, 10, choice) is None


def test_the_least_certain_come_first_page_by_page(nuclei: NucleiMap) -> None:
    numbers, p = nuclei.labels("CoNSeP")
    choice = Choice("CoNSeP", frozenset({0, 3}), least_p=0.3)
    shown = np.flatnonzero(~np.isin(numbers, [0, 3]) & (p >= 0.3))
    expected = shown[np.argsort(p[shown], kind="stable")].tolist()
    assert len(expected) > 50
    pages = [nuclei.least_certain(choice, start, 60).tolist() for start in range(0, len(expected) + 60, 60)]
    assert [row for page in pages for row in page] == expected


def test_small_and_unsure_nuclei_are_hidden(nuclei: NucleiMap, store: Store) -> None:
    choice = Choice("CoNSeP", frozenset({3}), kept=NucleusFilter(9, 0.7))
    shown = (store.area_um2 >= 9) & (store.detection_p >= 0.7) & (store.label_numbers("CoNSeP") != 3)
    assert 50 < shown.sum() < 300
    np.testing.assert_array_equal(nuclei.shown(slice(None), choice), shown)
    assert nuclei.counts(choice).sum() == ((store.area_um2 >= 9) & (store.detection_p >= 0.7)).sum()
    for row in (int(np.flatnonzero(shown)[0]), int(np.flatnonzero(~shown)[0])):
        x, y = store.centroids_l0[row].tolist()
        assert (nuclei.at(x, y, 0, choice) == row) == shown[row]
    assert set(nuclei.least_certain(choice, 0, 400).tolist()) == set(np.flatnonzero(shown).tolist())


# ---- tiles


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (512, 513), (4000, 3000), (100_001, 64)])
def test_the_tiles_of_every_level_cover_it_once(size: tuple[int, int]) -> None:
    pyramid = Pyramid(size)
    assert 2 ** (pyramid.full_level - 1) < max(size) <= 2**pyramid.full_level
    for level in range(pyramid.full_level + ENLARGED_LEVELS + 1):
        l0_per_px = 2.0 ** (pyramid.full_level - level)
        width, height = (int(np.ceil(side / l0_per_px)) for side in size)
        columns, lines = -(-width // TILE_PX), -(-height // TILE_PX)
        last = pyramid.nuclei_tile(level, columns - 1, lines - 1)
        assert last is not None
        assert last.box == ((columns - 1) * TILE_PX, (lines - 1) * TILE_PX, width, height)
        assert pyramid.nuclei_tile(level, columns, 0) is None
        assert pyramid.nuclei_tile(level, 0, lines) is None
    assert pyramid.nuclei_tile(pyramid.full_level + ENLARGED_LEVELS + 1, 0, 0) is None
    assert pyramid.slide_tile(pyramid.full_level + 1, 0, 0) is None
    assert pyramid.slide_tile(-1, 0, 0) is None


def test_tiles_of_the_slide_overlap_by_a_pixel_inside() -> None:
    pyramid = Pyramid((1500, 700))
    tiles = [[pyramid.slide_tile(pyramid.full_level, column, line) for column in range(3)] for line in range(2)]
    assert [tile.box for tile in tiles[0] if tile] == [(0, 0, 513, 513), (511, 0, 1025, 513), (1023, 0, 1500, 513)]
    assert [tile.box for tile in tiles[1] if tile] == [
        (0, 511, 513, 700),
        (511, 511, 1025, 700),
        (1023, 511, 1500, 700),
    ]


# At 0.25 µm the octagons are some 14 pixels wide: outlines on the slide's own pixels, dots at 4, density at 32.
@pytest.mark.parametrize("l0_per_px", [0.25, 1.0, 2.0, 4.0, 8.0, 32.0])
def test_tiles_put_together_are_the_whole(nuclei: NucleiMap, store: Store, l0_per_px: float) -> None:
    choice = Choice("NuCLS", frozenset({1}), 0.05)
    side = 128
    left, top = (int(edge) for edge in np.maximum(store.centroids_l0[200] / l0_per_px - (128, 100), 0))
    whole = draw_nuclei(nuclei, Tile((left, top, left + 3 * side, top + 2 * side), l0_per_px), choice)
    assert whole[..., 3].any()
    for x in range(0, 3 * side, side):
        for y in range(0, 2 * side, side):
            box = (left + x, top + y, left + x + side, top + y + side)
            part = draw_nuclei(nuclei, Tile(box, l0_per_px), choice)
            same = whole[y : y + side, x : x + side]
            np.testing.assert_array_equal(part[..., 3], same[..., 3])
            np.testing.assert_array_equal(part[part[..., 3] > 0], same[part[..., 3] > 0])


@pytest.mark.parametrize("l0_per_px", [1.0, 2.0, 4.0])
def test_nuclei_are_seen_in_their_places_in_their_colours(nuclei: NucleiMap, store: Store, l0_per_px: float) -> None:
    library = store.info.outputs.library("PanNuke")
    numbers, _ = nuclei.labels("PanNuke")
    drawn = draw_nuclei(
        nuclei, Tile((0, 0, int(4000 / l0_per_px), int(3000 / l0_per_px)), l0_per_px), Choice("PanNuke")
    )
    x, y = (store.centroids_l0 / l0_per_px).astype(int).T
    assert (drawn[y, x, 3] > 0).all()
    alone = np.array([(np.abs(store.centroids_l0 - place).max(1) < 30).sum() == 1 for place in store.centroids_l0])
    assert alone.sum() > 200
    expected = np.array(library.colours)[numbers][:, ::-1]
    np.testing.assert_array_equal(drawn[y, x, :3][alone], expected[alone])
    # What is opaque lies within an outline's reach.
    far = np.ones(drawn.shape[:2], bool)
    reach = int(np.ceil(11 / l0_per_px)) + 3
    for px, py in zip(x.tolist(), y.tolist(), strict=True):
        far[max(0, py - reach) : py + reach, max(0, px - reach) : px + reach] = False
    assert far.any()
    assert not drawn[far, 3].any()


def test_density_mixes_colours_and_grows_with_the_number(nuclei: NucleiMap, store: Store) -> None:
    drawn = draw_nuclei(nuclei, Tile((0, 0, 4, 3), 600.0), Choice("PanNuke"))
    colours = np.array(store.info.outputs.library("PanNuke").colours, float)
    numbers, _ = nuclei.labels("PanNuke")
    column, line = (store.centroids_l0 // 600).astype(int).T
    counts = np.zeros((3, 4), int)
    for i in range(3):
        for j in range(4):
            here = (line == i) & (column == j)
            counts[i, j] = here.sum()
            np.testing.assert_allclose(drawn[i, j, :3], colours[numbers[here]].mean(0)[::-1], atol=0.51)
    order = np.argsort(counts, axis=None)
    assert (np.diff(drawn[..., 3].ravel()[order].astype(int)) >= 0).all()


@pytest.mark.parametrize("l0_per_px", [1.0, 4.0, 32.0])
def test_what_is_switched_off_is_not_drawn(nuclei: NucleiMap, store: Store, l0_per_px: float) -> None:
    tile = Tile((0, 0, int(SIZE[0] / l0_per_px), int(SIZE[1] / l0_per_px)), l0_per_px)
    everything = frozenset(range(5))
    assert not draw_nuclei(nuclei, tile, Choice("PanNuke", everything)).any()
    assert not draw_nuclei(nuclei, tile, Choice("PanNuke", least_p=1.01))[..., 3].any()
    only = draw_nuclei(nuclei, tile, Choice("PanNuke", everything - {2}))
    expected = np.array(store.info.outputs.library("PanNuke").colours[2])[::-1]
    assert (only[only[..., 3] > 0][:, :3] == expected).all()


@pytest.mark.parametrize(
    "choice", [Choice("CoNSeP"), Choice("CoNSeP", frozenset({1, 3}), 0.5), Choice("NuCLS", frozenset(), 0.31)]
)
def test_the_legend_counts_what_the_filters_leave(nuclei: NucleiMap, store: Store, choice: Choice) -> None:
    obs = store.table.obs
    left = obs[obs[f"{choice.library}_p"] >= choice.least_p]
    counts = nuclei.counts(choice)
    assert counts.tolist() == [*left[choice.library].value_counts(sort=False), 0]
    assert 0 < counts.sum() <= len(store)
    on = [n for label, n in enumerate(counts) if label not in choice.off]
    assert sum(on) == nuclei.shown(slice(None), choice).sum()


def test_a_nucleus_without_a_label_is_grey_and_can_be_switched_off(tmp_path: Path) -> None:
    store = random_store(tmp_path, 40, (400, 400), settings={"decide": {"kind": "best", "threshold": 0.6}})
    nuclei = NucleiMap(store)
    numbers, _ = nuclei.labels("NuCLS")
    assert (numbers < 0).any()
    tile = Tile((0, 0, 400, 400), 1.0)
    only_unnamed = draw_nuclei(nuclei, tile, Choice("NuCLS", frozenset(range(12))))
    assert (only_unnamed[only_unnamed[..., 3] > 0][:, :3] == 150).all()
    assert not draw_nuclei(nuclei, tile, Choice("NuCLS", frozenset(range(13))))[..., 3].any()
    assert set(nuclei.least_certain(Choice("NuCLS"), 0, 40)) == set(np.flatnonzero(numbers >= 0))


def test_a_store_without_nuclei_is_shown_empty(tmp_path: Path) -> None:
    nuclei = NucleiMap(random_store(tmp_path, 0))
    for l0_per_px in (0.5, 4.0, 64.0):
        assert not draw_nuclei(nuclei, Tile((0, 0, 40, 30), l0_per_px), Choice("PanNuke")).any()
    assert nuclei.at(5, 5, 10, Choice("PanNuke")) is None
    assert nuclei.least_certain(Choice("PanNuke"), 0, 10).tolist() == []


# ---- the server, as users start it


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    return draw_slide(700, 600)


@pytest.fixture(scope="module")
def result(drawn: Drawn, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_drawn(drawn, tmp_path_factory.mktemp("viewed"))


@pytest.fixture(scope="module")
def server(result: Path) -> Iterator[httpx.Client]:
    with viewed(result.parent) as address, httpx.Client(base_url=address, timeout=30) as client:
        yield client


def picture(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.asarray(cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_UNCHANGED))


def test_the_page_needs_nothing_from_elsewhere(server: httpx.Client) -> None:
    page = server.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(links) == 5
    for link in links:
        assert link.startswith(("/", "data:"))
        if link.startswith("/"):
            assert server.get(link).status_code == 200
    licence = server.get("/shared/openseadragon.LICENSE.txt")
    assert "OpenSeadragon contributors" in licence.text


def test_the_result_is_described(server: httpx.Client, drawn: Drawn) -> None:
    facts = server.get("/api/result").json()
    assert (facts["name"], facts["size"], facts["note"]) == ("tile", [700, 600], "")
    assert (facts["mpp"], facts["nuclei"], facts["primary"]) == (MPP, len(drawn.centres), "PanNuke")
    assert [library["name"] for library in facts["libraries"]] == ["NuCLS", "BreCaHAD", "CoNSeP", "MoNuSAC", "PanNuke"]
    for library in facts["libraries"]:
        assert sum(label["count"] for label in library["labels"]) == len(drawn.centres)
    given = {label["name"]: label["given"] for label in facts["libraries"][0]["labels"]}
    assert not given["lymphocyte"]  # untrained in the made-up classifier
    assert given["tumor"]
    assert not given["no label"]


def test_tiles_of_the_slide_are_its_pixels(server: httpx.Client, drawn: Drawn) -> None:
    tile = picture(server.get("/tiles/slide/10/1_1.jpg"))
    expected = drawn.image[511:600, 511:700, ::-1]
    assert tile.shape == expected.shape
    assert np.abs(tile.astype(int) - expected).mean() < 3
    small = picture(server.get("/tiles/slide/8/0_0.jpg"))
    assert small.shape == (150, 175, 3)
    assert np.abs(small.mean((0, 1)) - drawn.image.mean((0, 1))[::-1]).max() < 2


def test_tiles_of_nuclei_lie_on_the_slides_nuclei(server: httpx.Client, drawn: Drawn) -> None:
    tile = picture(server.get("/tiles/nuclei/11/0_0.png"))  # enlarged twice
    assert tile.shape == (512, 512, 4)
    dark = (drawn.image[:256, :256, 1] < 110).repeat(2, 0).repeat(2, 1)
    edge = cv2.morphologyEx(dark.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((7, 7))) > 0
    assert ((tile[..., 3] > 0) == dark)[~edge].all()


def test_what_is_not_there_is_said_so(server: httpx.Client) -> None:
    for address in ("tiles/slide/99/0_0.jpg", "tiles/slide/10/9_0.jpg", "tiles/nuclei/14/0_0.png", "api/nuclei/99999"):
        answer = server.get(address)
        assert answer.status_code == 404
        assert answer.json()["error"].startswith("no such")
    for query in ("library=Mars", "off=x", "p=high", "p=nan"):
        answer = server.get(f"tiles/nuclei/10/0_0.png?{query}")
        assert answer.status_code == 400, query
        assert "expected" in answer.json()["error"] or "unknown library" in answer.json()["error"]


def test_only_this_machine_is_answered(server: httpx.Client) -> None:
    assert server.get("/api/result", headers={"Host": "evil.example"}).status_code == 400
    assert server.get("/api/result", headers={"Host": "localhost"}).status_code == 200


def test_a_nucleus_has_five_labels_with_probabilities_and_its_crop(
    server: httpx.Client, drawn: Drawn, result: Path
) -> None:
    x, y = drawn.centres[17]
    nucleus = server.get("/api/nuclei/at", params={"x": x, "y": y, "tolerance": 2}).json()
    assert (nucleus["x"], nucleus["y"]) == pytest.approx((x, y), abs=0.02)
    assert server.get(f"/api/nuclei/{nucleus['number']}").json() == nucleus
    store = open_viewed(result, None, None).result.store
    assert store.ids[nucleus["number"]] == nucleus["id"]
    row = store.probabilities[nucleus["number"]]
    for library in store.info.outputs.libraries:
        labels = nucleus["labels"][library.name]
        assert sum(label["p"] for label in labels) == pytest.approx(1, abs=1e-5)
        assert [label["p"] for label in labels] == sorted((label["p"] for label in labels), reverse=True)
        assert [label["chosen"] for label in labels] == [True] + [False] * (len(labels) - 1)
        best = library.labels.index(labels[0]["name"])
        assert labels[0]["p"] == pytest.approx(float(row[store.info.outputs.slices[library.name]][best]))
    crop = picture(server.get(f"/api/nuclei/{nucleus['number']}/crop.png"))
    with open_slide(result.parents[1] / "tile.png", MPP) as slide:
        grid = WorkingGrid.for_slide(slide.size_l0, MPP)
        window = slide.read(grid, (0, 0, 704, 608))
    seen = cut_crops(window, store.centroids_l0[[nucleus["number"]]], 1)[0]
    np.testing.assert_array_equal(crop[..., ::-1], cv2.resize(seen, (224, 224), interpolation=cv2.INTER_LINEAR))
    assert server.get("/api/nuclei/at", params={"x": -50, "y": -50, "tolerance": 2}).json() is None


def test_the_filter_holds_for_all_that_is_asked_for(server: httpx.Client, result: Path) -> None:
    facts = server.get("/api/result").json()
    assert (facts["area"], facts["detection"]) == (0, 0)
    store = open_viewed(result, None, None).result.store
    least = float(np.median(store.area_um2))
    row = int(np.argmin(store.area_um2))
    x, y = store.centroids_l0[row].tolist()
    place = {"x": x, "y": y, "tolerance": 0}
    assert server.get("/api/nuclei/at", params=place).json()["number"] == row
    assert server.get("/api/nuclei/at", params={**place, "area": least}).json() is None
    page = {"start": 0, "count": 200}
    found = server.get("/api/nuclei/uncertain", params={**page, "area": least}).json()
    assert {one["number"] for one in found} == set(np.flatnonzero(store.area_um2 >= np.float32(least)).tolist())
    for wrong in ({"area": -1}, {"detection": 2}):
        answer = server.get("/api/nuclei/uncertain", params={**page, **wrong})
        assert answer.status_code == 400
        assert "expected" in answer.json()["error"]


def test_the_least_certain_are_listed(server: httpx.Client) -> None:
    found = server.get("/api/nuclei/uncertain", params={"library": "monusac", "start": 0, "count": 20}).json()
    assert len(found) == 20
    assert [one["p"] for one in found] == sorted(one["p"] for one in found)
    for one in found[:3]:
        nucleus = server.get(f"/api/nuclei/{one['number']}").json()
        best = nucleus["labels"]["MoNuSAC"][0]
        assert (best["name"], round(best["p"], 4)) == (one["label"], one["p"])


# ---- what is opened


def test_without_its_slide_a_result_is_shown_alone(result: Path, tmp_path: Path) -> None:
    moved = random_store(tmp_path).path.parent
    alone = open_viewed(moved, None, "consep")
    assert alone.slide is None
    assert "--slide" in alone.note
    assert alone.primary == "CoNSeP"
    found = open_viewed(result, None, None)
    assert found.slide is not None
    assert found.note == ""
    with pytest.raises(SlideError, match="4000 x 3000"):
        open_viewed(moved, result.parents[1] / "tile.png", None)
    with pytest.raises(UsageError, match="give its path"):
        open_viewed(result, tmp_path / "gone.svs", None)


def test_a_viewer_begins_with_the_filter_that_is_asked_for(tmp_path: Path) -> None:
    random_store(tmp_path, settings={"min_area_um2": 4.0})
    assert open_viewed(tmp_path, None, None).kept == NucleusFilter(4)
    asked = open_viewed(tmp_path, None, None, 6, 0.7)
    assert asked.kept == NucleusFilter(6, 0.7)
    assert len(asked.nuclei) == 200  # all are at hand
    with pytest.raises(UsageError, match="expected 4 or more, or run the slide again with --min-area 3"):
        open_viewed(tmp_path, None, None, 3)


def test_wrong_usage_is_one_line(tmp_path: Path, result: Path) -> None:
    for arguments, words in [
        ([str(tmp_path / "none")], "no such folder"),
        ([str(result), "--primary", "Mars"], "unknown library"),
        ([str(result), "--slide", str(tmp_path / "x.svs")], "give its path"),
    ]:
        done = CliRunner().invoke(main, ["view", *arguments, "--no-browser"])
        assert done.exit_code in (1, 2)
        assert "Traceback" not in done.output
        assert words in done.output


def test_the_pages_files_are_packaged() -> None:
    assert (view_app.STATIC / "index.html").is_file()
    assert (view_app.SHARED_STATIC / "openseadragon.min.js").is_file()
