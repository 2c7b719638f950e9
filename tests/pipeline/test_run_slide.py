"""The main job from the command line: results, resume, folders, and one clear line for whatever goes wrong."""

import csv
import json
import os
import shutil
from pathlib import Path

import anndata
import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

import nucpipe
from nucpipe.errors import OutputError, SlideError, UsageError
from pipeline import run_slide as run_module
from pipeline.batch.progress import Lines
from pipeline.cli.main import main
from pipeline.config import RunConfig
from pipeline.inference.models import load_models
from pipeline.run_slide import run_slide
from pipeline.store.journal import Journal
from pipeline.store.reader import open_store
from pipeline.store.run_record import SilentReporter, SlideResult
from tests.support.stores import stopped_after
from tests.support.synthetic import MPP, draw_slide, models


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def expect(result: Result, status: int, *words: str) -> None:
    """The exit status, and one line that holds the words; no traceback."""
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output
    assert any(all(word in line for word in words) for line in result.output.splitlines()), result.output


@pytest.fixture
def tile(tmp_path: Path) -> Path:
    return draw_slide(400, 300).save(tmp_path / "tile.png")


def white(path: Path, side: int = 120) -> Path:
    cv2.imwrite(str(path), np.full((side, side, 3), 255, np.uint8))
    return path


def test_results_of_a_slide(tile: Path, tmp_path: Path) -> None:
    drawn = draw_slide(400, 300)
    result = run_slide(tile, tmp_path / "out", models(), RunConfig(mpp=MPP, tissue="none"), SilentReporter())
    assert result.status == "done"
    assert result.nuclei == len(drawn.centres)
    table = anndata.read_zarr(tmp_path / "out" / "nuclei.zarr" / "table")
    order = np.lexsort(np.round(table.obsm["spatial"]).T)
    expected = np.lexsort(np.round(drawn.centres).T)
    np.testing.assert_allclose(table.obsm["spatial"][order], drawn.centres[expected], atol=1 / 128)
    assert [table.obs[name].dtype.name for name in ("NuCLS", "BreCaHAD", "CoNSeP", "MoNuSAC", "PanNuke")] == [
        "category"
    ] * 5
    features = json.loads((tmp_path / "out" / "nuclei.geojson").read_text("utf-8"))["features"]
    assert [f["id"] for f in features] == list(table.obs_names)
    facts = json.loads((tmp_path / "out" / "run.json").read_text("utf-8"))
    assert facts["nuclei"] == len(drawn.centres) == sum(facts["counts"]["CoNSeP"].values())
    assert cv2.imread(str(tmp_path / "out" / "overview.png")) is not None
    assert not (tmp_path / "out" / "journal").exists()


