"""Measure the stages of a run: seconds and waits of the stages of a run, for ``run.json`` and ``--profile``."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any


@dataclass(frozen=True)
class Span:
    """A piece of work, in seconds since the run began."""

    stage: str
    thread: str
    began: float
    ended: float


@dataclass
class StageTotal:
    """Totals of a stage over all threads.

    Attributes:
        seconds: of work.
        waited: seconds that work which was ready waited for a thread.
        times: how often.
    """

    seconds: float = 0.0
    waited: float = 0.0
    times: int = 0


class StageTimer:
    """Takes the time of work in any thread.

    Args:
        keep: keep every span, for a timeline; else only sums.
    """

    def __init__(self, keep: bool = False) -> None:
        self.began = monotonic()
        self.sums: dict[str, StageTotal] = {}
        self.spans: list[Span] = []
        self.nuclei, self.mm2 = 0, 0.0
        self._keep = keep
        self._lock = threading.Lock()

    @contextmanager
    def measure(self, stage: str, asked: float | None = None) -> Iterator[None]:
        """Time the block as work of a stage that was ready to begin at ``asked`` (of ``time.monotonic``)."""
        began = monotonic()
        try:
            yield
        finally:
            ended = monotonic()
            with self._lock:
                total = self.sums.setdefault(stage, StageTotal())
                total.seconds += ended - began
                total.waited += began - asked if asked is not None else 0.0
                total.times += 1
                if self._keep:
                    name = threading.current_thread().name
                    self.spans.append(Span(stage, name, began - self.began, ended - self.began))

    def count(self, nuclei: int, mm2: float) -> None:
        """Count a finished region and its area in square millimetres."""
        self.nuclei, self.mm2 = self.nuclei + nuclei, self.mm2 + mm2

    def performance(self, seconds: float, workers: int, max_concurrency: int) -> dict[str, Any]:
        """Return how well the machine was used, as JSON can hold it.

        Args:
            seconds: that all stages together took.
            workers: processors that were used.
            calls: of networks that the device takes at once.
        """
        stages = {
            stage: {"seconds": round(s.seconds, 3), "waited": round(s.waited, 3), "times": s.times}
            for stage, s in self.sums.items()
        }
        networks = sum(self.sums[stage].seconds for stage in ("detect", "classify") if stage in self.sums)
        seconds = max(seconds, 1e-3)
        return {
            "stages": stages,
            "workers": workers,
            "device_busy": round(min(1.0, networks / (seconds * max_concurrency)), 3),
            "threads_busy": round(sum(s.seconds for s in self.sums.values()) / (seconds * workers), 3),
            "nuclei_per_second": round(self.nuclei / seconds, 1),
            "mm2_per_second": round(self.mm2 / seconds, 4),
        }


class RunClock:
    """Seconds of the parts of one slide's run, and what its stages took.

    Args:
        keep_spans: keep every span of the stages, for a timeline.
        began_before: seconds since the run began elsewhere.
    """

    def __init__(self, keep_spans: bool = False, began_before: float = 0.0) -> None:
        self.began = self.last = monotonic()
        self.began -= began_before
        self.parts: dict[str, float] = {}
        self.timer = StageTimer(keep_spans)
        self._workers, self._max_concurrency = 0, 1

    def lap(self, part: str) -> None:
        """End a part of the run now."""
        now = monotonic()
        self.parts[part] = round(now - self.last, 3)
        self.last = now

    def used(self, workers: int, max_concurrency: int) -> None:
        """Note the processors that the stages used, and the calls of networks that the device takes at once."""
        self._workers, self._max_concurrency = workers, max_concurrency

    def total(self) -> float:
        """Return the seconds since the start."""
        return round(monotonic() - self.began, 3)

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each part, and ``total``."""
        return {**self.parts, "total": self.total()}

    def performance(self) -> dict[str, Any]:
        """Return how well the machine was used; empty where no region was run here."""
        if not self._workers:
            return {}
        return self.timer.performance(self.parts.get("nuclei", 0.0), self._workers, self._max_concurrency)
