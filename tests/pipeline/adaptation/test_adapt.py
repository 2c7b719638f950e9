"""``nucpipe adapt``: a second set of labels beside the base labels, from corrections to the store and back."""

import json
import os
import re
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import nucpipe
from classifier.predictions import Predictions
from nucpipe.errors import UsageError
from pipeline.adaptation.adapt import learn
from pipeline.adaptation.clicks import clicks_of
from pipeline.adaptation.corrections import Correction, read_corrections, write_corrections
from pipeline.adaptation.validation import Accuracy
from pipeline.batch.lock import Lock
from pipeline.cli.main import main
from pipeline.result import open_result
from pipeline.store.adapted import made_from, remove_adapted
from pipeline.store.journal import Journal
from pipeline.store.reader import Store, open_store
from pipeline.store.schema import StoreInfo
from pipeline.store.writer import finish
from segmentation.nuclei import Nuclei
from tests.support.stores import published_outputs, random_store

OUTPUTS = published_outputs()
PANNUKE = OUTPUTS.slices["PanNuke"]
LABELS = OUTPUTS.library("PanNuke").labels


def call(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert "Traceback" not in result.output
    return result.exit_code, result.output


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def slide(
    folder: Path, features: bool = True, seed: int = 0, name: str = "slide", certain: bool = False
) -> tuple[Store, np.ndarray]:
    """A store whose PanNuke labels are right in six nuclei of ten; its features tell the truth, which is returned.

    With ``certain`` all nuclei have the first label, and their features say nothing.
    """
    made = random_store(folder / "random", 600, seed=seed, name=name)
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, 600)
    wrong = rng.random(600) < 0.4
    p = made.probabilities.copy()
    p[:, PANNUKE] = 0.05 + 0.75 * np.eye(5)[np.where(wrong, (truth + 1) % 3, truth)]
    stored = rng.normal(size=(600, 8)).astype(np.float16)
    stored[:, :3] += 2 * np.eye(3, dtype=np.float16)[truth]
    if certain:
        p[:, PANNUKE], stored[:] = 0.05 + 0.75 * np.eye(5)[0], 0
    offsets, points = made.contours()
    nuclei = Nuclei(made.centroids_l0, offsets, points, made.detection_p, made.area_um2)
    settings = {"features": 8} if features else {}
    models = {"segmentor": {"name": "s"}, "classifier": {"name": "c", "fingerprint": "f"}}
    info = StoreInfo(name, made.info.size_l0, 0.25, (0, 0), OUTPUTS, models, settings, "0.1.0")
    journal = Journal.open(folder / "journal", {})
    journal.write(0, nuclei, Predictions(p.astype(np.float32), stored if features else None))
    finish(journal, [0], folder / "nuclei.zarr", info)
    journal.remove()
    store = open_store(folder / "nuclei.zarr")
    np.testing.assert_array_equal(store.centroids_l0, made.centroids_l0)
    shutil.rmtree(folder / "random")
    return store, truth


def correct(store: Store, truth: np.ndarray, rows: np.ndarray, *more: Correction) -> None:
    said = [Correction(*store.centroids_l0[row], "PanNuke", LABELS[truth[row]]) for row in rows]
    write_corrections(store.path.parent / "corrections.csv", [*said, *more])


ROWS = np.random.default_rng(5).permutation(600)[:80]
REST = np.setdiff1d(np.arange(600), ROWS)


@pytest.mark.parametrize("features", [True, False])
def test_adapted_labels_stand_beside_the_base_labels(tmp_path: Path, features: bool) -> None:
    store, truth = slide(tmp_path / "r", features)
    base = {path: content for path, content in files_of(store.path).items() if path != "table/obs/zarr.json"}
    gone = int(REST[0])
    correct(store, truth, ROWS, Correction(*store.centroids_l0[gone], "", "not_a_nucleus"))
    status, said = call("adapt", tmp_path / "r", *([] if features else ["--even-worse"]))
    assert status == 0, said
    assert "80 corrected nuclei, 1 said to be no nucleus" in said
    after = files_of(store.path)
    assert {path: after[path] for path in base} == base
    store = open_store(store.path)
    assert "PanNuke" in store.adapted_libraries
    np.testing.assert_array_equal(store.label_numbers("PanNuke"), store.probabilities[:, PANNUKE].argmax(1))
    adapted = store.adapted()
    assert len(adapted) == 599
    assert gone not in adapted.rows
    kept = np.asarray(adapted.rows)
    right = adapted.label_numbers("PanNuke") == truth[kept]
    assert right[np.isin(kept, ROWS)].all()
    before = (store.label_numbers("PanNuke") == truth)[REST].mean()
    if features:
        assert right[np.isin(kept, REST)].mean() > before + 0.05
    np.testing.assert_allclose(adapted.probabilities[:, PANNUKE].sum(1), 1, atol=1e-5)
    np.testing.assert_array_equal(adapted.label_probabilities("PanNuke"), adapted.probabilities[:, PANNUKE].max(1))
    table = anndata.read_zarr(store.path / "table")
    assert table.obs["PanNuke_adapted"].cat.categories.tolist() == list(LABELS)
    np.testing.assert_array_equal(
        table.obs["PanNuke_adapted"].cat.codes.to_numpy()[kept], adapted.label_numbers("PanNuke")
    )
    np.testing.assert_array_equal(table.layers["adapted"][kept], adapted.probabilities)
    assert table.obs["not_a_nucleus"].sum() == 1
    facts = made_from(store)
    assert facts["libraries"]["PanNuke"]["corrected_nuclei"] == 80
    assert facts["features"] == ("stored" if features else "base log odds")
    assert json.loads(table.uns["adaptation"]) == facts