def test_performance_and_the_timeline(tile: Path, tmp_path: Path) -> None:
    config = RunConfig(mpp=MPP, tissue="none", profile=True, workers=2)
    result = run_slide(tile, tmp_path / "out", models(), config, SilentReporter())
    facts = json.loads((tmp_path / "out" / "run.json").read_text("utf-8"))["performance"]
    assert set(facts["stages"]) == {"read", "detect", "outline", "classify", "write"}
    assert facts["stages"]["read"]["times"] == 1
    assert facts["stages"]["classify"]["times"] == -(-result.nuclei // 64)
    assert all(stage["seconds"] >= 0 and stage["waited"] >= 0 for stage in facts["stages"].values())
    assert 0 < facts["device_busy"] <= 1
    assert facts["nuclei_per_second"] > 0
    assert facts["mm2_per_second"] > 0
    assert cv2.imread(str(tmp_path / "out" / "profile.png")).shape[1] > 1000


def test_a_stopped_run_goes_on_and_ends_as_if_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = draw_slide(900, 700).save(tmp_path / "slide.png")
    config = RunConfig(mpp=MPP, tissue="none", region_size=256)
    run_slide(path, tmp_path / "whole", models(), config, SilentReporter())
    with stopped_after(5, monkeypatch) as written:
        run_slide(path, tmp_path / "stopped", models(), config, SilentReporter())
    assert not (tmp_path / "stopped" / "nuclei.zarr").exists()
    write, again = Journal.write, []
    monkeypatch.setattr(Journal, "write", lambda j, i, *rest: (again.append(i), write(j, i, *rest))[1])
    capsys.readouterr()
    lines = Lines()
    lines.end(run_slide(path, tmp_path / "stopped", models(), config, lines))
    first, last = capsys.readouterr().err.splitlines()
    assert first == f"slide: 0.0394 mm² of tissue in {len(written) + len(again)} regions, 5 of them done before"
    assert " on 0.0394 mm² in " in last
    assert not set(again) & set(written)
    whole, stopped = (open_store(tmp_path / name / "nuclei.zarr") for name in ("whole", "stopped"))
    np.testing.assert_array_equal(whole.ids, stopped.ids)
    np.testing.assert_array_equal(whole.contours()[1], stopped.contours()[1])
    np.testing.assert_allclose(whole.table.X, stopped.table.X, atol=1e-5)
    text = (tmp_path / "stopped" / "nuclei.geojson").read_text("utf-8")
    assert len(text) == pytest.approx(len((tmp_path / "whole" / "nuclei.geojson").read_text("utf-8")), rel=0.01)


def test_demo_region_with_the_bundled_models(demo_slide: Path, tmp_path: Path) -> None:
    """A square of the public slide: about as many nuclei as one counts, and five labels for each."""
    from pipeline.slide.open import open_slide

    with open_slide(demo_slide) as slide:
        square = slide.read_level(0, (850, 1250, 1150, 1550))
    cv2.imwrite(str(tmp_path / "square.png"), square[..., ::-1])
    expect(
        call("run", tmp_path / "square.png", "--mpp", slide.mpp, "--out", tmp_path / "out"), 0, "nuclei on", "square"
    )
    store = open_store(tmp_path / "out" / "square" / "nuclei.zarr")
    assert 90 <= len(store) <= 220
    assert np.median(store.area_um2) == pytest.approx(30, abs=20)
    for library in store.info.outputs.libraries:
        numbers = store.label_numbers(library.name)
        columns = store.info.outputs.slices[library.name]
        assert np.asarray(store.info.outputs.trained)[columns][numbers].all()


def test_a_folder_with_a_bad_slide(tmp_path: Path) -> None:
    folder = tmp_path / "slides"
    (folder / "sub").mkdir(parents=True)
    white(folder / "a.png")
    white(folder / "sub" / "a.png")
    (folder / "bad.svs").write_text("no slide")
    (folder / "notes.txt").write_text("ignored")
    out = tmp_path / "out"
    result = call("run", folder, "--mpp", 0.25, "--out", out)
    expect(result, 1, "bad.svs", "expected a slide")
    rows = list(csv.DictReader((out / "summary.csv").read_text("utf-8").splitlines()))
    assert [(Path(r["slide"]).name, r["status"]) for r in rows] == [
        ("a.png", "done"),
        ("bad.svs", "failed"),
        ("a.png", "done"),
    ]
    assert (out / "a" / "nuclei.zarr").is_dir()
    assert (out / "sub" / "a" / "nuclei.zarr").is_dir()
    again = call("run", folder, "--mpp", 0.25, "--out", out)
    assert again.output.count("finished before") == 2


def test_what_a_killed_export_left_is_removed(tmp_path: Path) -> None:
    slide, out = white(tmp_path / "w.png"), tmp_path / "o"
    call("run", slide, "--mpp", 0.25, "--out", out)
    (out / "w" / "run.json").unlink()
    (out / "w" / "nuclei.geojson.partial").write_text("half")
    (out / "w" / "mine.partial").write_text("mine")
    assert call("run", slide, "--mpp", 0.25, "--out", out).exit_code == 0
    assert [path.name for path in (out / "w").glob("*.partial")] == ["mine.partial"]


def test_two_slides_of_one_name_get_two_folders(tmp_path: Path) -> None:
    for name, side in (("a", 120), ("b", 140)):
        (tmp_path / name).mkdir()
        white(tmp_path / name / "slide.png", side)
    result = call(
        "run", tmp_path / "a" / "slide.png", tmp_path / "b" / "slide.png", "--mpp", 0.25, "--out", tmp_path / "o"
    )
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "o").glob("*/nuclei.zarr"))) == 2


def test_white_slide_finishes_with_no_nuclei_and_says_so(tmp_path: Path) -> None:
    expect(call("run", white(tmp_path / "w.png", 2500), "--mpp", 0.25, "--out", tmp_path / "o"), 0, "w.png: 0 nuclei")
    blank = ("run", tmp_path / "w.png", "--mpp", 0.25, "--out", tmp_path / "all", "--tissue", "none")
    expect(call(*blank), 0, "w.png: 0 nuclei on 0.391 mm²", "none was found there, or none that reaches --min-area")
    assert len(open_store(tmp_path / "o" / "w" / "nuclei.zarr")) == 0
    assert json.loads((tmp_path / "o" / "w" / "nuclei.geojson").read_text()) == {
        "type": "FeatureCollection",
        "features": [],
    }


def test_image_of_100_pixels(tmp_path: Path) -> None:
    path = draw_slide(100, 100).save(tmp_path / "t.png")
    expect(call("run", path, "--mpp", 0.25, "--out", tmp_path / "o"), 0, "t.png:", "nuclei on")


