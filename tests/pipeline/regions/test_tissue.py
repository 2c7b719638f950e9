"""Where tissue is found, and what users give instead."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

import tests.support.slides as make
from nucpipe.errors import SlideError, UsageError
from pipeline.regions.tissue import TissueMask, find_tissue, inside_ring, tissue_from, tissue_mask
from pipeline.slide.base import Slide
from pipeline.slide.open import open_slide
from tests.support.paths import SHARED

GLASS = 243
UM_PER_PX = 8.0


def on_glass(width: int = 300, height: int = 200) -> make.Image:
    """A thumbnail of bare glass with a scanner's noise."""
    noise = np.random.default_rng(1).normal(0, 1, (height, width, 3))
    return np.clip(np.round(GLASS + noise), 0, 255).astype(np.uint8)


def with_tissue(image: make.Image, *boxes: tuple[int, int, int, int]) -> make.Image:
    image = image.copy()
    texture = make.tissue_texture(image.shape[1], image.shape[0])
    for x0, y0, x1, y1 in boxes:
        image[y0:y1, x0:x1] = texture[y0:y1, x0:x1]
    return image


def box_mask(image: make.Image, *boxes: tuple[int, int, int, int], margin: int = 0) -> np.ndarray:
    mask = np.zeros(image.shape[:2], bool)
    for x0, y0, x1, y1 in boxes:
        mask[max(y0 - margin, 0) : y1 + margin, max(x0 - margin, 0) : x1 + margin] = True
    return mask


@pytest.fixture
def png(tmp_path: Path) -> Path:
    make.write_image(tmp_path / "tile.png", make.tissue_texture(400, 300))
    return tmp_path / "tile.png"


def slide_of(folder: Path, image: make.Image, mpp: float = 0.25) -> Slide:
    make.write_image(folder / "slide.png", image)
    return open_slide(folder / "slide.png", mpp)


def test_tissue_is_found_with_a_margin() -> None:
    box = (60, 50, 200, 150)
    found = find_tissue(with_tissue(on_glass(), box), UM_PER_PX)
    assert found[box_mask(found, box, margin=1)].mean() > 0.99
    assert not found[~box_mask(found, box, margin=4)].any()


@pytest.mark.parametrize("white", [255, 243, 230, 205])
def test_glass_is_no_tissue(white: int) -> None:
    assert not find_tissue(np.full((200, 300, 3), white, np.uint8), UM_PER_PX).any()


@pytest.mark.parametrize("tint", [(235, 230, 212), (228, 228, 238), (245, 238, 243)])
def test_tinted_glass_is_no_tissue(tint: tuple[int, int, int]) -> None:
    box = (60, 50, 200, 150)
    tinted = (with_tissue(on_glass(), box) / 255.0 * tint).astype(np.uint8)
    found = find_tissue(tinted, UM_PER_PX)
    assert found[box_mask(found, box)].mean() > 0.99
    assert not found[~box_mask(found, box, margin=5)].any()


def test_an_image_without_glass_is_all_tissue() -> None:
    assert find_tissue(make.tissue_texture(300, 200), UM_PER_PX).all()
    pale = 255 - (255 - make.tissue_texture(300, 200).astype(int)) // 3
    assert find_tissue(pale.astype(np.uint8), UM_PER_PX).all()


def test_specks_are_dropped_and_holes_filled() -> None:
    image = with_tissue(on_glass(), (60, 50, 200, 150), (250, 20, 253, 23))
    image[90:100, 100:110] = GLASS  # 0.0064 mm2
    image[60:90, 150:180] = GLASS  # 0.0576 mm2: a lumen or a tear
    found = find_tissue(image, UM_PER_PX)
    assert not found[10:35, 240:265].any()
    assert found[90:100, 100:110].all()
    assert not found[65:85, 155:175].any()


