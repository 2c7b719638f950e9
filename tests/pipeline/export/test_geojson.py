"""The GeoJSON by QuPath's rules, one after another."""

from __future__ import annotations

import gzip
import json
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import shapely
from shapely.geometry import shape

from classifier.labels.libraries import LabelSpace, Library, published_libraries
from classifier.predictions import Predictions
from nucpipe.errors import OutputError, UsageError
from pipeline.export.geojson import write as geojson
from pipeline.export.geojson.jsontext import CategoricalText, features_text
from pipeline.export.geojson.write import write_geojson
from pipeline.export.polygons import valid_rings
from pipeline.store.journal import Journal
from pipeline.store.reader import Store, open_store
from pipeline.store.schema import StoreInfo
from pipeline.store.writer import finish
from segmentation.nuclei import Nuclei

OUTPUTS = LabelSpace(published_libraries(), (True,) * 35)
Ring = Sequence[tuple[float, float]]
SQUARE: Ring = [(40, 30), (50, 30), (50, 40), (40, 40)]  # 10x10 pixels


def make_store(
    folder: Path,
    rings: Sequence[Ring],
    outputs: LabelSpace = OUTPUTS,
    origin_l0: tuple[int, int] = (0, 0),
    detection_p: float = 0.9,
) -> Store:
    """One nucleus a ring; centroids are the rings' means, label k of each library is that of nucleus k."""
    count = len(rings)
    lengths = [len(ring) for ring in rings]
    nuclei = Nuclei(
        np.array([np.mean(ring, 0) for ring in rings]).reshape(-1, 2),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.array([point for ring in rings for point in ring], float).reshape(-1, 2),
        np.full(count, detection_p, np.float32),
        np.full(count, 33.3333, np.float32),
    )
    probabilities = np.zeros((count, len(outputs)), np.float32)
    for library in outputs.libraries:
        columns = range(len(outputs))[outputs.slices[library.name]]
        for i in range(count):
            probabilities[i, columns[i % len(columns)]] = 0.75
    journal = Journal.open(folder / "journal", {})
    journal.write(0, nuclei, Predictions(np.where(outputs.trained, probabilities, 0).astype(np.float32)))
    info = StoreInfo("slide", (4000, 3000), 0.25, origin_l0, outputs, {}, {}, "0.1.0")
    finish(journal, [0], folder / "nuclei.zarr", info)
    return open_store(folder / "nuclei.zarr")


def features_of(store: Store, path: Path, primary: str = "PanNuke", exact: bool = True) -> list[dict[str, Any]]:
    """Written, read again as strict JSON, in the store's order."""
    write_geojson(store, path, primary, exact_outlines=exact)
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("ascii")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    collection = json.loads(text, parse_constant=refuse)
    assert collection.keys() == {"type", "features"}
    assert collection["type"] == "FeatureCollection"
    assert len(collection["features"]) == len(store)
    return collection["features"]


def ellipses(count: int, seed: int = 0) -> list[Ring]:
    rng = np.random.default_rng(seed)
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    unit = np.column_stack([np.cos(angle), np.sin(angle)])
    return [c + r * unit for c, r in zip(rng.uniform(50, 2900, (count, 2)), rng.uniform(5, 20, count), strict=True)]


def assert_valid(feature: dict[str, Any]) -> shapely.Polygon:
    geometry = feature["geometry"]
    assert geometry["type"] == "Polygon"
    (ring,) = geometry["coordinates"]
    assert len(ring) >= 4
    assert ring[0] == ring[-1]
    assert all(round(value, 2) == value for point in ring for value in point)
    polygon = shape(geometry)
    assert polygon.is_valid
    assert polygon.area > 0
    return polygon


def test_a_square_of_10x10_pixels_has_area_100(tmp_path: Path) -> None:
    (feature,) = features_of(make_store(tmp_path, [SQUARE]), tmp_path / "a.geojson")
    measured = feature["properties"]["measurements"]
    assert (measured["Length µm"], measured["Circularity"]) == (10, round(np.pi / 4, 4))
    assert assert_valid(feature).area == 100
    assert feature["geometry"]["coordinates"] == [[[40, 30], [50, 30], [50, 40], [40, 40], [40, 30]]]