def test_existing_results_are_kept_unless_overwrite(tmp_path: Path) -> None:
    path, out = white(tmp_path / "w.png"), tmp_path / "o"
    assert call("run", path, "--mpp", 0.25, "--out", out).exit_code == 0
    expect(call("run", path, "--mpp", 0.25, "--out", out), 0, "finished before", "--overwrite")
    expect(call("run", path, "--mpp", 0.26, "--out", out), 1, "(--mpp) was 0.25 µm, is 0.26 µm", "--overwrite")
    expect(call("run", path, "--mpp", 0.26, "--out", out, "--overwrite"), 0, "w.png: 0 nuclei")
    assert open_store(out / "w" / "nuclei.zarr").info.mpp == 0.26


def test_another_slide_of_the_same_name_is_noticed(tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        draw_slide(200, 200, seed=seed).save(tmp_path / name / "s.png")
    config = RunConfig(mpp=MPP, tissue="none")
    run_slide(tmp_path / "a" / "s.png", tmp_path / "o", models(), config, SilentReporter())
    with pytest.raises(OutputError, match="file was changed, or is another of the same name"):
        run_slide(tmp_path / "b" / "s.png", tmp_path / "o", models(), config, SilentReporter())


def test_what_is_made_from_the_store_is_made_again_where_it_is_missing(tile: Path, tmp_path: Path) -> None:
    config, out = RunConfig(mpp=MPP, tissue="none"), tmp_path / "o"
    first = run_slide(tile, out, models(), config, SilentReporter())
    text = (out / "nuclei.geojson").read_text("utf-8")
    made = {"nuclei.geojson", "overview.png", "report.html", "run.json"}
    for name in made:  # killed between the store and the exports
        (out / name).unlink()
    again = run_slide(tile, out, models(), config, SilentReporter())
    assert (again.status, again.nuclei) == ("done", first.nuclei)
    assert (out / "nuclei.geojson").read_text("utf-8") == text
    assert {p.name for p in out.iterdir()} == {"nuclei.zarr", "report.json", *made}
    assert run_slide(tile, out, models(), config, SilentReporter()).status == "finished before"
    for name in made:  # each alone is missed
        (out / name).unlink()
        assert run_slide(tile, out, models(), config, SilentReporter()).status == "done"
        assert (out / name).is_file()
    other = run_slide(tile, out, models(), RunConfig(mpp=MPP, tissue="none", primary="CoNSeP"), SilentReporter())
    assert other.status == "done"
    assert (out / "nuclei.geojson").read_text("utf-8") != text


def test_overwrite_keeps_the_old_results_until_the_new_ones_are_ready(tile: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    run_slide(tile, out, models(), RunConfig(mpp=MPP, tissue="none"), SilentReporter())
    broken = tmp_path / "roi.geojson"
    broken.write_text("{")
    with pytest.raises(SlideError):
        run_slide(tile, out, models(), RunConfig(mpp=MPP, tissue=str(broken), overwrite=True), SilentReporter())
    assert len(open_store(out / "nuclei.zarr")) > 0
    adapted = out / "report-adapted.html"  # of labels that are gone then
    shutil.copy(out / "report.html", adapted)
    run_slide(tile, out, models(), RunConfig(mpp=MPP, tissue="none", overwrite=True, geojson=False), SilentReporter())
    assert not (out / "nuclei.geojson").exists()
    assert not adapted.exists()
    adapted.write_text("my own words", "utf-8")
    run_slide(tile, out, models(), RunConfig(mpp=MPP, tissue="none", overwrite=True, geojson=False), SilentReporter())
    assert adapted.read_text("utf-8") == "my own words"


def test_results_are_no_slides_and_odd_names_stop_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    white(folder / "two\nlines [red] 'é'.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "summary.csv.png").write_bytes((folder / "two\nlines [red] 'é'.png").read_bytes())
    for _ in range(2):
        result = call("run", folder, "--mpp", 0.25, "--out", folder)
        assert result.exit_code == 0, result.output
        assert "2 of 2 slides done" in result.output
    rows = (folder / "summary.csv").read_text("utf-8").splitlines()
    assert len(rows) == 3
    call("run", white(tmp_path / "w.png"), "--mpp", 0.25, "--out", folder)
    assert len((folder / "summary.csv").read_text("utf-8").splitlines()) == 4


def test_an_unexpected_error_fails_one_slide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.batch import one_slide

    def explode(path: Path, *rest: object) -> SlideResult:
        if path.stem == "a":
            raise IndexError("somewhere\nin a library")
        return run_slide(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(one_slide, "run_slide", explode)
    paths = [white(tmp_path / f"{name}.png") for name in "ab"]
    results = nucpipe.run(paths, tmp_path / "o", mpp=0.25)
    assert [r.status for r in results] == ["failed", "done"]
    assert results[0].cause == "unexpected IndexError: somewhere in a library; please report it."


def test_unwritable_output(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = white(tmp_path / "w.png")
    expect(call("run", path, "--mpp", 0.25, "--out", tmp_path / "file" / "o"), 1, "cannot be written")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--segmentor", "nobody"], 2, ["--segmentor nobody", "hovernet-compact"]),
        (["--classifier", "nobody"], 2, ["--classifier nobody", "joint-context"]),
        (["--primary", "Nobody"], 2, ["unknown library 'Nobody'", "PanNuke"]),
        (["--device", "tpu"], 2, ["--device tpu", "expected"]),
        (["--region-size", "100"], 2, ["--region-size 100", "multiple of 32"]),
        (["--batch-size", "0"], 2, ["--batch-size 0"]),
        (["--workers", "0"], 2, ["--workers 0"]),
        (["--precision", "fp16", "--device", "cpu"], 2, ["fp16", "CUDA"]),
        (["--tissue", "nowhere.geojson"], 2, ["nowhere.geojson"]),
        (["--mpp", "0"], 2, ["--mpp 0", "expected"]),
        (["--mpp", "nan"], 2, ["--mpp nan", "expected"]),
    ],
)
def test_wrong_usage_is_one_line(tmp_path: Path, arguments: list[str], status: int, words: list[str]) -> None:
    result = call("run", white(tmp_path / "w.png"), "--mpp", 0.25, "--out", tmp_path / "o", *arguments)
    expect(result, status, *words)


def test_bad_slides_are_one_line(tmp_path: Path, demo_slide: Path) -> None:
    (tmp_path / "text.svs").write_text("hello")
    (tmp_path / "cut.svs").write_bytes(demo_slide.read_bytes()[:300_000])
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("text.svs", "cut.svs", "empty.png"):
        result = call("run", tmp_path / name, "--out", tmp_path / "o", "--mpp", 0.25)
        expect(result, 1, f"FAILED {tmp_path / name}: expected a", "cut.svs" if name == "cut.svs" else "file")
        assert "Error" not in result.output
    expect(call("run", white(tmp_path / "w.png"), "--out", tmp_path / "o"), 1, "w.png", "--mpp")
    expect(call("run", tmp_path / "nowhere.svs", "--out", tmp_path / "o"), 2, "nowhere.svs", "no such slide")
    (tmp_path / "none").mkdir()
    expect(call("run", tmp_path / "none", "--out", tmp_path / "o"), 2, "no slide in this folder")


def test_tissue_files_that_do_not_fit_are_one_line(tmp_path: Path, tile: Path) -> None:
    other = white(tmp_path / "mask.png", 64)
    expect(call("run", tile, "--mpp", 0.25, "--out", tmp_path / "o", "--tissue", other), 1, "64", "400")
    broken = tmp_path / "roi.geojson"
    broken.write_text('{"type": "FeatureCollection", "features": [')
    expect(call("run", tile, "--mpp", 0.25, "--out", tmp_path / "o", "--tissue", broken), 1, "roi.geojson")


def test_info_models_and_export(tmp_path: Path, demo_slide: Path) -> None:
    expect(call("info", demo_slide), 0, "0.499")
    expect(call("models"), 0, "hovernet-compact", "segmentor")
    expect(call("models"), 0, "joint-context", "classifier")
    expect(call("models", "hovernet_fast-pannuke"), 0, "hovernet_fast-pannuke", "trained on PanNuke")
    assert call("run", white(tmp_path / "w.png"), "--mpp", 0.25, "--out", tmp_path / "o").exit_code == 0
    again = ("export", tmp_path / "o" / "w", "--to", "geojson", "--primary", "nucls")
    expect(call(*again), 1, "nuclei.geojson: already exists", "--overwrite")
    expect(call(*again, "--overwrite"), 0, "0 nuclei", "nuclei.geojson")
    expect(call("export", tmp_path, "--to", "geojson"), 1, str(tmp_path))


def test_python_does_what_the_command_does(tmp_path: Path) -> None:
    results = nucpipe.run(white(tmp_path / "w.png"), tmp_path / "o", mpp=0.25)
    assert [(r.status, r.nuclei) for r in results] == [("done", 0)]
    with pytest.raises(UsageError, match="multiple of 32"):
        nucpipe.run(tmp_path / "w.png", tmp_path / "o", region_size=3)


def test_processors_are_those_allowed() -> None:
    assert 1 <= run_module.available_processors() <= 4096


def test_a_classifier_is_no_segmentor() -> None:
    from nucpipe.errors import ModelError
    from pipeline.inference.models import find_model

    path = find_model("classifier", RunConfig().classifier)
    with pytest.raises(ModelError, match="expected a HoVer-Net segmentor"):
        load_models(str(path), str(path), "cpu", "fp32")
