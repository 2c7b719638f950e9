"""One contract for every form of export, checked by reading each with the library that its users read it with.

Last seen to pass with anndata 0.12.19, spatialdata 0.7.3, geopandas 1.2.0, pyarrow 26.0.1, ome-zarr 0.15.0, zarr 3.1.6,
tiatoolbox 2.1.3 (AnnotationStore), shapely 2.1.2 and pandas 2.3.3 (GeoJSON, CSV).
"""

from __future__ import annotations

import gzip
import itertools
import json
import resource
import sqlite3
import warnings
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import shapely
import zarr

from classifier.decision_rule import DecisionRule, decide
from nucpipe.errors import OutputError, UsageError
from pipeline.export.registry import FORMATS, ExportOptions, export_result
from pipeline.export.select import columns_of, select_nuclei
from pipeline.result import Result, open_result
from pipeline.store.reader import Store
from tests.support.paths import ROOT
from tests.support.stores import TYPES, random_store

LIBRARIES = ("NuCLS", "BreCaHAD", "CoNSeP", "MoNuSAC", "PanNuke")
WINDOW = (800.0, 600.0, 3000.0, 2500.0)


@dataclass
class Read:
    """What a consumer found, in its own order of nuclei."""

    ids: list[str]
    labels: dict[str, list[str | None]]  # by library; what the form holds
    centroids: np.ndarray
    areas_px: np.ndarray | None = None  # of the outlines


def text_or_none(values: Any) -> list[str | None]:
    return [v if isinstance(v, str) and v else None for v in values]


def read_geojson(path: Path) -> Read:
    """geopandas (pyogrio, GDAL's reader) for the geometry, json for the nested properties."""
    text = gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()
    features = json.loads(text)["features"]
    shapes = [shapely.geometry.shape(f["geometry"]) for f in features]
    assert all(shape.is_valid for shape in shapes)
    labels = {name: [f["properties"]["metadata"].get(name) for f in features] for name in LIBRARIES}
    return Read([f["id"] for f in features], labels, centres(shapes), areas(shapes))


def read_csv(path: Path) -> Read:
    table = pd.read_csv(path)
    labels = {name: text_or_none(table[labels_column(table, name)]) for name in LIBRARIES}
    return Read(table["id"].tolist(), labels, table[["x_l0", "y_l0"]].to_numpy())


def read_parquet(path: Path) -> Read:
    import geopandas

    frame = geopandas.read_parquet(path)
    assert frame.crs is None
    assert frame.geometry.is_valid.all()
    assert frame["PanNuke"].dtype == "category"
    labels = {name: text_or_none(frame[labels_column(frame, name)]) for name in LIBRARIES}
    return Read(frame["id"].tolist(), labels, centres(frame.geometry), areas(frame.geometry))


def read_anndata(path: Path) -> Read:
    return read_table(anndata.read_h5ad(path))


def read_table(table: anndata.AnnData) -> Read:
    if "given" in table.layers:
        labels = {}
        for name in LIBRARIES:
            columns = np.flatnonzero(table.var["library"] == name)
            given = np.asarray(table.layers["given"])[:, columns].astype(bool)
            names = table.var["label"].to_numpy()[columns]
            labels[name] = ["; ".join(names[row]) or None for row in given]
    else:
        labels = {name: text_or_none(table.obs[name]) for name in LIBRARIES}
    return Read(list(table.obs_names), labels, np.asarray(table.obsm["spatial"]))


def read_spatialdata(path: Path) -> Read:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own dependencies, some of them when they are imported
        import spatialdata

        data = spatialdata.read_zarr(path)
        from spatialdata.models import TableModel

        if "nuclei" not in data:
            return read_table(data.tables["table"])
        TableModel().validate(data.tables["table"])
        matched, table = spatialdata.match_element_to_table(data, "nuclei", "table")
    shapes = matched["nuclei"].geometry
    read = read_table(table)
    assert list(shapes.index) == table.obs["instance_id"].tolist() == read.ids
    read.areas_px = areas(shapes)
    np.testing.assert_allclose(centres(shapes), read.centroids, atol=1)
    return read