def test_corners_are_cut_by_default_and_measured_as_written(tmp_path: Path) -> None:
    (feature,) = features_of(make_store(tmp_path, [SQUARE]), tmp_path / "a.geojson", exact=False)
    polygon = assert_valid(feature)
    assert polygon.area == 99.5
    assert polygon.contains(shapely.Point(40.25, 30.25 + 1e-9))
    assert len(feature["geometry"]["coordinates"][0]) == 9
    measured = feature["properties"]["measurements"]
    assert measured["Length µm"] == round(polygon.length * 0.25, 4)
    assert measured["Circularity"] == round(4 * np.pi * polygon.area / polygon.length**2, 4)


def test_numbers_are_short(tmp_path: Path) -> None:
    ring = [(40, 30), (50.5, 30), (50.504, 40.006), (-0.001, 40)]
    write_geojson(make_store(tmp_path, [ring]), tmp_path / "a.geojson", "PanNuke")
    assert "[[[40,30],[50.5,30],[50.5,40.01],[0,40],[40,30]]]" in (tmp_path / "a.geojson").read_text()


def test_every_feature_is_as_qupath_wants_it(tmp_path: Path) -> None:
    store = make_store(tmp_path, ellipses(60))
    features = features_of(store, tmp_path / "a.geojson", "nucls")
    numbers = {library.name: store.label_numbers(library.name) for library in OUTPUTS.libraries}
    offsets, points = store.contours()
    assert [feature["id"] for feature in features] == store.ids.tolist()
    for i, feature in enumerate(features):
        assert feature.keys() == {"type", "id", "geometry", "properties"}
        assert feature["type"] == "Feature"
        assert str(UUID(feature["id"])) == feature["id"]
        polygon = assert_valid(feature)
        ring = points[offsets[i] : offsets[i + 1]]
        np.testing.assert_allclose(shapely.get_coordinates(polygon)[:-1], ring, atol=0.0051)
        properties = feature["properties"]
        assert properties.keys() == {"objectType", "classification", "measurements", "metadata"}
        assert properties["objectType"] == "detection"
        nucls = OUTPUTS.libraries[0]
        number = numbers["NuCLS"][i]
        assert properties["classification"] == {"name": nucls.labels[number], "color": list(nucls.colours[number])}
        assert properties["metadata"] == {
            library.name: library.labels[numbers[library.name][i]] for library in OUTPUTS.libraries
        }
        assert properties["measurements"] == {
            "Detection probability": 0.9,
            "Area µm^2": 33.3333,
            "Length µm": pytest.approx(polygon.length * 0.25, abs=1e-4),
            "Circularity": pytest.approx(4 * np.pi * polygon.area / polygon.length**2, abs=1e-4),
            "NuCLS probability": 0.75,
            "BreCaHAD probability": 0.75,
            "CoNSeP probability": 0.75,
            "MoNuSAC probability": 0.75,
            "PanNuke probability": 0.75,
        }


def test_more_nuclei_than_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path, ellipses(25))
    whole = features_of(store, tmp_path / "whole.geojson")
    monkeypatch.setattr(geojson, "BATCH", 7)
    assert features_of(store, tmp_path / "parts.geojson") == whole
    assert (tmp_path / "parts.geojson").read_bytes() == (tmp_path / "whole.geojson").read_bytes()


def test_gz_holds_the_same_and_is_reproducible(tmp_path: Path) -> None:
    store = make_store(tmp_path, ellipses(50))
    plain = features_of(store, tmp_path / "a.geojson")
    assert features_of(store, tmp_path / "b.geojson.gz") == plain
    assert features_of(store, tmp_path / "c.geojson.gz") == plain
    assert (tmp_path / "b.geojson.gz").read_bytes() == (tmp_path / "c.geojson.gz").read_bytes()
    assert (tmp_path / "b.geojson.gz").stat().st_size < (tmp_path / "a.geojson").stat().st_size / 2


def test_the_origin_is_subtracted(tmp_path: Path) -> None:
    (feature,) = features_of(make_store(tmp_path, [SQUARE], origin_l0=(15, 7)), tmp_path / "a.geojson")
    assert assert_valid(feature).bounds == (25, 23, 35, 33)


