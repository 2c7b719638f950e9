"""Many slides: a command that is given again does not open what is finished, and only that."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import run_slide
from pipeline.batch import folder
from pipeline.batch.lock import Holder, Lock, machine
from pipeline.batch.output import OutputLocation
from pipeline.batch.plan import plan
from pipeline.batch.run import run_free
from pipeline.batch.tracker import BatchTracker
from pipeline.config import RunConfig
from pipeline.slide.base import Slide
from pipeline.store.run_record import SilentReporter, SlideResult
from tests.support.synthetic import MPP, draw_slide, models

CONFIG = RunConfig(mpp=MPP, tissue="none", region_size=256)


def run_all(slides: Path, out: Path, config: RunConfig = CONFIG) -> list[SlideResult]:
    with OutputLocation(out) as to:
        tracker = BatchTracker(to, SilentReporter(), None)
        assert run_free(plan([slides], config), models(), tracker) == []
    return tracker.results


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of slides that are opened, in order."""
    names: list[str] = []
    before = run_slide.open_slide

    def open_slide(path: Path, mpp: float | None = None) -> Slide:
        names.append(path.name)
        return before(path, mpp)

    monkeypatch.setattr(run_slide, "open_slide", open_slide)
    return names


def test_finished_slides_are_not_opened_again(tmp_path: Path, opened: list[str]) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        draw_slide(220, 200, seed=ord(name)).save(tmp_path / "in" / f"{name}.png")
    first = run_all(tmp_path / "in", tmp_path / "out")
    assert opened == ["a.png", "b.png"]
    again = run_all(tmp_path / "in", tmp_path / "out")
    assert opened == ["a.png", "b.png"]
    assert [r.status for r in again] == ["finished before"] * 2
    assert [(r.nuclei, r.tissue_mm2, r.counts) for r in again] == [
        (r.nuclei, pytest.approx(r.tissue_mm2, abs=1e-6), r.counts) for r in first
    ]
    # What is missing beside the store is made again, and a new slide is run.
    (tmp_path / "out" / "b" / "overview.png").unlink()
    draw_slide(220, 200, seed=3).save(tmp_path / "in" / "c.png")
    third = run_all(tmp_path / "in", tmp_path / "out")
    assert opened == ["a.png", "b.png", "b.png", "c.png"]
    assert [r.status for r in third] == ["finished before", "done", "done"]


def test_finished_slides_are_found_without_their_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless one was left there; and the summary's lines, should they be lost, are written together."""
    (tmp_path / "in").mkdir()
    for name in ("a", "b", "c"):
        draw_slide(220, 200, seed=ord(name)).save(tmp_path / "in" / f"{name}.png")
    out, acquire, taken = tmp_path / "out", Lock.acquire, list[str]()
    run_all(tmp_path / "in", out)

    def acquired(lock: Lock) -> bool:
        taken.append(f"{lock.folder.name}/{lock.name}")
        return acquire(lock)

    monkeypatch.setattr(Lock, "acquire", acquired)
    assert [r.status for r in run_all(tmp_path / "in", out)] == ["finished before"] * 3
    assert taken == []
    summary = (out / "summary.csv").read_text()
    (out / "summary.csv").unlink()
    run_all(tmp_path / "in", out)
    assert taken == [".summary/run"]
    assert len((out / "summary.csv").read_text().splitlines()) == len(summary.splitlines()) == 4
    left = out / "b" / ".run.0.lock"
    left.write_text(json.dumps(asdict(Holder("token", machine(), "here", 2**31 - 1, ""))))
    taken.clear()
    assert [r.status for r in run_all(tmp_path / "in", out)] == ["finished before"] * 3
    assert taken == ["b/run"]
    assert not left.exists()


def test_the_folder_of_all_results_is_listed_once_for_all_slides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else ten times as many slides would take a hundred times as long; nor is a folder in it that holds many."""
    for name in ("a", "b", "c", "sub/d", "sub/e"):
        (tmp_path / "in" / "sub").mkdir(parents=True, exist_ok=True)
        draw_slide(120, 100, seed=ord(name[-1])).save(tmp_path / "in" / f"{name}.png")
    listed = Counter[str]()

    def counting(before: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def counted(path: Any = ".") -> Any:
            listed[str(path)] += 1
            return before(path)

        return counted

    for function in ("listdir", "scandir"):
        monkeypatch.setattr(os, function, counting(getattr(os, function)))
    out = tmp_path / "out"
    assert [r.status for r in run_all(tmp_path / "in", out)] == ["done"] * 5
    assert listed[str(out / "sub" / "d")] > 0
    assert (listed[str(out)], listed[str(out / "sub")]) == (1, 0)


def test_the_folder_of_a_finished_slide_is_found_without_reading_the_slide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_slide(220, 200).save(tmp_path / "a.png")
    (job,) = plan([tmp_path / "a.png"], CONFIG)
    run_all(tmp_path / "a.png", tmp_path / "out")
    monkeypatch.setattr(folder, "slide_fingerprint", lambda path: pytest.fail("its name suffices"))
    assert folder.choose_folder(job, tmp_path / "out").folder == Path("a")


def test_the_content_of_a_new_slide_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the store; its folder follows from its name, also where slides that are told apart by content lie there."""
    hashed: list[str] = []
    for module in (folder, run_slide):
        before = module.slide_fingerprint

        def counted(path: Path, before: Callable[[Path], str] = before) -> str:
            hashed.append(path.name)
            return before(path)

        monkeypatch.setattr(module, "slide_fingerprint", counted)
    slides, tracker = tmp_path / "in", BatchTracker(OutputLocation(tmp_path / "out"), SilentReporter(), None)

    def run_these(*names: str) -> None:
        for name in names:
            (slides / name).parent.mkdir(parents=True)
            draw_slide(220, 200, seed=ord(name[0])).save(slides / name)
        hashed.clear()
        run_free(plan([slides / name for name in names], CONFIG), models(), tracker)

    run_these("a/y.png")
    assert hashed == ["y.png"]
    run_these("b/x.png", "c/x.png")
    assert [r.folder.name[:6] for r in tracker.results] == ["y", "x_png_", "x_png_"]
    run_these("d/z.png")
    assert hashed == ["z.png"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mpp": 0.26}, "other settings already exists"),
        ({"min_area": 9.0}, "--min-area"),
        ({"threshold": 0.9}, "other settings already exists"),
        ({"region_size": 512, "workers": 1, "batch_size": 7}, ""),
    ],
)
def test_other_settings_are_found_as_ever(
    tmp_path: Path, opened: list[str], change: dict[str, object], says: str
) -> None:
    draw_slide(220, 200).save(tmp_path / "a.png")
    run_all(tmp_path / "a.png", tmp_path / "out")
    (result,) = run_all(tmp_path / "a.png", tmp_path / "out", replace(CONFIG, **change))
    assert result.status == ("failed" if says else "finished before")
    assert says in result.cause
    assert len(opened) == (2 if says else 1)


def test_another_slide_of_that_name_is_found_as_ever(tmp_path: Path, opened: list[str]) -> None:
    draw_slide(220, 200).save(tmp_path / "a.png")
    run_all(tmp_path / "a.png", tmp_path / "out")
    draw_slide(220, 200, seed=5).save(tmp_path / "a.png")
    (result,) = run_all(tmp_path / "a.png", tmp_path / "out")
    assert "the slide's file was changed" in result.cause
    assert len(opened) == 2