def read_annotation_store(path: Path) -> Read:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own dependencies
        from tiatoolbox.annotation.storage import SQLiteStore
    with closing(sqlite3.connect(":memory:")) as connection:
        options = [row[0] for row in connection.execute("PRAGMA compile_options")]
    with pytest.MonkeyPatch.context() as patch:
        # Its own cannot ask where sqlite3 loads no extensions, and leaves a connection open (Python 3.13 warns).
        patch.setattr(SQLiteStore, "compile_options", staticmethod(lambda: options))
        store = SQLiteStore(path)
        annotations = dict(store.items())
        assert len(store) == len(annotations)
        everything = store.query(shapely.box(-10, -10, 10_000, 10_000))
        assert len(everything) == len(annotations)
        some = store.query(shapely.box(*WINDOW), geometry_predicate="bbox_intersects")
        store.close()
    shapes = [annotation.geometry for annotation in annotations.values()]
    touching = {k for k, a in annotations.items() if shapely.box(*a.geometry.bounds).intersects(shapely.box(*WINDOW))}
    assert set(some) == touching
    rows = [annotation.properties for annotation in annotations.values()]
    assert all(row.get("type") == row.get("PanNuke") for row in rows)
    labels = {name: [row.get(f"{name}_labels", row.get(name)) for row in rows] for name in LIBRARIES}
    return Read(list(annotations), labels, centres(shapes), areas(shapes))


def centres(shapes: Any) -> np.ndarray:
    return shapely.get_coordinates(shapely.centroid(np.asarray(shapes, object)))


def areas(shapes: Any) -> np.ndarray:
    return shapely.area(np.asarray(shapes, object))


def labels_column(table: Any, name: str) -> str:
    return f"{name}_labels" if f"{name}_labels" in table else name


READERS: dict[str, Callable[[Path], Read]] = {
    "geojson": read_geojson,
    "csv": read_csv,
    "parquet": read_parquet,
    "anndata": read_anndata,
    "spatialdata": read_spatialdata,
    "annotationstore": read_annotation_store,
}
NEEDS = {"parquet": "geopandas", "spatialdata": "spatialdata"}


def parameter(form: str) -> Any:
    """A form to test, skipped where its consumer is not installed."""
    missing = find_spec(NEEDS.get(form, "zarr")) is None
    return pytest.param(form, marks=pytest.mark.skipif(missing, reason=f"{NEEDS.get(form)} is not installed"))


WANTED = {
    "whole": ExportOptions(),
    "window": ExportOptions(bbox_l0=WINDOW),
    "labels": ExportOptions(primary="pannuke", labels=("Neoplastic", "dead")),
    "best": ExportOptions(rule=DecisionRule("best", 0.5)),
    "threshold": ExportOptions(
        rule=DecisionRule("threshold", 0.2), bbox_l0=WINDOW, primary="CoNSeP", labels=("epithelial",)
    ),
}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = tmp_path_factory.mktemp("result")
    random_store(folder, 300)
    return open_result(folder)


def expected(store: Store) -> dict[str, tuple[dict[str, str | None], np.ndarray, float]]:
    """By id: labels, centroid and area of the outline, from the store's arrays."""
    outputs = store.info.outputs
    given = decide(store.probabilities, outputs, store.info.rule)
    offsets, points = store.contours()
    nuclei = {}
    for i, (identity, centroid) in enumerate(zip(store.ids, store.centroids_l0, strict=True)):
        labels = {}
        for library in outputs.libraries:
            row = given[i, outputs.slices[library.name]]
            labels[library.name] = "; ".join(np.array(library.labels)[row]) or None
        nuclei[identity] = labels, centroid, shapely.Polygon(points[offsets[i] : offsets[i + 1]]).area
    return nuclei


