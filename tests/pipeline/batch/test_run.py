"""Batches: every slide done or named, whatever the others do; several processes share the work."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from click.testing import CliRunner, Result

import nucpipe
import tests.support.slides as make
from nucpipe.errors import OutputError, SlideError
from pipeline.batch import run
from pipeline.batch.lock import Lock, held
from pipeline.batch.output import OutputLocation
from pipeline.batch.plan import plan
from pipeline.batch.run import run_free
from pipeline.batch.summary import COLUMNS
from pipeline.batch.tracker import BatchTracker
from pipeline.cli.main import main
from pipeline.config import RunConfig
from pipeline.run_slide import run_slide
from pipeline.slide.identity import printable
from pipeline.slide.readers.image import ImageSlide
from pipeline.store.journal import Journal
from pipeline.store.reader import open_store
from pipeline.store.run_record import SilentReporter, SlideResult
from tests.support.paths import ROOT
from tests.support.synthetic import MPP, draw_slide, models

CONFIG = RunConfig(mpp=MPP, tissue="none", region_size=256)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def rows(out: Path) -> dict[str, dict[str, str]]:
    with (out / "summary.csv").open(newline="", encoding="utf-8") as file:
        return {row["folder"]: row for row in csv.DictReader(file)}


def run_all(folder: Path, out: Path, config: RunConfig = CONFIG, max_failures: int | None = None) -> list[SlideResult]:
    """As run_batch, with models that need no training."""
    tracker = BatchTracker(OutputLocation(out), SilentReporter(), max_failures)
    waiting = plan([folder], config)
    while waiting := run_free(waiting, models(), tracker):
        time.sleep(0.1)
    return tracker.results


def white(path: Path) -> None:
    cv2.imwrite(str(path), np.full((200, 200, 3), 255, np.uint8))


def broken_in_eight_ways(folder: Path) -> None:
    picture = make.tissue_texture(600, 600)
    (folder / "b1 empty.svs").write_bytes(b"")
    (folder / "b2 text.svs").write_text("no slide\n" * 99)
    make.write_tiled_tiff(folder / "b3 cut.tif", picture, 0.25)
    content = (folder / "b3 cut.tif").read_bytes()
    (folder / "b3 cut.tif").write_bytes(content[: len(content) // 2])
    make.write_tiled_tiff(folder / "b4 spoilt.tif", picture, 0.25)
    with tifffile.TiffFile(folder / "b4 spoilt.tif") as file:
        place = file.pages.first.dataoffsets[-1]
    with (folder / "b4 spoilt.tif").open("r+b") as spoilt:
        spoilt.seek(place)
        spoilt.write(b"no zlib stream")
    (folder / "b5 gone.svs").symlink_to(folder / "nowhere.svs")
    tifffile.imwrite(folder / "b6 deep.tif", picture.astype(np.uint16) * 257, photometric="rgb")
    make.write_tiled_tiff(folder / "b7 sizeless.tif", picture)
    (folder / "b8 loop.svs").symlink_to(folder / "b8 loop.svs")


def test_twelve_good_slides_and_eight_broken_ones(tmp_path: Path) -> None:
    folder, out, config = tmp_path / "in", tmp_path / "out", RunConfig(tissue="none", region_size=256)
    folder.mkdir()
    drawings = {f"g{k}": draw_slide(300 + 20 * k, 260, seed=k) for k in range(12)}
    for name, drawn in drawings.items():
        make.write_tiled_tiff(folder / f"{name}.tif", drawn.image, MPP)
    broken_in_eight_ways(folder)
    results = run_all(folder, out, config)
    good = {result.slide.stem: result for result in results if result.status == "done"}
    assert good.keys() == drawings.keys()
    for name, result in good.items():
        assert result.nuclei == len(drawings[name].centres)
        run_slide(folder / f"{name}.tif", tmp_path / "alone" / name, models(), config, SilentReporter())
        alone, together = (open_store(path / name / "nuclei.zarr") for path in (tmp_path / "alone", out))
        np.testing.assert_array_equal(alone.ids, together.ids)
        np.testing.assert_array_equal(alone.probabilities, together.probabilities)
    causes = {result.slide.name[:2]: result.cause for result in results if result.status == "failed"}
    expected = {
        "b1": "the file is empty",
        "b2": "the file is something else, or cut off",
        "b3": "cut off",
        "b4": "cannot be read at x 512, y 512 of level 0",
        "b5": "no such file",
        "b6": "expected one 8-bit RGB image, found uint16",
        "b7": "states no pixel size; give one with --mpp",
        "b8": "symbolic links",
    }
    assert causes.keys() == expected.keys()
    for key, words in expected.items():
        assert words in causes[key]
        assert "unexpected" not in causes[key]
    summary = rows(out)
    assert sum(row["status"] == "done" for row in summary.values()) == 12
    assert sum(row["status"] == "failed" for row in summary.values()) == 8
    for name, result in good.items():
        labels = {key: value for key, value in summary[name].items() if ":" in key}
        untrained = json.loads((out / name / "run.json").read_text("utf-8"))["untrained_labels"]
        assert {key for key, value in labels.items() if not value} == set(untrained) != set()
        counted = {key: int(value) for key, value in labels.items() if value}
        assert len(labels) == 35
        for library in ("NuCLS", "BreCaHAD", "CoNSeP", "MoNuSAC", "PanNuke"):
            assert sum(n for key, n in counted.items() if key.startswith(library)) == result.nuclei
        assert float(summary[name]["tissue_mm2"]) > 0
    # Mended, the second run does only what failed.
    make.write_tiled_tiff(folder / "b7 sizeless.tif", draw_slide(300, 300).image, MPP)
    again = {result.slide.stem: result.status for result in run_all(folder, out, config)}
    assert sorted(again.values()) == ["done"] + ["failed"] * 7 + ["finished before"] * 12
    assert again["b7 sizeless"] == "done"
    assert sum(row["status"] == "done" for row in rows(out).values()) == 13
    assert not list(out.glob("b*")) or [path.name for path in out.glob("b*")] == ["b4 spoilt", "b7 sizeless"]


def test_failures_set_the_exit_status_and_a_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    broken_in_eight_ways(folder)
    white(folder / "z.png")
    result = call("run", folder, "--out", tmp_path / "out", "--max-failures", 3)
    assert result.exit_code == 1
    assert len(rows(tmp_path / "out")) == 3
    assert "stopped after 3 failures (--max-failures); 6 slides were not begun" in caplog.text
    assert call("run", folder, "--out", tmp_path / "out", "--max-failures", 0).exit_code == 2


def test_a_summary_holds_no_formula(tmp_path: Path) -> None:
    white(tmp_path / "=1+1.png")
    assert call("run", tmp_path / "=1+1.png", "--mpp", 0.25, "--out", tmp_path / "out").exit_code == 0
    (row,) = rows(tmp_path / "out").values()
    assert row["folder"] == "'=1+1"
    assert call("run", tmp_path / "=1+1.png", "--mpp", 0.25, "--out", "").exit_code == 2


def test_a_name_that_is_no_utf_8_is_a_slide_like_others(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    path = Path(os.fsdecode(os.fsencode(folder) + b"/a\xff  b.png"))
    draw_slide(300, 260).save(tmp_path / "drawn.png")
    try:
        (tmp_path / "drawn.png").rename(path)
    except OSError:
        pytest.skip("this disk takes no such names")
    (result,) = run_all(folder, out)
    assert (result.status, result.cause) == ("done", "")
    record = json.loads((out / "a\ufffd b" / "run.json").read_text("utf-8"))
    assert record["slide"] == f"{folder}/a\ufffd  b.png"
    assert [(row["folder"], row["slide"]) for row in rows(out).values()] == [
        ("a\ufffd b", printable(f"{folder}/a\ufffd  b.png"))
    ]
    assert [result.status for result in run_all(folder, out)] == ["finished before"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    (disk / "out").mkdir(parents=True)
    if subprocess.run(["mount", "--bind", disk, disk], capture_output=True).returncode:
        pytest.skip("mounting a file system is not allowed here")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", disk], check=True)
        for out in (disk / "out", disk / "new"):
            with pytest.raises(OutputError, match=rf"^{out}: cannot be written \(Read-only file system\); make room"):
                OutputLocation(out)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    white(folder / "a.png")
    (folder / "bad.svs").write_text("no slide")
    result = call("run", folder, "--mpp", 0.25, "--out", out, "--dry-run")
    assert result.exit_code == 1
    assert not out.exists()
    lines = result.output.splitlines()
    assert lines[0].split() == f"run {folder}/a.png 200 x 200 pixels of 0.25 um -> a".split()
    assert lines[1].startswith("cannot")
    assert lines[2] == "2 slides, 1 of which cannot be opened; nothing was done"
    (folder / "bad.svs").unlink()
    assert call("run", folder, "--mpp", 0.25, "--out", out).exit_code == 0
    assert call("run", folder, "--mpp", 0.25, "--out", out, "--dry-run").output.startswith("finished")
    assert call("run", folder, "--mpp", 0.5, "--out", out, "--dry-run").output.startswith("changed")
    (tmp_path / "nuclei.geojson").write_text("{}")
    for option in ("--nuclei", "--tissue"):
        ahead = call("run", folder, "--mpp", 0.25, "--out", out, "--dry-run", option, tmp_path / "nuclei.geojson")
        assert ahead.exit_code == 1
        assert re.match(r"cannot .*a\.png  nuclei\.geojson: expected GeoJSON with", ahead.output)


def test_a_manifest_s_settings_reach_the_result(tmp_path: Path) -> None:
    for name in ("a", "b"):
        white(tmp_path / f"{name}.png")
    (tmp_path / "slides.csv").write_text("slide,mpp,name\na.png,0.25,x/first\nb.png,0.5,\n")
    result = call("run", tmp_path / "slides.csv", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert open_store(tmp_path / "out" / "x" / "first" / "nuclei.zarr").info.mpp == 0.25
    assert open_store(tmp_path / "out" / "b" / "nuclei.zarr").info.mpp == 0.5
    assert set(rows(tmp_path / "out")) == {"x/first", "b"}


def start(folder: Path, out: Path) -> subprocess.Popen[bytes]:
    """:func:`run_all` in a process of its own."""
    program = (
        "import sys; from pathlib import Path; import tests.pipeline.batch.test_run as t; "
        "made = t.run_all(Path(sys.argv[1]), Path(sys.argv[2])); "
        "print(*(r.slide.stem for r in made if r.status == 'done'))"
    )
    command = [sys.executable, "-c", program, str(folder), str(out)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE)


def test_two_processes_share_the_work(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for k in range(6):
        draw_slide(500, 400, seed=k).save(folder / f"s{k}.png")
    processes = [start(folder, out) for _ in range(2)]
    made = [process.communicate()[0].decode().split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(made[0] + made[1]) == [f"s{k}" for k in range(6)]
    assert {key: row["status"] for key, row in rows(out).items()} == {f"s{k}": "done" for k in range(6)}
    for result in run_all(folder, tmp_path / "alone"):
        a, b = open_store(result.folder / "nuclei.zarr"), open_store(out / result.folder.name / "nuclei.zarr")
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-5)
        assert int(rows(out)[result.folder.name]["nuclei"]) == len(a)
    assert sorted(path.name for path in out.iterdir()) == [*(f"s{k}" for k in range(6)), "summary.csv"]


def test_a_slide_of_another_process_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    white(tmp_path / "w.png")
    folder = tmp_path / "out" / "w"
    lock = Lock(folder)
    assert lock.acquire()
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        lock.release()

    monkeypatch.setattr(run.time, "sleep", sleep)
    with held(lock):
        (result,) = nucpipe.run(tmp_path / "w.png", tmp_path / "out", mpp=0.25)
    assert slept == [run.POLL_S]
    assert result.status == "done"


def test_overwrite_does_not_redo_what_the_other_process_has_done(tmp_path: Path) -> None:
    drawn = draw_slide(200, 200)
    drawn.save(tmp_path / "s.png")
    config = RunConfig(mpp=MPP, tissue="none", overwrite=True)
    jobs = plan([tmp_path / "s.png"], config)
    first, second = (BatchTracker(OutputLocation(tmp_path / "out"), SilentReporter(), None) for _ in range(2))
    for tracker in (first, second):
        run_free(jobs, models(), tracker)
    assert [tracker.results[0].status for tracker in (first, second)] == ["done", "finished before"]
    later = BatchTracker(OutputLocation(tmp_path / "out"), SilentReporter(), None)
    run_free(jobs, models(), later)
    assert later.results[0].status == "done"


def test_a_full_disk_stops_the_batch_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for k in range(3):
        draw_slide(700, 500, seed=k).save(folder / f"s{k}.png")
    write, room = Journal.write, 5

    def full(journal: Journal, index: int, *rest: object) -> None:
        nonlocal room
        room -= 1
        if room < 0:
            cause = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise OutputError(f"{journal.folder}: cannot be written (No space left on device); make room.") from cause
        write(journal, index, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Journal, "write", full)
    with pytest.raises(OutputError, match=r"^stopped with 3 slides to go, for .*s0.*No space.* goes on"):
        run_all(folder, out)
    assert rows(out)["s0"]["status"] == "failed"
    monkeypatch.setattr(Journal, "write", write)
    assert Journal.open(out / "s0" / "journal", _fingerprint(out / "s0")).done == {0, 1, 2, 3, 4}
    assert [result.status for result in run_all(folder, out)] == ["done"] * 3
    assert [row["status"] for row in rows(out).values()] == ["done"] * 3


def test_a_read_error_in_the_middle_costs_one_region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network disk that is away for a moment: what was done stays, and the next run does the rest."""
    path = draw_slide(1500, 1200).save(tmp_path / "s.png")
    read, broke = ImageSlide.read_level, False

    def away(slide: ImageSlide, level: int, box: tuple[int, int, int, int]) -> np.ndarray:
        nonlocal broke
        if box[1] >= 1024 and not broke:  # the lower of 30 regions need it
            broke = True
            raise SlideError(f"{slide.path.name}: cannot be read at x {box[0]}, y {box[1]} of level 0.")
        return read(slide, level, box)

    monkeypatch.setattr(ImageSlide, "read_level", away)
    (failed,) = run_all(path, tmp_path / "out")
    assert failed.status == "failed"
    assert failed.cause.startswith("s.png: cannot be read at x ")
    kept = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out" / "s" / "journal").glob("*.region")}
    assert 0 < len(kept) < 30
    write, written = Journal.write, []
    monkeypatch.setattr(Journal, "write", lambda j, i, *rest: (written.append(i), write(j, i, *rest))[1])
    (done,) = run_all(path, tmp_path / "out")
    assert done.status == "done"
    assert len(written) == 30 - len(kept)
    assert done.nuclei == len(draw_slide(1500, 1200).centres)