@pytest.mark.parametrize(
    "ink", [(35, 60, 170), (20, 30, 90), (20, 130, 70), (5, 120, 130), (25, 25, 30), (210, 30, 45), (110, 150, 215)]
)
def test_pen_is_no_tissue(ink: tuple[int, int, int]) -> None:
    """A stroke with soft edges beside the tissue: blue, navy, green, teal, black, red, pale blue."""
    box = (150, 50, 280, 150)
    stroke = np.zeros((200, 300), np.float32)
    cv2.polylines(stroke, [np.array([[20, 20], [90, 60], [40, 180]])], False, 1, 7)
    stroke = cv2.GaussianBlur(stroke, (0, 0), 1.2)[..., None]
    image = with_tissue(on_glass(), box).astype(float)
    image = (image * (np.array(ink) / 255.0) ** stroke).round().astype(np.uint8)
    found = find_tissue(image, UM_PER_PX)
    assert found[box_mask(found, box)].mean() > 0.99
    assert not found[:, :130].any()


@pytest.mark.parametrize("stain", [(90, 60, 140), (70, 45, 110), (90, 80, 150), (200, 80, 95), (205, 90, 130)])
def test_dense_nuclei_and_blood_are_tissue(stain: tuple[int, int, int]) -> None:
    """Lymphoid tissue (two purples and a blue one), red blood cells, strong eosin."""
    image = on_glass()
    image[50:150, 60:200] = stain
    found = find_tissue(image, UM_PER_PX)
    assert found[50:150, 60:200].all()


def test_a_slide_with_tissue(tmp_path: Path) -> None:
    """1 x 0.75 mm with tissue on its left half: what is found, in level-0 pixels and square millimetres."""
    image = np.full((1500, 2000, 3), GLASS, np.uint8)
    image[:, :1000] = make.tissue_texture(1000, 1500)
    with slide_of(tmp_path, image, 0.5) as slide:
        mask = tissue_mask(slide)
    assert mask.l0_per_px == (16, pytest.approx(1500 / 94))
    assert mask.area_mm2 == pytest.approx(0.5 * 0.75, rel=0.05)
    assert mask.extent((0, 0, 100, 100))
    assert mask.extent((-500, -500, 10, 10))
    assert mask.extent((1100, 0, 2000, 1500)) is None
    assert mask.extent((2000, 0, 2500, 500)) is None
    points = np.array([[999.5, 700.0], [1100, 700], [0, 0], [-1, 5], [5, -0.1], [0, 1499.9], [0, 1500]])
    assert mask.contains(points).tolist() == [True, False, True, False, False, True, False]
    parts = [mask.area_in_mm2((x, y, x + 300, y + 171)) for x in range(0, 2000, 300) for y in range(0, 1500, 171)]
    assert sum(parts) == pytest.approx(mask.area_mm2)
    assert mask.area_in_mm2((10, 10, 10, 50)) == 0


def test_a_point_on_tissue_is_in_a_covered_box(tmp_path: Path) -> None:
    """No region is left out that holds a nucleus on tissue."""
    mask = TissueMask(np.random.default_rng(0).random((30, 40)) < 0.2, (7.3, 7.9), 0.25)
    points = np.random.default_rng(1).uniform(0, 300, (500, 2))
    for (x, y), inside in zip(points, mask.contains(points), strict=True):
        x0, y0 = x // 32 * 32, y // 32 * 32
        assert not inside or mask.extent((x0, y0, x0 + 32, y0 + 32))


@pytest.mark.parametrize("size", [(1000, 1000), (100, 100), (1360, 1024), (3, 2)])
def test_a_tile_is_all_tissue_or_none(tmp_path: Path, size: tuple[int, int]) -> None:
    for name, image, all_tissue in (
        ("tissue", make.tissue_texture(*size), True),
        ("white", np.full((size[1], size[0], 3), 255, np.uint8), False),
    ):
        make.write_image(tmp_path / f"{name}.png", image)
        with open_slide(tmp_path / f"{name}.png", 0.25) as slide:
            mask = tissue_from("auto", slide)
        area = size[0] * size[1] * (0.25 / 1000) ** 2
        assert mask.area_mm2 == pytest.approx(area if all_tissue else 0)
        assert (mask.extent((0, 0, *size)) is not None) is all_tissue


def test_fat_with_few_cells_is_tissue(tmp_path: Path) -> None:
    """Thin septa between white fat: the tile counts whole."""
    image = np.full((1000, 1000, 3), GLASS, np.uint8)
    for x in range(50, 1000, 150):
        image[:, x : x + 8] = (200, 150, 190)
    with slide_of(tmp_path, image) as slide:
        assert tissue_mask(slide).mask.all()


