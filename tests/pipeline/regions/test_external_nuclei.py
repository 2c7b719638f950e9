"""Nuclei of another tool in detection's place: what goes out as GeoJSON or as a label image comes in again."""

from __future__ import annotations

import csv
import gzip
import json
import math
from pathlib import Path
from typing import Any
from uuid import UUID

import cv2
import numpy as np
import pytest
import shapely
import tifffile

from nucpipe.errors import NucpipeError, SlideError, UsageError
from pipeline.batch.plan import plan
from pipeline.batch.progress import final_line
from pipeline.batch.summary import Summary
from pipeline.config import RunConfig
from pipeline.export.geojson.write import write_geojson
from pipeline.regions.external_nuclei import read_external_nuclei
from pipeline.regions.tissue import tissue_mask
from pipeline.result import open_result
from pipeline.run_slide import run_slide
from pipeline.slide.open import open_slide
from pipeline.store.reader import Store, open_store
from pipeline.store.run_record import SilentReporter
from segmentation.evaluation.metrics import panoptic_quality
from segmentation.evaluation.scores import draw_instances
from segmentation.nuclei import Nuclei
from tests.support.synthetic import MPP, draw_slide, models


def run_with(slide: Path, out: Path, nuclei: Path | None, **settings: Any) -> Store:
    config = RunConfig(mpp=MPP, tissue="none", nuclei=None if nuclei is None else str(nuclei), **settings)
    run_slide(slide, out, models(), config, SilentReporter())
    return open_store(out / "nuclei.zarr")


def nuclei_of(store: Store) -> Nuclei:
    offsets, points = store.contours()
    return Nuclei(store.centroids_l0, offsets, points.astype(float), store.detection_p, store.area_um2)


@pytest.fixture(scope="module")
def detected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Store]:
    """A slide, the folder of its result, and its store."""
    folder = tmp_path_factory.mktemp("detected")
    slide = draw_slide(700, 600).save(folder / "slide.png")
    return slide, folder / "out", run_with(slide, folder / "out", None)


@pytest.mark.parametrize("region_size", [2048, 256])
def test_our_own_geojson_gives_the_same_result_again(
    detected: tuple[Path, Path, Store], tmp_path: Path, region_size: int
) -> None:
    slide, _, before = detected
    write_geojson(before, tmp_path / "nuclei.geojson", "PanNuke", exact_outlines=True)
    after = run_with(slide, tmp_path / "out", tmp_path / "nuclei.geojson", region_size=region_size)
    assert len(after) == len(before) > 100
    assert after.ids.tolist() == before.ids.tolist()
    np.testing.assert_allclose(after.centroids_l0, before.centroids_l0, atol=0.01)
    np.testing.assert_allclose(after.area_um2, before.area_um2, rtol=1e-6)
    np.testing.assert_allclose(after.detection_p, before.detection_p, atol=1e-4)
    np.testing.assert_allclose(after.measure("solidity"), before.measure("solidity"), atol=1e-6)
    shape = (600, 700)
    assert panoptic_quality(draw_instances(nuclei_of(before), shape), draw_instances(nuclei_of(after), shape))[2] == 1
    np.testing.assert_allclose(after.probabilities, before.probabilities, atol=1e-4)
    # The class by which the nuclei were coloured comes in as their type.
    names = np.array([*after.info.segmentor_types, ""])
    labels = np.array([*before.info.outputs.library("PanNuke").labels, ""])
    np.testing.assert_array_equal(names[after.type_numbers], labels[before.label_numbers("PanNuke")])
    assert after.info.models["segmentor"]["name"] == "nuclei of nuclei.geojson"


