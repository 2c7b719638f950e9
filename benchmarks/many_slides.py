"""Ten thousand slides in one folder of results: planning, a resumed start, the summary, and the report of them all.

python benchmarks/many_slides.py --slides 10000 --out /tmp/many [--run 20] [--profile]

The slides are pictures of 96x96 pixels with a few dark ellipses and the networks are stand-ins, so that what shows is
what nucpipe does once for each slide. The first --run slides are run and timed; the results of the others are made of
the first one's (links to its files, but for what names the slide and for the store's arrays, which no step reads),
since running them all would take an hour and tell nothing more. Then each step is timed in a process of its own, for a
tenth of the slides and for all: time must grow in proportion, and memory hardly.
"""

from __future__ import annotations

import cProfile
import json
import multiprocessing
import os
import pstats
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipeline.batch.output import OutputLocation
from pipeline.batch.plan import plan
from pipeline.batch.run import run_free
from pipeline.batch.tracker import BatchTracker
from pipeline.config import RunConfig
from pipeline.export.report.saved import write_figures
from pipeline.export.report.stats import ReportStats, compute_batch_stats
from pipeline.export.report.write import report_batch
from pipeline.result import open_results
from pipeline.slide.identity import slide_fingerprint
from pipeline.store.reader import open_store
from pipeline.store.run_record import FIGURES, RUN_JSON, STORE, SilentReporter

MPP, SIDE_PX = 0.25, 96


def draw(path: Path, number: int) -> None:
    """Four ellipses, and the slide's number in the first pixels, so that no two slides are alike."""
    picture = np.full((SIDE_PX, SIDE_PX, 3), (215, 190, 235), np.uint8)
    for x, y in ((28, 28), (68, 28), (28, 68), (68, 68)):
        cv2.ellipse(picture, (x, y), (10, 8), 0, 0, 360, (130, 40, 90), -1)
    picture[0, :4, 0] = [number >> shift & 255 for shift in (0, 8, 16, 24)]
    cv2.imwrite(str(path), picture)


def slide_at(folder: Path, number: int) -> Path:
    return folder / f"slide-{number:06d}.png"


def settings():
    return RunConfig(mpp=MPP, tissue="none", workers=1)


def run_some(slides: list[Path], out: Path) -> list:
    """Run slides with stand-in networks."""
    from tests.support.synthetic import models  # late: many_slides_cluster's workers need no PyTorch

    with OutputLocation(out) as to:
        tracker = BatchTracker(to, SilentReporter(), None)
        run_free(plan(slides, settings()), models(), tracker)
    return tracker.results


def copy_result(
    source: Path, target: Path, names: tuple[str, str], prints: tuple[str, str], facts: ReportStats | None
) -> None:
    """Link a result's files, but for its arrays, to another slide's folder; those that name the slide are new.

    Args:
        source, target: the folders; ``target`` has no result.
        names, prints: name and fingerprint of the slide that was run, and of the other.
        facts: for ``report.json``, which is left out where they are None.
    """
    (target / STORE).mkdir(parents=True)
    for path in (path for path in source.iterdir() if path.is_file() and path.name not in (RUN_JSON, FIGURES)):
        os.link(path, target / path.name)
    for name in (f"{STORE}/zarr.json", RUN_JSON):
        text = (source / name).read_text("utf-8").replace(names[0], names[1]).replace(prints[0], prints[1])
        (target / name).write_text(text, "utf-8")
    if facts is not None:
        write_figures(target / FIGURES, open_store(target / STORE), facts)


def measured(step: Callable[..., object], profile: bool, *arguments: object) -> tuple[float, float, float]:
    """As :func:`timed`, in a process of its own."""
    context = multiprocessing.get_context("fork")  # everything is imported already
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(timed(step, profile, *arguments)))
    process.start()
    sender.close()
    found = receiver.recv()
    process.join()
    return found


def timed(step: Callable[..., object], profile: bool, *arguments: object) -> tuple[float, float, float]:
    """Return a step's seconds, those of a processor, and its memory at the peak beyond the memory before, in MB."""
    resident = memory("VmRSS")
    began, computed = time.perf_counter(), time.process_time()
    if profile:
        with cProfile.Profile() as profiler:
            step(*arguments)
        pstats.Stats(profiler, stream=sys.stderr).sort_stats("cumulative").print_stats(45)
    else:
        step(*arguments)
    return time.perf_counter() - began, time.process_time() - computed, memory("VmHWM") - resident


def memory(which: str, pid: int | str = "self") -> float:
    """Return a process's memory in MB; ``ru_maxrss`` would be that of the process which started it, if larger."""
    lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) / 1000


def planning(slides: Path, _: Path) -> None:
    plan([slides], settings())


def resuming(slides: Path, out: Path) -> None:
    """Give the command again where every slide is finished."""
    results = run_some([slides], out)
    assert all(result.status == "finished before" for result in results), results[0]


def reporting(slides: Path, out: Path) -> None:
    report_batch(open_results(out), out / "report.html")


STEPS = (("planning", planning), ("resumed start with summary", resuming), ("batch report", reporting))


@click.command()
@click.option("--slides", "count", type=int, default=10_000, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder; it is made anew.")
@click.option("--run", "run_count", type=int, default=20, show_default=True, help="Slides that are run and timed.")
@click.option("--profile", is_flag=True, help="Print where the time of each step goes.")
def main(count: int, out: Path, run_count: int, profile: bool) -> None:
    if out.exists():
        raise click.UsageError(f"{out} exists already; give another --out")
    slides = out / "slides"
    slides.mkdir(parents=True)
    for number in range(count):
        draw(slide_at(slides, number), number)
    trial = out / "trial"
    began = time.perf_counter()
    results = run_some([slide_at(slides, number) for number in range(run_count + 1)], trial)
    first = results[0]
    each = sum(result.seconds for result in results[1:]) / max(1, run_count)
    whole = (time.perf_counter() - began) / (run_count + 1)
    files = [path for path in Path(first.folder).rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    print(f"one slide: {each:.3f} s ({whole:.3f} s with all that is round it), {first.nuclei} nuclei")
    print(f"one result: {len(files)} files, {size} bytes")
    facts = compute_batch_stats(open_store(Path(first.folder) / STORE))
    record = json.loads((Path(first.folder) / "run.json").read_text("utf-8"))
    for share in (10, 1):
        some, results_of = out / f"slides-{share}", out / f"results-{share}"
        some.mkdir()
        for number in range(count // share):
            path, source = slide_at(some, number), slide_at(slides, number)
            os.link(source, path)
            target = results_of / path.stem
            prints = record["slide_fingerprint"], slide_fingerprint(source)
            copy_result(Path(first.folder), target, (record["slide_name"], path.stem), prints, facts)
        for name, step in STEPS:
            seconds, computed, megabytes = measured(step, profile and share == 1, some, results_of)
            took = f"{seconds:.1f} s ({computed:.1f} s of a processor), {megabytes:.0f} MB"
            print(f"{count // share:>7} slides, {name}: {took}", flush=True)
        summary = (results_of / "summary.csv").stat().st_size
        report = (results_of / "report.html").stat().st_size
        print(f"{count // share:>7} slides: summary.csv {summary / 1e6:.1f} MB, report.html {report / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