@pytest.mark.parametrize("wanted", WANTED.values(), ids=WANTED)
@pytest.mark.parametrize("form", [parameter(form) for form in READERS])
def test_same_nuclei_labels_and_places_as_the_store(
    form: str, wanted: ExportOptions, result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form == "annotationstore" and wanted.primary == "CoNSeP":
        wanted = ExportOptions(**{**vars(wanted), "primary": "PanNuke", "labels": ("dead", "epithelial")})
    store = select_nuclei(result.store, wanted.bbox_l0, wanted.primary or "PanNuke", wanted.labels, wanted.rule)
    assert 0 < len(store) <= 300
    monkeypatch.setattr(Store.batches, "__defaults__", (77,))
    ((path, count),) = export_result(result, form, wanted, tmp_path / FORMATS[form].name)
    read, nuclei = READERS[form](path), expected(store)
    assert count == len(read.ids) == len(nuclei)
    assert set(read.ids) == set(nuclei)
    for i, identity in enumerate(read.ids):
        labels, centroid, area = nuclei[identity]
        assert {name: read.labels[name][i] for name in LIBRARIES} == labels
        np.testing.assert_allclose(read.centroids[i], centroid, atol=1)
        if read.areas_px is not None:
            assert read.areas_px[i] == pytest.approx(area)


@pytest.mark.parametrize("form", [parameter(form) for form in READERS])
def test_no_nuclei(form: str, tmp_path: Path) -> None:
    random_store(tmp_path, 0)
    ((path, count),) = export_result(open_result(tmp_path), form)
    assert count == 0
    assert READERS[form](path).ids == []


@pytest.mark.parametrize("form", [parameter("geojson"), parameter("parquet"), parameter("annotationstore")])
def test_centroids_are_points_in_their_places(form: str, result: Result, tmp_path: Path) -> None:
    ((path, _),) = export_result(result, form, ExportOptions(centroids=True), tmp_path / FORMATS[form].name)
    read = READERS[form](path)
    assert read.areas_px is not None
    assert not read.areas_px.any()
    places = dict(zip(result.store.ids, result.centroids().tolist(), strict=True))
    assert dict(zip(read.ids, read.centroids.tolist(), strict=True)) == places


@pytest.mark.parametrize("form", ["geojson", "annotationstore"])
def test_a_file_for_each_library(form: str, result: Result, tmp_path: Path) -> None:
    name = FORMATS[form].name
    written = export_result(result, form, ExportOptions(all_libraries=True), tmp_path / name)
    stem, ending = name.split(".", 1)
    assert [(path.name, count) for path, count in written] == [(f"{stem}-{lib}.{ending}", 300) for lib in LIBRARIES]
    if form == "geojson":
        for (path, _), library in zip(written, LIBRARIES, strict=True):
            classes = [f["properties"]["classification"]["name"] for f in json.loads(path.read_text())["features"]]
            assert classes == result.labels(library).tolist()


@pytest.mark.parametrize("form", ["geojson", "csv"])
def test_gz(form: str, result: Result, tmp_path: Path) -> None:
    ((plain, _),) = export_result(result, form, ExportOptions(), tmp_path / FORMATS[form].name)
    ((packed, _),) = export_result(result, form, ExportOptions(gz=True), tmp_path / f"{FORMATS[form].name}.gz")
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()


@pytest.mark.parametrize("form", [parameter("csv"), parameter("anndata"), parameter("parquet")])
def test_the_detectors_own_types(form: str, result: Result, tmp_path: Path) -> None:
    ((path, _),) = export_result(result, form, None, tmp_path / FORMATS[form].name)
    if form == "csv":
        found = pd.read_csv(path)["segmentor_type"]
    elif form == "anndata":
        found = anndata.read_h5ad(path).obs["segmentor_type"]
    else:
        import geopandas

        found = geopandas.read_parquet(path)["segmentor_type"]
    numbers = result.store.type_numbers
    assert {-1, 0, 1} == set(numbers.tolist())
    assert text_or_none(found) == [None if k < 0 else TYPES[k] for k in numbers]


def test_the_table_opens_as_the_run_wrote_it(result: Result, tmp_path: Path) -> None:
    ((path, _),) = export_result(result, "anndata", None, tmp_path / "a.h5ad")
    ours, runs = anndata.read_h5ad(path), result.table
    pd.testing.assert_frame_equal(ours.obs, runs.obs)
    pd.testing.assert_frame_equal(ours.var, runs.var)
    np.testing.assert_array_equal(ours.X, runs.X)
    assert set(ours.uns) == set(runs.uns)
    assert list(ours.uns["PanNuke_colors"]) == list(runs.uns["PanNuke_colors"])
    ours.write_h5ad(tmp_path / "again.h5ad")


def test_the_documentation_names_every_column(result: Result) -> None:
    text = (ROOT / "docs" / "exports.md").read_text("utf-8").partition("## Columns")[2]
    outputs = result.store.info.outputs
    own = {name + end for name in (lib.name for lib in outputs.libraries) for end in ("", "_p")}
    assert not [name for name in columns_of(result.store) if name not in own and f"`{name}`" not in text]


def test_a_selection_of_nothing_says_why(result: Result, caplog: pytest.LogCaptureFixture) -> None:
    assert len(select_nuclei(result.store, (-90, -90, -10, -10))) == 0
    assert "--bbox -90 -90 -10 -10: no nucleus of slide (4000 x 3000 pixels) lies in it." in caplog.text
    assert len(result.filtered(min_area=5000)) == 0
    assert f"slide: no nucleus of {len(result)} has at least 5000 µm²." in caplog.text
    assert len(caplog.records) == 2


def test_a_new_rule_changes_the_table(result: Result, tmp_path: Path) -> None:
    ((path, _),) = export_result(
        result, "anndata", ExportOptions(rule=DecisionRule("threshold", 0.3)), tmp_path / "a.h5ad"
    )
    table = anndata.read_h5ad(path)
    assert json.loads(table.uns["settings"])["decide"] == {"kind": "threshold", "threshold": 0.3}
    given = np.asarray(table.layers["given"]).astype(bool)
    np.testing.assert_array_equal(given, (np.asarray(table.X) >= np.float32(0.3)) & table.var["trained"].to_numpy())
    none = table.obs["NuCLS"].isna().to_numpy()
    np.testing.assert_array_equal(none, ~given[:, (table.var["library"] == "NuCLS").to_numpy()].any(1))
    np.testing.assert_array_equal(none, table.obs["NuCLS_p"].isna())


def test_label_images(tmp_path: Path) -> None:
    store = random_store(tmp_path, 60, (2300, 1500))
    result = open_result(tmp_path)
    ((path, count),) = export_result(result, "labels", ExportOptions(all_libraries=True))
    assert count == 60
    root = zarr.open_group(path, mode="r")
    assert root["labels"].attrs["ome"]["labels"] == ["nuclei", *LIBRARIES]
    nuclei = np.asarray(root["labels/nuclei/0"])
    assert nuclei.shape == (1500, 2300)
    offsets, points = store.contours()
    x, y = (np.arange(n) + 0.5 for n in (2300, 1500))
    boxes = [shapely.Polygon(points[a:b]) for a, b in itertools.pairwise(offsets)]
    alone = [i for i, box in enumerate(boxes) if sum(box.intersects(other) for other in boxes) == 1]
    assert len(alone) > 50
    for i in alone:
        x0, y0, x1, y1 = (int(v) for v in boxes[i].bounds)
        columns, rows = np.meshgrid(x[x0 : x1 + 1], y[y0 : y1 + 1])
        inside = shapely.contains_xy(boxes[i], columns, rows)
        edge = shapely.dwithin(boxes[i].exterior, shapely.points(columns, rows), 1e-9)
        drawn = nuclei[y0 : y1 + 1, x0 : x1 + 1] == i + 1
        np.testing.assert_array_equal(drawn[~edge], inside[~edge])
        assert (nuclei == i + 1).sum() == drawn.sum()
    for library in LIBRARIES:
        image = root[f"labels/{library}"]
        meaning = {row["label-value"]: row["label"] for row in image.attrs["ome"]["image-label"]["properties"]}
        values = np.asarray(image["0"])
        np.testing.assert_array_equal(values > 0, nuclei > 0)
        for identity, label in zip(range(60), result.labels(library), strict=True):
            assert {meaning[v] for v in np.unique(values[nuclei == identity + 1])} <= {label}
    smaller = np.asarray(root["labels/nuclei/1"])
    np.testing.assert_array_equal(smaller, nuclei[::2, ::2])


def test_label_images_open_with_ome_zarr(tmp_path: Path, demo_slide: Path) -> None:
    ome_zarr_io = pytest.importorskip("ome_zarr.io")
    from ome_zarr.reader import Reader

    from pipeline.slide.open import open_slide

    with open_slide(demo_slide) as slide:
        random_store(tmp_path, 40, slide.size_l0)
        pixels = slide.read_level(0, (0, 0, 64, 64))
    wanted = ExportOptions(slide=demo_slide, image_mpp=0.25)
    object.__setattr__(open_result(tmp_path).store.info, "mpp", 0.499)
    ((path, _),) = export_result(open_result(tmp_path), "labels", wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nodes = list(Reader(ome_zarr_io.parse_url(path, mode="r"))())
    image = nodes[0].data
    assert image[0].shape == (3, 2967, 2220)
    np.testing.assert_array_equal(np.asarray(image[0][:, :64, :64]).transpose(1, 2, 0), pixels)
    assert image[1].shape == (3, 1484, 1110)
    labels = {node.metadata["name"]: node for node in nodes[1:] if "name" in node.metadata}
    assert set(labels) == {"nuclei", "PanNuke"}
    assert labels["nuclei"].data[0].shape == (2967, 2220)
    assert len(np.unique(np.asarray(labels["nuclei"].data[0]))) - 1 == 40
    assert labels["PanNuke"].metadata["color"][1] == pytest.approx([200 / 255, 0, 0, 1])


def test_spatialdata_holds_the_slide_in_its_place(tmp_path: Path, demo_slide: Path) -> None:
    spatialdata = pytest.importorskip("spatialdata")
    from spatialdata.transformations import get_transformation

    random_store(tmp_path, 40, (2220, 2967))
    ((path, _),) = export_result(open_result(tmp_path), "spatialdata", ExportOptions(slide=demo_slide, image_mpp=1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = spatialdata.read_zarr(path)
        extent = spatialdata.get_extent(data["slide"], coordinate_system="um")
        window = spatialdata.bounding_box_query(
            data["nuclei"],
            axes=("x", "y"),
            min_coordinate=[0, 0],
            max_coordinate=[1000, 1000],
            target_coordinate_system="global",
        )
    assert extent["x"] == pytest.approx((0, 2220 * 0.25), abs=1.01)
    assert extent["y"] == pytest.approx((0, 2967 * 0.25), abs=1.01)
    x, y = open_result(tmp_path).centroids().T
    assert abs(len(window) - ((x < 1000) & (y < 1000)).sum()) <= 2
    assert get_transformation(data["nuclei"], "um").scale.tolist() == [0.25, 0.25]


@pytest.mark.parametrize(
    ("form", "wanted", "words"),
    [
        (
            "csv",
            ExportOptions(centroids=True),
            "--centroids cannot be used with --to csv: it always holds the centroids",
        ),
        ("parquet", ExportOptions(gz=True), "--gz cannot be used with --to parquet"),
        ("anndata", ExportOptions(all_libraries=True), "--all-libraries cannot be used with --to anndata"),
        ("geojson", ExportOptions(image_mpp=1.0), "--image-mpp cannot be used with --to geojson"),
        ("labels", ExportOptions(image_mpp=-1.0), "--image-mpp -1: expected"),
        ("csv", ExportOptions(bbox_l0=(5, 5, 5, 9)), "--bbox 5 5 5 9: expected X0 Y0 X1 Y1"),
        ("csv", ExportOptions(labels=("tumour",)), "label 'tumour' is not one of PanNuke's"),
        ("csv", ExportOptions(primary="Kumar"), "unknown library 'Kumar'"),
        ("labels", ExportOptions(image_mpp=1.0), "the slide slide is needed, but its place is not known"),
        (
            "spatialdata",
            ExportOptions(slide=Path("nowhere.svs")),
            "the slide slide is needed, but it is not at nowhere.svs",
        ),
    ],
)
def test_what_a_form_has_not_is_refused(
    form: str, wanted: ExportOptions, words: str, result: Result, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as error:
        export_result(result, form, wanted, tmp_path / FORMATS[form].name)
    assert words in str(error.value)
    assert not list(tmp_path.iterdir())


def test_names_are_checked(result: Result, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected a name that ends in \.h5ad"):
        export_result(result, "anndata", None, tmp_path / "a.zarr")
    with pytest.raises(UsageError, match=r"expected a name that ends in \.gz with --gz"):
        export_result(result, "csv", ExportOptions(gz=True), tmp_path / "a.csv")


@pytest.mark.parametrize("form", ["csv", "geojson", "labels"])
def test_an_export_that_exists_is_replaced_on_demand_alone(form: str, result: Result, tmp_path: Path) -> None:
    path, few = tmp_path / FORMATS[form].name, ExportOptions(bbox_l0=(0, 0, 500, 500))
    ((_, count),) = export_result(result, form, None, path)
    before = {file: file.read_bytes() for file in (path, *path.rglob("*")) if file.is_file()}
    with pytest.raises(OutputError, match=r"already exists; give another --out, or --overwrite"):
        export_result(result, form, few, path)
    assert {file: file.read_bytes() for file in (path, *path.rglob("*")) if file.is_file()} == before
    ((_, fewer),) = export_result(result, form, few, path, overwrite=True)
    assert fewer < count
    assert {file: file.read_bytes() for file in (path, *path.rglob("*")) if file.is_file()} != before


def test_of_several_files_none_is_written_where_one_exists(result: Result, tmp_path: Path) -> None:
    taken = tmp_path / "a-PanNuke.geojson"
    taken.write_text("mine")
    with pytest.raises(OutputError, match=r"a-PanNuke\.geojson: already exists"):
        export_result(result, "geojson", ExportOptions(all_libraries=True), tmp_path / "a.geojson")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(taken.name, "mine")]


def test_a_disk_that_fills_up_ends_an_h5ad_in_one_line(result: Result, tmp_path: Path) -> None:
    """HDF5 crashed the process."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        with pytest.raises(OutputError, match=r"nuclei\.h5ad: cannot be written \(File too large\); make room"):
            export_result(result, "anndata", out=tmp_path / "nuclei.h5ad")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_export_is_never_replaced(result: Result, tmp_path: Path) -> None:
    mine = tmp_path / "mine.zarr"
    mine.mkdir()
    (mine / "precious").write_text("")
    with pytest.raises(OutputError, match=r"already exists and is not an export"):
        export_result(result, "labels", None, mine, overwrite=True)
    assert [p.name for p in mine.iterdir()] == ["precious"]
    assert [p.name for p in tmp_path.iterdir()] == ["mine.zarr"]
    for _ in range(2):
        export_result(result, "labels", None, tmp_path / "other.zarr", overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.zarr", "other.zarr"]
