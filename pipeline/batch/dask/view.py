"""Progress display of a cluster: a live table of slides and workers on a terminal, plain lines in a pipe."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from pipeline.batch.progress import LINE_SECONDS, Bars, Lines, final_line
from pipeline.slide.identity import printable
from pipeline.store.run_record import Reporter, SlideResult

MAX_ROWS = 24


@dataclass
class SlideRow:
    """A slide under way: its name, what is done with it, its regions and its nuclei."""

    name: str
    state: str = "opening"
    total: int = 0
    done: int = 0
    nuclei: int = 0


@dataclass
class WorkerRow:
    """A worker: what it did, and when it was last heard of (on this process's clock)."""

    name: str
    slide: str = ""
    regions: int = 0
    nuclei: int = 0
    heard: float = field(default_factory=time.monotonic)


class ClusterView:
    """A reporter that also knows of workers; events come from another thread."""

    def __init__(self, reporter: Reporter, slides: int) -> None:
        self.reporter, self.total = reporter, slides
        self.console = reporter.console if isinstance(reporter, Bars) else Console(stderr=True)
        self.is_live, self.is_plain = isinstance(reporter, Bars), isinstance(reporter, Lines)
        self.lock = threading.Lock()
        self.slides: dict[str, SlideRow] = {}
        self.rows: dict[str, WorkerRow] = {}
        self.done = self.failed = 0
        self.mm2 = 0.0
        self.began = self.last = time.monotonic()
        self.live = Live(console=self.console, get_renderable=self.table, refresh_per_second=2, transient=True)

    def __enter__(self) -> Self:
        if self.is_live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_live:
            self.live.stop()

    def begin(self, name: str, mm2: float, regions: int, mm2_before: float = 0.0, regions_before: int = 0) -> None:
        """See :class:`~pipeline.store.run_record.Reporter`; on a cluster the slides begin side by side."""

    def advance(self, nuclei: int, mm2: float) -> None:
        """See :class:`~pipeline.store.run_record.Reporter`; regions are reported by :meth:`progress`."""

    def end(self, result: SlideResult) -> None:
        """See :class:`~pipeline.store.run_record.Reporter`."""
        with self.lock:
            self.done, self.failed = self.done + 1, self.failed + (result.status == "failed")
        if self.is_live:
            self.console.print(final_line(result), markup=False)
        else:
            self.reporter.end(result)

    def begin_slide(self, key: str, name: str) -> None:
        """Show a slide that was taken; ``key`` is its folder."""
        with self.lock:
            self.slides[key] = SlideRow(printable(name))

    def hear(self, event: Mapping[str, Any]) -> None:
        """Show what a worker tells: that it has begun a whole slide, or has finished a region."""
        if "total" in event:
            self.count_regions(event["folder"], event["total"], event["todo"])
        else:
            self.progress(event)

    def count_regions(self, key: str, total: int, todo: int) -> None:
        """Show how many regions an open slide has, and how many of them are to be done."""
        with self.lock:
            if (row := self.slides.get(key)) is None:  # it has ended meanwhile
                return
            row.state, row.total, row.done = "regions", total, total - todo
        before = f", {total - todo} of them done before" if todo < total else ""
        self._line(f"{row.name}: {total} regions{before}", at_once=True)

    def finishing(self, key: str) -> None:
        """Show that a slide's regions are done."""
        with self.lock:
            self.slides[key].state = "finishing"

    def end_slide(self, key: str) -> None:
        """Take a slide out of the view."""
        with self.lock:
            self.slides.pop(key, None)

    def progress(self, event: Mapping[str, Any]) -> None:
        """Show that a worker has finished a region."""
        with self.lock:
            self.mm2 += event["mm2"]
            worker = self.rows.setdefault(event["worker"], WorkerRow(event["worker"]))
            worker.regions, worker.nuclei = worker.regions + 1, worker.nuclei + event["nuclei"]
            worker.heard = time.monotonic()
            if row := self.slides.get(event["folder"]):
                row.done, row.nuclei = row.done + 1, row.nuclei + event["nuclei"]
                worker.slide = row.name
            text = self._state()
        self._line(text)

    def workers(self, known: Mapping[str, Mapping[str, Any]]) -> None:
        """Show the workers that the scheduler knows, by address."""
        with self.lock:
            gone = [key for key in self.rows if key not in known]
            for key in gone:
                del self.rows[key]
            for key, facts in known.items():
                self.rows.setdefault(key, WorkerRow(key)).name = f"{facts.get('name')} on {facts.get('host')}"
            text = "no worker is left; waiting for some" if not known else ""
        if text:
            self._line(text)

    def table(self) -> Group:
        """Return the tables as they stand."""
        with self.lock:
            slides = Table("slide", "state", "regions", "nuclei", box=None, pad_edge=False)
            for row in list(self.slides.values())[:MAX_ROWS]:
                slides.add_row(row.name, row.state, f"{row.done}/{row.total}", f"{row.nuclei:,}")
            workers = Table("worker", "slide", "regions", "nuclei", "last region", box=None, pad_edge=False)
            now = time.monotonic()
            for one in list(self.rows.values())[:MAX_ROWS]:
                heard = f"{now - one.heard:.0f} s ago" if one.regions else ""
                workers.add_row(one.name, one.slide, str(one.regions), f"{one.nuclei:,}", heard)
            return Group(self._state(), slides, workers)

    def _state(self) -> str:
        seconds = max(1e-3, time.monotonic() - self.began)
        return (
            f"{self.done} of {self.total} slides, {self.failed} failed, {len(self.slides)} under way on "
            f"{len(self.rows)} workers, {self.mm2 / seconds:.3f} mm²/s"
        )

    def _line(self, text: str, at_once: bool = False) -> None:
        """Print a plain line, not too often."""
        now = time.monotonic()
        if self.is_plain and (at_once or now - self.last >= LINE_SECONDS):
            self.last = now
            print(text, file=sys.stderr, flush=True)