@pytest.mark.parametrize("region_size", [2048, 256])
def test_qupaths_ids_are_kept(detected: tuple[Path, Path, Store], tmp_path: Path, region_size: int) -> None:
    """What QuPath named keeps its name, through regions, journal and order; what has no UUID, or a second, gets one."""
    slide = detected[0]
    rng = np.random.default_rng(1)
    places = [(x, y) for x in range(20, 680, 60) for y in range(20, 580, 60)]
    named = {place: str(UUID(bytes=rng.bytes(16), version=4)) for place in places}
    features = [feature([square(*place)], id=name.upper()) for place, name in named.items()]
    named = {(x + 5.0, y + 5.0): name for (x, y), name in named.items()}
    features[0]["id"], features[1]["id"] = "nucleus 7", features[2]["id"]
    del features[3]["id"]
    twins = feature([[square(48, 48)], [square(48, 108)]], "MultiPolygon", id="00000000-0000-4000-8000-000000000001")
    features.append(twins)
    (tmp_path / "nuclei.geojson").write_text(json.dumps(features))
    store = run_with(slide, tmp_path / "out", tmp_path / "nuclei.geojson", region_size=region_size)
    found = dict(zip(map(tuple, store.centroids_l0.tolist()), store.ids.tolist(), strict=True))
    assert len(found) == len(places) + 2 == len(set(store.ids))
    fresh = [(25.0, 25.0), (25.0, 145.0), (25.0, 205.0)]
    assert {place: name for place, name in found.items() if named.get(place) != name}.keys() == {
        *fresh,
        (25.0, 85.0),
        (53.0, 53.0),
        (53.0, 113.0),
    }
    # The second to have an id comes after the first in the file.
    assert found[25.0, 85.0] == named[25.0, 145.0]
    assert found[53.0, 53.0] == "00000000-0000-4000-8000-000000000001"
    assert all(UUID(found[place]).version == 5 for place in [*fresh, (53.0, 113.0)])


@pytest.mark.parametrize("suffix", [".npy", ".png", ".tif"])
def test_a_label_image_gives_its_nuclei(detected: tuple[Path, Path, Store], tmp_path: Path, suffix: str) -> None:
    slide, _, before = detected
    labels = draw_instances(nuclei_of(before), (600, 700))
    path = tmp_path / f"labels{suffix}"
    if suffix == ".npy":
        np.save(path, labels.astype(np.int64) * 10**10)
    elif suffix == ".png":
        cv2.imwrite(str(path), labels.astype(np.uint16))
    else:
        tifffile.imwrite(path, labels)
    with open_slide(slide, MPP) as opened:
        given = read_external_nuclei(path, opened).nuclei_l0
    again = draw_instances(given, labels.shape)
    np.testing.assert_array_equal(again > 0, labels > 0)
    assert len(given) == len(before)
    assert panoptic_quality(labels, again)[2] == 1


def test_a_label_image_may_be_coarser_than_the_slide(detected: tuple[Path, Path, Store], tmp_path: Path) -> None:
    labels = np.zeros((300, 350), np.uint8)
    labels[10:20, 30:50] = 7
    np.save(tmp_path / "labels.npy", labels)
    with open_slide(detected[0], MPP) as opened:
        given = read_external_nuclei(tmp_path / "labels.npy", opened).nuclei_l0
    assert given.centroids.tolist() == [[80, 30]]
    assert given.area_um2.tolist() == [40 * 20 * MPP * MPP]


def feature(coordinates: Any, kind: str = "Polygon", **more: Any) -> dict[str, Any]:
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates}, **more}


def square(x: float, y: float, side: float = 10) -> list[list[float]]:
    return [[x, y], [x, y + side], [x + side, y + side], [x + side, y], [x, y]]  # counter-clockwise on screen


def read(slide: Path, path: Path, content: Any) -> Nuclei:
    text = json.dumps(content).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    with open_slide(slide, MPP) as opened:
        return read_external_nuclei(path, opened).nuclei_l0


def test_a_missing_probability_is_one(detected: tuple[Path, Path, Store], tmp_path: Path) -> None:
    given = [{"measurements": {"Detection probability": p}} for p in (math.nan, None, 0.5)]
    cells = [feature([square(20 * k, 5)], properties=one) for k, one in enumerate([*given, {}])]
    assert read(detected[0], tmp_path / "p.geojson", cells).detection_p.tolist() == [1, 1, 0.5, 1]


