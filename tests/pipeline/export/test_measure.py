"""Tables of regions and of neighbours, from a store and from a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from scipy.stats import binomtest

from nucpipe.errors import UsageError
from pipeline.cli.main import main
from pipeline.config import RunConfig
from pipeline.export.registry import ExportOptions, export_result
from pipeline.export.tables.csv import write_frames
from pipeline.export.tables.neighbours import find_neighbours
from pipeline.export.tables.region_table import region_table, wilson_interval
from pipeline.result import open_result
from pipeline.run_slide import run_slide
from pipeline.store.reader import Store
from pipeline.store.run_record import SilentReporter
from segmentation.nuclei import MEASURES
from tests.support.stores import UNTRAINED, random_store
from tests.support.synthetic import MPP, draw_slide, models

BOXES = {"all": (0, 0, 4000, 3000), "left": (0, 0, 2000, 3000), "right": (2000, 0, 4000, 3000), "corner": (0, 0, 5, 5)}


def write_boxes(path: Path, boxes: dict[str, tuple[int, int, int, int]] = BOXES) -> Path:
    features = []
    for name, (x0, y0, x1, y1) in boxes.items():
        ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
        properties = {"objectType": "annotation", "name": name, "classification": {"name": "Tumor", "color": [0, 0, 0]}}
        features.append(
            {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}
        )
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result of 500 nuclei, without touching anything else; the boxes lie beside it."""
    folder = tmp_path_factory.mktemp("measure") / "slide"
    random_store(folder, 500)
    write_boxes(folder.parent / "roi.geojson")
    return folder


def test_wilsons_interval_is_scipys() -> None:
    for k, n in ((0, 10), (3, 10), (10, 10), (1, 1), (250, 1000)):
        low, high = wilson_interval(k, n)
        known = binomtest(k, n).proportion_ci(0.95, "wilson")
        assert (float(low), float(high)) == pytest.approx((known.low, known.high), abs=1e-6)
    assert [float(end) for end in wilson_interval(0, 0)] == [0, 1]


def test_the_table_of_regions(folder: Path) -> None:
    store = open_result(folder).store.with_regions(folder.parent / "roi.geojson")
    assert store.regions is not None
    table = region_table(store, store.regions)
    outputs = store.info.outputs
    assert len(table) == len(BOXES) * len(outputs)
    assert table["region"].drop_duplicates().tolist() == list(BOXES)
    assert (table["class"] == "Tumor").all()
    points = store.centroids_l0
    for name, (x0, y0, x1, y1) in BOXES.items():
        inside = (points[:, 0] >= x0) & (points[:, 0] < x1) & (points[:, 1] >= y0) & (points[:, 1] < y1)
        part = table[table["region"] == name]
        area = (x1 - x0) * (y1 - y0) * 0.25**2 / 1e6
        np.testing.assert_allclose(part["area_mm2"], area)
        assert (part["nuclei"] == inside.sum()).all()
        for library in outputs.libraries:
            numbers = store.label_numbers(library.name)
            rows = part[part["library"] == library.name]
            assert rows["label"].tolist() == list(library.labels)
            for k, row in enumerate(rows.to_dict("records")):
                which = inside & (numbers == k)
                if f"{library.name}:{library.labels[k]}" in UNTRAINED:
                    measured = ("count", "per_mm2", "share", "share_low", "share_high", "mean_probability")
                    assert all(pd.isna(row[column]) for column in measured)
                    continue
                assert row["count"] == which.sum()
                assert row["per_mm2"] == pytest.approx(which.sum() / area)
                if inside.any():
                    assert row["share"] == which.sum() / inside.sum()
                    assert row["share_low"] <= row["share"] <= row["share_high"]
                for column, values in (
                    ("mean_probability", store.label_probabilities(library.name)),
                    ("mean_area_um2", store.area_um2),
                    ("mean_detection_p", store.detection_p),
                ):
                    assert row[column] == pytest.approx(values[which].mean() if which.any() else np.nan, nan_ok=True)
    # Both halves have each nucleus once, those on the border, too; the corner has none, so nothing is divided by.
    count = {name: table[table["region"] == name]["count"].dropna().to_numpy(int) for name in BOXES}
    assert len(count["all"]) == len(outputs) - len(UNTRAINED)
    np.testing.assert_array_equal(count["left"] + count["right"], count["all"])
    corner = table[table["region"] == "corner"]
    assert corner["share"].isna().all()
    assert (corner["share_high"].dropna() == 1).all()
    assert table[[f"mean_{name}" for name in MEASURES]].isna().all(axis=None)  # this store has no measures