BOW_TIE: Ring = [(0, 0), (10, 10), (10, 0), (0, 7)]
PINCHED: Ring = [(0, 0), (4, 0), (4, 4), (9, 4), (9, 9), (4, 9), (4, 4), (0, 4)]  # two squares that touch at a corner
HOLE: Ring = [(0, 0), (9, 0), (9, 9), (4, 9), (4, 6), (6, 6), (6, 3), (3, 3), (3, 6), (4, 6), (4, 9), (0, 9)]
SPIKE: Ring = [(0, 0), (10, 0), (10, 10), (10, 25), (10, 10), (0, 10)]
STAR: Ring = [(10 + 9 * np.sin(k * 0.8 * np.pi), 10 + 9 * np.cos(k * 0.8 * np.pi)) for k in range(5)]


@pytest.mark.parametrize(
    ("ring", "area"),
    [(BOW_TIE, None), (PINCHED, 25), (HOLE, 81), (SPIKE, 100), (STAR, None)],
    ids=["bow-tie", "pinched", "hole", "spike", "star"],
)
def test_an_invalid_outline_becomes_its_largest_valid_piece(tmp_path: Path, ring: Ring, area: float | None) -> None:
    assert not shapely.Polygon(ring).is_valid
    store = make_store(tmp_path, [SQUARE, ring, [(x + 100, y + 50.25) for x, y in ring]])
    features = features_of(store, tmp_path / "a.geojson")
    areas = sorted(assert_valid(feature).area for feature in features)
    if area is not None:
        assert sorted([100.0, area, area]) == pytest.approx(areas)
    for feature in features:
        box = shapely.box(*assert_valid(feature).bounds)
        assert box.within(shapely.box(-1, -1, 130, 80))


@pytest.mark.parametrize(
    "ring", [[(5, 5)], [(5, 5), (9, 9)], [(5, 5), (9, 9), (13, 13)], [(5, 5)] * 4], ids=["1", "2", "line", "point"]
)
def test_an_outline_without_area_becomes_a_pixel(tmp_path: Path, ring: Ring) -> None:
    features = features_of(make_store(tmp_path, [ring, SQUARE]), tmp_path / "a.geojson")
    pixel = min((assert_valid(feature) for feature in features), key=lambda polygon: polygon.area)
    assert pixel.area == 1
    np.testing.assert_array_equal(shapely.get_coordinates(pixel.centroid)[0], np.mean(ring, 0))


