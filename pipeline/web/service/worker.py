"""One thread that drives the models for all clients: what waits is worked on together."""

from __future__ import annotations

import io
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from classifier.predictions import Predictions
from nucpipe.backends.processors import available_processors
from pipeline.inference.engine import process_regions
from pipeline.inference.models import Models
from pipeline.regions.region import Region
from pipeline.slide.base import Slide
from pipeline.web.service.canvas import SLOTS, BatchCanvas
from pipeline.web.service.images import read_image
from pipeline.web.service.metrics import Metrics
from segmentation.nuclei import Nuclei

LINGER_S = 0.005
"""Longest wait of the first of several requests for others to join it."""
MAX_TOGETHER = min(64, SLOTS)
"""Requests of one sheet: then those of another pixel size have their turn."""

Crops = npt.NDArray[np.uint8]


class Busy(Exception):
    """As much waits as may wait."""


@dataclass
class ImageJob:
    """An image whose nuclei are wanted; the answer's nuclei are in its pixels."""

    image: Slide
    answer: Future[tuple[Nuclei, Predictions]] = field(default_factory=Future)
    regions_left: int = 0
    parts: list[tuple[Nuclei, Predictions]] = field(default_factory=list)

    def forget_image(self) -> None:
        """Let go of the pixels; other images of the sheet may take long."""
        self.image.close()
        self.image.forget()


@dataclass
class CropsJob:
    """Patches of single nuclei to label, at least one, from :func:`classifier.patches.cut_crops`."""

    crops: Crops
    answer: Future[Predictions] = field(default_factory=Future)


class Worker(threading.Thread):
    """Drives the models, one sheet of requests after another.

    Attributes:
        models: loaded.
    """

    def __init__(self, models: Models, batch_size: int, most_waiting: int, metrics: Metrics) -> None:
        super().__init__(name="nucpipe-serve", daemon=True)
        self.models = models
        self._batch_size, self._most_waiting, self._metrics = batch_size, most_waiting, metrics
        self._waiting: deque[ImageJob | CropsJob] = deque()
        self._changed = threading.Condition()
        self._ended = False

    def submit(self, job: ImageJob | CropsJob) -> None:
        """Let a job wait for its turn; cancel its answer and it is forgotten.

        Raises:
            Busy: too many wait already, or the worker has ended.
        """
        with self._changed:
            if self._ended or len(self._waiting) >= self._most_waiting:
                raise Busy
            self._waiting.append(job)
            self._metrics.waiting.set(len(self._waiting))
            self._changed.notify()
        job.answer.add_done_callback(lambda answer: self._withdraw(job) if answer.cancelled() else None)

    def _withdraw(self, job: ImageJob | CropsJob) -> None:
        with self._changed:
            # By identity: comparing jobs would compare their pixels.
            self._waiting = deque(one for one in self._waiting if one is not job)
            self._metrics.waiting.set(len(self._waiting))

    def end(self) -> None:
        """Finish what has begun, and no more."""
        with self._changed:
            self._ended = True
            waiting = list(self._waiting)
            self._changed.notify()
        for job in waiting:
            job.answer.cancel()

    def run(self) -> None:
        """Serve jobs until :meth:`end`."""
        while (job := self._next()) is not None:
            if isinstance(job, CropsJob):
                self._name_crops(job)
            else:
                self._work_on(job)

    def _next(self) -> ImageJob | CropsJob | None:
        """Return the job that has waited longest; None at the end."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ended)
                if self._ended:
                    return None
                job = self._take(0)
            if job is not None:
                time.sleep(LINGER_S)
                return job

    def _take(self, place: int) -> ImageJob | CropsJob | None:
        """Return the job at a place of the queue, taken out of it; None where its client no longer waits."""
        job = self._waiting[place]
        del self._waiting[place]
        self._metrics.waiting.set(len(self._waiting))
        return job if job.answer.set_running_or_notify_cancel() else None

    def _next_like(self, image: Slide) -> ImageJob | None:
        """Return the job that has waited longest of those with images of the same pixel size."""
        with self._changed:
            place = 0
            while place < len(self._waiting):
                job = self._waiting[place]
                if not isinstance(job, ImageJob) or job.image.mpp != image.mpp:
                    place += 1
                elif self._take(place) is not None:
                    return job
        return None

    def _work_on(self, first: ImageJob) -> None:
        """Run the first job's image, and those that join it while the engine still asks for regions."""
        sheet, jobs = BatchCanvas(first.image), list[ImageJob]()

        def regions() -> Iterator[Region]:
            job: ImageJob | None = first
            while job is not None:
                jobs.append(job)
                own = list(sheet.add(job.image, self.models))
                job.regions_left = len(own)
                yield from own
                job = self._next_like(first.image) if len(sheet) < MAX_TOGETHER else None

        try:
            named = process_regions(
                sheet, sheet.grid, sheet.tissue, regions(), self.models, self._batch_size, available_processors()
            )
            for done in named:
                job = jobs[sheet.slot(done.region)]
                job.parts.append((sheet.in_image(done.region, done.nuclei_l0), done.labels))
                job.regions_left -= 1
                if not job.regions_left:
                    job.forget_image()
                    job.answer.set_result(_together(job.parts))
        except Exception as error:  # reported to the clients; the next ones are served
            self._log_failure()
            for job in jobs:
                if not job.answer.done():
                    job.forget_image()
                    job.answer.set_exception(error)
        finally:
            self._metrics.together.observe(len(jobs))
            sheet.close()

    def _log_failure(self) -> None:
        if not self._ended:  # Python may end before the last image does, and that is no failure
            logging.getLogger(__name__).exception("a request failed")

    def _name_crops(self, job: CropsJob) -> None:
        try:
            job.answer.set_result(label_crops(self.models, job.crops, self._batch_size))
        except Exception as error:
            self._log_failure()
            job.answer.set_exception(error)


def warm_up(models: Models, batch_size: int) -> None:
    """Find the nuclei of a drawn image, so that all is loaded and compiled before the first client waits for it."""
    drawn = np.full((128, 128, 3), (235, 190, 215), np.uint8)
    for x, y in ((32, 32), (96, 32), (32, 96), (96, 96)):
        cv2.circle(drawn, (x, y), 14, (90, 40, 130), -1)
    job = ImageJob(read_image(io.BytesIO(cv2.imencode(".png", drawn[..., ::-1])[1].tobytes()), 0.25))
    worker = Worker(models, batch_size, 1, Metrics())
    worker.submit(job)
    worker.start()
    try:
        job.answer.result()
    finally:
        worker.end()


def _together(parts: Sequence[tuple[Nuclei, Predictions]]) -> tuple[Nuclei, Predictions]:
    return Nuclei.concatenate([nuclei for nuclei, _ in parts]), Predictions.concatenate([labels for _, labels in parts])


def label_crops(models: Models, crops: Crops, batch_size: int) -> Predictions:
    """Return the labels of patches, at least one."""
    return Predictions.concatenate(
        [models.classifier(crops[k : k + batch_size]) for k in range(0, len(crops), batch_size)]
    )