def test_none_is_the_whole_slide(png: Path) -> None:
    with open_slide(png, 0.25) as slide:
        mask = tissue_from("none", slide)
    assert mask.area_mm2 == pytest.approx(400 * 300 * 0.25**2 / 1e6)
    assert mask.contains(np.array([[0, 0], [399.9, 299.9], [400, 10]])).tolist() == [True, True, False]


@pytest.mark.parametrize("shrink", [1, 4, 3.7])
def test_mask_image(png: Path, tmp_path: Path, shrink: float) -> None:
    drawn = np.zeros((round(300 / shrink), round(400 / shrink)), bool)
    drawn[:, : drawn.shape[1] // 4] = True
    make.write_mask(tmp_path / "mask.png", drawn)
    with open_slide(png, 0.25) as slide:
        mask = tissue_from(str(tmp_path / "mask.png"), slide)
    assert np.array_equal(mask.mask, drawn)
    assert mask.contains(np.array([[90.0, 150.0], [110, 150]])).tolist() == [True, False]


def test_a_picture_is_no_mask(png: Path, tmp_path: Path) -> None:
    """The H&E image itself used to be taken for a mask that is not black anywhere."""
    picture = make.tissue_texture(400, 300)
    assert cv2.imwrite(str(tmp_path / "he.png"), picture[..., ::-1])
    with open_slide(png, 0.25) as slide, pytest.raises(SlideError, match=r"he\.png: expected a mask.*many colours"):
        tissue_from(str(tmp_path / "he.png"), slide)
    assert cv2.imwrite(str(tmp_path / "grey.jpg"), np.dstack([picture[..., 1]] * 3))
    with open_slide(png, 0.25) as slide:
        assert tissue_from(str(tmp_path / "grey.jpg"), slide).mask.all()


def test_mask_in_colour_counts_what_is_not_black(png: Path, tmp_path: Path) -> None:
    colours = np.zeros((300, 400, 4), np.uint8)
    colours[..., 3] = 255
    colours[:100, :, 0] = 1
    assert cv2.imwrite(str(tmp_path / "mask.png"), colours)
    with open_slide(png, 0.25) as slide:
        mask = tissue_from(str(tmp_path / "mask.png"), slide)
    assert np.flatnonzero(mask.mask.any(axis=1)).tolist() == list(range(100))


def test_masks_that_do_not_fit(png: Path, tmp_path: Path) -> None:
    make.write_mask(tmp_path / "other.png", np.ones((300, 500), bool))
    (tmp_path / "words.png").write_text("no image")
    with open_slide(png, 0.25) as slide:
        with pytest.raises(
            SlideError, match=r"other\.png: the mask is 500 x 300 pixels and tile\.png 400 x 300; .* 1 %"
        ):
            tissue_from(str(tmp_path / "other.png"), slide)
        with pytest.raises(SlideError, match=r"words\.png: expected a mask image"):
            tissue_from(str(tmp_path / "words.png"), slide)
        with pytest.raises(UsageError, match=r"--tissue absent\.png: no such file; expected auto, none, "):
            tissue_from("absent.png", slide)


def test_geojson(png: Path, tmp_path: Path) -> None:
    make.write_geojson(
        tmp_path / "roi.geojson",
        [(100, 50), (300, 50), (300, 200), (100, 200)],
        [(150, 100), (200, 100), (200, 150), (150, 150)],
    )
    with open_slide(png, 0.25) as slide:
        mask = tissue_from(str(tmp_path / "roi.geojson"), slide)
    expected = np.zeros((300, 400), bool)
    expected[50:200, 100:300] = True
    expected[100:150, 150:200] = False
    np.testing.assert_array_equal(mask.mask, expected)
    assert mask.area_mm2 == pytest.approx((200 * 150 - 50 * 50) * 0.25**2 / 1e6)
    points = np.array([[101.5, 51.5], [298.5, 198.5], [98.5, 60], [175, 125], [301.5, 100], [148.5, 120]])
    assert mask.contains(points).tolist() == [True, True, False, False, False, True]


def feature(box: tuple[float, float, float, float], **properties: object) -> dict[str, object]:
    x0, y0, x1, y1 = box
    ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}