def _fingerprint(folder: Path) -> dict[str, object]:
    fields: dict[str, object] = json.loads((folder / "journal" / "journal.json").read_text())
    return fields


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")
def test_a_disk_filled_and_freed(tmp_path: Path) -> None:
    """A file system of 8 MB, filled by another while a slide is run on it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a file system is not allowed here")
    try:
        path = draw_slide(1500, 1200).save(tmp_path / "slide.png")
        jobs = plan([path], CONFIG)
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(7_800_000))
        tracker = BatchTracker(OutputLocation(disk / "out"), SilentReporter(), None)
        with pytest.raises(OutputError, match=r"No space left on device.*make room.*the same command goes on"):
            run_free(jobs, models(), tracker)
        kept = len(list((disk / "out" / "slide" / "journal").glob("*.region")))
        assert 0 < kept < 30
        assert not list(disk.rglob("*.partial"))
        ballast.unlink()
        tracker = BatchTracker(OutputLocation(disk / "out"), SilentReporter(), None)
        run_free(jobs, models(), tracker)
        assert tracker.results[0].status == "done"
        run_slide(path, tmp_path / "whole", models(), CONFIG, SilentReporter())
        whole, filled = (open_store(at / "nuclei.zarr") for at in (tmp_path / "whole", disk / "out" / "slide"))
        np.testing.assert_array_equal(whole.ids, filled.ids)
        np.testing.assert_array_equal(whole.contours()[1], filled.contours()[1])
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_foreign_summary_is_not_overwritten(tmp_path: Path) -> None:
    white(tmp_path / "w.png")
    out = tmp_path / "out"
    out.mkdir()
    (out / "summary.csv").write_text("month,total\nmay,3\n")
    result = call("run", tmp_path / "w.png", "--mpp", 0.25, "--out", out)
    assert result.exit_code == 1
    assert "not a summary of nucpipe" in result.output
    assert (out / "summary.csv").read_text() == "month,total\nmay,3\n"


def test_a_killed_batch_goes_on(tmp_path: Path) -> None:
    """SIGKILL while the first slide's regions are under way; its lock is taken over and its regions are kept."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for k in range(2):
        draw_slide(900, 700, seed=k).save(folder / f"s{k}.png")
    with start(folder, out) as process:
        while len(list((out / "s0" / "journal").glob("*.region"))) < 2:
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert Lock(out / "s0").holder() is not None or (out / "s0" / "run.json").exists()
    assert {result.status for result in run_all(folder, out)} <= {"done", "finished before"}
    for k in range(2):
        assert len(open_store(out / f"s{k}" / "nuclei.zarr")) == len(draw_slide(900, 700, seed=k).centres)
    assert sorted(path.name for path in out.iterdir()) == ["s0", "s1", "summary.csv"]
    assert not list(out.rglob("*.partial")) + list(out.rglob("*.lock"))


def test_memory_of_many_lines_is_small(tmp_path: Path) -> None:
    """A summary of ten thousand slides takes another line in less than 200 MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts = {"PanNuke": dict.fromkeys(("a", "b", "c", "d", "e"), 100)}
    to = OutputLocation(tmp_path)
    lines = ([f"s{k}", f"s{k}", "done", 1, 1, 1, "", *"11111"] for k in range(10_000))
    with to.summary.path.open("w", newline="") as file:
        csv.writer(file).writerows([[*COLUMNS, *(f"PanNuke:{c}" for c in "abcde")], *lines])
    to.summary.write([(SlideResult(Path("new.svs"), tmp_path / "new", "done", counts=counts), Path("new"))])
    assert len(rows(tmp_path)) == 10_001
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
