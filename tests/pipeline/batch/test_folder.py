"""Which folder a slide's results lie in, as slides, listings and commands come and go."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import cv2
import fsspec
import numpy as np
import pytest

import nucpipe
from nucpipe.errors import OutputError
from pipeline.batch.folder import choose_folder
from pipeline.batch.plan import holds_run, plan
from pipeline.config import RunConfig
from pipeline.slide.identity import slide_fingerprint

SETTINGS: dict[str, Any] = {"mpp": 0.25}


def slide(path: Path, side: int = 200) -> Path:
    """A white image; slides of different sides are different slides."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((side, side, 3), 255, np.uint8))
    return path


def folders(inputs: list[Path], out: Path) -> dict[str, str]:
    """Where the slides' results would go now."""
    jobs = [choose_folder(job, out) for job in plan(inputs, RunConfig())]
    return {job.slide.name: job.folder.as_posix() for job in jobs}


def ran(inputs: Path | list[Path], out: Path) -> dict[str, tuple[str, str]]:
    """Run slides: status and folder of each."""
    results = nucpipe.run(inputs, out, **SETTINGS)
    return {r.slide.name: (r.status, Path(r.folder).relative_to(out).as_posix()) for r in results}


def test_a_neighbour_that_comes_and_goes_moves_no_result(tmp_path: Path) -> None:
    slides, out = tmp_path / "in", tmp_path / "out"
    slide(slides / "b.png", 200)
    assert ran(slides, out) == {"b.png": ("done", "b")}
    slide(slides / "b.jpg", 210)
    assert ran(slides, out) == {"b.png": ("finished before", "b"), "b.jpg": ("done", "b_jpg")}
    (slides / "b.png").unlink()
    assert ran(slides, out) == {"b.jpg": ("finished before", "b_jpg")}
    slide(slides / "b.jpeg", 220)  # the name alone is another slide's still
    assert ran(slides, out) == {"b.jpg": ("finished before", "b_jpg"), "b.jpeg": ("done", "b_jpeg")}


def test_new_slides_of_one_name_do_not_depend_on_their_order(tmp_path: Path) -> None:
    first, second = slide(tmp_path / "in" / "b.png", 200), slide(tmp_path / "in" / "b.jpg", 210)
    expected = {"b.png": "b_png", "b.jpg": "b_jpg"}
    assert folders([first, second], tmp_path / "out") == folders([second, first], tmp_path / "out") == expected
    assert ran([second, first], tmp_path / "out")["b.png"] == ("done", "b_png")
    assert ran(first, tmp_path / "out") == {"b.png": ("finished before", "b_png")}


def test_slides_of_the_same_file_name_are_told_apart_by_content(tmp_path: Path) -> None:
    first, second = slide(tmp_path / "p1" / "a.png", 200), slide(tmp_path / "p2" / "a.png", 210)
    jobs = [choose_folder(job, tmp_path / "out").folder.name for job in plan([first, second], RunConfig())]
    assert jobs[::-1] == [
        choose_folder(job, tmp_path / "out").folder.name for job in plan([second, first], RunConfig())
    ]
    assert [name[:6] for name in jobs] == ["a_png_", "a_png_"]
    assert jobs[0] != jobs[1]
    assert [r.folder.name for r in nucpipe.run([first, second], tmp_path / "out", **SETTINGS)] == jobs
    assert ran(second, tmp_path / "out") == {"a.png": ("finished before", jobs[1])}
    # One after the other the first has the name.
    assert ran(first, tmp_path / "one") == {"a.png": ("done", "a")}
    assert ran(second, tmp_path / "one") == {"a.png": ("done", "a_png")}
    assert ran(first, tmp_path / "one") == {"a.png": ("finished before", "a")}


def test_a_moved_slide_is_the_same_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    path = slide(tmp_path / "here" / "a.png")
    assert ran(path, tmp_path / "out") == {"a.png": ("done", "a")}
    moved = tmp_path / "there" / "a.png"
    moved.parent.mkdir()
    path.rename(moved)
    assert ran(moved, tmp_path / "out") == {"a.png": ("finished before", "a")}
    slide(path, 200)
    slide(path, 230)  # at the place that the result states
    (changed,) = nucpipe.run(path, tmp_path / "out", **SETTINGS)
    assert changed.status == "failed"
    assert "the slide's file was changed" in changed.cause


@pytest.mark.parametrize("outer_first", [True, False, None], ids=["outer first", "inner first", "at once"])
def test_no_result_lies_inside_another(tmp_path: Path, outer_first: bool | None) -> None:
    slides, out = tmp_path / "in", tmp_path / "out"
    outer = slide(slides / "s1" / "a.png", 200)
    inner = [slide(slides / "s1" / "a" / name, 210 + k) for k, name in enumerate(("journal.png", "x.png"))]
    if outer_first is not None:  # one of them is not there at first
        hidden = [tmp_path / path.name for path in (inner if outer_first else [outer])]
        for path, place in zip(inner if outer_first else [outer], hidden, strict=True):
            path.rename(place)
        nucpipe.run(slides, out, **SETTINGS)
        for path, place in zip(inner if outer_first else [outer], hidden, strict=True):
            place.rename(path)
    results = nucpipe.run(slides, out, **SETTINGS)
    assert all(result.status != "failed" for result in results)
    places = {result.slide.name: Path(result.folder).relative_to(out) for result in results}
    assert places["a.png"] == Path("s1/a" if outer_first else "s1/a_png")
    if not outer_first:
        assert places["journal.png"] == Path("s1/a/journal")
    made = [path.parent for path in out.rglob("run.json")]
    assert len(made) == 3
    assert not any(holds_run(parent) for folder in made for parent in folder.parents)
    assert not list(out.rglob("journal.json"))
    assert {r.slide.name: r.status for r in nucpipe.run(slides, out, **SETTINGS)} == dict.fromkeys(
        places, "finished before"
    )


