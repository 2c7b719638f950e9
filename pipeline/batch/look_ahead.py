"""Slides of a batch that are finished already: they are found ahead of the others' turn, without their locks."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from nucpipe.errors import NucpipeError
from pipeline.batch.lock import Lock
from pipeline.batch.output import OutputLocation
from pipeline.batch.plan import Job
from pipeline.inference.models import ModelIdentity
from pipeline.store.run_record import SlideResult

LOOKING = 8
"""Threads that look which slides are finished."""


def looked_ahead(
    jobs: Iterable[Job], to: OutputLocation, models: ModelIdentity
) -> Generator[tuple[Job, SlideResult | None], None, None]:
    """Yield each slide, in order, with its result where that is known to be finished.

    Several are looked at at a time: most of what that takes, where there are thousands, is the wait for a disk.
    """
    threads = ThreadPoolExecutor(LOOKING, "nucpipe-look")
    ahead: deque[tuple[Job, Future[tuple[Job, SlideResult] | None]]] = deque()
    try:
        for job in jobs:
            ahead.append((job, threads.submit(_finished_before, job, to, models)))
            if len(ahead) > 2 * LOOKING:
                job, found = ahead.popleft()
                yield found.result() or (job, None)
        for job, found in ahead:
            yield found.result() or (job, None)
    finally:
        threads.shutdown(cancel_futures=True)


def _finished_before(job: Job, to: OutputLocation, models: ModelIdentity) -> tuple[Job, SlideResult] | None:
    """Return the slide, with its folder, and its whole result on this disk, where no lock is needed to tell.

    None where it has to be looked at more closely by who holds the slide's lock.
    """
    if to.address is not None:
        return None
    try:
        job = to.with_folder(job)
        result = to.find_finished(job, models)
        return (job, result) if result is not None and Lock(to.folder(job)).is_free() else None
    except (NucpipeError, OSError):
        return None
