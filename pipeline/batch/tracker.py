"""Outcomes of the slides of a batch, local or on a cluster, and the decision to go on."""

from __future__ import annotations

import errno
import logging
from dataclasses import replace
from pathlib import Path

from nucpipe.errors import NucpipeError, OutputError
from pipeline.batch.output import OutputLocation
from pipeline.batch.plan import Job
from pipeline.slide.identity import printable
from pipeline.store.run_record import Reporter, SlideResult

POLL_S = 2.0
"""Seconds between two checks of slides that another process works on."""
NO_DISK = frozenset(
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EIO", "ENXIO", "ENODEV", "ESTALE", "ENOTCONN", "ETIMEDOUT", "EHOSTDOWN")
    if hasattr(errno, name)
)
"""Errors of a disk that is full or gone: no later slide would fare better."""


class BatchTracker:
    """Outcomes of the slides so far, and the decision to go on.

    Attributes:
        to: where the results go.
        reporter: receives each.
        results: of the slides that are done with.
        stopped: no further slide shall be begun.
    """

    def __init__(self, to: OutputLocation, reporter: Reporter, max_failures: int | None) -> None:
        self.to, self.reporter, self.max_failures = to, reporter, max_failures
        self.results: list[SlideResult] = []
        self.stopped = False
        self._failures = 0
        self._told: set[Path] = set()

    def add(self, job: Job, result: SlideResult) -> None:
        """Record the result of a slide.

        Raises:
            OutputError: the summary cannot be written.
        """
        result = replace(result, slide=job.slide, folder=self.to.shown(job))
        self.results.append(result)
        self.reporter.end(result)
        self.to.summary_line(result, job)
        self._failures += result.status == "failed"
        self.stopped = self._failures == self.max_failures

    def tell_stopped(self, slides: int) -> None:
        """Warn that the limit of failures was reached before all slides were begun."""
        if self.stopped and (left := slides - len(self.results)):
            logging.getLogger(__name__).warning(
                "stopped after %d failures (--max-failures); %d slides were not begun.", self.max_failures, left
            )

    def tell_once(self, job: Job, holder: object) -> None:
        """Warn, once, that a slide waits for another process."""
        if job.folder not in self._told:
            self._told.add(job.folder)
            logging.getLogger(__name__).warning(
                "%s: %s works on it; waiting.", printable(job.slide.name), holder or "another process"
            )


def explain(error: Exception) -> str:
    """Return the one-line message of an error that stopped a slide."""
    match error:
        case NucpipeError():
            text = str(error)
        case MemoryError():
            text = "out of memory; use a smaller --region-size or --batch-size."
        case OSError():
            text = f"{error}; the same command tries again."
        case _:  # of a library, on a file that none of its authors thought of
            text = f"unexpected {type(error).__name__}: {error}; please report it."
    return printable(text)


def is_disk_gone(error: OutputError) -> bool:
    """Tell whether a result could not be written for a reason that will stop every other slide too."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in NO_DISK
