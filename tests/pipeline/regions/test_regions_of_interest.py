"""Which nuclei lie in which region that somebody drew."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nucpipe.errors import SlideError, UsageError
from pipeline.regions.regions_of_interest import RegionsOfInterest, read_regions
from pipeline.regions.tissue import inside_ring

SIZE = (400, 300)


def ring(x0: float, y0: float, x1: float, y1: float) -> list[list[float]]:
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]


def feature(*rings: list[list[float]], name: str = "", label: str = "", kind: str = "annotation") -> dict[str, Any]:
    properties: dict[str, Any] = {"objectType": kind}
    properties |= {"name": name} if name else {}
    properties |= {"classification": {"name": label, "color": [1, 2, 3]}} if label else {}
    geometry = {"type": "Polygon", "coordinates": list(rings)}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def regions_of(path: Path, features: list[Any], origin: tuple[int, int] = (0, 0)) -> RegionsOfInterest:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return read_regions(path, "slide", SIZE, origin, 0.25)


def test_names_classes_and_areas(tmp_path: Path) -> None:
    features = [
        feature(ring(0, 0, 100, 100), ring(10, 10, 30, 30), label="Tumor"),
        feature(ring(0, 0, 10, 10), label="Tumor"),
        feature(ring(0, 0, 10, 10), name="Tumor 1", label="Stroma"),
        feature(ring(0, 0, 10, 10)),
        feature(ring(380, 280, 500, 500), name="edge"),
        feature(ring(50, 50, 60, 60), kind="detection", name="nucleus"),
        feature(ring(90, 0, 100, 50), label="Ignore*"),
        {"type": "Feature", "geometry": {"type": "Point", "coordinates": [5, 5]}, "properties": {}},
    ]
    regions = regions_of(tmp_path / "roi.geojson", features)
    assert regions.names == ("Tumor 2", "Tumor 3", "Tumor 1", "region", "edge")
    assert regions.labels == ("Tumor", "Tumor", "Stroma", "", "")
    px_mm2 = 0.25**2 / 1e6
    expected = [100 * 100 - 20 * 20 - 10 * 50, 100, 100, 100, 20 * 20]
    np.testing.assert_allclose(regions.areas_mm2, np.array(expected) * px_mm2, rtol=1e-12)


def test_regions_that_can_hold_no_nuclei_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Coordinates in millimetres, or those of another slide."""
    large, tiny, outside = (
        feature(ring(*box), name=name)
        for name, box in (("large", (0, 0, 50, 50)), ("tiny", (1, 1, 1.2, 1.3)), ("away", (500, 0, 900, 90)))
    )
    regions_of(tmp_path / "roi.geojson", [large])
    assert not caplog.records
    regions_of(tmp_path / "roi.geojson", [large, tiny, outside])
    assert "roi.geojson: 2 of 3 regions, as tiny, lie outside the slide or are smaller than 100 µm²" in caplog.text


def test_the_smallest_region_has_a_point(tmp_path: Path) -> None:
    features = [
        feature(ring(50, 50, 60, 60), name="small"),
        feature(ring(0, 0, 200, 200), name="large"),
        feature(ring(40, 40, 100, 100), name="middle"),
    ]
    regions = regions_of(tmp_path / "roi.geojson", features)
    points = np.array([[55, 55], [45, 45], [10, 10], [300, 10]], float)
    assert regions.smallest(points).tolist() == [0, 2, 1, -1]
    assert regions.contain(1, points).tolist() == [True, True, True, False]
    moved = regions_of(tmp_path / "roi.geojson", features, (100, 0))
    assert moved.smallest(points + np.array([100, 0])).tolist() == [0, 2, 1, -1]
    assert moved.smallest(points).tolist() == [-1, -1, -1, -1]


