"""Progress display of a run: a bar on a terminal, plain lines in a pipe or a log file."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from classifier.out_of_distribution import HIGH, in_words
from nucpipe.counts import counted
from pipeline.slide.identity import printable
from pipeline.store.run_record import Reporter, SilentReporter, SlideResult

LINE_SECONDS = 30


def failure(result: SlideResult) -> str:
    """Return the slide and what stopped it; most causes begin with the slide's name, which is not said twice."""
    slide, cause = printable(result.slide), result.cause
    for name in (slide, printable(result.slide.name)):
        if cause.startswith((f"{name}: ", f"{name} ")):
            cause = cause.removeprefix(name).lstrip(": ")
    return f"{slide}: {cause}"


def final_line(result: SlideResult) -> str:
    """Return one line that says what became of a slide, and one more where its labels must not be trusted."""
    name, folder = printable(result.slide.name), printable(result.folder)
    found = counted(result.nuclei, "nucleus", "nuclei")
    if result.status == "failed":
        return f"FAILED {failure(result)}"
    if result.status == "finished before":
        return f"{name}: finished before, {found} in {folder} (--overwrite redoes it)"
    if not result.tissue_mm2 and not result.nuclei:
        return f"{name}: 0 nuclei, no tissue found (--tissue none looks everywhere) -> {folder}"
    if not result.nuclei:
        return (
            f"{name}: 0 nuclei on {result.tissue_mm2:.3g} mm², for none was found there, or none that reaches "
            f"--min-area and --min-detection -> {folder}"
        )
    line = f"{name}: {found} on {result.tissue_mm2:.3g} mm² in {result.seconds:.0f} s -> {folder}"
    if result.out_of_distribution is None or result.out_of_distribution < HIGH:
        return line
    return f"{line}\n{name}: {in_words(result.out_of_distribution)} (usual: 5 %); look at them before you count"


class Lines:
    """Plain lines on standard error, one now and then."""

    def begin(self, name: str, mm2: float, regions: int, mm2_before: float = 0.0, regions_before: int = 0) -> None:
        """See :class:`~pipeline.store.run_record.Reporter`."""
        self.name, self.mm2, self.mm2_before, self.done_mm2, self.nuclei = name, mm2, mm2_before, mm2_before, 0
        self.began = self.last = time.monotonic()
        before = f", {regions_before} of them done before" if regions_before else ""
        print(f"{name}: {mm2:.3g} mm² of tissue in {counted(regions, 'region')}{before}", file=sys.stderr, flush=True)

    def advance(self, nuclei: int, mm2: float) -> None:
        """See :class:`~pipeline.store.run_record.Reporter`."""
        self.nuclei, self.done_mm2 = self.nuclei + nuclei, self.done_mm2 + mm2
        now = time.monotonic()
        if now - self.last >= LINE_SECONDS and self.done_mm2 > self.mm2_before:
            self.last = now
            speed = (self.done_mm2 - self.mm2_before) / (now - self.began)
            left = (self.mm2 - self.done_mm2) / speed
            print(
                f"{self.name}: {self.done_mm2:.3g} of {self.mm2:.3g} mm², {self.nuclei:,} nuclei, "
                f"{speed:.3f} mm²/s, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    def end(self, result: SlideResult) -> None:
        """See :class:`~pipeline.store.run_record.Reporter`."""
        print(final_line(result), file=sys.stderr, flush=True)


class Bars:
    """A progress bar for the slide at work, with nuclei found, mm²/s and time left."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.bar: Progress | None = None
        self.task = TaskID(0)

    def begin(self, name: str, mm2: float, regions: int, mm2_before: float = 0.0, regions_before: int = 0) -> None:
        """See :class:`~pipeline.store.run_record.Reporter`."""
        if regions_before:
            self.console.print(f"{name}: {regions_before} of {regions} regions done before", markup=False)
        self.mm2_before = mm2_before
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn(
                "{task.completed:.2f}/{task.total:.2f} mm²  {task.fields[nuclei]:,} nuclei  {task.fields[speed]}"
            ),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self.task = self.bar.add_task(name, total=mm2, nuclei=0, speed="")
        self.bar.update(self.task, completed=mm2_before)
        self.bar.start()

    def advance(self, nuclei: int, mm2: float) -> None:
        """See :class:`~pipeline.store.run_record.Reporter`."""
        if self.bar is not None:
            task = self.bar.tasks[0]
            done = task.completed + mm2 - self.mm2_before
            speed = f"{done / task.elapsed:.3f} mm²/s" if task.elapsed else ""
            self.bar.update(self.task, advance=mm2, nuclei=task.fields["nuclei"] + nuclei, speed=speed)

    def end(self, result: SlideResult) -> None:
        """See :class:`~pipeline.store.run_record.Reporter`."""
        self.close()
        self.console.print(final_line(result), markup=False)

    def close(self) -> None:
        """Take the bar away, also from a slide that was stopped; it hides the cursor."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def reporter() -> Reporter:
    """Return the one that fits standard error."""
    if sys.stderr is None:  # closed by whoever started the process
        return SilentReporter()
    return Bars() if sys.stderr.isatty() else Lines()
