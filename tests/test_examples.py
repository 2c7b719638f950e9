"""The examples run, on a small part of the public slide."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib import pyplot as plt

import nucpipe
from pipeline.slide.open import open_slide
from tests.support.paths import EXAMPLES

pytestmark = pytest.mark.slow

MPP = 0.499


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def square(demo_slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with open_slide(demo_slide) as slide:
        pixels = slide.read_level(0, (900, 1300, 1140, 1540))
    path = tmp_path_factory.mktemp("slide") / "square.png"
    cv2.imwrite(str(path), pixels[..., ::-1])
    return path


@pytest.fixture(scope="module")
def results(square: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results")
    example("one_slide").main(str(square), str(out), mpp=MPP)
    plt.close("all")
    return out


def test_one_slide(results: Path, square: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("one_slide").main(str(square), str(results), mpp=MPP)  # finished before: it is opened again
    plt.close("all")
    result = nucpipe.open(results / "square")
    text = capsys.readouterr().out
    assert f"{len(result)} nuclei on" in text
    for label, count in result.labels("CoNSeP").value_counts().items():
        assert any(line.split() == [label, str(count)] for line in text.splitlines())
    picture = cv2.imread(str(results / "square" / "detail.png"))
    assert picture is not None
    assert min(picture.shape[:2]) > 500


def test_the_tumour_of_til_density_is_where_tumour_nuclei_are_the_most() -> None:
    """Not all the tissue: the left half is tumour with an infiltrate, the right half stroma with a few stray labels."""
    counts = {name: np.zeros((10, 20)) for name in ("neoplastic", "inflammatory", "connective", "dead", "epithelial")}
    counts["neoplastic"][:, :10] = 2
    counts["inflammatory"][:, :10] = 9
    counts["connective"][:, 10:] = 3
    counts["neoplastic"][:, 10:] = 1
    counts["inflammatory"][3, 3] = counts["neoplastic"][3, 3] = 0  # a gap
    tumour = example("til_density").tumour_tiles(counts)
    expected = np.tile(np.arange(20) < 10, (10, 1))
    expected[3, 3] = False
    np.testing.assert_array_equal(tumour, expected)


def test_til_density(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    densities = example("til_density").main(str(results / "square"), str(tmp_path / "out.png"))
    tumour, tissue = map(float, re.findall(r"([\d.]+)(?= of|\smm²)", capsys.readouterr().out.splitlines()[0]))
    assert 0 <= tumour <= tissue == pytest.approx(nucpipe.open(results / "square").run_facts["tissue_mm2"], abs=5e-4)
    plt.close("all")
    assert cv2.imread(str(tmp_path / "out.png")) is not None
    assert list(densities) == ["PanNuke inflammatory", "MoNuSAC lymphocyte", "both"]
    both, each = densities["both"], (densities["PanNuke inflammatory"], densities["MoNuSAC lymphocyte"])
    assert np.isnan(both) or 0 <= both <= min(each)


def test_own_library(results: Path, square: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A library that names nuclei by their size, from the nuclei that were found."""
    result = nucpipe.open(results / "square")
    large = result.store.area_um2 > np.median(result.store.area_um2)
    library = tmp_path / "size"
    for folder in ("images", "labels"):
        (library / folder).mkdir(parents=True)
    (library / "library.toml").write_text(
        f'name = "Size"\nlabels = ["small", "large"]\nmpp = {MPP}\nlicence = "CC0-1.0"\n', "utf-8"
    )
    pixels = cv2.imread(str(square))
    for name, top in (("upper", 0), ("lower", 120)):
        cv2.imwrite(str(library / "images" / f"{name}.png"), pixels[top : top + 120])
        rows = [
            f"{x:.1f},{y - top:.1f},{('small', 'large')[int(big)]}"
            for (x, y), big in zip(result.centroids(), large, strict=True)
            if top <= y < top + 120
        ]
        (library / "labels" / f"{name}.csv").write_text("\n".join(["x,y,label", *rows]) + "\n", "utf-8")
    example("own_library").main(str(library), str(square), str(tmp_path / "out"), 2, mpp=MPP)
    named = nucpipe.open(tmp_path / "out" / "square").labels("Size")
    assert len(named) == len(result)
    assert set(named.cat.categories) == {"small", "large"}
    assert not named.isna().any()
    assert "Size on square.png:" in capsys.readouterr().out


def test_label_gallery(results: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(example("label_gallery").main, [str(results / "square"), "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    result = nucpipe.open(results / "square")
    assert {path.stem for path in tmp_path.iterdir()} == set(result.libraries)
    for library in result.libraries:
        picture = cv2.imread(str(tmp_path / f"{library}.png"))
        assert picture is not None
        assert picture.shape[0] > 80 * result.labels(library).nunique()  # a row a label


def test_adapt_by_script(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = results / "square"
    result = nucpipe.open(folder)
    some = result.centroids()[:30]
    labels = ["epithelial", "connective"] * 15
    places = " ".join(f"{label}={x},{y}" for label, (x, y) in zip(labels, some, strict=True))
    try:
        example("adapt_by_script").main(str(folder), "PanNuke", places)
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("PanNuke ")]
        counts = [int(line.rsplit(" ", 1)[1].replace(",", "")) for line in lines]
        assert sum(counts) == len(result)
        adapted = nucpipe.open(folder)
        if "PanNuke" in adapted.store.adapted_libraries:
            assert adapted.adapted().labels("PanNuke")[:30].tolist() == labels
    finally:
        (folder / "corrections.csv").unlink()
