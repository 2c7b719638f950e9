"""Several slides in one command: the models are loaded once, and one bad slide never stops the others."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from nucpipe.errors import OutputError, UsageError
from pipeline.batch.lock import Lock, LostLock, held
from pipeline.batch.look_ahead import looked_ahead
from pipeline.batch.one_slide import try_slide
from pipeline.batch.output import OutputLocation
from pipeline.batch.plan import Job, plan
from pipeline.batch.tracker import POLL_S, BatchTracker, is_disk_gone
from pipeline.config import RunConfig
from pipeline.inference.models import Models, load_models
from pipeline.slide.identity import printable
from pipeline.store.run_record import Reporter, SilentReporter, SlideResult


def run(
    slides: str | Path | Sequence[str | Path],
    out: str | Path,
    config: RunConfig | None = None,
    reporter: Reporter | None = None,
    *,
    max_failures: int | None = None,
    cluster: str | None = None,
    **settings: Any,
) -> list[SlideResult]:
    """Find, outline and label every nucleus of slides, as ``nucpipe run`` does.

    Args:
        slides: a slide, a folder of slides, a pattern, a manifest, an address, or several of them.
        out: results of a slide lie in ``out/<slide's name>/``; ``out/summary.csv`` lists all slides.
        config: the settings; or give them by name, as in ``run("a.svs", "results", mpp=0.25)``.
        reporter: receives the progress.
        max_failures: stop after this many failed slides.
        cluster: the address of a Dask scheduler, or ``local:N`` for N processes on this machine.
        **settings: fields of :class:`~pipeline.config.RunConfig`.

    Returns:
        One result a slide. A slide that fails does not stop the others: its ``status`` is ``failed``.

    Raises:
        UsageError: a setting, a model's or a device's name is wrong, or no slide is found.
        OutputError: ``out`` cannot be written.
    """
    inputs = [slides] if isinstance(slides, str | Path) else list(slides)
    chosen = replace(config or RunConfig(), **settings)
    return run_batch(inputs, out, chosen, reporter or SilentReporter(), max_failures, cluster)


def run_batch(
    inputs: Sequence[str | Path],
    out: str | Path,
    config: RunConfig,
    reporter: Reporter,
    max_failures: int | None = None,
    cluster: str | None = None,
) -> list[SlideResult]:
    """Run every slide; see :func:`run`."""
    jobs = plan(inputs, config)
    if max_failures is not None and max_failures < 1:
        raise UsageError(f"--max-failures {max_failures}: expected at least 1.")
    if cluster is not None:
        from pipeline.batch.dask.coordinator import run_on_cluster  # late: dask is an extra, and slow to import

        return run_on_cluster(cluster, jobs, out, reporter, max_failures)
    # OpenMP's threads shall sleep when they have nothing to do: they would take the time of the other stages.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    models = load_models(
        config.segmentor, config.classifier, config.device, config.precision, config.tta, config.workers
    )
    jobs = with_library_names(jobs, models)
    with OutputLocation(out) as to:
        tracker = BatchTracker(to, reporter, max_failures)
        waiting = run_free(jobs, models, tracker)
        while waiting and not tracker.stopped:
            time.sleep(POLL_S)
            waiting = run_free(waiting, models, tracker)
    tracker.tell_stopped(len(jobs))
    return tracker.results


def with_library_names(jobs: list[Job], models: Models) -> list[Job]:
    """Return the jobs with ``--primary`` as the library writes its name.

    Raises:
        UsageError: a job names a library that the classifier does not know.
    """
    names = {
        primary: models.outputs.library(primary).name for primary in dict.fromkeys(job.config.primary for job in jobs)
    }
    return [replace(job, config=replace(job.config, primary=names[job.config.primary])) for job in jobs]


def run_free(jobs: list[Job], models: Models, tracker: BatchTracker) -> list[Job]:
    """Run the slides that no other process works on; returns the others.

    Raises:
        OutputError: the results cannot be written any more, whatever the slide.
    """
    others = []
    for number, (job, before) in enumerate(looked_ahead(jobs, tracker.to, models.identity)):
        if tracker.stopped:
            break
        if before is not None:
            tracker.add(job, before)
            continue
        try:
            job = tracker.to.with_folder(job)
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
                    f"stopped with {len(jobs) - number} slides to go, for {error} What is done stays; "
                    "the same command goes on."
                ) from error
        tracker.add(job, result)
    return others