def test_random_outlines_are_all_made_valid(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    tangled = [rng.uniform(20, 40, 2) + rng.uniform(-8, 8, (rng.integers(3, 20), 2)) for _ in range(150)]
    store = make_store(tmp_path, tangled)
    for feature in features_of(store, tmp_path / "a.geojson"):
        assert_valid(feature)


def test_rings_that_geos_is_not_asked_about_are_valid() -> None:
    """On a small grid, where points, sides and ends meet in every way; and what is valid comes out as it was."""
    rng = np.random.default_rng(5)
    rings = [rng.integers(0, size, (rng.integers(3, 8), 2)) for size in (3, 5, 9, 40) for _ in range(1500)]
    offsets = np.concatenate([[0], np.cumsum([len(ring) for ring in rings])])
    places = rng.integers(-9_000_000, 9_000_000, (len(rings), 2))  # hundredths of a pixel, on a large slide
    points = np.concatenate([ring + place for ring, place in zip(rings, places, strict=True)])
    new_offsets, new_points = valid_rings(offsets, points, places / 100)
    untouched = 0
    for i, ring in enumerate(rings):
        came = new_points[new_offsets[i] : new_offsets[i + 1]]
        assert (came[0] == came[-1]).all()
        assert shapely.Polygon(came / 100).is_valid
        closed = ring if len(ring) > 3 and (ring[0] == ring[-1]).all() else np.concatenate([ring, ring[:1]])
        if shapely.Polygon((ring + places[i]) / 100).is_valid:
            np.testing.assert_array_equal(came, closed + places[i])
            untouched += 1
    assert untouched > 500


def test_numbers_are_written_as_numpy_rounds_and_python_writes_them() -> None:
    rng = np.random.default_rng(6)
    values = np.concatenate(
        [[0.0, -0.0, -0.00001, 0.00005, 0.00015, 1.0, -1.5, 0.1, 10, 99.99995, 123456789.5, np.nan, np.inf, -np.inf]]
        + [scale * rng.normal(size=200) for scale in (1e-3, 1, 1e3, 1e8)]
    )
    count = len(values)
    hundredths = np.stack([np.rint(np.nan_to_num(values, posinf=0, neginf=0) * 100).astype(np.int64)] * 2, 1)
    nothing = CategoricalText([""], np.zeros(count, np.int8))
    ids = np.array(["0"] * count, object)
    text = features_text(ids, np.arange(count + 1), hundredths, True, nothing, {"v": values}, [nothing])
    lines = bytes(text).decode("ascii").split(",\n")
    for line, value, (x, _) in zip(lines, values.tolist(), hundredths.tolist(), strict=True):
        member = f'"v":{float(np.round(value, 4))!r}' if np.isfinite(value) else ""
        assert f'"measurements":{{{member}}}' in line
        number = "%.10g" % (x / 100) if abs(x) < 10**10 else repr(x / 100).removesuffix(".0")
        assert f'"coordinates":[{number},{number}]' in line


def test_an_outline_that_is_closed_already_stays_so(tmp_path: Path) -> None:
    (feature,) = features_of(make_store(tmp_path, [[*SQUARE, SQUARE[0]]]), tmp_path / "a.geojson")
    assert feature["geometry"]["coordinates"] == [[[40, 30], [50, 30], [50, 40], [40, 40], [40, 30]]]


def test_what_is_missing_is_left_out(tmp_path: Path) -> None:
    outputs = LabelSpace(OUTPUTS.libraries, tuple(library != "MoNuSAC" for library, _ in OUTPUTS.columns))
    store = make_store(tmp_path, [SQUARE], outputs, detection_p=float("nan"))
    properties = features_of(store, tmp_path / "a.geojson", "MoNuSAC")[0]["properties"]
    assert "classification" not in properties
    assert properties["metadata"].keys() == {"NuCLS", "BreCaHAD", "CoNSeP", "PanNuke"}
    assert "MoNuSAC probability" not in properties["measurements"]
    assert "Detection probability" not in properties["measurements"]
    assert properties["measurements"]["PanNuke probability"] == 0.75


def test_names_are_escaped(tmp_path: Path) -> None:
    own = Library('Nos "noyaux"', ("tumeur\\é", "切\n片"), ((1, 2, 3), (4, 5, 6)), 0.25, "", "")
    store = make_store(tmp_path, [SQUARE, SQUARE], LabelSpace((own,), (True, True)))
    features = features_of(store, tmp_path / "a.geojson", 'nos "NOYAUX"')
    assert {feature["properties"]["classification"]["name"] for feature in features} == {"tumeur\\é", "切\n片"}
    assert {feature["properties"]["metadata"]['Nos "noyaux"'] for feature in features} == {"tumeur\\é", "切\n片"}
    assert all('Nos "noyaux" probability' in feature["properties"]["measurements"] for feature in features)


@pytest.mark.parametrize("name", ["a.geojson", "a.geojson.gz"])
def test_no_nuclei(tmp_path: Path, name: str) -> None:
    assert features_of(make_store(tmp_path, []), tmp_path / name) == []


def test_an_unknown_library_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    store = make_store(tmp_path, [SQUARE])
    with pytest.raises(UsageError, match="unknown library 'Kumar'"):
        write_geojson(store, tmp_path / "a.geojson", "Kumar")
    assert not list(tmp_path.glob("a.geojson*"))


def test_no_room_is_an_error_and_keeps_the_old_file(tmp_path: Path) -> None:
    store = make_store(tmp_path, ellipses(200))
    (tmp_path / "a.geojson").write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))  # the system refuses more, as on a full disk
    try:
        with pytest.raises(OutputError, match=r"a\.geojson: cannot be written"):
            write_geojson(store, tmp_path / "a.geojson", "PanNuke")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "a.geojson").read_text() == "old"
    assert not list(tmp_path.glob("*.partial"))
