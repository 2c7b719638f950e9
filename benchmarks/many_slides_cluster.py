"""Thousands of slides on a Dask cluster: what the command and the scheduler do for each, and what grows with them.

python benchmarks/many_slides_cluster.py --slides 2000 [--finished 30000] --out /dev/shm/many [--workers 2]

What a worker would compute is left out: its three tasks answer at once, and the last of them leaves the result of one
slide that was run (as benchmarks/many_slides.py does). All else is the real thing: planning, folders, locks, tasks, the
summary. All slides lie in one folder, and their results too. Scheduler, workers and command are processes of their own.
With --finished as many more slides have their results already, and the command finds them first; what it takes for the
others must be the same with many of these as with none.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1]))

import many_slides
import many_slides_cluster as stand_ins  # this file, under the name by which the workers import it

from pipeline.batch.dask import coordinator, worker
from pipeline.batch.lock import Lock
from pipeline.batch.output import OutputLocation
from pipeline.batch.plan import plan
from pipeline.batch.summary import Summary
from pipeline.slide.identity import slide_fingerprint
from pipeline.store.run_record import RUN_JSON, SilentReporter, SlideResult

LINKS = 30_000
"""Slides that are links to one file: a file may have 65,000 on some disks."""
PARTS = (
    (OutputLocation, "with_folder"),
    (OutputLocation, "find_finished"),
    (Lock, "acquire"),
    (Lock, "check"),
    (Lock, "release"),
    (Summary, "write"),
)
"""What is timed of the command, beside Dask; the summary has a lock of its own within it."""


def open_task(task: worker.SlideTask) -> worker.Opened:
    return worker.Opened(None, ((0, 0.0005),), 1, 0.0005)


def do_regions(task: worker.SlideTask, indices: tuple[int, ...]) -> int:
    worker._tell(task, nuclei=4, mm2=0.0005)
    return len(indices)


def finish_task(task: worker.SlideTask, seconds: float) -> SlideResult:
    record = copy_first(task.folder.parents[1] / "first", task.slide, task.folder)
    return SlideResult(task.slide, task.folder, "done", record["nuclei"], 0.0005, seconds, "", record["counts"])


def copy_first(results: Path, slide: Path, target: Path) -> dict:
    """Leave the result of the slide that was run as another's; return its record."""
    source, record = first_result(results)
    prints = record["slide_fingerprint"], slide_fingerprint(slide)
    many_slides.copy_result(source, target, (record["slide_name"], slide.stem), prints, None)
    return record


@cache
def first_result(results: Path) -> tuple[Path, dict]:
    (record,) = results.glob(f"*/{RUN_JSON}")
    return record.parent, json.loads(record.read_text("utf-8"))


@contextmanager
def cluster(out: Path, workers: int) -> Iterator[tuple[str, list[int]]]:
    """Yield the address of a scheduler, and the process numbers of it and its workers."""
    at = out / "scheduler.json"
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": paths}
    dask = [sys.executable, "-m", "dask"]
    commands = [[*dask, "scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", str(at)]]
    options = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--memory-limit", "0"]
    commands += [[*dask, "worker", "--scheduler-file", str(at), *options]] * workers
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) for command in commands]
    try:
        while not at.exists():
            time.sleep(0.1)
        yield json.loads(at.read_text())["address"], [process.pid for process in processes]
    finally:
        for process in processes:
            process.kill()  # asked to end, a worker whose scheduler is gone would wait for it
            process.wait()


class Watch(SilentReporter):
    """Prints, each twentieth of the slides, what one took since the last line, and how large the processes are."""

    def __init__(self, total: int, others: list[int], spent: Counter[str]) -> None:
        self.total, self.others, self.spent, self.slides, self.before = total, others, spent, 0, "finished before"
        self.since = 0
        self.last, self.last_spent = self.now(), spent.copy()

    def now(self) -> tuple[float, ...]:
        return time.perf_counter(), time.process_time(), *map(processor_time, self.others)

    def end(self, result: SlideResult) -> None:
        if result.status != self.before and self.since:
            self.tell()
        self.before = result.status
        self.slides, self.since = self.slides + 1, self.since + 1
        if self.since >= max(1, self.total // 20):
            self.tell()

    def tell(self) -> None:
        now = self.now()
        wall, command, scheduler, *workers = (1000 * (b - a) / self.since for a, b in zip(self.last, now, strict=True))
        parts = {name: 1000 * (self.spent[name] - self.last_spent[name]) / self.since for name in self.spent}
        sizes = many_slides.memory("VmRSS"), many_slides.memory("VmRSS", self.others[0])
        print(
            f"{self.slides:>7} slides, these {self.before}: ms a slide {wall:.1f}, of a processor: command "
            f"{command:.2f}, scheduler {scheduler:.2f}, workers {sum(workers):.2f}; MB: command {sizes[0]:.0f}, "
            f"scheduler {sizes[1]:.0f}; of the command's {', '.join(f'{name} {ms:.2f}' for name, ms in parts.items())}",
            flush=True,
        )
        self.last, self.last_spent, self.since = self.now(), self.spent.copy(), 0


def processor_time(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def running(slides: Path, out: Path, address: str, others: list[int]) -> None:
    """Give the command."""
    from tests.support.synthetic import models

    spent: Counter[str] = Counter()
    for owner, name in PARTS:
        setattr(owner, name, clocked(getattr(owner, name), f"{owner.__name__}.{name}", spent))
    for task in ("open_task", "do_regions", "finish_task"):
        setattr(worker, task, getattr(stand_ins, task))
    coordinator.Coordinator._identify_models = lambda self: models().identity  # of the slide that was run
    jobs = plan([slides], many_slides.settings())
    results = coordinator.run_on_cluster(address, jobs, out, Watch(len(jobs), others, spent), None)
    counts = Counter(result.status for result in results)
    print(", ".join(f"{count} {status}" for status, count in counts.items()), flush=True)


def clocked(function: Callable, name: str, spent: Counter[str]) -> Callable:
    def inner(*arguments: object) -> object:
        began = time.thread_time()
        try:
            return function(*arguments)
        finally:
            spent[name] += time.thread_time() - began

    return inner


@click.command()
@click.option("--slides", "new", type=int, default=2_000, show_default=True)
@click.option("--finished", type=int, default=0, show_default=True, help="Slides that have their results already.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder; it is made anew.")
@click.option("--workers", type=int, default=2, show_default=True)
@click.option("--profile", is_flag=True, help="Print where the command's time goes.")
def main(new: int, finished: int, out: Path, workers: int, profile: bool) -> None:
    if out.exists():
        raise click.UsageError(f"{out} exists already; give another --out")
    slides, results = out / "slides", out / "results"
    slides.mkdir(parents=True)
    for number in range(finished + new):
        path, source = many_slides.slide_at(slides, number), out / f"slide-{number // LINKS}.png"
        if number % LINKS == 0:
            many_slides.draw(source, number)
        os.link(source, path)
    many_slides.run_some([many_slides.slide_at(slides, 0)], out / "first")
    for number in range(finished):
        slide = many_slides.slide_at(slides, number)
        copy_first(out / "first", slide, results / slide.stem)
    with cluster(out, workers) as (address, others):
        steps = [
            ("planning", many_slides.planning, (slides, results)),
            ("the command", running, (slides, results, address, others)),
        ]
        for name, step, arguments in steps:
            seconds, computed, megabytes = many_slides.timed(step, profile, *arguments)
            print(f"{name}: {seconds:.1f} s ({computed:.1f} s of a processor), {megabytes:.0f} MB", flush=True)
    print(f"summary.csv {(results / 'summary.csv').stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