def test_undo_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    store, truth = slide(tmp_path / "r")
    before = files_of(store.path)
    correct(store, truth, ROWS)
    assert call("adapt", tmp_path / "r")[0] == 0
    assert call("adapt", tmp_path / "r")[0] == 0  # in the place of the first
    assert files_of(store.path).keys() > before.keys()
    assert call("adapt", tmp_path / "r", "--undo") == (0, "slide: adapted labels removed\n")
    after = files_of(store.path)
    assert after.keys() == before.keys()
    assert {path for path in before if after[path] != before[path]} <= {"table/obs/zarr.json"}
    listed = [json.loads(files["table/obs/zarr.json"]) for files in (before, after)]
    assert listed[0] == listed[1]
    assert call("adapt", tmp_path / "r", "--undo") == (0, "slide: has no adapted labels\n")
    with pytest.raises(UsageError, match="no adapted labels"):
        open_store(store.path).adapted()
    assert (tmp_path / "r" / "corrections.csv").exists()


def test_what_a_killed_process_left_is_not_seen_and_does_no_harm(tmp_path: Path) -> None:
    store, truth = slide(tmp_path / "r")
    correct(store, truth, ROWS)
    listed = (store.path / "table/obs/zarr.json").read_bytes()
    assert call("adapt", tmp_path / "r")[0] == 0
    (store.path / "table/obs/zarr.json").write_bytes(listed)  # killed before the last rename
    (store.path / "adapted.partial").mkdir()
    again = open_store(store.path)
    assert again.adapted_libraries == ()
    assert "PanNuke_adapted" not in anndata.read_zarr(store.path / "table").obs
    assert not remove_adapted(store.path)
    assert not (store.path / "table/layers").exists()
    assert call("adapt", tmp_path / "r")[0] == 0
    assert "PanNuke" in open_store(store.path).adapted_libraries


def test_what_became_worse_is_not_written_unless_it_is_asked_for(tmp_path: Path) -> None:
    store, _ = slide(tmp_path / "r", certain=True)
    # Every nucleus is labelled 0, and each half of the slide is said to be of one label: a place that is left out is
    # then labelled as the other half, and wrong where the base label was right.
    right_half = store.centroids_l0[:, 0] > np.median(store.centroids_l0[ROWS, 0])
    correct(store, right_half.astype(int), ROWS)
    status, said = call("adapt", tmp_path / "r")
    worse = next(line for line in said.splitlines() if line.startswith("Worse than before, so left as they are: "))
    assert "PanNuke" in worse
    # Nothing else is written, either: what the label table carries over cannot be measured here.
    assert "PanNuke" not in open_store(store.path).adapted_libraries
    assert status == (2 if "nothing became better" in said else 0)
    status, said = call("adapt", tmp_path / "r", "--even-worse")
    assert status == 0
    assert "PanNuke" in open_store(store.path).adapted_libraries


def test_corrections_of_errors_alone_are_no_estimate_for_the_slide(tmp_path: Path) -> None:
    store, truth = slide(tmp_path / "r")
    wrong = np.flatnonzero(store.label_numbers("PanNuke") != truth)
    right = np.flatnonzero(store.label_numbers("PanNuke") == truth)
    correct(store, truth, wrong[:60])
    said = call("adapt", tmp_path / "r")[1]
    assert "PanNuke: 60 corrected nuclei speak of it; accuracy 0.000 -> " in said
    assert re.search("No correction confirms a label of [^:]*PanNuke: accuracy", said)
    correct(store, truth, np.append(wrong[:60], right[:1]))
    assert not re.search("No correction confirms a label of [^:]*PanNuke", call("adapt", tmp_path / "r")[1])