def test_no_region_is_a_formula_in_a_spreadsheet(tmp_path: Path) -> None:
    names = ["=HYPERLINK(0)", "@a", "-1", "tumour = 1"]
    write_frames([pd.DataFrame({"region": names, "count": 1})], tmp_path / "regions.csv")
    read = pd.read_csv(tmp_path / "regions.csv")
    safe = ["'=HYPERLINK(0)", "'@a", "'-1", "tumour = 1"]
    assert read["region"].tolist() == safe
    frame = pd.DataFrame({"region": pd.Categorical.from_codes([0, 1, 2, 3, -1], pd.Index(names)), "count": 1})
    write_frames([frame, frame[:0]], tmp_path / "nuclei.csv")
    assert pd.read_csv(tmp_path / "nuclei.csv", keep_default_na=False)["region"].tolist() == [*safe, ""]


def test_neighbours_are_those_of_all_pairs(folder: Path) -> None:
    store = open_result(folder).store
    radius = 60.0
    found = find_neighbours(store, "pannuke", radius)
    points, numbers = store.centroids_l0 * 0.25, store.label_numbers("PanNuke")
    distances = np.hypot(*(points[:, None] - points[None]).transpose(2, 0, 1))
    np.fill_diagonal(distances, np.inf)
    for k in range(len(found.library.labels)):
        to_label = distances[:, numbers == k]
        np.testing.assert_allclose(found.nearest_um[:, k], to_label.min(1, initial=np.inf), rtol=1e-5)
        np.testing.assert_array_equal(found.within[:, k], (to_label <= radius).sum(1))
    assert found.within.sum() > 1000


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        (["--quality", "--radius", 30], "--radius needs --neighbours"),
        (["--regions", "roi.geojson", "--primary", "NuCLS"], "--primary needs --neighbours"),
        (["--quality", "--only-good"], "--only-good needs --regions or --neighbours"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(folder: Path, words: list[object], needed: str) -> None:
    said = invoke("measure", folder, *words)
    assert (said.exit_code, said.output) == (2, f"nucpipe: {needed}: it changes nothing else.\n")


def test_a_wrong_file_of_regions_is_told_before_a_table_that_exists(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "regions.csv").touch()
    said = invoke("measure", folder, "--regions", tmp_path / "none.geojson", "--out", tmp_path)
    assert (said.exit_code, said.output.count("\n")) == (2, 1)
    assert said.output.startswith(f"nucpipe: --regions {tmp_path / 'none.geojson'}: no such file")


def test_the_only_nucleus_of_a_label_has_no_neighbour_of_it(tmp_path: Path) -> None:
    store = random_store(tmp_path / "one", 1)
    found = find_neighbours(store, "PanNuke", 50)
    assert np.isnan(found.nearest_um).all()
    assert not found.within.any()
    none = find_neighbours(random_store(tmp_path / "none", 0), "PanNuke", 50)
    assert none.nearest_um.shape == (0, 5)


def invoke(*words: object) -> Any:
    return CliRunner().invoke(main, [str(word) for word in words])


def test_the_command(folder: Path, tmp_path: Path) -> None:
    roi = folder.parent / "roi.geojson"
    before = sorted(path.name for path in folder.iterdir())
    measured = ("measure", folder, "--regions", roi, "--neighbours", "--radius", 40, "--out", tmp_path / "out")
    done = invoke(*measured)
    assert done.exit_code == 0, done.output
    assert done.output.splitlines() == [
        f"4 regions -> {tmp_path / 'out' / 'regions.csv'}",
        f"500 nuclei -> {tmp_path / 'out' / 'neighbours.csv'}",
    ]
    assert sorted(path.name for path in folder.iterdir()) == before
    store = open_result(folder).store
    table = pd.read_csv(tmp_path / "out" / "neighbours.csv")
    assert table["id"].tolist() == store.ids.tolist()
    left = store.centroids_l0[:, 0] < 2000
    np.testing.assert_array_equal(table["region"], np.where(left, "left", "right"))
    np.testing.assert_array_equal(table["neoplastic_within_40um"], find_neighbours(store, "PanNuke", 40).within[:, 0])
    library, label = UNTRAINED[0].split(":")
    of = ("measure", folder, "--neighbours", "--primary", library, "--radius", 40, "--out", tmp_path / "untaught")
    assert invoke(*of).exit_code == 0
    table = pd.read_csv(tmp_path / "untaught" / "neighbours.csv")
    assert table[[f"{label}_um", f"{label}_within_40um"]].isna().all(axis=None)  # 0 would be an answer
    assert table.filter(like="_within_").notna().any().sum() == len(store.info.outputs.library(library).labels) - 1
    assert pd.read_csv(tmp_path / "out" / "regions.csv")["nuclei"].max() == 500
    again = invoke(*measured)
    assert again.exit_code == 1
    assert "regions.csv: already exists; give another --out, or --overwrite" in again.output
    assert invoke(*measured, "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "nothing to measure: expected --regions ROI.geojson, --neighbours or --quality"),
        (("--neighbours", "--radius", "0"), "--radius 0: expected micrometres, above 0 to 1000"),
        (("--neighbours", "--radius", "nan"), "--radius nan: expected micrometres"),
        (("--neighbours", "--primary", "other"), "other"),
        (("--regions", "nowhere.geojson"), "--regions nowhere.geojson: no such file"),
    ],
)
def test_wrong_use_says_so(folder: Path, tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    done = invoke("measure", folder, "--out", tmp_path / "out", *options)
    assert done.exit_code in (1, 2)
    assert said in done.output
    assert len(done.output.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def exported(folder: Path, form: str, path: Path, **options: Any) -> Path:
    ((path, _),) = export_result(open_result(folder), form, ExportOptions(**options), path)
    return path


def test_exports_tell_and_choose_regions(folder: Path, tmp_path: Path) -> None:
    roi = folder.parent / "roi.geojson"
    store: Store = open_result(folder).store
    left = store.centroids_l0[:, 0] < 2000
    table = pd.read_csv(exported(folder, "csv", tmp_path / "n.csv", regions=roi))
    np.testing.assert_array_equal(table["region"], np.where(left, "left", "right"))
    assert "region" not in pd.read_csv(exported(folder, "csv", tmp_path / "plain.csv")).columns
    features = json.loads(exported(folder, "geojson", tmp_path / "n.geojson", regions=roi).read_text())["features"]
    assert [one["properties"]["metadata"]["Region"] for one in features] == table["region"].tolist()
    some = pd.read_csv(exported(folder, "csv", tmp_path / "l.csv", regions=roi, region_names=["left", "corner"]))
    assert some["id"].tolist() == store.ids[left].tolist()
    import anndata

    chosen = anndata.read_h5ad(exported(folder, "anndata", tmp_path / "n.h5ad", regions=roi, region_names=["right"]))
    assert chosen.obs_names.tolist() == store.ids[~left].tolist()
    with pytest.raises(UsageError, match="--regions without --region cannot be used with --to anndata"):
        exported(folder, "anndata", tmp_path / "m.h5ad", regions=roi)
    with pytest.raises(UsageError, match="--region left: expected --regions"):
        exported(folder, "csv", tmp_path / "m.csv", region_names=["left"])


def test_a_run_in_regions_measures_them(tmp_path: Path) -> None:
    """The table and the report come with the run, and say what ``nucpipe measure`` says."""
    drawn = draw_slide(700, 600)
    slide = drawn.save(tmp_path / "slide.png")
    boxes = {"first": (0, 0, 300, 600), "second": (400, 0, 700, 300)}
    roi = write_boxes(tmp_path / "roi.geojson", boxes)
    out = tmp_path / "out"
    done = run_slide(slide, out, models(), RunConfig(mpp=MPP, tissue=str(roi)), SilentReporter())
    table = pd.read_csv(out / "regions.csv")
    # Regions that do not overlap: their nuclei are those of the result, their area is the tissue's.
    by_region = table.groupby("region", sort=False)[["area_mm2", "nuclei"]].first()
    assert by_region.index.tolist() == ["first", "second"]
    assert by_region["nuclei"].sum() == done.nuclei > 50
    assert by_region["area_mm2"].sum() == pytest.approx(done.tissue_mm2)
    assert table["mean_solidity"].notna().any()
    report = (out / "report.html").read_text("utf-8")
    assert "<h2>Regions</h2>" in report
    assert report.count("<td>first") == 5
    measured = invoke("measure", out, "--regions", roi, "--out", tmp_path / "again")
    assert measured.exit_code == 0, measured.output
    assert (tmp_path / "again" / "regions.csv").read_bytes() == (out / "regions.csv").read_bytes()
    other = invoke("report", out, "--regions", write_boxes(tmp_path / "b.geojson"), "--out", tmp_path / "r.html")
    assert other.exit_code == 0, other.output
    assert "<td>corner" in (tmp_path / "r.html").read_text("utf-8")
    assert "<h2>Regions</h2>" not in report_of(out, tmp_path / "plain.html")
    # Without its table the result is not whole; it is made again from the store.
    (out / "regions.csv").unlink()
    assert run_slide(slide, out, models(), RunConfig(mpp=MPP, tissue=str(roi)), SilentReporter()).status == "done"
    assert (out / "regions.csv").read_bytes() == (tmp_path / "again" / "regions.csv").read_bytes()


def report_of(result: Path, path: Path) -> str:
    assert invoke("report", result, "--out", path).exit_code == 0
    return path.read_text("utf-8")
