"""``--min-area`` and ``--min-detection``: the model's defaults, what a run keeps, and what is made from its result."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import scipy.io
import torch
from click.testing import CliRunner, Result

import nucpipe
from nucpipe.backends.model_file import load_model, read_header, rewrite_header
from nucpipe.datasets import open_dataset
from nucpipe.errors import ModelError, OutputError, UsageError
from pipeline.cli.main import main
from pipeline.config import RunConfig
from pipeline.export.geojson.write import write_geojson
from pipeline.inference.models import Models, find_model
from pipeline.run_slide import run_slide
from pipeline.store.reader import Store, open_store
from pipeline.store.run_record import SilentReporter
from segmentation.evaluation.evaluate import score_images
from segmentation.nuclei import KEEP_ALL, Nuclei, NucleusFilter
from segmentation.registry import load_detector
from segmentation.training.model_card import model_card
from tests.support.stores import random_store
from tests.support.synthetic import MPP, DarkSpots, Drawn, draw_slide, models

LEAST = NucleusFilter(22, 0.6)


class Unsure(DarkSpots):
    """Dark spots; how sure it is of one depends on the spot's area alone."""

    def __init__(self, default_filter: NucleusFilter = KEEP_ALL) -> None:
        self.default_filter = default_filter

    def nuclei(self, prediction: np.ndarray, mpp: float) -> Nuclei:
        found = super().nuclei(prediction, mpp)
        p = 0.5 + found.area_um2 * np.float32(0.37) % 1 / 2
        return dataclasses.replace(found, detection_p=p.astype(np.float32))


def with_default(default_filter: NucleusFilter) -> Models:
    return dataclasses.replace(models(), detector=Unsure(default_filter))


def run_with(slide: Path, out: Path, default: NucleusFilter = KEEP_ALL, **settings: object) -> Store:
    run_slide(slide, out, with_default(default), RunConfig(mpp=MPP, tissue="none", **settings), SilentReporter())  # type: ignore[arg-type]
    return open_store(out / "nuclei.zarr")


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    return draw_slide(440, 360)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory, drawn: Drawn) -> Path:
    return drawn.save(tmp_path_factory.mktemp("slide") / "slide.png")