def test_cells_annotations_parts_and_a_bare_list(detected: tuple[Path, Path, Store], tmp_path: Path) -> None:
    slide = detected[0]
    roi = feature([square(0, 0, 500)], properties={"objectType": "annotation"})
    cell = feature([square(90, 90, 40)], properties={"objectType": "cell"})
    cell["nucleusGeometry"] = {"type": "Polygon", "coordinates": [square(100, 100)]}
    found = read(slide, tmp_path / "cells.geojson.gz", {"type": "FeatureCollection", "features": [roi, cell]})
    assert found.centroids.tolist() == [[105, 105]]
    assert found.types is None
    x, y = found.contour(0).T
    assert (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() == 200  # clockwise on screen, not closed
    # Some tools write one MultiPolygon a class: each part is a nucleus.
    many = feature([[square(10, 10)], [square(40, 10)]], "MultiPolygon", properties={"classification": {"name": "a"}})
    other = feature(
        [square(70, 10)], properties={"classification": "b", "measurements": {"Detection probability": 0.5}}
    )
    found = read(slide, tmp_path / "list.json", [many, other])
    assert found.centroids.tolist() == [[15, 15], [45, 15], [75, 15]]
    assert np.asarray(found.types).tolist() == [0, 0, 1]
    assert found.detection_p.tolist() == [1, 1, 0.5]


def test_qupath_counts_from_the_slides_bounds(
    detected: tuple[Path, Path, Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_slide(detected[0], MPP) as opened:
        opened.origin_l0 = (100, 50)
        (tmp_path / "n.geojson").write_text(json.dumps([feature([square(10, 10)])]))
        assert read_external_nuclei(tmp_path / "n.geojson", opened).nuclei_l0.centroids.tolist() == [[115, 65]]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.geojson", b"{", "expected GeoJSON with outlines"),
        ("b.geojson", b"[]", "it holds none"),
        ("c.geojson", json.dumps([feature([5, 5], "Point")]).encode(), "it holds none"),
        (
            "d.geojson",
            json.dumps([feature([square(5000, 10)])]).encode(),
            r"1 of 1 nuclei, as that at \(5005, 15\), lie",
        ),
        ("e.geojson", json.dumps([feature([[[0, 0], [1, 1], [0, 0]]])]).encode(), "fewer than three points"),
        (
            "z.geojson",
            json.dumps([feature([square(5, 5)]), feature([[[20, 20], [30, 20], [25, 20], [20, 20]]])]).encode(),
            r"1 of 2 nuclei, as that at \(25, 20\), have no area",
        ),
        ("f.geojson.gz", b"no gzip", "cannot be read"),
        (
            "p.geojson",
            json.dumps([feature([square(5, 5)], properties={"measurements": {"Detection probability": -5}})]).encode(),
            "a detection probability of -5, not of 0 to 1",
        ),
        ("g.npy", b"no array", "expected a label image; it cannot be read"),
        ("h.png", b"no image", "expected a label image; it cannot be read"),
        ("i.tif", b"no image", "expected a label image; it cannot be read"),
    ],
)
def test_bad_files_say_so(
    detected: tuple[Path, Path, Store], tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with open_slide(detected[0], MPP) as opened, pytest.raises(SlideError, match=said) as raised:
        read_external_nuclei(tmp_path / name, opened)
    assert "\n" not in str(raised.value)
    assert name in str(raised.value)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((600, 700), np.uint8), "it holds none"),
        (
            np.zeros((600, 700, 3), np.uint8),
            "expected a label image, whole numbers in one channel; found 600 x 700 x 3 of uint8",
        ),
        (np.full((600, 700), 0.5, np.float32), "expected whole numbers, one for each nucleus; found 0.5"),
        (np.zeros((600, 600), np.uint8), "600 x 600 pixels and slide.png 700 x 600"),
        (np.ones((600, 700), np.uint8) * (np.arange(700) % 9 < 4), "a mask with a single number for 78 areas"),
        (np.full((600, 700), -1, np.int32), "expected 0 for the background and numbers above it for nuclei; found -1"),
    ],
)
def test_bad_label_images_say_so(
    detected: tuple[Path, Path, Store], tmp_path: Path, image: np.ndarray, said: str
) -> None:
    np.save(tmp_path / "labels.npy", image)
    with open_slide(detected[0], MPP) as opened, pytest.raises(SlideError, match=said):
        read_external_nuclei(tmp_path / "labels.npy", opened)


def test_a_folder_has_a_file_for_each_slide(detected: tuple[Path, Path, Store], tmp_path: Path) -> None:
    slide, out, before = detected
    (tmp_path / "found").mkdir()
    with pytest.raises(NucpipeError, match=r"has no file for slide\.png"):
        run_with(slide, tmp_path / "none", tmp_path / "found")
    (tmp_path / "found" / "slide.geojson").write_bytes((out / "nuclei.geojson").read_bytes())
    assert len(run_with(slide, tmp_path / "out", tmp_path / "found")) == len(before)
    other = draw_slide(100, 100).save(tmp_path / "other.png")
    with pytest.raises(UsageError, match="one file for 2 slides"):
        plan([slide, other], RunConfig(nuclei=str(out / "nuclei.geojson")))
    assert len(plan([slide, other], RunConfig(nuclei=str(tmp_path / "found")))) == 2
    with pytest.raises(UsageError, match="no such file"):
        plan([slide], RunConfig(nuclei=str(tmp_path / "nowhere.geojson")))
    other.with_suffix(".toml").touch()
    with pytest.raises(UsageError, match=r"ends in \.geojson"):
        plan([slide], RunConfig(nuclei=str(other.with_suffix(".toml"))))