def test_what_cannot_be_measured_goes_with_what_became_worse(tmp_path: Path) -> None:
    store, truth = slide(tmp_path / "r")
    correct(store, truth, ROWS)
    learnt = learn(open_result(tmp_path / "r"))
    better, worse = Accuracy(60, (0.5, 0.7), (0.5, 0.7)), Accuracy(60, (0.7, 0.5), (0.7, 0.5))
    assert replace(learnt, accuracy={"PanNuke": better, "NuCLS": None}).untrusted == []
    one_worse = replace(learnt, accuracy={"PanNuke": worse, "CoNSeP": better, "NuCLS": None})
    assert (one_worse.worse, one_worse.untrusted) == (["PanNuke"], ["NuCLS"])


def test_other_slides_get_the_labels_too_with_a_warning(tmp_path: Path) -> None:
    store, truth = slide(tmp_path / "a")
    other, truths = slide(tmp_path / "b", seed=7, name="other")
    correct(store, truth, ROWS)
    status, said = call("adapt", tmp_path / "a", "--to", tmp_path / "b")
    assert status == 0, said
    assert "other patients" in said
    adapted = open_store(other.path).adapted()
    assert (adapted.label_numbers("PanNuke") == truths).mean() > 0.65
    assert made_from(open_store(other.path))["corrections_of"] == "slide"
    bare, _ = slide(tmp_path / "c", features=False, name="bare")
    before = files_of(tmp_path / "a")
    status, said = call("adapt", tmp_path / "a", "--to", tmp_path / "c")
    assert status == 2
    assert "only one of the two results stores features" in said
    assert not open_store(bare.path).adapted_libraries
    for once_more in (tmp_path / "a", tmp_path / "a" / "nuclei.zarr"):
        status, said = call("adapt", tmp_path / "a", "--to", once_more)
        assert (status, said) == (
            2,
            f"nucpipe: --to {once_more}: expected other results than {tmp_path / 'a'}, and each once.\n",
        )
    assert files_of(tmp_path / "a") == before


def test_one_process_at_a_time_writes_to_a_result(tmp_path: Path) -> None:
    store, truth = slide(tmp_path / "r")
    correct(store, truth, ROWS)
    before = files_of(store.path)
    lock = Lock(tmp_path / "r")
    assert lock.acquire()
    for more in ([], ["--undo"]):
        status, said = call("adapt", tmp_path / "r", *more)
        assert status == 1
        assert said.endswith("is at work on it; give the command again when that ends.\n")
        assert said.startswith(f"nucpipe: {tmp_path / 'r'}: process {os.getpid()} on ")
    assert files_of(store.path) == before
    lock.release()
    assert call("adapt", tmp_path / "r")[0] == 0
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == ["corrections.csv", "nuclei.zarr"]