def test_only_annotations_are_regions(png: Path, tmp_path: Path) -> None:
    """A nucleus, a tile or a core in the same file is no tissue; what has no type is an annotation, as in QuPath."""
    others = ("detection", "cell", "tile", "tmaCore", "root")
    features = [
        feature((10, 10, 30, 30), objectType="annotation"),
        feature((50, 10, 70, 30)),
        feature((90, 10, 110, 30), type="tumour"),
        *(feature((10 + 40 * k, 110, 30 + 40 * k, 130), objectType=kind) for k, kind in enumerate(others)),
        feature((210, 110, 230, 130), type="detection"),
        {**feature((250, 110, 270, 130)), "id": "PathDetectionObject"},
    ]
    (tmp_path / "roi.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    expected = np.zeros((300, 400), bool)
    for x in (10, 50, 90):
        expected[10:30, x : x + 20] = True
    with open_slide(png, 0.25) as slide:
        mask = tissue_from(str(tmp_path / "roi.geojson"), slide)
        np.testing.assert_array_equal(mask.mask, expected)
        (tmp_path / "roi.geojson").write_text(json.dumps(features[3:]))
        with pytest.raises(SlideError, match=r"roi\.geojson: expected GeoJSON with polygons; it holds none \(.*detect"):
            tissue_from(str(tmp_path / "roi.geojson"), slide)


def test_what_is_to_be_ignored_is_cut_out(png: Path, tmp_path: Path) -> None:
    """An annotation of the class Ignore* is no tissue, wherever it stands in the file; Region* is an ordinary class."""
    features = [
        feature((110, 10, 130, 30), classification={"name": "Ignore*", "color": [180, 180, 180]}),
        feature((100, 10, 200, 110), classification={"name": "Region*", "color": [0, 0, 180]}),
        feature((150, 50, 400, 300), classification={"names": ["Ignore*", "fold"], "color": [180, 180, 180]}),
    ]
    expected = np.zeros((300, 400), bool)
    expected[10:110, 100:200] = True
    expected[10:30, 110:130] = False
    expected[50:, 150:] = False
    with open_slide(png, 0.25) as slide:
        (tmp_path / "roi.geojson").write_text(json.dumps(features))
        np.testing.assert_array_equal(tissue_from(str(tmp_path / "roi.geojson"), slide).mask, expected)
        (tmp_path / "roi.geojson").write_text(json.dumps(features[::2]))
        with pytest.raises(SlideError, match=r"it holds none"):
            tissue_from(str(tmp_path / "roi.geojson"), slide)


def test_polygons_that_share_edges_share_no_pixel() -> None:
    """Every pixel of a plane that is cut into triangles lies in exactly one of them."""
    rng = np.random.default_rng(3)
    for _ in range(50):
        # Vertices on halves and quarters of pixels: edges that run through the centres of pixels are the hard ones.
        corners = np.array([[0, 0], [40, 0], [40, 30], [0, 30]], float)
        middle = rng.integers(1, [160, 120]) / 4
        parts = [inside_ring(np.array([corners[k - 1], corners[k], middle]), (30, 40)) for k in range(4)]
        np.testing.assert_array_equal(np.sum(parts, axis=0), 1)
        turned = [inside_ring(np.array([middle, corners[k], corners[k - 1]]), (30, 40)) for k in range(4)]
        np.testing.assert_array_equal(parts, turned)


def test_pixels_inside_are_those_whose_centre_is() -> None:
    ring = np.random.default_rng(5).uniform(-5, 45, (9, 2))  # crosses itself
    y, x = np.mgrid[:30, :40] + 0.5
    even_odd = np.zeros((30, 40), bool)
    for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, 0), strict=True):
        even_odd ^= ((y0 <= y) != (y1 <= y)) & (x >= x0 + (y - y0) / (y1 - y0) * (x1 - x0))
    assert 100 < even_odd.sum() < 1100
    np.testing.assert_array_equal(inside_ring(ring, (30, 40)), even_odd)
    assert inside_ring(np.array([[0, 0], [20, 0], [20, 20], [0, 20]], float), (30, 40)).sum() == 400


def test_geojson_counts_from_the_origin(png: Path, tmp_path: Path) -> None:
    """QuPath shows a slide from the corner of its scanned part."""
    make.write_geojson(tmp_path / "roi.geojson", [(0, 0), (50, 0), (50, 40), (0, 40)])
    with open_slide(png, 0.25) as slide:
        slide.origin_l0 = (200, 100)
        mask = tissue_from(str(tmp_path / "roi.geojson"), slide)
    assert mask.contains(np.array([[225.0, 120], [25, 20], [252, 120]])).tolist() == [True, False, False]