class Begun(SilentReporter):
    """Remembers what a run said it would do, and how far it came."""

    def begin(self, name: str, mm2: float, regions: int, mm2_before: float = 0.0, regions_before: int = 0) -> None:
        self.mm2, self.done_mm2 = mm2, mm2_before

    def advance(self, nuclei: int, mm2: float) -> None:
        self.done_mm2 += mm2


def test_the_area_is_that_of_the_tissue_with_external_nuclei_too(tmp_path: Path) -> None:
    """One area everywhere, whatever found the nuclei; nuclei on the glass are kept."""
    drawn = draw_slide(3000, 400, spacing=100)
    drawn.image[:, 1500:] = 250  # glass
    slide = drawn.save(tmp_path / "slide.png")
    tissue = drawn.centres[:, 0] < 1500
    rings = [
        [(x - 5, y - 5), (x + 5, y - 5), (x + 5, y + 5), (x - 5, y + 5)]
        for x, y in [*drawn.centres[tissue][:3], (2900, 200)]
    ]
    features = [{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[*r, r[0]]]}} for r in rings]
    (tmp_path / "nuclei.geojson").write_text(json.dumps(features))
    with open_slide(slide, MPP) as opened:
        mm2 = tissue_mask(opened).area_mm2
    assert mm2 == pytest.approx(1500 * 400 * MPP**2 / 1e6, rel=0.1)
    for external in (None, str(tmp_path / "nuclei.geojson")):
        out, begun = tmp_path / f"out{external is None}", Begun()
        config = RunConfig(mpp=MPP, nuclei=external, region_size=256)
        result = run_slide(slide, out / "slide", models(), config, begun)
        assert result.nuclei == (tissue.sum() if external is None else 4)
        assert result.tissue_mm2 == begun.mm2 == mm2
        assert begun.done_mm2 == pytest.approx(mm2)
        assert f"on {mm2:.3g} mm²" in final_line(result)
        Summary(out).write([(result, Path("slide"))])
        rows = list(csv.DictReader((out / "summary.csv").read_text("utf-8").splitlines()))
        assert float(rows[0]["tissue_mm2"]) == open_result(out / "slide").run_facts["tissue_mm2"] == round(mm2, 6)
        report = (out / "slide" / "report.html").read_text("utf-8")
        assert f"<b>{mm2:.3g}</b>mm² of tissue" in report
        assert f"<b>{result.nuclei / mm2:,.0f}</b>nuclei per mm²" in report


def test_measures_stand_in_the_geojson_under_qupaths_names(detected: tuple[Path, Path, Store]) -> None:
    _, out, store = detected
    features = json.loads((out / "nuclei.geojson").read_text("utf-8"))["features"]
    for name, measure in (
        ("Solidity", "solidity"),
        ("Max diameter µm", "max_diameter_um"),
        ("Min diameter µm", "min_diameter_um"),
        ("Hematoxylin OD mean", "haematoxylin_od"),
    ):
        shown = [one["properties"]["measurements"][name] for one in features]
        np.testing.assert_allclose(shown, store.measure(measure), atol=5.1e-5)
    # Of the outline as written, as QuPath measures it.
    for one in features:
        ring, measurements = shapely.geometry.shape(one["geometry"]), one["properties"]["measurements"]
        assert measurements["Length µm"] == pytest.approx(ring.length * MPP, abs=0.01)
        assert measurements["Circularity"] == pytest.approx(4 * np.pi * ring.area / ring.length**2, abs=0.002)
    # Drawn ellipses with half axes of 8 to 12 px, dark violet.
    assert (store.measure("max_diameter_um") < 8).all()
    assert (store.measure("min_diameter_um") > 3.5).all()
    assert (store.measure("circularity") > 0.75).all()
    assert (store.measure("haematoxylin_od") > 0.2).all()
