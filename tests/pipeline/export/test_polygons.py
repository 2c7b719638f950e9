"""Outlines as exports write them: near what is stored, of the same area, with the same pixels inside, valid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import shapely

from pipeline.export.polygons import coordinates_of, geometries_of, smooth_rings, valid_rings
from pipeline.export.registry import ExportOptions, export_result
from pipeline.result import open_result
from segmentation.contours import trace_instances
from tests.pipeline.export.test_exports import READERS
from tests.pipeline.export.test_geojson import SQUARE, make_store
from tests.support.stores import random_store

SIZE = 64


def blobs(count: int, radius: float, seed: int) -> list[np.ndarray]:
    """Outlines of masks with a wavy edge, along the edges of pixels, (K, 2) int64."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((SIZE, SIZE)) + 0.5 - SIZE / 2
    angle, distance = np.arctan2(y, x), np.hypot(x * rng.uniform(0.8, 1.25), y)
    rings = []
    for _ in range(count):
        waves = sum(
            a * np.cos(k * angle + p)
            for k, a, p in zip((2, 3, 5), rng.uniform(0, 0.2, 3), rng.uniform(0, 6, 3), strict=True)
        )
        mask = (distance < radius * (1 + waves)).astype(np.int32)
        found = trace_instances(mask, np.ones((SIZE, SIZE), np.float32))
        rings.append(found.points[found.offsets[0] : found.offsets[1]])
    return rings


def flat(rings: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([[0], np.cumsum([len(ring) for ring in rings])]), np.concatenate(rings)


@pytest.mark.parametrize("pixel", [100.0, 50.0, 108.7], ids=["0.25 um", "0.5 um", "0.23 um"])
@pytest.mark.parametrize("radius", [5.0, 9.0, 20.0])
def test_smooth_outlines_are_near_the_stored_ones(radius: float, pixel: float) -> None:
    rings = blobs(60, radius, 1)
    offsets, points = flat([np.rint(ring * pixel).astype(np.int64) for ring in rings])
    new_offsets, new = valid_rings(*smooth_rings(offsets, points, pixel), np.zeros((len(rings), 2)))
    for i in range(len(rings)):
        stored = shapely.Polygon(points[offsets[i] : offsets[i + 1]] / pixel)
        smooth = shapely.Polygon(new[new_offsets[i] : new_offsets[i + 1]] / pixel)
        assert smooth.is_valid
        assert abs(smooth.area / stored.area - 1) <= 0.0101
        edge = shapely.get_coordinates(shapely.segmentize(smooth.exterior, 0.05))
        assert shapely.distance(shapely.points(edge), stored.exterior).max() < 0.25 + 0.02  # and two decimals' rounding
        y, x = np.indices((SIZE, SIZE)) + 0.5
        np.testing.assert_array_equal(shapely.contains_xy(smooth, x, y), shapely.contains_xy(stored, x, y))
        assert smooth.area == pytest.approx(stored.area - 0.5, abs=0.03 * radius)
    assert len(new) < 0.75 * len(points)


def test_a_staircase_becomes_a_line() -> None:
    steps = [(k + i, k) for k in range(20) for i in (0, 1)]
    ring = np.array([*steps, (20, 20), (0, 20)]) * 100
    _, new = smooth_rings(*flat([ring]), 100.0)
    assert sorted(map(tuple, new.tolist())) == [(0, 50), (0, 1950), (50, 0), (50, 2000), (1950, 2000), (2000, 1950)]


@pytest.mark.parametrize(
    "ring",
    [
        [(0, 0), (7, 0), (7, 7), (0, 7)],  # of 49 pixels: half a pixel is more than a percent
        [(0, 0), (30, 1), (31, 30), (0, 30)],  # not along the edges of pixels
        [(0, 0), (30.3, 0), (30.3, 30), (0, 30)],  # on another grid
        [(0, 0), (30, 0), (30, 30), (0, 30), (0, 0)],  # closed
        [(0, 0), (30, 0)],
    ],
)
def test_other_outlines_stay(ring: list[tuple[float, float]]) -> None:
    points = np.rint(np.array(ring) * 100).astype(np.int64)
    offsets, new = smooth_rings(np.array([0, len(points)]), points, 100.0)
    np.testing.assert_array_equal(new, points)
    assert offsets.tolist() == [0, len(points)]


def test_a_bridge_of_one_corner_stays_whole() -> None:
    """Two squares that meet at a corner: the stored ring touches itself, the smooth one goes past."""
    a, b = 20, 40
    ring = np.array([(0, 0), (a, 0), (a, a), (b, a), (b, b), (a, b), (a, a), (0, a)]) * 100
    offsets, new = valid_rings(*smooth_rings(*flat([ring]), 100.0), np.zeros((1, 2)))
    smooth = shapely.Polygon(new / 100)
    assert smooth.is_valid
    assert smooth.area == 800 - 0.5
    _, old = valid_rings(np.array([0, 8]), ring, np.zeros((1, 2)))
    assert shapely.Polygon(old / 100).area == 400  # its larger piece alone
    assert offsets.tolist() == [0, len(new)]


def test_exact_outlines_on_request(tmp_path: Path) -> None:
    rings = blobs(5, 12, 3)
    store = make_store(tmp_path, [[(float(x), float(y)) for x, y in ring] for ring in rings])
    stored = shapely.polygons([shapely.Polygon(ring).exterior for ring in rings])
    exact = geometries_of(store, exact=True)
    assert sorted(shapely.area(exact)) == sorted(shapely.area(stored))
    np.testing.assert_allclose(sorted(shapely.area(geometries_of(store))), sorted(shapely.area(stored) - 0.5))
    offsets, _ = coordinates_of(store)
    exact_offsets, _ = coordinates_of(store, exact=True)
    assert offsets[-1] < exact_offsets[-1]


@pytest.mark.parametrize("form", ["geojson", "parquet", "annotationstore", "spatialdata"])
@pytest.mark.parametrize("exact", [False, True])
def test_every_form_writes_the_same_outlines(form: str, exact: bool, tmp_path: Path) -> None:
    if form != "geojson":
        pytest.importorskip("spatialdata")
    make_store(tmp_path, [SQUARE])
    name = {"geojson": "a.geojson", "parquet": "a.parquet", "annotationstore": "a.db", "spatialdata": "a.zarr"}[form]
    export_result(open_result(tmp_path), form, ExportOptions(exact_outlines=exact), tmp_path / name)
    (area,) = READERS[form](tmp_path / name).areas_px
    assert area == (100 if exact else 99.5)


def test_random_stores_octagons_stay(tmp_path: Path) -> None:
    store = random_store(tmp_path, 20)
    assert shapely.equals(geometries_of(store), geometries_of(store, exact=True)).all()