def test_edges_are_half_open_as_those_of_the_mask(tmp_path: Path) -> None:
    """Of triangles that cut a box, each point, on edges too, is in exactly one, and the mask of --tissue agrees."""
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:30, :40] + 0.5
    points = np.stack([x.ravel(), y.ravel()], 1)
    for _ in range(20):
        middle = rng.integers(2, [78, 58]) / 2
        corners = np.array([[0, 0], [40, 0], [40, 30], [0, 30]], float)
        triangles = [np.array([corners[k - 1], corners[k], middle]) for k in range(4)]
        features = [feature([*triangle.tolist(), triangle[0].tolist()]) for triangle in triangles]
        regions = regions_of(tmp_path / "roi.geojson", features)
        inside = [regions.contain(k, points) for k in range(4)]
        np.testing.assert_array_equal(np.sum(inside, axis=0), 1)
        masks = [inside_ring(triangle, (30, 40)).ravel() for triangle in triangles]
        np.testing.assert_array_equal(inside, masks)
    box = regions_of(tmp_path / "roi.geojson", [feature(ring(10, 10, 30, 30))])
    corners = np.array([[10, 10], [30, 10], [10, 30], [30, 30], [10, 20], [30, 20], [20, 10], [20, 30]], float)
    assert box.contain(0, corners).tolist() == [True, False, False, False, True, False, True, False]


def test_a_polygon_that_crosses_itself_counts_by_the_even_odd_rule(tmp_path: Path) -> None:
    bow = [[0, 0], [100, 100], [100, 0], [0, 100], [0, 0]]
    regions = regions_of(tmp_path / "roi.geojson", [feature(bow)])
    assert regions.areas_mm2.tolist() == pytest.approx([5000 * 0.25**2 / 1e6])
    assert regions.contain(0, np.array([[10.0, 50], [90, 50], [50, 10], [50, 90]])).tolist() == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("features", "said"),
    [
        ([], "it holds none"),
        ([feature(ring(0, 0, 9, 9), kind="detection")], "it holds none"),
        ([feature(ring(0, 0, 9, 9), label="Ignore*")], "it holds none"),
        ([feature(ring(900, 0, 990, 9))], "lie outside slide of 400 x 300 pixels"),
        ([feature(ring(10, 10, 20, 20)), feature(ring(0, 0, 50, 50), label="Ignore*")], "or within those of"),
    ],
)
def test_files_without_regions_say_so(tmp_path: Path, features: list[Any], said: str) -> None:
    with pytest.raises(SlideError, match=said) as raised:
        regions_of(tmp_path / "roi.geojson", features)
    assert str(raised.value).startswith("roi.geojson: ")
    assert "\n" not in str(raised.value)


def test_a_damaged_archive_says_so(tmp_path: Path) -> None:
    path = tmp_path / "roi.geojson.gz"
    content = bytearray(gzip.compress(json.dumps([feature(ring(k, 0, 90, 90)) for k in range(80)]).encode()))
    content[60:62] = b"\xff\x55"
    path.write_bytes(content)
    with pytest.raises(SlideError, match=r"^roi\.geojson\.gz: expected GeoJSON with regions .*; it cannot be read"):
        read_regions(path, "slide", SIZE, (0, 0), 0.25)


def test_names_are_numbered_and_can_be_written(tmp_path: Path) -> None:
    gland, half = feature(ring(0, 0, 9, 9), label="Gland"), feature(ring(0, 0, 9, 9), name="a\ud800", label="\udfff")
    names = regions_of(tmp_path / "roi.geojson", [gland] * 30 + [half]).names
    assert names == (*(f"Gland {k + 1}" for k in range(30)), "a?")


def test_a_region_without_area_holds_nothing(tmp_path: Path) -> None:
    regions = regions_of(tmp_path / "roi.geojson", [feature(ring(0, 0, 9, 9)), feature(ring(500, 500, 510, 510))])
    assert regions.areas_mm2[1] == 0
    assert regions.smallest(np.array([[5.0, 5], [505, 505]])).tolist() == [0, -1]
    with pytest.raises(UsageError, match=r"--region tumour: no such region; expected one of region 1, region 2\."):
        regions.number_of("tumour")
