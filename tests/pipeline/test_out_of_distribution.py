"""Out-of-distribution scores in a result: in the table, in every export, in words; absent where the model has none."""

import csv
import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from classifier.out_of_distribution import UNLIKE, in_words
from pipeline.batch.summary import Summary
from pipeline.config import RunConfig
from pipeline.export.report.stats import compute_stats, merge_stats
from pipeline.export.report.write import report_batch
from pipeline.export.tables.csv import write_csv
from pipeline.result import open_result
from pipeline.run_slide import find_finished_unopened, run_slide
from pipeline.store.run_record import SilentReporter, SlideResult
from tests.support.synthetic import MPP, draw_slide, models, ood_of

FEATURES = 8


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_slide(900, 700).save(tmp_path_factory.mktemp("slide") / "slide.png")


def run(slide: Path, folder: Path, ood: bool = True, **changes: object) -> SlideResult:
    config = RunConfig(mpp=MPP, tissue="none", **changes)  # type: ignore[arg-type]
    return run_slide(slide, folder, models(features=FEATURES, ood=ood), config, SilentReporter())


@pytest.fixture(scope="module")
def done(slide: Path, tmp_path_factory: pytest.TempPathFactory) -> SlideResult:
    return run(slide, tmp_path_factory.mktemp("out"))


def test_the_score_is_that_of_the_stored_features(done: SlideResult) -> None:
    store = open_result(done.folder).store
    scores = store.ood_scores
    assert scores is not None
    np.testing.assert_array_equal(scores, ood_of(FEATURES).score(store.features))
    assert scores.std() > 0
    np.testing.assert_array_equal(anndata.read_zarr(store.path / "table").obs["ood_score"], scores)


@pytest.mark.parametrize(("region_size", "batch_size"), [(128, 64), (512, 1)])
def test_the_cut_and_the_batch_change_no_bit(
    slide: Path, tmp_path: Path, done: SlideResult, region_size: int, batch_size: int
) -> None:
    if models().classifier.runtime(64).name != "openvino":
        pytest.skip("PyTorch's rounding depends on the size of a batch")
    run(slide, tmp_path, region_size=region_size, batch_size=batch_size, geojson=False)
    expected, got = (open_result(folder).store for folder in (done.folder, tmp_path))
    np.testing.assert_array_equal(got.ids, expected.ids)
    np.testing.assert_array_equal(got.ood_scores, expected.ood_scores)


def test_it_changes_nothing_else_and_models_without_it_say_nothing(
    slide: Path, tmp_path: Path, done: SlideResult
) -> None:
    result = run(slide, tmp_path, ood=False)
    assert result.out_of_distribution is None
    without, scored = open_result(tmp_path).store, open_result(done.folder).store
    assert without.ood_scores is None
    before, after = (anndata.read_zarr(store.path / "table") for store in (without, scored))
    assert list(after.obs.drop(columns="ood_score").columns) == list(before.obs.columns)
    pd.testing.assert_frame_equal(after.obs.drop(columns="ood_score"), before.obs)
    np.testing.assert_array_equal(after.X, before.X)
    np.testing.assert_array_equal(after.obsm["features"], before.obsm["features"])
    assert "out_of_distribution" not in json.loads((tmp_path / "run.json").read_text("utf-8"))
    assert "unlike" not in (tmp_path / "report.html").read_text("utf-8")
    assert "Out-of-distribution" not in (tmp_path / "nuclei.geojson").read_text("utf-8")


def test_every_export_has_it(done: SlideResult, tmp_path: Path) -> None:
    store = open_result(done.folder).store
    write_csv(store, tmp_path / "n.csv")
    np.testing.assert_allclose(pd.read_csv(tmp_path / "n.csv")["ood_score"], store.ood_scores, atol=1e-6)
    features = json.loads((done.folder / "nuclei.geojson").read_text("utf-8"))["features"]
    told = [feature["properties"]["measurements"]["Out-of-distribution score"] for feature in features]
    np.testing.assert_allclose(told, store.ood_scores, atol=1e-3)


def test_the_share_is_told_wherever_a_slide_is(slide: Path, done: SlideResult, tmp_path: Path) -> None:
    result = open_result(done.folder)
    share = round(float((result.store.ood_scores >= UNLIKE).mean()), 4)
    assert done.out_of_distribution == share
    assert result.run_facts["out_of_distribution"] == share
    config = RunConfig(mpp=MPP, tissue="none")
    before = find_finished_unopened(slide, done.folder, models(features=FEATURES, ood=True).identity, config)
    assert before is not None
    assert before.out_of_distribution == share
    assert in_words(share) in (done.folder / "report.html").read_text("utf-8")
    stats = compute_stats(result.store)
    assert stats.unlike_share == pytest.approx(share, abs=1e-4)
    assert merge_stats([stats, stats]).unlike == 2 * stats.unlike
    report_batch([result, result], tmp_path / "batch.html")
    page = (tmp_path / "batch.html").read_text("utf-8")
    assert in_words(share) in page
    assert f'<td class="num">{100 * share:.0f} %</td>' in page
    Summary(tmp_path).write([(SlideResult(Path("old.svs"), Path("old"), "done", 3), Path("old"))])
    Summary(tmp_path).write([(done, Path("new"))])
    with (tmp_path / "summary.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["out_of_distribution"] for line in lines] == ["", f"{share:.4f}"]


def test_it_is_there_without_features_and_without_nuclei(slide: Path, tmp_path: Path) -> None:
    run(slide, tmp_path / "lean", features=False, geojson=False)
    lean = open_result(tmp_path / "lean").store
    assert lean.features is None
    assert lean.ood_scores is not None
    assert len(lean.ood_scores) == len(lean) > 0
    result = run(draw_slide(300, 300).save(tmp_path / "empty.png"), tmp_path / "empty", min_area=1e6)
    assert result.nuclei == 0
    assert result.out_of_distribution is None
    assert open_result(tmp_path / "empty").store.ood_scores.shape == (0,)
