"""One slide of a batch, from its file to its published result; what goes wrong becomes its result's cause."""

from __future__ import annotations

import logging
from collections.abc import Callable

from nucpipe.errors import OutputError
from nucpipe.files import cannot_write
from pipeline.batch.lock import LostLock
from pipeline.batch.output import OutputRoot
from pipeline.batch.plan import Job
from pipeline.batch.tracker import NO_DISK, explain, is_disk_gone
from pipeline.inference.models import Models
from pipeline.run_slide import run_slide
from pipeline.store.run_record import Reporter, SlideResult


def try_slide(
    job: Job, to: OutputRoot, models: Models, reporter: Reporter, assert_lock_held: Callable[[], None]
) -> SlideResult:
    """Run one slide; what stops it becomes the result's cause, so that the other slides go on.

    Raises:
        OutputError: the disk for the results is full or gone, so that no other slide would fare better.
        LostLock: another process has the slide now.
    """
    try:
        if before := to.find_finished(job, models.identity):
            return before
        with to.local_slide(job) as path:
            config = to.config_of(job)
            result = run_slide(
                path, to.folder(job), models, config, reporter, assert_lock_held, job.slide, to.out_of(job)
            )
        return to.publish(job, models.identity, result)
    except LostLock:
        raise
    except Exception as error:
        if isinstance(error, OutputError) and is_disk_gone(error):
            raise
        if isinstance(error, OSError) and error.errno in NO_DISK:
            raise cannot_write(to.folder(job), error) from error
        logging.getLogger(__name__).debug("%s failed", job.slide, exc_info=True)
        return SlideResult(job.slide, job.folder, "failed", cause=explain(error))