def test_a_full_disk_takes_nothing_of_the_labels_of_before(tmp_path: Path) -> None:
    store, truth = slide(tmp_path / "r")
    correct(store, truth, ROWS)
    assert call("adapt", tmp_path / "r")[0] == 0
    before = files_of(store.path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
        status, said = call("adapt", tmp_path / "r")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 1
    assert said.splitlines()[-1] == (
        f"nucpipe: {store.path}: cannot be written (File too large); make room or give a folder that can be written."
    )
    assert files_of(store.path) == before


def test_without_usable_corrections_it_says_so(tmp_path: Path) -> None:
    store, _ = slide(tmp_path / "r")
    assert "there are no corrections" in call("adapt", tmp_path / "r")[1]
    write_corrections(tmp_path / "r" / "corrections.csv", [Correction(-900, -900, "PanNuke", "dead")])
    status, said = call("adapt", tmp_path / "r")
    assert status == 2
    assert "1 lie where this result has no nucleus" in said
    assert open_store(store.path).adapted_libraries == ()


def test_the_label_table_carries_a_correction_to_other_libraries(tmp_path: Path) -> None:
    store, _ = slide(tmp_path / "r")
    x, y = store.centroids_l0[4]
    said = [Correction(x, y, "PanNuke", "inflammatory")]
    clicks = clicks_of(said, store)
    assert clicks.rows.tolist() == [4]

    def names(row: np.ndarray) -> set[str]:
        return {f"{lib} {label}" for (lib, label), yes in zip(OUTPUTS.columns, row, strict=True) if yes}

    # NuCLS's plasma_cell is untrained in these outputs.
    assert names(clicks.allowed[0]) == {
        "PanNuke inflammatory",
        "BreCaHAD non_tumor",
        "CoNSeP inflammatory",
        *(f"MoNuSAC {label}" for label in ("lymphocyte", "neutrophil", "macrophage")),
        *(f"NuCLS {label}" for label in ("lymphocyte", "macrophage", "neutrophil", "eosinophil")),
    }
    both = clicks_of([*said, Correction(x, y, "NuCLS", "lymphocyte")], store)
    assert names(both.allowed[0]) >= {"NuCLS lymphocyte", "MoNuSAC lymphocyte", "PanNuke inflammatory"}
    assert "MoNuSAC neutrophil" not in names(both.allowed[0])
    untaught = clicks_of([Correction(x, y, "NuCLS", "plasma_cell")], store)
    assert untaught.untaught == (("NuCLS plasma_cell", 1),)
    assert names(untaught.allowed[0]) == {"BreCaHAD non_tumor", "CoNSeP inflammatory", "PanNuke inflammatory"}


def test_one_statement_that_is_carried_over_teaches_a_library_nothing(tmp_path: Path) -> None:
    """BreCaHAD's tumor is MoNuSAC's epithelial, and its non_tumor says nothing there: all would become epithelial."""
    store, _ = slide(tmp_path / "r")
    labels = ("tumor", "tumor", "tumor", "non_tumor", "non_tumor")
    said = [Correction(*store.centroids_l0[k], "BreCaHAD", label) for k, label in enumerate(labels)]
    clicks = clicks_of(said, store)
    monusac, pannuke = OUTPUTS.slices["MoNuSAC"], OUTPUTS.slices["PanNuke"]
    assert clicks.allowed[:, monusac].any(1).tolist() == [True] * 3 + [False] * 2
    assert not clicks.teaches[:, monusac].any()
    np.testing.assert_array_equal(clicks.teaches[:, pannuke], clicks.allowed[:, pannuke])
    own = [Correction(*store.centroids_l0[k], "MoNuSAC", "epithelial") for k in range(3)]
    np.testing.assert_array_equal(clicks_of(own, store).teaches[:, monusac], clicks_of(own, store).allowed[:, monusac])
    write_corrections(tmp_path / "r" / "corrections.csv", said)
    assert call("adapt", tmp_path / "r")[0] == 0
    assert "MoNuSAC" not in open_store(store.path).adapted_libraries


def test_a_result_in_python_has_both_sets(tmp_path: Path) -> None:
    store, truth = slide(tmp_path / "r")
    correct(store, truth, ROWS)
    assert call("adapt", tmp_path / "r")[0] == 0
    result = nucpipe.open(tmp_path / "r")
    assert isinstance(result, type(open_result(tmp_path / "r")))
    labels = result.adapted().labels("PanNuke")
    assert (labels.to_numpy() == np.array(LABELS, object)[truth])[ROWS].all()
    assert not (result.labels("PanNuke").to_numpy() == np.array(LABELS, object)[truth])[ROWS].all()


def test_labels_of_an_export_are_no_corrections_whatever_became_of_the_result(tmp_path: Path) -> None:
    """Those of an adapted export used to be taken for a person's."""
    store, truth = slide(tmp_path / "r")
    correct(store, truth, ROWS)
    assert call("adapt", tmp_path / "r")[0] == 0
    adapted = open_store(store.path).adapted().label_numbers("PanNuke")
    base = store.label_numbers("PanNuke")
    assert (adapted != base).sum() > 50
    path = tmp_path / "adapted.geojson"
    assert call("export", tmp_path / "r", "--to", "geojson", "--adapted", "--primary", "PanNuke", "--out", path)[0] == 0
    content = json.loads(path.read_text("utf-8"))
    changed, restored = np.flatnonzero(adapted != base)[:2].tolist()
    features = content["features"]
    features[changed]["properties"]["classification"]["name"] = "dead"
    features[restored]["properties"]["classification"]["name"] = LABELS[base[restored]]
    expected = {(features[changed]["id"], "dead"), (features[restored]["id"], LABELS[base[restored]])}
    path.write_text(json.dumps(content), "utf-8")
    old = tmp_path / "old.geojson"  # of a QuPath without metadata of detections
    for feature in features:
        del feature["properties"]["metadata"]
    old.write_text(json.dumps(content), "utf-8")

    def imported(file: Path) -> set[tuple[str, str]]:
        (tmp_path / "r" / "corrections.csv").unlink()
        status, said = call("corrections", "import", file, tmp_path / "r", "--library", "PanNuke")
        assert status == 0, said
        return {(c.id, c.label) for c in read_corrections(tmp_path / "r" / "corrections.csv")}

    assert imported(path) == imported(old) == expected
    assert call("adapt", tmp_path / "r", "--undo")[0] == 0
    assert imported(path) == expected
    status, said = call("corrections", "import", old, tmp_path / "r", "--library", "PanNuke")
    assert status == 1
    assert "cannot be told from labels that slide had when they were exported" in said
    correct(store, truth, ROWS[:40])
    assert call("adapt", tmp_path / "r")[0] == 0
    assert imported(path) == expected


def test_another_of_several_labels_that_an_export_gave_is_a_correction(tmp_path: Path) -> None:
    slide(tmp_path / "r")
    path = tmp_path / "several.geojson"
    options = ("--decide", "threshold", "--threshold", "0.05", "--primary", "PanNuke", "--out", path)
    assert call("export", tmp_path / "r", "--to", "geojson", *options)[0] == 0
    content = json.loads(path.read_text("utf-8"))
    expected = set()
    for feature in content["features"]:
        given, name = feature["properties"]["metadata"]["PanNuke"].split("; "), feature["properties"]["classification"]
        assert name["name"] in given
        if len(given) > 1 and len(expected) < 5:
            name["name"] = next(label for label in given if label != name["name"])
            expected.add((feature["id"], name["name"]))
    assert len(expected) == 5
    path.write_text(json.dumps(content), "utf-8")
    status, said = call("corrections", "import", path, tmp_path / "r", "--library", "PanNuke")
    assert status == 0, said
    assert {(c.id, c.label) for c in read_corrections(tmp_path / "r" / "corrections.csv")} == expected


def test_exports_and_reports_show_either_set(tmp_path: Path) -> None:
    store, truth = slide(tmp_path / "r")
    folder = store.path.parent
    assert call("export", folder, "--to", "csv", "--adapted", "--out", tmp_path / "no.csv")[0] == 2
    x, y = store.centroids_l0[int(REST[3])]
    correct(store, truth, ROWS, Correction(x, y, "", "not_a_nucleus"))
    assert call("adapt", folder)[0] == 0
    tables = {}
    for option in ([], ["--adapted"]):
        out = tmp_path / f"{len(option)}.csv"
        assert call("export", folder, "--to", "csv", "--out", out, *option)[0] == 0
        tables[len(option)] = pd.read_csv(out, index_col="id")
    adapted = open_store(store.path).adapted()
    assert tables[0]["PanNuke"].tolist() == [LABELS[n] for n in store.label_numbers("PanNuke")]
    assert tables[1]["PanNuke"].tolist() == [LABELS[n] for n in adapted.label_numbers("PanNuke")]
    assert (len(tables[0]), len(tables[1])) == (600, 599)
    np.testing.assert_allclose(tables[1]["PanNuke_p"], adapted.label_probabilities("PanNuke"), atol=1e-4)
    assert call("export", folder, "--to", "geojson", "--out", tmp_path / "a.geojson", "--adapted")[0] == 0
    features = json.loads((tmp_path / "a.geojson").read_text("utf-8"))["features"]
    names = [feature["properties"]["classification"]["name"] for feature in features]
    assert names == tables[1][store.info.outputs.libraries[-1].name].tolist()
    assert call("export", folder, "--to", "anndata", "--out", tmp_path / "a.h5ad")[0] == 0
    table = anndata.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(table.layers["adapted"][np.asarray(adapted.rows)], adapted.probabilities)
    np.testing.assert_array_equal(table.X, store.probabilities)
    assert call("report", folder, "--adapted")[0] == 0
    assert not (folder / "report.html").exists()
    text = (folder / "report-adapted.html").read_text("utf-8")
    assert ">labels<" in text
    assert "adapted by 80 corrected nuclei of this slide, and without 1 called no nucleus (" in text
    assert "PanNuke by 80" in text
    plain = made_from(store)["libraries"]["PanNuke"]["accuracy"]["plain"]
    assert f"PanNuke {plain[0]:.3f} before and {plain[1]:.3f} after, on 80" in text
    assert "the label of the largest probability. The probabilities are adapted; a corrected nucleus has" in text
    assert call("adapt", folder)[0] == 0
    assert not (folder / "report-adapted.html").exists()  # it was of the labels before
    assert call("report", folder, "--adapted")[0] == 0
    assert "adapted labels and their report removed" in call("adapt", folder, "--undo")[1]
    assert not (folder / "report-adapted.html").exists()
    (folder / "report-adapted.html").write_text("my own words", "utf-8")
    assert "has no adapted labels" in call("adapt", folder, "--undo")[1]
    assert (folder / "report-adapted.html").exists()
