"""``nucpipe.open``: a finished result in Python, whole and in windows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.collections import PathCollection, PolyCollection

import nucpipe
from nucpipe.errors import OutputError, SlideError, UsageError
from pipeline.config import RunConfig
from pipeline.export.figures import plot
from pipeline.run_slide import run_slide
from pipeline.store.run_record import SilentReporter
from tests.support.stores import random_store
from tests.support.synthetic import MPP, draw_slide, models

mpl.use("Agg")
WINDOW = (1000.0, 500.0, 3000.0, 2500.0)


@pytest.fixture
def result(tmp_path: Path) -> nucpipe.Result:
    random_store(tmp_path)
    return nucpipe.open(tmp_path)


def test_a_folder_and_its_store_open_alike(tmp_path: Path) -> None:
    random_store(tmp_path)
    assert nucpipe.open(tmp_path) == nucpipe.open(str(tmp_path / "nuclei.zarr"))
    with pytest.raises(UsageError, match=r"nowhere: no such folder; expected a slide's folder of results"):
        nucpipe.open(tmp_path / "nowhere")


def test_a_folder_that_is_not_a_result_says_what_to_give(tmp_path: Path) -> None:
    random_store(tmp_path / "results" / "a")
    with pytest.raises(OutputError, match=r"results: expected a slide's folder .* such as .*results/a\.$"):
        nucpipe.open(tmp_path / "results")
    (tmp_path / "b" / "journal").mkdir(parents=True)
    with pytest.raises(OutputError, match="b: the run of this slide is not finished; give the same run command again"):
        nucpipe.open(tmp_path / "b")
    (tmp_path / "empty").mkdir()
    with pytest.raises(OutputError, match=r"empty: expected a slide's folder of results, with nuclei\.zarr in it\.$"):
        nucpipe.open(tmp_path / "empty")


def test_what_it_says_agrees_with_the_table(result: nucpipe.Result) -> None:
    table = result.table
    assert (len(result), result.name, result.mpp, result.size_l0) == (200, "slide", 0.25, (4000, 3000))
    assert result.libraries == ("NuCLS", "BreCaHAD", "CoNSeP", "MoNuSAC", "PanNuke")
    for name in result.libraries:
        labels = result.labels(name.lower())
        assert labels.name == name
        assert labels.tolist() == table.obs[name].tolist()
        assert list(labels.cat.categories) == list(table.obs[name].cat.categories)
        assert list(labels.index) == list(table.obs_names)
        probabilities = result.probabilities(name)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
        assert probabilities.idxmax(axis=1).tolist() == labels.tolist()
    np.testing.assert_array_equal(result.centroids(), table.obsm["spatial"])


def test_it_prints_in_a_few_lines(result: nucpipe.Result) -> None:
    head, size, *libraries = str(result).splitlines()
    assert head == f"slide: 200 nuclei in {result.folder}"
    assert size == "  4,000 x 3,000 pixels of 0.25 µm (1.00 x 0.75 mm)"
    assert [line.split()[0] for line in libraries] == list(result.libraries)
    for line in libraries:
        name, texts = line.split(maxsplit=1)
        counts = result.labels(name).value_counts()
        first, *_, last = texts.split(", ")
        assert first == f"{counts.index[0]} {counts.iloc[0]}"
        assert sum(int(text.rsplit(" ", 1)[1]) for text in texts.split(", ")) == 200
        assert last.startswith("others") == (sum(counts > 0) > 3)
    assert repr(result) == f"<Result slide: 200 nuclei, {result.folder}>"


def test_a_window_gives_the_nuclei_in_it_in_every_answer(result: nucpipe.Result) -> None:
    x, y = result.centroids().T
    x0, y0, x1, y1 = WINDOW
    inside = (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
    assert 40 < inside.sum() < 160
    np.testing.assert_array_equal(result.centroids(WINDOW), result.centroids()[inside])
    np.testing.assert_array_equal(
        result.probabilities("PanNuke", WINDOW).to_numpy(), result.probabilities("PanNuke").to_numpy()[inside]
    )
    assert result.labels("CoNSeP", WINDOW).equals(result.labels("CoNSeP")[inside])
    whole, part = result.contours(), result.contours(WINDOW)
    assert len(whole) == len(result)
    for ring, row in zip(part, np.flatnonzero(inside), strict=True):
        np.testing.assert_array_equal(ring, whole[row])
        np.testing.assert_allclose(ring.mean(0), result.centroids()[row], atol=0.5)
    assert result.contours((-9, -9, -5, -5)) == []
    assert result.labels("NuCLS", (-9, -9, -5, -5)).empty


def test_an_unknown_library_is_refused(result: nucpipe.Result) -> None:
    for ask in (result.labels, result.probabilities, lambda name: nucpipe.plot(result, library=name)):
        with pytest.raises(UsageError, match="unknown library 'Kumar'"):
            ask("Kumar")
    with pytest.raises(UsageError, match="unknown label 'tumour'; PanNuke has neoplastic"):
        nucpipe.plot(result, library="PanNuke", labels=["tumour"])
    plt.close("all")


def test_the_plot_shows_each_label_with_its_count(result: nucpipe.Result) -> None:
    ax = nucpipe.plot(result, WINDOW, "PanNuke")
    counts = result.labels("PanNuke", WINDOW).value_counts()
    drawn = [c for c in ax.collections if isinstance(c, PolyCollection)]
    assert {c.get_label(): len(c.get_paths()) for c in drawn} == {f"{k} ({n})": n for k, n in counts.items()}
    red = next(c for c in drawn if c.get_label().startswith("neoplastic"))
    np.testing.assert_allclose(red.get_edgecolor(), [[200 / 255, 0, 0, 1]])
    assert (ax.get_xlim(), ax.get_ylim()) == ((1000, 3000), (2500, 500))
    only = nucpipe.plot(result, WINDOW, "PanNuke", labels=["dead"])
    assert [c.get_label() for c in only.collections] == [f"dead ({counts['dead']})"]
    plt.close("all")


def test_many_nuclei_are_dots(result: nucpipe.Result, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot, "MAX_OUTLINES", 10)
    ax = nucpipe.plot(result, library="NuCLS")
    assert all(isinstance(c, PathCollection) for c in ax.collections)
    assert sum(len(c.get_offsets()) for c in ax.collections) == 200
    plt.close("all")


def test_the_slide_is_found_and_seen_behind_the_nuclei(tmp_path: Path) -> None:
    drawn = draw_slide(400, 300)
    path = drawn.save(tmp_path / "tile.png")
    run_slide(path, tmp_path / "out", models(), RunConfig(mpp=MPP, tissue="none"), SilentReporter())
    assert json.loads((tmp_path / "out" / "run.json").read_text("utf-8"))["slide"] == str(path)
    result = nucpipe.open(tmp_path / "out")
    with result.open_slide() as slide:
        assert (slide.size_l0, slide.mpp) == ((400, 300), MPP)
    (image,) = nucpipe.plot(result, (100, 50, 300, 250)).images
    np.testing.assert_array_equal(np.asarray(image.get_array()), drawn.image[50:250, 100:300])
    assert image.get_extent() == [100, 300, 250, 50]
    moved = tmp_path / "elsewhere.png"
    shutil.move(path, moved)
    assert not nucpipe.plot(result).images
    with pytest.raises(UsageError, match=r"tile is needed, but it is not at .*--slide"):
        result.open_slide()
    (image,) = nucpipe.plot(result, slide=moved).images
    assert np.asarray(image.get_array()).shape == (300, 400, 3)
    cv2.imwrite(str(moved), drawn.image[:100])
    with pytest.raises(SlideError, match="400 x 100 pixels, but this result is of a slide of 400 x 300"):
        result.open_slide(moved)
    plt.close("all")


@pytest.mark.parametrize(
    ("window", "shape", "shown"),
    [
        ((10.5, 20, 60, 70), (50, 50), (10, 20, 60, 70)),
        ((-50, -50, 30, 40), (40, 30), (0, 0, 30, 40)),
        ((0, 0, 400, 300), (75, 100), (0, 0, 400, 300)),
        ((380, 280, 1000, 1000), (20, 20), (380, 280, 400, 300)),
        ((500, 500, 600, 600), (0, 0), None),
    ],
)
def test_a_view_of_the_slide(
    tmp_path: Path,
    window: tuple[float, ...],
    shape: tuple[int, int],
    shown: tuple[float, ...] | None,
) -> None:
    from pipeline.slide.open import open_slide

    drawn = draw_slide(400, 300)
    with open_slide(drawn.save(tmp_path / "tile.png"), MPP) as slide:
        picture, box = plot.view(slide, window, 100)  # type: ignore[arg-type]
    assert picture.shape == (*shape, 3)
    if shown:
        assert box == shown
        x0, y0, x1, y1 = (round(v) for v in box)
        mean = drawn.image[y0:y1, x0:x1].mean((0, 1))
        np.testing.assert_allclose(picture.mean((0, 1)), mean, atol=1.5)
