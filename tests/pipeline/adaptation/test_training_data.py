"""Corrections of a folder of results teach a classifier: images cut from the slides, and a training from them."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from classifier.patches import at_working_mpp, cut_crops
from nucpipe.backends.model_file import read_header
from nucpipe.datasets import open_dataset
from nucpipe.errors import DataError
from pipeline.adaptation.corrections import Correction, write_corrections
from pipeline.adaptation.training_data import holds_results, write_training_data
from pipeline.cli.main import main
from pipeline.result import open_result
from pipeline.slide.grid import WorkingGrid
from tests.support.browser import run_drawn
from tests.support.synthetic import draw_slide


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    result = run_drawn(draw_slide(500, 400), folder)
    centroids = open_result(result).centroids()
    said = [Correction(*xy, "PanNuke", ("dead", "epithelial")[k % 2]) for k, xy in enumerate(centroids[:12].tolist())]
    said += [Correction(*centroids[20], "NuCLS", "tumor"), Correction(*centroids[21], "", "not_a_nucleus")]
    said += [Correction(*centroids[22], "PanNuke", label) for label in ("dead", "epithelial")]
    write_corrections(result / "corrections.csv", said)
    return folder / "out"


def test_images_show_the_corrected_nuclei_as_the_run_saw_them(results: Path, tmp_path: Path) -> None:
    assert holds_results(results)
    assert not holds_results(tmp_path)
    ((name, written),) = write_training_data(results, "pannuke", tmp_path / "out")
    assert name == "PanNuke"
    images = open_dataset(written)
    assert len(images) == 12
    assert {image.group for image in images} == {"tile"}
    result = open_result(results / "tile")
    with result.open_slide() as slide:
        grid = WorkingGrid.for_slide(slide.size_l0, slide.mpp)
        for image in images:
            annotation = image.annotation()
            x, y = (float(part) for part in image.name.split("_")[-2:])
            row = np.abs(result.centroids() - (x, y)).sum(1).argmin()
            pixels, points = at_working_mpp(image.pixels(), annotation.centroids, image.mpp)
            centre = grid.to_w(result.centroids()[row : row + 1])
            left, top = np.floor(centre[0]).astype(int) - 60
            own = slide.read(grid, (int(left), int(top), int(left) + 120, int(top) + 120))
            crop, expected = cut_crops(pixels, points, 1), cut_crops(own, centre - (left, top), 1)
            assert np.abs(crop.astype(int) - expected).mean() < 2
            assert annotation.labels[0] in ("dead", "epithelial")


def test_what_is_not_corrected_in_a_library_is_said(results: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"none of its results has corrections of CoNSeP; there are some of NuCLS, PanN"
    ):
        write_training_data(results, "CoNSeP", tmp_path)


def test_a_training_takes_a_folder_of_results(results: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.safetensors"
    words = ["train", "classifier", "--library", f"PanNuke={results}", "--start-from", "fast", "--steps", "1"]
    done = CliRunner().invoke(main, [*words, "--batch-size", "4", "--out", str(out)])
    assert done.exit_code == 0, done.output
    pannuke = next(entry for entry in read_header(out).data if entry["name"] == "PanNuke")
    assert pannuke["nuclei"] == {"dead": 6, "epithelial": 6}
    assert len(list((tmp_path / "mine.corrections" / "PanNuke").glob("tile-*/library.toml"))) == 1


def test_another_name_stands_for_the_corrections_of_all_libraries(results: Path, tmp_path: Path) -> None:
    sets = write_training_data(results, "mine", tmp_path)
    assert [(name, len(open_dataset(path))) for name, path in sets] == [("NuCLS", 1), ("PanNuke", 12)]


def test_corrections_that_were_taken_back_teach_no_longer(results: Path, tmp_path: Path) -> None:
    table = results / "tile" / "corrections.csv"
    before = table.read_text("utf-8")
    write_training_data(results, "PanNuke", tmp_path)
    lines = before.splitlines(keepends=True)
    table.write_text("".join([lines[0], *lines[5:]]), "utf-8")
    try:
        ((_, path),) = write_training_data(results, "PanNuke", tmp_path)
        assert len(open_dataset(path)) == 8
        assert len(list(path.glob("labels/*"))) == 8
    finally:
        table.write_text(before, "utf-8")


@pytest.mark.parametrize("by_config", [False, True])
def test_results_under_a_name_of_ones_own(results: Path, tmp_path: Path, by_config: bool) -> None:
    """As in ``nucpipe train classifier --library mine=results/``; --check says what would be learnt."""
    words = ["--library", f"mine={results}", "--start-from", "fast", "--out", str(tmp_path / "mine.safetensors")]
    if by_config:
        config = tmp_path / "mine.toml"
        config.write_text(
            f'out = "mine.safetensors"\nstart_from = ["fast"]\n[libraries]\nmine = "{results}"\n', "utf-8"
        )
        words = ["--config", str(config)]
    done = CliRunner().invoke(main, ["train", "classifier", *words, "--check"])
    assert done.exit_code == 0, done.output
    assert "PanNuke: " in done.output
    assert re.search(r"training: 12 images in 1 groups, 12 nuclei", done.output)
    assert re.search(r"1 tumor +teaches NuCLS tumor", done.output)


def test_results_without_corrections_are_said_in_one_line(tmp_path: Path) -> None:
    run_drawn(draw_slide(300, 300), tmp_path)
    words = ["train", "classifier", "--library", f"mine={tmp_path / 'out'}", "--start-from", "fast"]
    done = CliRunner().invoke(main, [*words, "--out", str(tmp_path / "x.safetensors")])
    assert done.exit_code == DataError.exit_code
    assert done.stderr == (
        f"nucpipe: {tmp_path / 'out'}: none of its results has corrections; make some in nucpipe view.\n"
    )
    assert not (tmp_path / "x.corrections").exists()


def test_folders_of_one_name_teach_side_by_side_and_nothing_of_the_users_is_removed(
    results: Path, tmp_path: Path
) -> None:
    for place in ("a", "b"):
        shutil.copytree(results / "tile", tmp_path / place / "tile")
    lines = (results / "tile" / "corrections.csv").read_text("utf-8").splitlines(keepends=True)
    (tmp_path / "b" / "tile" / "corrections.csv").write_text("".join(lines[:6]), "utf-8")
    first, second = write_training_data(tmp_path, "PanNuke", tmp_path / "out")
    assert [len(open_dataset(path)) for _, path in (first, second)] == [12, 5]
    mine = first[1] / "images" / "mine.png"
    mine.write_bytes(b"mine")
    assert write_training_data(tmp_path, "PanNuke", tmp_path / "out") == [first, second]
    assert mine.read_bytes() == b"mine"


def test_corrections_beside_the_slide_teach_nothing(results: Path, tmp_path: Path) -> None:
    shutil.copytree(results / "tile", tmp_path / "tile")
    write_corrections(tmp_path / "tile" / "corrections.csv", [Correction(1e300, -5, "PanNuke", "dead")])
    with pytest.raises(
        DataError, match=r"1 of its corrections, as that at \(1e\+300, -5\), lie outside tile of 500 x 400"
    ):
        write_training_data(tmp_path, "mine", tmp_path / "out")
