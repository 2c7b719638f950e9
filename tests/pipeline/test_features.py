"""Features in a result: the same however the slide was cut, there after a stop, left out where they are not wanted."""

from pathlib import Path

import anndata
import cv2
import numpy as np
import pytest

from nucpipe.errors import OutputError
from pipeline.config import RunConfig
from pipeline.export.tables.anndata import write_h5ad
from pipeline.run_slide import run_slide
from pipeline.store.reader import Store, open_store
from pipeline.store.run_record import SilentReporter
from tests.support.stores import stopped_after
from tests.support.synthetic import MPP, draw_slide, models


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_slide(900, 700).save(tmp_path_factory.mktemp("slide") / "slide.png")


def run(slide: Path, folder: Path, features: int = 8, **changes: object) -> Store:
    config = RunConfig(mpp=MPP, tissue="none", geojson=False, **changes)  # type: ignore[arg-type]
    run_slide(slide, folder, models(features=features), config, SilentReporter())
    return open_store(folder / "nuclei.zarr")


@pytest.fixture(scope="module")
def whole(slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return run(slide, tmp_path_factory.mktemp("out"))


def test_the_table_holds_features_and_every_reader_sees_them(whole: Store, tmp_path: Path) -> None:
    assert whole.info.features == 8
    features = whole.features
    assert features is not None
    assert (features.shape, features.dtype) == ((len(whole), 8), np.float16)
    assert features.std() > 0
    np.testing.assert_array_equal(anndata.read_zarr(whole.path / "table").obsm["features"], features)
    write_h5ad(whole, tmp_path / "n.h5ad")
    np.testing.assert_array_equal(anndata.read_h5ad(tmp_path / "n.h5ad").obsm["features"], features)
    parts = [part.features for part in whole.batches(7)]
    np.testing.assert_array_equal(np.concatenate(parts), features)


@pytest.mark.parametrize(("region_size", "batch_size", "workers"), [(128, 64, 2), (256, 1, 1), (512, 7, 1)])
def test_region_size_batch_size_and_workers_change_no_bit(
    slide: Path, tmp_path: Path, whole: Store, region_size: int, batch_size: int, workers: int
) -> None:
    if models().classifier.runtime(64).name != "openvino":
        pytest.skip("PyTorch's rounding depends on the size of a batch")
    store = run(slide, tmp_path, region_size=region_size, batch_size=batch_size, workers=workers)
    np.testing.assert_array_equal(store.ids, whole.ids)
    np.testing.assert_array_equal(store.features, whole.features)
    np.testing.assert_array_equal(store.probabilities, whole.probabilities)


def test_a_stopped_run_keeps_the_features_of_its_regions(
    slide: Path, tmp_path: Path, whole: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stopped_after(5, monkeypatch):
        run(slide, tmp_path, region_size=256)
    np.testing.assert_allclose(run(slide, tmp_path, region_size=256).features, whole.features, atol=1e-2)


def test_they_can_be_left_out_and_change_nothing_else(slide: Path, tmp_path: Path, whole: Store) -> None:
    config = RunConfig(mpp=MPP, tissue="none", geojson=False, features=False)
    run_slide(slide, tmp_path / "none", models(features=8), config, SilentReporter())
    none = open_store(tmp_path / "none" / "nuclei.zarr")
    assert none.features is None
    assert "features" not in none.info.settings
    assert list(anndata.read_zarr(none.path / "table").obsm) == ["spatial"]
    np.testing.assert_array_equal(none.probabilities, whole.probabilities)
    with pytest.raises(OutputError, match="--no-features"):
        run_slide(slide, tmp_path / "none", models(features=8), RunConfig(mpp=MPP, tissue="none"), SilentReporter())


def test_a_model_without_a_projection_stores_none(slide: Path, tmp_path: Path) -> None:
    store = run(slide, tmp_path, features=0)
    assert store.features is None
    assert not (store.path / "table/obsm/features").exists()


def test_no_nuclei_have_no_features(tmp_path: Path) -> None:
    path = tmp_path / "empty.png"
    cv2.imwrite(str(path), np.full((120, 120, 3), 255, np.uint8))
    store = run(path, tmp_path / "out")
    assert store.features is not None
    assert store.features.shape == (0, 8)