def test_an_unfinished_result_keeps_its_folder(tmp_path: Path) -> None:
    """A journal names its slide; one of an earlier release does not, and is its folder's."""
    first, second = slide(tmp_path / "in" / "b.png", 200), slide(tmp_path / "in" / "b.jpg", 210)
    journal = tmp_path / "out" / "b" / "journal"
    journal.mkdir(parents=True)
    (journal / "journal.json").write_text("{}")
    assert folders([first], tmp_path / "out") == {"b.png": "b"}
    record = {"slide": str(first), "slide_fingerprint": slide_fingerprint(first)}
    (journal / "slide.json").write_text(json.dumps(record))
    assert folders([second, first], tmp_path / "out") == {"b.jpg": "b_jpg", "b.png": "b"}
    assert folders([second], tmp_path / "out") == {"b.jpg": "b_jpg"}


def test_the_journal_of_a_run_names_its_slide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline import run_slide

    def broken(*_: object) -> None:
        raise OutputError("stopped.")

    monkeypatch.setattr(run_slide, "run_regions", broken)
    path = slide(tmp_path / "b.png")
    (failed,) = nucpipe.run(path, tmp_path / "out", tissue="none", **SETTINGS)
    assert failed.cause == "stopped."
    record = json.loads((tmp_path / "out" / "b" / "journal" / "slide.json").read_text())
    assert record == {"slide": str(path), "slide_fingerprint": slide_fingerprint(path)}


def test_results_of_the_release_before_are_found(tmp_path: Path) -> None:
    """They lie in ``b`` and, where that was taken, in ``b_png``, as the listing had it; run.json names the slide."""
    slides, out = tmp_path / "in", tmp_path / "out"
    for name, side in (("b.jpg", 210), ("b.png", 200)):
        slide(slides / name, side)
    nucpipe.run(slides / "b.jpg", out, **SETTINGS)
    nucpipe.run(slides / "b.png", out, **SETTINGS)
    assert ran(slides, out) == {"b.jpg": ("finished before", "b"), "b.png": ("finished before", "b_png")}


@pytest.mark.parametrize("seed", range(5))
def test_any_slides_of_a_command_have_folders_of_their_own(tmp_path: Path, seed: int) -> None:
    """Names that were made to clash, in any order: the same folders, each of one slide, none in another."""
    draw = random.Random(seed)
    names = [
        f"{draw.choice(['', 'a/', 'a/b/', 'a_png/'])}{draw.choice(['a', 'b', 'a_png'])}.{e}" for e in ("png", "jpg") * 6
    ]
    for k, name in enumerate(dict.fromkeys(names)):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([k]))
    (tmp_path / "in" / "summary.csv.png").write_bytes(b"x")
    paths = [path for path in sorted((tmp_path / "in").rglob("*")) if path.is_file()]
    jobs = plan([tmp_path / "in"], RunConfig())
    assert len(jobs) == len(paths)
    places = {job.slide: choose_folder(job, tmp_path / "out").folder for job in jobs}
    assert len({*places.values(), Path("summary.csv")}) == len(paths) + 1
    for place in places.values():
        assert not set(place.parents) & set(places.values())
    draw.shuffle(jobs)
    assert {job.slide: choose_folder(job, tmp_path / "out").folder for job in jobs} == places


def test_a_name_inside_another_result_is_refused(tmp_path: Path) -> None:
    ran(slide(tmp_path / "a.png"), tmp_path / "out")
    slide(tmp_path / "b.png", 210)
    (tmp_path / "slides.csv").write_text("slide,name\nb.png,a/b\n")
    (failed,) = nucpipe.run(tmp_path / "slides.csv", tmp_path / "out", **SETTINGS)
    assert failed.status == "failed"
    assert failed.cause == "a/b: lies inside the results of another slide; give the slide another name."
    assert not (tmp_path / "out" / "a" / "b").exists()


def test_folders_at_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUCPIPE_CACHE", str(tmp_path / "cache"))
    files = fsspec.filesystem("memory")
    for name, side in (("b.png", 200), ("b.jpg", 210), ("b/run.png", 220)):
        files.pipe_file(f"/folders/in/{name}", slide(tmp_path / name, side).read_bytes())
    at, out = "memory://folders/in", "memory://folders/out"

    def places(*inputs: str) -> dict[str, tuple[str, str]]:
        results = nucpipe.run([f"{at}/{one}" for one in inputs], out, **SETTINGS)
        return {r.slide.name: (r.status, str(r.folder).removeprefix(f"{out}/")) for r in results}

    assert places("b.png") == {"b.png": ("done", "b")}
    assert places("b.jpg") == {"b.jpg": ("done", "b_jpg")}
    everything = places("")
    assert everything["b.png"] == ("finished before", "b")
    assert everything["b.jpg"] == ("finished before", "b_jpg")
    status, place = everything["run.png"]
    assert status == "done"
    assert place.startswith("run_png_")
    assert "/" not in place
