"""Several slides in one command: the models are loaded once, and one bad slide never stops the others."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nucpipe.errors import NucpipeError, OutputError, UsageError
from nucpipe.files import cannot_write
from pipeline.batch.lock import Lock, LostLock, held
from pipeline.batch.output import OutputLocation
from pipeline.batch.plan import Job, plan
from pipeline.config import RunConfig
from pipeline.run_slide import Reporter, SlideResult, run_slide
from pipeline.slide.identity import printable

if TYPE_CHECKING:
    from pipeline.inference.models import Models

POLL_S = 2.0
"""How often to look after slides that another process works on."""
NO_DISK = frozenset(
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EIO", "ENXIO", "ENODEV", "ESTALE", "ENOTCONN", "ETIMEDOUT", "EHOSTDOWN")
    if hasattr(errno, name)
)
"""What the system says of a disk that is full or gone: no later slide would fare better."""


def run_batch(
    inputs: Sequence[str | Path],
    out: str | Path,
    config: RunConfig,
    reporter: Reporter,
    max_failures: int | None = None,
    cluster: str | None = None,
) -> list[SlideResult]:
    """Run every slide; see :func:`pipeline.run_slide.run`."""
    jobs = plan(inputs, config)
    if max_failures is not None and max_failures < 1:
        raise UsageError(f"--max-failures {max_failures}: expected at least 1.")
    if cluster is not None:
        from pipeline.batch.dask.coordinator import run_on_cluster

        return run_on_cluster(cluster, jobs, out, reporter, max_failures)
    # OpenMP's threads shall sleep when they have nothing to do: they would take the time of the other stages.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from pipeline.inference.models import load_models

    models = load_models(
        config.segmentor, config.classifier, config.device, config.precision, config.tta, config.workers
    )
    jobs = with_library_names(jobs, models)
    tracker = BatchTracker(OutputLocation(out), reporter, max_failures)
    waiting = run_free(jobs, models, tracker)
    while waiting and not tracker.stopped:
        time.sleep(POLL_S)
        waiting = run_free(waiting, models, tracker)
    tracker.tell_stopped(len(jobs))
    return tracker.results


def with_library_names(jobs: list[Job], models: Models) -> list[Job]:
    """The jobs with ``--primary`` as the library writes its name.

    Raises:
        UsageError: a job names a library that the classifier does not know.
    """
    names = {
        primary: models.outputs.library(primary).name for primary in dict.fromkeys(job.config.primary for job in jobs)
    }
    return [replace(job, config=replace(job.config, primary=names[job.config.primary])) for job in jobs]


class BatchTracker:
    """What became of the slides so far, and whether to go on.

    Attributes:
        to: where the results go.
        reporter: is told of each.
        results: of the slides that are done with.
        stopped: no further slide shall be begun.
    """

    def __init__(self, to: OutputLocation, reporter: Reporter, max_failures: int | None) -> None:
        self.to, self.reporter, self.max_failures = to, reporter, max_failures
        self.results: list[SlideResult] = []
        self.stopped = False
        self._told: set[Path] = set()

    def add(self, job: Job, result: SlideResult) -> None:
        """A slide is done with.

        Raises:
            OutputError: the summary cannot be written.
        """
        result = replace(result, slide=job.slide, folder=self.to.shown(job))
        self.results.append(result)
        self.reporter.end(result)
        self.to.summary_line(result, job)
        failures = sum(one.status == "failed" for one in self.results)
        self.stopped = failures == self.max_failures

    def tell_stopped(self, slides: int) -> None:
        """That the limit of failures was reached before all of so many slides were begun."""
        if self.stopped and (left := slides - len(self.results)):
            logging.getLogger(__name__).warning(
                "stopped after %d failures (--max-failures); %d slides were not begun.", self.max_failures, left
            )

    def tell_once(self, job: Job, holder: object) -> None:
        """That a slide waits for another process."""
        if job.folder not in self._told:
            self._told.add(job.folder)
            logging.getLogger(__name__).warning(
                "%s: %s works on it; waiting.", printable(job.slide.name), holder or "another process"
            )


def run_free(jobs: list[Job], models: Models, tracker: BatchTracker) -> list[Job]:
    """Run the slides that no other process works on; returns the others.

    Raises:
        OutputError: the results cannot be written any more, whatever the slide.
    """
    others = []
    for job in jobs:
        if tracker.stopped:
            break
        try:
            lock = Lock(tracker.to.folder(job))
            if not lock.acquire():
                tracker.tell_once(job, lock.holder())
                others.append(job)
                continue
            with held(lock):
                result = try_slide(job, tracker.to, models, tracker.reporter, lock.check)
        except LostLock:
            others.append(job)
            continue
        except OutputError as error:
            result = SlideResult(job.slide, job.folder, "failed", cause=printable(error))
            if is_disk_gone(error):
                with suppress(OutputError):  # the summary lies on the same disk
                    tracker.add(job, result)
                raise OutputError(
                    f"stopped with {len(jobs) - jobs.index(job)} slides to go, for {error} What is done stays; "
                    "the same command goes on."
                ) from error
        tracker.add(job, result)
    return others


def try_slide(
    job: Job, to: OutputLocation, models: Models, reporter: Reporter, assert_lock_held: Callable[[], None]
) -> SlideResult:
    """One slide; what stops it is kept as the result's cause, for the other slides go on.

    Raises:
        OutputError: the disk for the results is full or gone, so that no other slide would fare better.
        LostLock: another process has the slide now.
    """
    try:
        return to.run(
            job,
            models,
            lambda path, folder, config: run_slide(path, folder, models, config, reporter, assert_lock_held, job.slide),
        )
    except LostLock:
        raise
    except Exception as error:
        if isinstance(error, OutputError) and is_disk_gone(error):
            raise
        if isinstance(error, OSError) and error.errno in NO_DISK:
            raise cannot_write(to.folder(job), error) from error
        logging.getLogger(__name__).debug("%s failed", job.slide, exc_info=True)
        return SlideResult(job.slide, job.folder, "failed", cause=explain(error))


def explain(error: Exception) -> str:
    """What a user is told of an error that stopped one slide, on one line."""
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
    """Whether a result could not be written for a reason that will stop every other slide too."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in NO_DISK