def test_geojson_of_every_shape(png: Path, tmp_path: Path) -> None:
    square = [[[10, 10], [60, 10], [60, 60], [10, 60], [10, 10]]]
    other = [[[110.5, 10], [160, 10, 0], [135, 60], [110.5, 10]]]
    polygon, both = {"type": "Polygon", "coordinates": square}, {"type": "MultiPolygon", "coordinates": [square, other]}
    point = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [300, 250]}, "properties": {}}
    nowhere = {"type": "Feature", "geometry": None, "properties": {}}
    shapes = {
        "bare": (polygon, [True, False]),
        "feature": ({"type": "Feature", "geometry": both, "properties": {}}, [True, True]),
        "list": ([{"type": "Feature", "geometry": polygon, "properties": {}}, point, nowhere], [True, False]),
        "collection": ({"type": "GeometryCollection", "geometries": [both]}, [True, True]),
    }
    with open_slide(png, 0.25) as slide:
        for name, (content, expected) in shapes.items():
            (tmp_path / f"{name}.geojson").write_text(json.dumps(content))
            mask = tissue_from(str(tmp_path / f"{name}.geojson"), slide)
            assert mask.contains(np.array([[35.0, 35], [135, 25]])).tolist() == expected
            assert mask.extent((200, 100, 400, 300)) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"type": "FeatureColl', "expected GeoJSON with polygons; it cannot be read"),
        ("[1, 2]", "expected GeoJSON with polygons; it cannot be read"),
        ('{"type": "Polygon"}', "expected GeoJSON with polygons; it cannot be read"),
        ('{"type": "Polygon", "coordinates": [[[1, 2], [3, 4]]]}', "fewer than three points"),
        ('{"type": "Polygon", "coordinates": [[[1, 2], [3, NaN], [4, 4]]]}', "not a number"),
        ('{"type": "FeatureCollection", "features": []}', "it holds none"),
        ('{"type": "Polygon", "coordinates": [[[900, 2], [990, 2], [950, 40]]]}', "outside tile.png of 400 x 300 pix"),
        ('{"type": "Polygon", "coordinates": [[[-9e9, 2], [-5e9, 2], [-5e9, 40]]]}', "outside tile.png of 400 x 300"),
    ],
)
def test_geojson_that_is_none(png: Path, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "roi.geojson").write_text(content)
    with open_slide(png, 0.25) as slide, pytest.raises(SlideError) as error:
        tissue_from(str(tmp_path / "roi.geojson"), slide)
    text = str(error.value)
    assert text.startswith("roi.geojson: ")
    assert message in text
    assert "\n" not in text


def test_a_polygon_larger_than_the_slide_takes_it_all(png: Path, tmp_path: Path) -> None:
    make.write_geojson(tmp_path / "roi.geojson", [(-1e9, -1e9), (1e9, -1e9), (1e9, 1e9), (-1e9, 1e9)])
    with open_slide(png, 0.25) as slide:
        assert tissue_from(str(tmp_path / "roi.geojson"), slide).mask.all()


def test_demo_slide_has_its_tissue(demo_slide: Path) -> None:
    """What was looked at: the whole piece of skin and its thread on the left, no glass, no dust."""
    with open_slide(demo_slide) as slide:
        mask = tissue_mask(slide)
    assert mask.area_mm2 == pytest.approx(0.72, abs=0.03)
    tissue = np.array([[900.0, 1000], [1000, 2800], [300, 1090], [1600, 2600], [1150, 2100], [1090, 150]])
    glass = np.array([[300.0, 300], [2000, 300], [300, 2000], [2060, 2190], [2100, 2900], [2050, 600]])
    assert mask.contains(tissue).all()
    assert not mask.contains(glass).any()


def test_published_tiles_are_all_tissue() -> None:
    images = sorted((SHARED / "data" / "consep" / "Train" / "Images").glob("*.png"))[::5]
    if not images:
        pytest.skip(f"{SHARED / 'data' / 'consep'} is absent")
    for image in images:
        with open_slide(image, 0.25) as slide:
            assert tissue_mask(slide).mask.all()