@pytest.fixture(scope="module")
def everything(slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Of a run that keeps all."""
    return run_with(slide, tmp_path_factory.mktemp("all") / "out")


def same(a: Store, b: Store) -> None:
    np.testing.assert_array_equal(a.ids, b.ids)
    np.testing.assert_array_equal(a.centroids_l0, b.centroids_l0)
    np.testing.assert_array_equal(a.contours()[1], b.contours()[1])
    np.testing.assert_array_equal(a.detection_p, b.detection_p)
    np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-5)  # batches differ


@pytest.mark.parametrize("region_size", [1280, 192])
def test_a_run_gives_what_its_unfiltered_result_gives_when_filtered(
    slide: Path, everything: Store, tmp_path: Path, region_size: int
) -> None:
    expected = everything.filtered(LEAST.min_area_um2, LEAST.min_detection_p)
    assert 10 < len(expected) < len(everything) - 20
    for name, values, least in (("area", everything.area_um2, 22), ("p", everything.detection_p, 0.6)):
        assert 5 < (values < least).sum() < len(everything) - 5, name
    given = run_with(slide, tmp_path / "given", region_size=region_size, min_area=22, min_detection=0.6)
    same(given, expected)
    of_model = run_with(slide, tmp_path / "model", LEAST, region_size=region_size)
    same(of_model, expected)
    for store in (given, of_model, expected):
        assert store.info.nucleus_filter == LEAST
        assert {"min_area_um2": 22, "min_detection_p": 0.6}.items() <= store.info.settings.items()
    facts = json.loads((tmp_path / "model" / "run.json").read_text("utf-8"))
    assert (facts["settings"]["min_area_um2"], facts["nuclei"]) == (22, len(expected))
    assert "kept: at least 22 µm², detection at least 0.6." in (tmp_path / "model/report.html").read_text("utf-8")


def test_options_override_the_models_defaults_one_by_one(slide: Path, everything: Store, tmp_path: Path) -> None:
    larger = run_with(slide, tmp_path / "larger", LEAST, min_area=24)
    same(larger, everything.filtered(24, 0.6))
    same(run_with(slide, tmp_path / "none", LEAST, min_area=0, min_detection=0), everything)
    assert everything.info.nucleus_filter == KEEP_ALL
    assert "min_area_um2" not in everything.info.settings


def test_a_result_of_another_filter_is_not_gone_on_with(slide: Path, tmp_path: Path) -> None:
    run_with(slide, tmp_path / "out", min_area=17)
    run_with(slide, tmp_path / "out", NucleusFilter(17))  # the same by the model's default
    with pytest.raises(OutputError, match=r"--min-area was 17, is 18"):
        run_with(slide, tmp_path / "out", min_area=18)
    with pytest.raises(OutputError, match=r"--min-detection was 0, is 0\.7"):
        run_with(slide, tmp_path / "out", min_area=17, min_detection=0.7)


def test_nuclei_of_another_tool_are_kept_unless_asked(slide: Path, everything: Store, tmp_path: Path) -> None:
    outlines = tmp_path / "nuclei.geojson"
    write_geojson(everything, outlines, "PanNuke", exact_outlines=True)
    kept = run_with(slide, tmp_path / "kept", LEAST, nuclei=str(outlines))
    assert len(kept) == len(everything)
    assert kept.info.nucleus_filter == KEEP_ALL
    fewer = run_with(slide, tmp_path / "fewer", LEAST, nuclei=str(outlines), min_area=22.01)
    assert len(fewer) == len(everything.filtered(22.01))
    assert fewer.area_um2.min() >= 22


@pytest.mark.parametrize("settings", [{"min_area": -1}, {"min_detection": 1.5}])
def test_what_cannot_be_is_refused_before_anything_runs(settings: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="expected"):
        RunConfig(**settings)


# ---- from a finished result


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_exports_hold_what_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "slide"
    store = random_store(folder, 300)
    ran = call("export", folder, "--to", "csv", "--min-area", 9, "--min-detection", 0.7)
    assert ran.exit_code == 0, ran.output
    table = pd.read_csv(folder / "nuclei.csv")
    expected = (store.area_um2 >= 9) & (store.detection_p >= np.float32(0.7))
    assert 50 < expected.sum() < 250
    assert table["id"].tolist() == store.ids[expected].tolist()
    for more in (["--bbox", 0, 0, 2000, 2000], ["--label", "dead"]):
        assert call("export", folder, "--to", "csv", "--overwrite", "--min-area", 9, *more).exit_code == 0
        some = pd.read_csv(folder / "nuclei.csv")
        assert 0 < len(some) < (store.area_um2 >= 9).sum()
        assert some["area_um2"].min() >= 9
    for result in (folder, tmp_path):  # one result, and a folder of results
        ran = call("export", result, "--to", "qupath", "--min-area", 9)
        assert ran.output.startswith(f"{(store.area_um2 >= 9).sum()} nuclei -> "), ran.output


def test_what_the_run_left_out_cannot_be_had_back(tmp_path: Path) -> None:
    random_store(tmp_path, settings={"min_area_um2": 4.0, "min_detection_p": 0.5})
    result = nucpipe.open(tmp_path)
    assert len(result.filtered()) == len(result.filtered(4, 0.5)) == 200
    assert result.filtered(min_area=9).filtered(min_detection=0.8).store.info.nucleus_filter == NucleusFilter(9, 0.8)
    ran = call("export", tmp_path, "--to", "csv", "--min-area", 3)
    assert ran.exit_code == 2
    assert "--min-area 3: the run on slide left out nuclei below 4, so its result has none" in ran.output
    with pytest.raises(UsageError, match=r"--min-detection 0\.2"):
        result.filtered(min_detection=0.2)


def test_the_report_counts_what_is_kept_and_says_so(tmp_path: Path) -> None:
    for name, settings in (("a", {}), ("b", {"min_detection_p": 0.5})):
        random_store(tmp_path / name, 150, settings=settings, name=name)
    kept = len(nucpipe.open(tmp_path / "a").filtered(9, 0.7))
    assert 10 < kept < 140
    assert call("report", tmp_path / "a").exit_code == 0
    text = (tmp_path / "a/report.html").read_text("utf-8")
    assert "<b>150</b>nuclei" in text
    assert "are left out" not in text
    assert "<th>nuclei kept</th><td>all</td>" in text
    assert call("report", tmp_path / "a", "--min-area", 9, "--min-detection", 0.7).exit_code == 0
    text = (tmp_path / "a/report.html").read_text("utf-8")
    assert f"<b>{kept}</b>nuclei" in text
    assert "Smaller or less certain nuclei are left out; kept: at least 9 µm², detection at least 0.7." in text
    assert "<th>nuclei kept</th><td>at least 9 µm², detection at least 0.7</td>" in text
    assert "min area" not in text
    both = sum(len(nucpipe.open(tmp_path / name).filtered(9)) for name in "ab")
    assert call("report", tmp_path, "--min-area", 9).exit_code == 0
    text = (tmp_path / "report.html").read_text("utf-8")
    assert f"<b>{both}</b>nuclei" in text
    assert "kept: at least 9 µm² or, by slide, at least 9 µm², detection at least 0.5." in text
    assert "<th>nuclei kept</th><td>differs between the slides" in text


# ---- the model's file


def test_the_filter_is_the_models_and_its_weights_stay(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    bundled = find_model("segmentor", RunConfig().segmentor)
    path.write_bytes(bundled.read_bytes())
    header, tensors = load_model(path)
    rewrite_header(path, dataclasses.replace(header, min_area_um2=4.5, min_detection_p=0.75))
    assert read_header(path) == dataclasses.replace(header, min_area_um2=4.5, min_detection_p=0.75)
    after = load_model(path)[1]
    assert tensors.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in tensors.items())
    assert abs(path.stat().st_size - bundled.stat().st_size) < 200
    assert load_detector(path).default_filter == NucleusFilter(4.5, 0.75)
    assert "says otherwise: at least 4.5 µm², detection at least 0.75." in model_card(read_header(path))
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    with pytest.raises(ModelError, match="no such model file"):
        rewrite_header(tmp_path / "none.safetensors", header)


def test_a_model_that_states_no_filter_keeps_all(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    bundled = find_model("segmentor", RunConfig().segmentor)
    with safe_open(str(bundled), framework="np") as file:
        metadata = file.metadata()
    fields = json.loads(metadata["nucpipe"])
    fields = {key: value for key, value in fields.items() if key not in ("min_area_um2", "min_detection_p")}
    path = tmp_path / "old.safetensors"
    save_file(load_model(bundled)[1], str(path), metadata={**metadata, "nucpipe": json.dumps(fields)})
    assert load_detector(path).default_filter == KEEP_ALL


def test_the_figures_of_a_segmentor_are_those_of_what_it_keeps(drawn: Drawn, tmp_path: Path) -> None:
    for name in ("Images", "Labels"):
        (tmp_path / name).mkdir()
    drawn.save(tmp_path / "Images" / "a.png")
    dark = (drawn.image[..., 1] < 110).astype(np.uint8)
    scipy.io.savemat(tmp_path / "Labels" / "a.mat", {"inst_map": cv2.connectedComponents(dark, connectivity=4)[1]})
    images = open_dataset(tmp_path)
    ((_, every),) = score_images(Unsure(), images)
    ((score, kept),) = score_images(Unsure(LEAST), images)
    assert len(kept) == len(LEAST.apply(every)) == score.detection.found < len(every)
