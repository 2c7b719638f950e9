"""The store: what the design says is in it, to the bit, however the slide was cut."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path
from uuid import UUID, uuid5

import anndata
import numpy as np
import pandas as pd
import pytest
import zarr

from classifier.labels.libraries import LabelSpace, published_libraries
from classifier.predictions import Predictions
from nucpipe.errors import OutputError, UsageError
from pipeline.store.journal import Journal
from pipeline.store.ordering import NUCLEUS_NAMESPACE, ROUNDING, nucleus_ids
from pipeline.store.reader import Store, open_store
from pipeline.store.schema import StoreInfo
from pipeline.store.writer import finish
from segmentation.nuclei import MEASURES, Nuclei

LIBRARIES = published_libraries()
NAMES = ["NuCLS", "BreCaHAD", "CoNSeP", "MoNuSAC", "PanNuke"]
# BreCaHAD's non_mitosis was never taught, as in real data.
TRAINED = tuple(name != ("BreCaHAD", "non_mitosis") for name in LabelSpace(LIBRARIES, (True,) * 35).columns)
OUTPUTS = LabelSpace(LIBRARIES, TRAINED)
SIZE_L0 = (9000, 7000)


def info(outputs: LabelSpace = OUTPUTS, slide_name: str = "Präparat 切片") -> StoreInfo:
    return StoreInfo(
        slide_name=slide_name,
        size_l0=SIZE_L0,
        mpp=0.2485,
        origin_l0=(100, 50),
        outputs=outputs,
        models={"segmentor": {"name": "compact", "fingerprint": "sha256:00"}, "classifier": {"data": [{"n": 1}, None]}},
        settings={"tissue": "auto", "threshold": None},
        nucpipe_version="0.1.0",
    )


def some_nuclei(count: int, seed: int = 0) -> Nuclei:
    """Outlines on half pixels, as of a 20x slide, of 3 to 12 points."""
    rng = np.random.default_rng(seed)
    centroids = rng.uniform((0, 0), SIZE_L0, (count, 2))
    lengths = rng.integers(3, 13, count)
    around = np.repeat(centroids, lengths, 0)
    return Nuclei(
        centroids,
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.round(2 * (around + rng.uniform(-9, 9, around.shape))) / 2,
        rng.uniform(0.5, 1, count).astype(np.float32),
        rng.uniform(5, 90, count).astype(np.float32),
    )


def some_labels(count: int, outputs: LabelSpace = OUTPUTS, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    probabilities = np.where(outputs.trained, rng.uniform(0.01, 1, (count, len(outputs))), 0).astype(np.float32)
    for columns in outputs.slices.values():
        if any(outputs.trained[columns]):
            probabilities[:, columns] /= probabilities[:, columns].sum(1, keepdims=True)
    return Predictions(probabilities)


def make_store(
    folder: Path, nuclei: Nuclei, labels: Predictions, region_size: int = 2048, about: StoreInfo | None = None
) -> Store:
    """As a run does: each nucleus in the region that holds its centroid; regions are finished in some order."""
    about = about or info()
    journal = Journal.open(folder / "journal", {"region_size": region_size})
    across = -(-SIZE_L0[0] // region_size)
    column, row = (nuclei.centroids // region_size).astype(int).T
    regions = list(range(across * -(-SIZE_L0[1] // region_size)))
    for region in reversed(regions):
        inside = row * across + column == region
        journal.write(region, nuclei.select(inside), Predictions(labels.probabilities[inside]))
    finish(journal, regions, folder / "nuclei.zarr", about)
    return open_store(folder / "nuclei.zarr")


def order_in(store: Store, nuclei: Nuclei) -> np.ndarray:
    """For each row of the store, the number of that nucleus in ``nuclei`` (centroids are unique)."""
    place = {tuple(c): i for i, c in enumerate(nuclei.centroids.tolist())}
    return np.array([place[tuple(c)] for c in store.centroids_l0.tolist()], int)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Nuclei, Predictions]:
    nuclei, labels = some_nuclei(700), some_labels(700)
    return make_store(tmp_path_factory.mktemp("store"), nuclei, labels), nuclei, labels


def test_every_nucleus_is_there_with_what_is_its_own(made: tuple[Store, Nuclei, Predictions]) -> None:
    store, nuclei, labels = made
    assert len(store) == 700
    order = order_in(store, nuclei)
    assert sorted(order) == list(range(700))
    np.testing.assert_array_equal(store.detection_p, nuclei.detection_p[order])
    np.testing.assert_array_equal(store.area_um2, nuclei.area_um2[order])
    best = OUTPUTS.best(labels.probabilities)
    for name in NAMES:
        np.testing.assert_array_equal(store.label_numbers(name), best[name][order])
        group = labels.probabilities[order][:, OUTPUTS.slices[name]]
        np.testing.assert_array_equal(store.label_probabilities(name.lower()), group.max(1))
    assert 1 not in store.label_numbers("BreCaHAD")
    offsets, points = store.contours()
    assert (offsets.dtype, points.dtype) == (np.int64, np.float32)
    for i, j in enumerate(order):
        np.testing.assert_array_equal(points[offsets[i] : offsets[i + 1]], nuclei.contour(j))  # half pixels are exact


def test_nuclei_are_in_blocks_row_by_row(made: tuple[Store, Nuclei, Predictions]) -> None:
    x, y = made[0].centroids_l0.T
    places = list(zip(y // 1024, x // 1024, y, x, strict=True))
    assert places == sorted(places)


def test_anndata_reads_the_table(made: tuple[Store, Nuclei, Predictions]) -> None:
    store, nuclei, labels = made
    table = anndata.read_zarr(store.path / "table")
    order = order_in(store, nuclei)
    assert table.shape == (700, 35)
    assert table.X.dtype == np.float32
    np.testing.assert_array_equal(table.X, labels.probabilities[order])
    assert list(table.obs.columns) == [*NAMES, *(f"{name}_p" for name in NAMES), "detection_p", "area_um2", *MEASURES]
    for library in LIBRARIES:
        column = table.obs[library.name]
        assert isinstance(column.dtype, pd.CategoricalDtype)
        assert not column.dtype.ordered
        assert tuple(column.cat.categories) == library.labels
        np.testing.assert_array_equal(column.cat.codes, store.label_numbers(library.name))
        assert table.obs[f"{library.name}_p"].dtype == np.float32
        assert table.uns[f"{library.name}_colors"][0] == "#{:02x}{:02x}{:02x}".format(*library.colours[0])
    assert table.obs["detection_p"].dtype == np.float32
    assert table.obs["area_um2"].dtype == np.float32
    assert table.obsm["spatial"].dtype == np.float64
    np.testing.assert_array_equal(table.obsm["spatial"], nuclei.centroids[order])
    assert list(table.obs_names) == store.ids.tolist()
    assert table.var_names[0] == "NuCLS:tumor"
    assert table.var_names.is_unique
    assert list(table.var["library"]) == [library for library, _ in OUTPUTS.columns]
    assert list(table.var["label"]) == [label for _, label in OUTPUTS.columns]
    assert table.var["trained"].dtype == bool
    assert tuple(table.var["trained"]) == TRAINED


def test_uns_says_what_the_table_is(made: tuple[Store, Nuclei, Predictions]) -> None:
    uns = made[0].table.uns
    assert uns["slide"]["name"] == "Präparat 切片"
    assert uns["slide"]["size_l0"].tolist() == [9000, 7000]
    assert uns["slide"]["mpp"] == 0.2485
    assert uns["slide"]["origin_l0"].tolist() == [100, 50]
    assert json.loads(uns["models"]) == info().models
    assert json.loads(uns["settings"]) == info().settings
    assert (uns["schema_version"], uns["nucpipe_version"]) == (1, "0.1.0")


def test_info_comes_back(made: tuple[Store, Nuclei, Predictions]) -> None:
    assert made[0].info == info()


def test_it_is_zarr_format_3(made: tuple[Store, Nuclei, Predictions]) -> None:
    root = zarr.open_group(made[0].path, mode="r")
    assert root.metadata.zarr_format == 3
    assert root["contours/offsets"].shape == (701,)
    assert not list(made[0].path.rglob(".z*"))


def test_ids_are_uuid5_of_slide_and_place() -> None:
    nuclei = some_nuclei(300).select(np.repeat(np.arange(300), np.tile([1, 1, 3], 100)))
    expected, before, repeat = [], (-1, -1), 0
    for place in [(int(x), int(y)) for x, y in np.floor(nuclei.centroids * 100 + ROUNDING)]:
        repeat = repeat + 1 if place == before else 0
        name = f"Präparat|9000x7000|{place[0]},{place[1]}" + (f"|{repeat}" if repeat else "")
        expected.append(str(uuid5(NUCLEUS_NAMESPACE, name)))
        before = place
    assert nucleus_ids(nuclei, "Präparat", SIZE_L0).tolist() == expected


def test_ids_are_unique_uuids_of_slide_and_place(made: tuple[Store, Nuclei, Predictions], tmp_path: Path) -> None:
    store, nuclei, labels = made
    ids = store.ids
    assert len(set(ids)) == 700
    assert all(str(UUID(i)) == i and UUID(i).version == 5 for i in ids)
    few = np.arange(0, 700, 9)
    fewer = make_store(tmp_path / "few", nuclei.select(few), Predictions(labels.probabilities[few]))
    assert set(fewer.ids) < set(ids)
    other = make_store(tmp_path / "other", nuclei, labels, about=info(slide_name="another"))
    assert not set(other.ids) & set(ids)


def test_nuclei_at_one_place_get_ids_of_their_own(tmp_path: Path) -> None:
    nuclei, labels = some_nuclei(6), some_labels(6)
    same = np.full((6, 2), (512.004, 1024.0))
    same[3:] = (600, 1023.9999)
    nuclei = Nuclei(same, nuclei.contour_offsets, nuclei.contour_points, nuclei.detection_p, nuclei.area_um2)
    one = make_store(tmp_path / "one", nuclei, labels, region_size=8192)
    two = make_store(tmp_path / "two", nuclei, labels, region_size=1024)
    assert len(set(one.ids)) == 6
    np.testing.assert_array_equal(one.ids, two.ids)


def test_ids_do_not_hang_on_the_last_digit_of_a_float(tmp_path: Path) -> None:
    count = 200
    nuclei, labels = some_nuclei(count), some_labels(count)
    halves = np.column_stack([np.arange(count) * 40 + 0.005, np.full(count, 77.125)])  # half a hundredth

    def store(centroids: np.ndarray, name: str) -> Store:
        moved = Nuclei(centroids, nuclei.contour_offsets, nuclei.contour_points, nuclei.detection_p, nuclei.area_um2)
        return make_store(tmp_path / name, moved, labels)

    exact, up, down = (store(halves + e, name) for e, name in ((0, "exact"), (1e-9, "up"), (-1e-9, "down")))
    np.testing.assert_array_equal(exact.ids, up.ids)
    np.testing.assert_array_equal(exact.ids, down.ids)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("region_size", [512, 700, 8192])
def test_the_cut_into_regions_changes_no_byte(
    made: tuple[Store, Nuclei, Predictions], tmp_path: Path, region_size: int
) -> None:
    store, nuclei, labels = made
    again = make_store(tmp_path, nuclei, labels, region_size)
    assert files_of(again.path) == files_of(store.path)


def test_the_batches_of_writing_change_no_number(
    made: tuple[Store, Nuclei, Predictions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.store.ordering.BATCH_ROWS", 1)
    monkeypatch.setattr("pipeline.store.writer.CHUNK_ROWS", 64)
    monkeypatch.setattr("pipeline.store.writer.CHUNK_POINTS", 100)
    store, nuclei, labels = made
    again = make_store(tmp_path, nuclei, labels)
    pd.testing.assert_frame_equal(again.table.obs, store.table.obs)
    np.testing.assert_array_equal(again.table.X, store.table.X)
    for a, b in zip(again.contours(), store.contours(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_parts_add_up_to_the_whole(made: tuple[Store, Nuclei, Predictions]) -> None:
    store, _, _ = made
    parts = list(store.batches(128))
    assert [len(part) for part in parts] == [128] * 5 + [60]
    np.testing.assert_array_equal(np.concatenate([part.ids for part in parts]), store.ids)
    offsets, points = store.contours()
    for part in parts:
        part_offsets, part_points = part.contours()
        part_start = offsets[part.rows[0]]
        assert part_offsets[0] == 0
        np.testing.assert_array_equal(part_offsets, offsets[part.rows[0] : part.rows[-1] + 2] - part_start)
        np.testing.assert_array_equal(part_points, points[part_start : offsets[part.rows[-1] + 1]])
        assert list(part.table.obs_names) == part.ids.tolist()


@pytest.mark.parametrize(
    "box",
    [(0, 0, 9000, 7000), (1000, 900, 2100, 3100), (1024, 1024, 2048, 2048), (-50, -50, 30, 7000), (8990, 0, 9e9, 9)],
)
@pytest.mark.parametrize("gap", [0, 8192])
def test_a_window_holds_what_lies_in_it(
    made: tuple[Store, Nuclei, Predictions], monkeypatch: pytest.MonkeyPatch, box: tuple[float, ...], gap: int
) -> None:
    monkeypatch.setattr("pipeline.store.reader.GAP_ROWS", gap)
    store = made[0]
    x, y = store.centroids_l0.T
    inside = (x >= box[0]) & (x < box[2]) & (y >= box[1]) & (y < box[3])
    window = store.in_bbox(*box)
    assert window.rows.tolist() == np.flatnonzero(inside).tolist()  # type: ignore[union-attr]
    np.testing.assert_array_equal(window.ids, store.ids[inside])
    np.testing.assert_array_equal(window.probabilities, store.probabilities[inside])
    assert list(window.table.obs_names) == store.ids[inside].tolist()
    offsets, points = store.contours()
    window_offsets, window_points = window.contours()
    rings = [points[offsets[i] : offsets[i + 1]] for i in np.flatnonzero(inside)]
    assert np.diff(window_offsets).tolist() == [len(ring) for ring in rings]
    np.testing.assert_array_equal(window_points, np.concatenate([*rings, np.zeros((0, 2))]))


def test_a_window_on_the_edge_of_blocks_takes_its_own_side(tmp_path: Path) -> None:
    # 1023.997 is kept in the next block, being 1024.00 in hundredths.
    nuclei = some_nuclei(3)
    centroids = np.array([[1023.997, 1023.997], [1024.0, 1024.0], [9000.4, 7000.4]])
    nuclei = Nuclei(centroids, nuclei.contour_offsets, nuclei.contour_points, nuclei.detection_p, nuclei.area_um2)
    store = make_store(tmp_path, nuclei, some_labels(3), 4096)
    assert store.in_bbox(0, 0, 1024, 1024).centroids_l0.tolist() == [[1023.997, 1023.997]]
    assert store.in_bbox(1024, 1024, 2048, 2048).centroids_l0.tolist() == [[1024.0, 1024.0]]
    assert store.in_bbox(9000, 7000, 9001, 7001).centroids_l0.tolist() == [[9000.4, 7000.4]]


def test_windows_of_windows_and_of_parts(made: tuple[Store, Nuclei, Predictions]) -> None:
    store = made[0]
    outer = store.in_bbox(1000, 1000, 6000, 6000)
    inner = store.in_bbox(3000, 3000, 7000, 5000)
    rows = sorted(set(outer.rows) & set(inner.rows))
    assert list(outer.in_bbox(3000, 3000, 7000, 5000).rows) == rows
    parts = [part.in_bbox(1000, 1000, 6000, 6000) for part in store.batches(128)]
    assert [row for part in parts for row in part.rows] == list(outer.rows)
    assert [row for part in outer.batches(50) for row in part.rows] == list(outer.rows)


def test_a_store_without_an_index_says_so(made: tuple[Store, Nuclei, Predictions], tmp_path: Path) -> None:
    shutil.copytree(made[0].path, tmp_path / "nuclei.zarr")
    shutil.rmtree(tmp_path / "nuclei.zarr" / "index")
    with pytest.raises(OutputError, match="without an index; run the slide again"):
        open_store(tmp_path / "nuclei.zarr").in_bbox(0, 0, 10, 10)


def test_no_nuclei(tmp_path: Path) -> None:
    store = make_store(tmp_path, Nuclei.empty(), Predictions(np.zeros((0, 35), np.float32)))
    assert len(store) == 0
    table = anndata.read_zarr(store.path / "table")
    assert table.shape == (0, 35)
    assert tuple(table.obs["PanNuke"].cat.categories) == LIBRARIES[4].labels
    assert table.obsm["spatial"].shape == (0, 2)
    offsets, points = store.contours()
    assert offsets.tolist() == [0]
    assert points.shape == (0, 2)
    assert store.ids.shape == (0,)
    assert list(store.batches()) == []
    assert len(store.in_bbox(0, 0, 9000, 7000)) == 0
    assert len(store.in_bbox(0, 0, 9000, 7000).contours()[1]) == 0


def test_no_regions(tmp_path: Path) -> None:
    finish(Journal.open(tmp_path / "journal", {}), [], tmp_path / "nuclei.zarr", info())
    assert len(open_store(tmp_path / "nuclei.zarr")) == 0


def test_a_library_that_was_not_taught_gives_missing_labels(tmp_path: Path) -> None:
    outputs = LabelSpace(LIBRARIES, tuple(library != "MoNuSAC" for library, _ in OUTPUTS.columns))
    store = make_store(tmp_path, some_nuclei(40), some_labels(40, outputs), about=info(outputs))
    assert (store.label_numbers("MoNuSAC") == -1).all()
    assert np.isnan(store.label_probabilities("MoNuSAC")).all()
    obs = store.table.obs
    assert obs["MoNuSAC"].isna().all()
    assert tuple(obs["MoNuSAC"].cat.categories) == LIBRARIES[3].labels
    assert not obs["PanNuke"].isna().any()


def test_nothing_is_overwritten(made: tuple[Store, Nuclei, Predictions], tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal", {})
    with pytest.raises(OutputError, match="already exists; use --overwrite"):
        finish(journal, [], made[0].path, info())


def test_a_missing_region_stops_and_leaves_nothing(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal", {})
    journal.write(0, some_nuclei(5), some_labels(5))
    with pytest.raises(OutputError, match=r"000001\.region: this finished region is missing"):
        finish(journal, [0, 1], tmp_path / "nuclei.zarr", info())
    assert [path.name for path in tmp_path.iterdir()] == ["journal"]


def test_what_a_killed_finish_left_does_no_harm(tmp_path: Path) -> None:
    left = tmp_path / "nuclei.zarr.partial"
    (left / "table").mkdir(parents=True)
    (left / "zarr.json").write_text("torn")
    store = make_store(tmp_path, some_nuclei(5), some_labels(5))
    assert len(store) == 5
    assert not left.exists()


def test_a_folder_that_is_gone_is_an_error(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal", {})
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        finish(journal, [], tmp_path / "file" / "nuclei.zarr", info())


def test_no_room_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal", {})
    journal.write(0, some_nuclei(2000), some_labels(2000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # the system refuses more, as on a full disk
    try:
        with pytest.raises(OutputError, match=r"nuclei\.zarr: cannot be written \(File too large\)"):
            finish(journal, [0], tmp_path / "nuclei.zarr", info())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["journal"]
    finish(journal, [0], tmp_path / "nuclei.zarr", info())
    assert len(open_store(tmp_path / "nuclei.zarr")) == 2000


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"no such folder; expected the nuclei\.zarr"):
        open_store(tmp_path / "nuclei.zarr")
    with pytest.raises(OutputError, match="expected a store that nucpipe wrote"):
        open_store(tmp_path)
    zarr.open_group(tmp_path / "other.zarr", mode="w", zarr_format=3)
    with pytest.raises(OutputError, match="expected a store that nucpipe wrote"):
        open_store(tmp_path / "other.zarr")


@pytest.mark.parametrize(
    ("damaged", "how"),
    [
        ("table/X", "gone"),
        ("table/X", "cut off"),
        ("table/X", "lost a chunk"),
        ("table/obsm/spatial", "gone"),
        ("contours", "gone"),
        ("contours/points", "lost a chunk"),
        ("table/obs/PanNuke/codes", "lost a chunk"),
        ("table/obs/_index", "lost a chunk"),
    ],
)
def test_a_damaged_store_says_so(
    made: tuple[Store, Nuclei, Predictions], tmp_path: Path, damaged: str, how: str
) -> None:
    shutil.copytree(made[0].path, tmp_path / "nuclei.zarr")
    part = tmp_path / "nuclei.zarr" / damaged
    if how == "gone":
        shutil.rmtree(part)
    else:
        for chunk in (part / "c").rglob("*"):
            if chunk.is_file() and how == "cut off":
                chunk.write_bytes(chunk.read_bytes()[:50])
            elif chunk.is_file():
                chunk.unlink()
    store = open_store(tmp_path / "nuclei.zarr")
    told = rf"nuclei.zarr: its {damaged}\S* cannot be read \(.*\): it is damaged"
    with pytest.raises(OutputError, match=told) as raised:
        _ = store.probabilities, store.centroids_l0, store.contours(), store.label_numbers("PanNuke"), store.ids
    assert "\n" not in str(raised.value)


def test_a_later_store_is_refused(made: tuple[Store, Nuclei, Predictions], tmp_path: Path) -> None:
    header = json.loads((made[0].path / "zarr.json").read_text("utf-8"))
    header["attributes"]["nucpipe"]["schema_version"] = 2
    (tmp_path / "zarr.json").write_text(json.dumps(header))
    with pytest.raises(OutputError, match=r"store version 2, this one reads 1.*update nucpipe"):
        open_store(tmp_path)


def test_an_unknown_library_is_named(made: tuple[Store, Nuclei, Predictions]) -> None:
    with pytest.raises(UsageError, match="unknown library 'kumar'"):
        made[0].label_numbers("kumar")
